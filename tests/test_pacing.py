"""Clock and plateau against tables written by hand, and against the rule written out again."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lesionseg.errors import InputError
from lesionseg.pacing import Clock, Plateau
from lesionseg.schedules import FreezeSchedule

OUT = {"decoder": "always", "head": "always"}
NAMES = ("stem", "stage4", "decoder", "head")


def resolve(trains, epochs):
    return FreezeSchedule.parse({**trains, **OUT}).resolve(epochs, NAMES)


# ---- clock ----

HALF = math.sqrt(0.5) / 2
#: Four epochs of two steps; half of each block's own time to warm up, then half a cosine. The middle of a step counts:
#: steps at 1/16, 3/16 … of 4 epochs; at 1/8, 3/8 … of 2.
DECODER = [0.125, 0.375, 0.625, 0.875, *((1 + math.cos(math.pi * x)) / 2 for x in (0.125, 0.375, 0.625, 0.875))]
TABLE = {
    "stem": [0, 0, 0, 0, 0.25, 0.75, 0.5 + HALF, 0.5 - HALF],  # thaws in the middle of the training
    "stage4": [0.025, 0.075, 0.05 + HALF / 10, 0.05 - HALF / 10, 0, 0, 0, 0],  # a tenth of the rate, then freezes
    "decoder": DECODER,
    "head": DECODER,
}


def test_rates_by_hand():
    schedule = resolve({"stem": [0.5, 1], "stage4": [{"start": 0, "stop": 0.5, "rate": 0.1}]}, 4)
    for name, expected in TABLE.items():
        steps = [Clock(warm_up=0.5).rates(schedule, epoch, batch, 2)[name] for epoch in range(4) for batch in range(2)]
        assert steps == pytest.approx(expected, abs=1e-12), name


def test_a_block_that_thaws_again_starts_anew_and_a_change_of_rate_does_not():
    clock = Clock(warm_up=0.5, end=0.5)
    twice = resolve({"stem": [{"start": 0, "stop": 0.25}, {"start": 0.5, "stop": 0.75}], "stage4": "never"}, 4)
    first, second = ([clock.rates(twice, epoch, batch, 5)["stem"] for batch in range(5)] for epoch in (0, 2))
    assert first == pytest.approx(second, abs=1e-12)
    assert first[2:] == pytest.approx([1, 0.5 + 0.5 * (1 + math.cos(0.4 * math.pi)) / 2,
                                       0.5 + 0.5 * (1 + math.cos(0.8 * math.pi)) / 2])  # fmt: skip
    halved = [{"start": 0, "stop": 0.5}, {"start": 0.5, "stop": 1, "rate": 0.5}]
    rates = clock.rates(resolve({"stem": halved, "stage4": "always"}, 4), 3, 1, 5)
    assert rates["stem"] == rates["stage4"] / 2 == rates["head"] / 2


@given(st.floats(0, 0.9), st.floats(0, 1), st.integers(1, 200))
def test_a_clock_rises_to_the_full_rate_falls_to_its_end_and_is_never_0(warm_up, end, steps):
    factors = [Clock(warm_up, end).factor((step + 0.5) / steps) for step in range(steps)]
    top = factors.index(max(factors))
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert top <= math.ceil(warm_up * steps)
    assert factors[-1] >= end or top == steps - 1  # as few steps may all be of the warm-up


def test_no_warm_up_and_no_decay_is_no_clock():
    schedule = resolve({"stem": [0.5, 1], "stage4": "always"}, 4)
    for epoch in range(4):
        assert Clock(warm_up=0, end=1).rates(schedule, epoch, 1, 3) == schedule.state(epoch)


# ---- plateau ----

SCHEDULE = {"stem": [0.75, 1], "stage4": [0.5, 1]}  # stage4 thaws before epoch 6 of 12 at the latest, stem before 9


def starts(plateau, figures, epochs=12):
    """First epoch of each step, by the figures of the first epochs."""
    schedule = plateau.hasten(resolve(SCHEDULE, epochs), dict(enumerate(figures)))
    assert [step.rates for step in schedule.steps] == [step.rates for step in resolve(SCHEDULE, epochs).steps]
    assert schedule.steps[-1].stop == schedule.epochs == epochs
    assert all(a.stop == b.start for a, b in zip(schedule.steps, schedule.steps[1:], strict=False))
    return [step.start for step in schedule.steps]


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ([], [0, 6, 9]),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], [0, 6, 9]),  # no plateau: the latest times
        ([0.1, 0.2, 0.2], [0, 6, 9]),  # once no better
        ([0.1, 0.2, 0.2, 0.1], [0, 4, 9]),  # twice
        ([0.1, 0.2, 0.2, 0.1, 0.2], [0, 4, 9]),  # the count starts anew
        ([0.1, 0.2, 0.2, 0.1, 0.2, 0.2], [0, 4, 6]),
        ([0.1, 0.2, 0.2, 0.1, 0.3, 0.2, 0.2], [0, 4, 7]),  # better in between
        ([0.1, 0.2, 0.2, 0.1, 0.2, 0.2, 0.1, 0.1, 0.1], [0, 4, 6]),  # no step is left
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5], [0, 6, 8]),  # a step at its latest time starts the count anew too
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.6, 0.5], [0, 6, 9]),
        ([math.nan, math.nan], [0, 2, 9]),  # what is no number is not better
        ([0.1, math.nan, 0.2], [0, 6, 9]),
    ],
)
def test_steps_by_hand(figures, expected):
    assert starts(Plateau(patience=2), figures) == expected


def test_patience_and_the_least_difference():
    rising = [0.10, 0.11, 0.12, 0.13, 0.20]
    assert starts(Plateau(patience=1), [0.2, 0.2]) == [0, 2, 9]
    assert starts(Plateau(patience=3), [0.2, 0.2, 0.2]) == [0, 6, 9]
    assert starts(Plateau(patience=2, min_delta=0.05), rising[:3]) == [0, 3, 9]
    assert starts(Plateau(patience=2, min_delta=0.05), rising) == [0, 3, 9]
    assert starts(Plateau(patience=2, min_delta=0.005), rising) == [0, 6, 9]


def test_validations_further_apart_are_counted_not_epochs():
    schedule = resolve(SCHEDULE, 12)
    seen = {1: 0.2, 3: 0.2, 5: 0.2}
    assert [step.start for step in Plateau(2).hasten(schedule, seen).steps] == [0, 6, 9]
    assert [step.start for step in Plateau(1).hasten(schedule, seen).steps] == [0, 4, 6]


@given(st.lists(st.floats(0, 1), max_size=12), st.integers(1, 4), st.floats(0, 0.3))
def test_what_has_happened_stays_and_nothing_comes_late(figures, patience, min_delta):
    """More figures move no step that has begun: a run that goes on finds its own past."""
    plateau, latest = Plateau(patience, min_delta), [0, 6, 9]
    whole = starts(plateau, figures)
    assert all(start <= last for start, last in zip(whole, latest, strict=True))
    for seen in range(len(figures) + 1):
        part = starts(plateau, figures[:seen])
        assert [start for start in part if start <= seen] == [start for start in whole if start <= seen]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clock(warm_up=1), "schedule.clock.warm_up: expected 0 to below 1; got 1"),
        (lambda: Clock(warm_up=-0.1), "clock.warm_up"),
        (lambda: Clock(warm_up=math.nan), "clock.warm_up"),
        (lambda: Clock(end=1.5), "schedule.clock.end: expected 0 to 1; got 1.5"),
        (lambda: Plateau(patience=0), "schedule.plateau.patience: expected 1 or more; got 0"),
        (lambda: Plateau(min_delta=-1), "schedule.plateau.min_delta: expected 0 or more; got -1"),
        (lambda: Plateau(min_delta=math.nan), "plateau.min_delta"),
    ],
)
def test_what_is_out_of_range_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
