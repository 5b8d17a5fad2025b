"""What both engines share: a bounded number of items on their way, and what is said of one that kills its workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

#: Why an item has no result.
KILLED = (
    "every worker process that had it was killed, most likely for memory: try fewer workers, or more memory for each"
)
#: A look at the engine comes so often while nothing is done.
LOOK_S = 20.0

Item = TypeVar("Item")
Result = TypeVar("Result")


def as_done(
    submit: Callable[[Item], Any],
    waiting: deque[Item],
    begun: dict[Any, Item],
    ahead: int,
    look: Callable[[], object] = lambda: None,
) -> Iterator[Any]:
    """Futures of items as they are done.

    Args:
        submit: begins an item: its future.
        waiting: items to begin; they are taken from its left.
        begun: which item each future is of; whoever takes a future removes it.
        ahead: so many are begun at most.
        look: called when nothing was done for a while; raises where nothing will be.
    """
    done: SimpleQueue[Any] = SimpleQueue()
    while waiting or begun:
        while waiting and len(begun) < ahead:
            future = submit(waiting[0])
            begun[future] = waiting.popleft()
            future.add_done_callback(done.put)
        try:
            future = done.get(timeout=LOOK_S)
        except Empty:
            look()
        else:
            yield future


def without_result(item: Item, killed: Callable[[Item], Result] | None) -> Result:
    """What stands for the result of an item that kills its workers; `ChildProcessError` where nothing does."""
    if killed is None:
        raise ChildProcessError(KILLED)
    return killed(item)
