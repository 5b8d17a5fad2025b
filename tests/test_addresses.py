"""Addresses as the system tells them in other ways."""

import socket

import psutil

from lesionseg.addresses import address_towards, leads_here

#: Nobody's: RFC 5737 and RFC 2606.
ELSEWHERE, NOWHERE = "192.0.2.77", "machine.invalid"


def test_the_way_to_oneself_and_out():
    own = {each.address for addresses in psutil.net_if_addrs().values() for each in addresses
           if each.family == socket.AF_INET}  # fmt: skip
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert address_towards(NOWHERE) is None
    assert address_towards(ELSEWHERE) in {None, *own}


def test_what_leads_to_no_other_machine():
    assert [leads_here(name) for name in ("localhost", "127.0.1.1", NOWHERE, ELSEWHERE)] == [True, True, True, False]
