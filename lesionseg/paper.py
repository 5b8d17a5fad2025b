"""The table of the paper (arXiv 1907.13409): its rows, their order and their figures."""

from __future__ import annotations

from collections.abc import Iterable

BASELINE = "baseline"

#: Rows of the paper's table (arXiv 1907.13409), in its order. Its "accuracy" most likely is that of the lesions found.
PAPER: dict[str, dict[str, float]] = {
    "baseline": {"dice1": 0.49, "dice2": 0.44, "success_rate": 0.89, "accuracy": 0.56},
    "no_freezing": {"dice1": 0.57, "dice2": 0.55, "success_rate": 0.94, "accuracy": 0.64},
    "hierarchical_freezing": {"dice1": 0.65, "dice2": 0.60, "success_rate": 0.93, "accuracy": 0.68},
    "freeze_encoder": {"dice1": 0.57, "dice2": 0.54, "success_rate": 0.94, "accuracy": 0.63},
    "hierarchical_unfreezing": {"dice1": 0.64, "dice2": 0.60, "success_rate": 0.94, "accuracy": 0.73},
}


def in_paper_order(schedules: Iterable[str]) -> list[str]:
    """The rows of the paper's table in its order, then all others by name."""
    names = set(schedules)
    return [name for name in PAPER if name in names] + sorted(names - set(PAPER))


def title(schedule: str) -> str:
    """A schedule's name for readers."""
    return schedule.replace("_", " ")
