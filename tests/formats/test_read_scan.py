import nibabel as nib
import numpy as np
import pytest

from lesionseg.errors import InputError
from lesionseg.formats import read_scan
from lesionseg.formats.png import write_png


def test_nifti_by_name_and_strict(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4)), tmp_path / "A.NII.GZ")
    assert read_scan(tmp_path / "A.NII.GZ").hu.shape == (4, 3, 2)
    with pytest.raises(InputError, match="identity"):
        read_scan(tmp_path / "A.NII.GZ", strict=True)


def test_what_is_no_scan_is_refused_with_the_way_out(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "a.mha").write_text("ObjectType = Image")
    (tmp_path / "folder").mkdir()
    for name, word, code in (
        ("a.png", r"window_low_hu.*slices\.csv", "format"),
        ("a.mha", "convert the CT", "format"),
        ("nothing", "nothing of that name", "missing-file"),
        ("folder", "no DICOM file", "no-dicom"),
    ):
        with pytest.raises(InputError, match=word) as error:
            read_scan(tmp_path / name)
        assert error.value.code == code
