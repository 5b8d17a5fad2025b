"""By which address a machine is reached from others; needs nothing but Python, as `make` asks it too."""

from __future__ import annotations

import socket


def leads_here(name: str) -> bool:
    """Whether a name or an address leads to no other machine than this one, or nowhere."""
    try:
        return socket.gethostbyname(name).startswith("127.")
    except OSError:
        return True


def address_towards(other: str) -> str | None:
    """The IPv4 address of this machine on the way to another; None: there is no way. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect((other, 9))
        except OSError:
            return None
        return str(way.getsockname()[0])
