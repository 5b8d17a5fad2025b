"""Lightning's `Trainer`, whose limits are read as they are written."""

from typing import Any  # no postponed annotations: the command line would look them up in typing, see below

import pytorch_lightning as pl


class Trainer(pl.Trainer):
    """A trainer whose limits count batches where they are whole numbers, else are a fraction (1: one batch, 1.0: all).

    Which of the two a `1` on the command line is, depends on the first type that takes it. Lightning declares
    `Optional[Union[int, float]]`; for that, `typing` hands out whichever order of the two any package of the process
    has asked for first. In a process that had read data before it trained, a limit of 1 was the whole epoch.
    """

    def __init__(
        self,
        *,
        limit_train_batches: int | float = 1.0,
        limit_val_batches: int | float = 1.0,
        limit_test_batches: int | float = 1.0,
        limit_predict_batches: int | float = 1.0,
        overfit_batches: int | float = 0.0,
        gradient_clip_val: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            limit_train_batches=_unannounced(limit_train_batches),
            limit_val_batches=_unannounced(limit_val_batches),
            limit_test_batches=_unannounced(limit_test_batches),
            limit_predict_batches=_unannounced(limit_predict_batches),
            overfit_batches=overfit_batches,
            gradient_clip_val=gradient_clip_val,
            **settings,
        )


def _unannounced(limit: int | float) -> int | float | None:
    """None where it is all: the same to Lightning, which would tell of a 1.0 as if somebody had asked for it."""
    return None if isinstance(limit, float) and limit == 1 else limit
