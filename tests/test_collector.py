"""`collector_at_rest`: nothing is collected within, and the collector is left as it was."""

import gc
import weakref

import pytest

from lesionseg.collector import collector_at_rest


class Knot:
    """Refers to itself, so that only the collector removes it."""

    def __init__(self) -> None:
        self.itself = self


def tied(many: int) -> int:
    """How many of so many knots stay."""
    knots = [weakref.ref(Knot()) for _ in range(many)]
    return sum(knot() is not None for knot in knots)


def test_garbage_stays_meanwhile():
    assert tied(10_000) < 10_000
    with collector_at_rest():
        assert tied(10_000) == 10_000


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled):
    (gc.enable if enabled else gc.disable)()
    try:
        with collector_at_rest():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
        with pytest.raises(ZeroDivisionError), collector_at_rest():
            1 / 0  # noqa: B018
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
