"""Whether machines can meet at a place, as far as one of them can tell; `torchrun` would try for minutes.

Usage: meeting.py HOST:PORT MACHINES   (`make` with MEET)
"""

from __future__ import annotations

import re
import socket
import sys

from lesionseg.addresses import address_towards, leads_here
from lesionseg.errors import InputError

MOST_PORT = 65_535


def check(place: str) -> None:
    """Raise `InputError` for a place that is no host and port, whose host nobody knows, or whose port is taken here."""
    host, _, port = place.partition(":")
    if not re.fullmatch(r"[^:\s]+:\d{1,5}", place) or not 0 < int(port) <= MOST_PORT:
        _refuse("host:port, one of the machines and a free port there", place, "change it")
    try:
        address = socket.gethostbyname(host)
    except OSError:
        _refuse("a name or address that this machine knows", host, "take the machine's address, or add its name")
    if host.startswith("127.") or not (leads_here(address) or address == address_towards(address)):
        return  # one machine that plays several, or another one
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torchrun's, just after another training
        try:
            listener.bind(("", int(port)))  # on Debian the machine's own name leads to 127.0.1.1
        except OSError as error:
            _refuse("a free port of this machine", f"{port} ({error.strerror})", "take another one")


def _refuse(expected: str, got: str, remedy: str) -> None:
    raise InputError("MEET", expected=expected, got=got, remedy=remedy)


def main() -> int:
    place, machines = sys.argv[1], int(sys.argv[2])
    try:
        check(place)
    except InputError as error:
        print(f"lesionseg: wrong input: {error}", file=sys.stderr)
        return 2
    if machines > 1:
        print(f"meeting at {place}: waiting until all {machines} machines have come", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
