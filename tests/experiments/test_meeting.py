"""Where machines meet: what is told at once, and what is left to torchrun."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lesionseg.addresses import address_towards

ROOT = Path(__file__).parents[2]


def meeting(place, machines=2):
    command = [sys.executable, "experiments/meeting.py", place, str(machines)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "place", ["127.0.0.1", "127.0.0.1:", ":29500", "a:b", "a:0", "a:65536", "a :29500", "a:29500 b"]
)
def test_what_is_no_host_and_port_is_refused(place):
    done = meeting(place)
    said = f"lesionseg: wrong input: MEET: expected host:port, one of the machines and a free port there; got {place}; "
    assert (done.returncode, done.stderr) == (2, f"{said}change it\n")


def test_a_name_that_nobody_knows_is_refused():
    done = meeting("machine.invalid:29500")
    assert done.returncode == 2
    assert "MEET: expected a name or address that this machine knows; got machine.invalid; " in done.stderr


def test_a_port_of_this_machine_that_is_taken_is_refused_and_free_once_its_program_has_ended():
    if (own := address_towards("192.0.2.77")) is None:  # nobody's (RFC 5737), but the way there is known
        pytest.skip("no network")
    with socket.socket() as other:
        other.bind((own, 0))
        other.listen()
        port = other.getsockname()[1]
        for host in (own, "localhost"):  # as a name of its own that leads to 127.0.1.1 on Debian
            done = meeting(f"{host}:{port}")
            assert done.returncode == 2
            assert f"expected a free port of this machine; got {port} (Address already in use); " in done.stderr
    done = meeting(f"{own}:{port}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"meeting at {own}:{port}: waiting until all 2 machines have come\n"


def test_a_machine_alone_waits_for_nobody_and_others_are_left_to_torchrun():
    assert meeting("127.0.0.1:29500", 1).stdout == ""
    assert meeting("192.0.2.77:29500").returncode == 0
