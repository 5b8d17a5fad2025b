"""A process that reads slices for a training (`data.num_workers`): when it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def heed_the_trainer_alone(worker: int) -> None:
    """Let a reader end by the word of the process it reads for, and by nobody else's.

    SLURM and systemd send a signal to all processes of a job. The training then finishes its batch and saves, for which
    it needs its readers. A reader whose training is gone ends by itself, as all of torch's do.

    Only a forked reader has no other thread in which a signal could be delivered.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS lacks it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, daemon=True).start()


def _end_when_told() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid and parent.is_alive():
        pass
    os._exit(0)
