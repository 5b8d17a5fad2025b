"""Python's garbage collector, at rest while much is made and nothing of it is garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """No search for garbage meanwhile: for every few hundred new objects it looks at many of the old ones.

    It takes a fourth of the time in which torch and its company are imported, a third of that in which a store of
    thousands of cases is opened and split, and half of that in which a large table of JSON is parsed.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
