"""What the corpus shares."""

import pytest
from bad_kinds import Bench


def pytest_addoption(parser):
    parser.addoption("--messages", action="store_true", help="write tests/corpus/messages.txt anew")


@pytest.fixture
def bench(tmp_path, lits_store, slices_store, phantom_root, pretrained, make_model, pretraining, finetuning) -> Bench:
    folder = tmp_path / "made"
    folder.mkdir()
    return Bench(folder, lits_store, slices_store, phantom_root, pretrained, make_model(), pretraining, finetuning)
