"""`EpochMeans` against means worked out here, in one go and from the midst of an epoch."""

from types import SimpleNamespace

import torch

from lesionseg.epoch_means import EpochMeans

VALUES = {"dice": [0.5, 0.25, 1.5], "pull": [2.0]}
ALONE = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda value, reduce_op: value))


def noted(means: EpochMeans, values: dict[str, list[float]]) -> EpochMeans:
    for name, each in values.items():
        for value in each:
            means.note(name, torch.tensor(value, requires_grad=True))
    return means


def test_each_name_has_the_mean_of_its_own_values():
    means = noted(EpochMeans(), VALUES).means()
    assert {name: float(mean) for name, mean in means.items()} == {"dice": 0.75, "pull": 2.0}
    assert not any(mean.requires_grad for mean in means.values())


def test_what_goes_on_from_a_checkpoint_has_the_means_of_the_whole_epoch():
    half = noted(EpochMeans(), {"dice": VALUES["dice"][:1]})
    state = half.state(ALONE)
    half.note("dice", torch.tensor(9.0))  # no later value reaches what was saved
    rest = noted(EpochMeans(state), {"dice": VALUES["dice"][1:], "pull": VALUES["pull"]})
    assert {name: float(mean) for name, mean in rest.means().items()} == {"dice": 0.75, "pull": 2.0}


def test_a_value_that_changes_later_was_noted_as_it_was():
    means, value = EpochMeans(), torch.tensor(1.0)
    means.note("loss", value)
    value += 1
    assert float(means.means()["loss"]) == 1
