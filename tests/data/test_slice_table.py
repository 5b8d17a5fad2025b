"""The table of slices against the records it was made from, and its size."""

import pickle

import numpy as np
import pytest
from made_cases import cohort

from lesionseg.data.prepare import prepare
from lesionseg.data.slice_table import SliceRef, SliceTable


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    return prepare(cohort(folder / "in", n=4), folder / "store", kind="slices", workers=1).records


def test_every_slice_with_liver_as_foreground(records):
    chosen = [2, 0]
    table = SliceTable(records, chosen, all_slices=True)
    expected = [
        SliceRef(records[i].case_id, k, k in records[i].liver_slices)
        for i in chosen
        for k in range(records[i].shape[0])
    ]
    assert list(table) == expected
    assert table[1:3] == expected[1:3]
    assert table[-1] == expected[-1]
    assert [records[i].case_id for i in table.case] == [ref.case_id for ref in expected]


def test_slices_with_liver_with_lesion_as_foreground(records):
    table = SliceTable(records, range(len(records)), all_slices=False)
    expected = [SliceRef(r.case_id, k, k in r.lesion_slices) for r in records for k in r.liver_slices]
    assert list(table) == expected
    assert any(ref.foreground for ref in expected)
    assert not all(ref.foreground for ref in expected)


def test_no_case_no_slice(records):
    table = SliceTable(records, [], all_slices=True)
    assert (len(table), list(table)) == (0, [])


def test_nine_bytes_a_slice(records):
    table = SliceTable(records * 1000, range(4000), all_slices=True)
    arrays = (table.case, table.slice, table.foreground)
    assert sum(array.nbytes for array in arrays) == 9 * len(table) == 9 * 1000 * sum(r.shape[0] for r in records)
    again = pickle.loads(pickle.dumps(table))
    assert all(np.array_equal(getattr(again, name), getattr(table, name)) for name in ("case", "slice", "foreground"))
