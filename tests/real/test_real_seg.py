"""DICOM-SEG of others read, and ours on real CT. `LESIONSEG_REAL` names the folder; without it all are skipped."""

import gzip
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from lesionseg.errors import InputError
from lesionseg.formats import read_scan
from lesionseg.formats.dicom import source_headers
from lesionseg.formats.dicom_seg import write_dicom_seg
from lesionseg.formats.dicom_seg_read import read_dicom_seg
from lesionseg.formats.png import read_png_labels
from lesionseg.labels import LIVER, UNTYPED_LESION
from lesionseg.segmentation import Finding, Segmentation

ROOT = os.environ.get("LESIONSEG_REAL")
pytestmark = [pytest.mark.real, pytest.mark.skipif(not ROOT, reason="LESIONSEG_REAL names no folder")]
REAL = Path(ROOT or ".")
DCMQI = REAL / "dicom_seg_dcmqi"
CT = DCMQI / "ct-3slice"
FRAME = "1.2.392.200103.20080913.113635.3.2009.6.22.21.44.34.23882.1"


def read_nrrd(path):
    """Values (D, H, W) and affine (LPS) of a gzip-packed NRRD of int16."""
    head, _, packed = path.read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    vectors = [np.array(text.split(","), float) for text in re.findall(r"\(([^)]*)\)", fields["space directions"])]
    affine = np.eye(4)
    affine[:3, :3] = np.stack(vectors[::-1], axis=1)
    affine[:3, 3] = np.array(fields["space origin"].strip("()").split(","), float)
    sizes = [int(size) for size in fields["sizes"].split()]
    return np.frombuffer(gzip.decompress(packed), "<i2").reshape(sizes[::-1]), affine


def errors(path):
    if not shutil.which("dciodvfy"):
        return []
    output = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False).stderr
    return [line for line in output.splitlines() if line.startswith("Error")]


def positions(mask, affine):
    return {tuple(place) for place in np.round(np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3], 2).tolist()}


def test_a_liver_by_dcmqi_equals_its_nrrd():
    scan = read_scan(CT)
    (liver,) = read_dicom_seg(DCMQI / "liver.dcm", scan, source_headers(CT)[0].FrameOfReferenceUID)
    assert (liver.label, liver.name) == (LIVER, "Liver")
    assert liver.mask.sum() == 107_098
    values, affine = read_nrrd(DCMQI / "liver_seg.nrrd")
    assert positions(liver.mask, scan.affine) == positions(values > 0, affine)
    assert np.median(scan.hu[liver.mask]) == pytest.approx(45, abs=5)  # without contrast medium


@pytest.mark.parametrize("d", range(3))
def test_a_liver_by_dcmqi_on_single_slices(d):
    whole = read_scan(CT)
    source = source_headers(CT)[d]
    (path,) = (path for path in CT.iterdir() if pydicom.dcmread(path).SOPInstanceUID == source.SOPInstanceUID)
    (expected,), (liver,) = (read_dicom_seg(DCMQI / "liver.dcm", scan, FRAME) for scan in (whole, read_scan(path)))
    np.testing.assert_array_equal(liver.mask[0], expected.mask[d])


def test_overlapping_segments_by_dcmqi(tmp_path):
    """Coded as tissues, so refused; as lesions they are read, overlapping, and equal their NRRDs."""
    scan = read_scan(CT)
    with pytest.raises(InputError, match=r"GREEN \(SCT 85756007\), ORANGE") as error:
        read_dicom_seg(DCMQI / "partial_overlaps.dcm", scan)
    assert error.value.code == "seg-code"
    seg = pydicom.dcmread(DCMQI / "partial_overlaps.dcm")
    for item in seg.SegmentSequence:
        item.SegmentedPropertyTypeCodeSequence[0].CodeValue = codes.SCT.Lesion.value
    seg.save_as(tmp_path / "seg.dcm")
    read = [segment.mask for segment in read_dicom_seg(tmp_path / "seg.dcm", scan)]
    assert sum(read).max() > 1
    found = {frozenset(positions(mask, scan.affine)) for mask in read}
    expected = set()
    for number in (1, 2, 3):
        values, affine = read_nrrd(DCMQI / f"partial_overlaps-{number}.nrrd")
        expected |= {frozenset(positions(values == value, affine)) for value in np.unique(values[values > 0])}
    assert found == expected


def test_chaos_ground_truth_there_and_back(tmp_path):
    root = REAL / "dicom" / "chaos_3" / "Data_3D"
    scan, sources = read_scan(root / "DICOM_anon"), source_headers(root / "DICOM_anon")
    liver = np.concatenate([read_png_labels(path) for path in sorted((root / "Ground").iterdir())]) > 0
    if scan.affine[2, 0] > 0:  # the masks run from the head down
        liver = liver[::-1]
    ids = np.zeros(liver.shape, np.uint16)
    found = Segmentation(scan, liver.astype(np.uint8), ids, (), None, 0, {"identity": "ground truth"}, {})
    seg = write_dicom_seg(tmp_path / "seg.dcm", found, sources)
    assert seg.NumberOfFrames == liver.any((1, 2)).sum()
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices == 2.0
    assert all("DerivationImageSequence" in frame for frame in seg.PerFrameFunctionalGroupsSequence)
    (read,) = read_dicom_seg(tmp_path / "seg.dcm", scan, sources[0].FrameOfReferenceUID)
    assert read.mask.sum() == 1_342_595
    np.testing.assert_array_equal(read.mask, liver)
    assert errors(tmp_path / "seg.dcm") == []


@pytest.mark.parametrize(
    "name",
    [
        "dicom/transfer_syntaxes/testImages/CTImage.dcm",
        "dicom/transfer_syntaxes/testImages/CTImage.dcm_JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90.dcm",
        "dicom/pydicom_data/data_store/data/693_UNCI.dcm",
        "dicom/pydicom_data/data_store/data/explicit_VR-UN.dcm",
    ],
)
def test_headers_as_they_come(tmp_path, name):
    """Of many makers and anonymisers, with what they leave out and what they break."""
    scan, sources = read_scan(REAL / name), source_headers(REAL / name)
    labels = (scan.hu > 40).astype(np.uint8)
    ids = (scan.hu > 60).astype(np.uint16)
    labels[ids > 0] = UNTYPED_LESION
    finding = Finding(1, "undetermined", {}, 1, 1, 1, 1, None, None, None, None, 0, 0, None, (0, 0, 0), (0, 0), 0)
    found = Segmentation(scan, labels, ids, (finding,), None, 0, {"identity": "threshold"}, {})
    write_dicom_seg(tmp_path / "seg.dcm", found, sources)
    liver, lesion = read_dicom_seg(tmp_path / "seg.dcm", scan, sources[0].get("FrameOfReferenceUID"))
    np.testing.assert_array_equal(liver.mask, labels > 0)
    np.testing.assert_array_equal(lesion.mask, ids > 0)
    assert errors(tmp_path / "seg.dcm") == []
