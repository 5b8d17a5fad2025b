import gzip
import itertools
import resource

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from lesionseg.errors import InputError
from lesionseg.formats.nifti import read_nifti, read_nifti_labels
from lesionseg.formats.nifti_write import write_color_table, write_nifti_labels, write_nifti_maps
from lesionseg.labels import COLORS, NAMES
from lesionseg.segmentation import RESEARCH_USE_ONLY

SHAPE = (7, 6, 5)  # i, j, k
SPACING = (0.7, 0.8, 2.5)
GEOMETRY = ("sform_code", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
GEOMETRY += ("srow_x", "srow_y", "srow_z", "xyzt_units")


def rotation(degrees=(20.0, -35.0, 50.0)):
    out = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn, (a, b) = np.eye(3), [other for other in range(3) if other != axis]
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        out = turn @ out
    return out


def affine_of(direction, spacing=SPACING, origin=(-120.3, 210.7, -950.2)):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * np.array(spacing), origin
    return affine


def ct(shape=SHAPE):
    """Values -1000 … 300, none of them twice where they matter: a flip or a swap of axes changes every mask."""
    return np.random.default_rng(5).integers(-1000, 300, shape).astype(np.int16)


def save(path, array, affine=None, kind=nib.Nifti1Image, header=None):
    nib.save(kind(array, affine, header), path)
    return path


def labelled(hu):
    """The label map that the 'model' of these tests gives an image, whatever its orientation."""
    return (np.asarray(hu) > -600).astype(np.uint8) + (np.asarray(hu) > 0) * np.uint8(2)


def written(path, like):
    """The file written for an input, by way of the scan, as `segment` does it."""
    scan, _ = read_nifti(like)
    write_nifti_labels(path, labelled(scan.hu), scan.affine, like=like)
    return scan


def centroids_mm(path, value):
    """Centroid of a label in patient coordinates (LPS), by nibabel and by SimpleITK."""
    image = nib.load(path)
    voxels = np.argwhere(np.asarray(image.dataobj) == value).mean(0)
    ras = image.affine @ [*voxels, *(0,) * (3 - len(voxels)), 1]
    other = sitk.ReadImage(path)
    index = np.argwhere(sitk.GetArrayFromImage(other) == value).mean(0)[::-1]
    return ras[:3] * (-1, -1, 1), np.array(other.TransformContinuousIndexToPhysicalPoint(index.tolist()))


def assert_same_grid(path, like, scan):
    """Both readers see the same voxels at the same places as in the input."""
    ours, theirs = nib.load(path), nib.load(like)
    assert ours.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    np.testing.assert_array_equal(ours.header.get_zooms(), theirs.header.get_zooms()[: ours.ndim])
    np.testing.assert_array_equal(ours.header["pixdim"][:4], theirs.header["pixdim"][:4])
    for field in GEOMETRY:
        np.testing.assert_array_equal(ours.header[field], theirs.header[field], err_msg=field)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), labelled(theirs.get_fdata().reshape(ours.shape)))
    ours, theirs = sitk.ReadImage(path), sitk.ReadImage(like)
    assert ours.GetPixelID() == sitk.sitkUInt8
    if ours.GetDimension() == theirs.GetDimension():
        assert ours.GetOrigin() == theirs.GetOrigin()
        assert ours.GetDirection() == theirs.GetDirection()
        assert ours.GetSpacing() == theirs.GetSpacing()
        np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), labelled(sitk.GetArrayFromImage(theirs)))
    np.testing.assert_array_equal(read_nifti_labels(path, scan, (0, 1, 3)), labelled(scan.hu))


@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("oblique", [False, True], ids=["straight", "oblique"])
def test_all_48_orientations_return_to_the_grid_of_the_input(tmp_path, oblique, axes, signs):
    image = nib.Nifti1Image(ct(), affine_of(rotation() if oblique else np.eye(3)))
    turned = image.as_reoriented(np.array(list(zip(axes, signs, strict=True))))
    turned.set_qform(turned.affine, code=1)
    nib.save(turned, tmp_path / "ct.nii.gz")
    scan = written(tmp_path / "seg.nii.gz", tmp_path / "ct.nii.gz")
    assert_same_grid(tmp_path / "seg.nii.gz", tmp_path / "ct.nii.gz", scan)
    for value in (1, 3):
        true = image.affine @ [*np.argwhere(labelled(ct()) == value).mean(0), 1]
        ours = scan.affine @ [*np.argwhere(labelled(scan.hu) == value).mean(0), 1]
        for found in (*centroids_mm(tmp_path / "seg.nii.gz", value), ours[:3]):
            np.testing.assert_allclose(found, true[:3] * (-1, -1, 1), atol=0.01)


def test_qform_alone_with_left_handed_axes(tmp_path):
    image = nib.Nifti1Image(ct(), None)
    image.header.set_qform(affine_of(rotation() @ np.diag([1.0, -1, 1])), code=1)
    assert image.header["pixdim"][0] == -1
    nib.save(image, tmp_path / "ct.nii")
    assert nib.load(tmp_path / "ct.nii").header["sform_code"] == 0
    scan = written(tmp_path / "seg.nii.gz", tmp_path / "ct.nii")
    assert_same_grid(tmp_path / "seg.nii.gz", tmp_path / "ct.nii", scan)


def test_sform_and_qform_keep_their_own_values_and_codes(tmp_path):
    image = nib.Nifti1Image(ct(), affine_of(rotation()))
    image.set_sform(affine_of(rotation()), code=2)
    near = affine_of(rotation())
    near[0, 3] += 0.01
    image.set_qform(near, code=1)
    nib.save(image, tmp_path / "ct.nii")
    scan = written(tmp_path / "seg.nii.gz", tmp_path / "ct.nii")
    assert_same_grid(tmp_path / "seg.nii.gz", tmp_path / "ct.nii", scan)
    header = nib.load(tmp_path / "seg.nii.gz").header
    assert (header["sform_code"], header["qform_code"]) == (2, 1)
    assert header["qoffset_x"] != header["srow_x"][3]


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -1, 1, 1]), None], ids=["identity", "itk", "none"])
def test_unknown_geometry_is_written_as_the_input_has_it(tmp_path, affine):
    save(tmp_path / "ct.nii.gz", ct(), affine)
    scan = written(tmp_path / "seg.nii.gz", tmp_path / "ct.nii.gz")
    assert scan.affine is None
    assert_same_grid(tmp_path / "seg.nii.gz", tmp_path / "ct.nii.gz", scan)


@pytest.mark.parametrize("shape", [(7, 6), (7, 6, 1), (7, 1, 6), (7, 6, 5, 1)])
def test_slices_and_single_frames(tmp_path, shape):
    save(tmp_path / "ct.nii", ct(shape), affine_of(np.diag([-1.0, -1, 1])))
    scan = written(tmp_path / "seg.nii.gz", tmp_path / "ct.nii")
    assert nib.load(tmp_path / "seg.nii.gz").shape == shape[:3]
    assert sitk.ReadImage(tmp_path / "seg.nii.gz").GetDimension() == min(len(shape), 3)
    assert_same_grid(tmp_path / "seg.nii.gz", tmp_path / "ct.nii", scan)


def test_scaled_and_big_endian_inputs(tmp_path):
    affine = affine_of(rotation())
    save(tmp_path / "big.nii", ct(), affine, header=nib.Nifti1Header(endianness=">"))
    raw = bytearray(save(tmp_path / "scaled.nii", (ct() + 1024) // 2 * 2, affine).read_bytes())
    raw[112:120] = np.array([0.5, -1000], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "scaled.nii").write_bytes(raw)
    for name in ("big.nii", "scaled.nii"):
        scan = written(tmp_path / "seg.nii.gz", tmp_path / name)
        assert_same_grid(tmp_path / "seg.nii.gz", tmp_path / name, scan)


def test_inputs_of_version_2_are_opened_by_itk(tmp_path):
    save(tmp_path / "two.nii", ct(), affine_of(rotation()), kind=nib.Nifti2Image)
    with pytest.raises(RuntimeError, match="ImageIO"):
        sitk.ReadImage(tmp_path / "two.nii")
    written(tmp_path / "seg.nii.gz", tmp_path / "two.nii")
    image, affine = nib.load(tmp_path / "seg.nii.gz"), nib.load(tmp_path / "two.nii").affine
    np.testing.assert_allclose(image.affine, affine, rtol=1e-7, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(image.dataobj), labelled(ct()))
    true = affine @ [*np.argwhere(labelled(ct()) == 3).mean(0), 1]
    for found in centroids_mm(tmp_path / "seg.nii.gz", 3):
        np.testing.assert_allclose(found, true[:3] * (-1, -1, 1), atol=0.01)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("hand", [1, -1])
def test_scans_of_dicom_lie_where_their_affine_says(tmp_path, axes, hand):
    direction = (rotation() @ np.diag([1.0, 1, hand]))[:, list(axes)]
    affine = affine_of(direction)  # LPS, of (d, h, w)
    labels = labelled(ct())
    write_nifti_labels(tmp_path / "seg.nii.gz", labels, affine)
    header = nib.load(tmp_path / "seg.nii.gz").header
    assert (header["sform_code"], header["qform_code"]) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-3)
    for value in (1, 3):
        true = affine @ [*np.argwhere(labels == value).mean(0), 1]
        for found in centroids_mm(tmp_path / "seg.nii.gz", value):
            np.testing.assert_allclose(found, true[:3], atol=0.01)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "seg.nii.gz")), labels)
    assert np.array_equal(np.asarray(nib.load(tmp_path / "seg.nii.gz").dataobj), labels.T)


def test_without_affine_and_input_no_geometry_is_claimed(tmp_path):
    write_nifti_labels(tmp_path / "seg.nii.gz", labelled(ct()), None)
    header = nib.load(tmp_path / "seg.nii.gz").header
    assert (header["sform_code"], header["qform_code"]) == (0, 0)


def test_views_are_written_as_they_look(tmp_path):
    labels = labelled(ct())
    write_nifti_labels(tmp_path / "view.nii.gz", np.flip(labels.transpose(2, 0, 1), (0, 2)), np.eye(4))
    found = np.asarray(nib.load(tmp_path / "view.nii.gz").dataobj).T
    np.testing.assert_array_equal(found, np.flip(labels.transpose(2, 0, 1), (0, 2)))


def test_nothing_of_the_patient_and_the_clock_gets_into_the_file(tmp_path):
    image = nib.Nifti1Image(ct(), affine_of(np.eye(3)))
    for field, value in (
        ("descrip", "MARKER"),
        ("aux_file", "MARKER"),
        ("db_name", "MARKER"),
        ("intent_name", "MARKER"),
    ):
        image.header[field] = value
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"MARKER"))
    nib.save(image, tmp_path / "MARKER.nii.gz")
    written(tmp_path / "seg.nii.gz", tmp_path / "MARKER.nii.gz")
    packed = (tmp_path / "seg.nii.gz").read_bytes()
    assert b"MARKER" not in packed + gzip.decompress(packed)
    assert packed[3:8] == bytes(5)  # no name, no time
    written(tmp_path / "again.nii.gz", tmp_path / "MARKER.nii.gz")
    assert (tmp_path / "again.nii.gz").read_bytes() == packed
    header = nib.load(tmp_path / "seg.nii.gz").header
    assert header["descrip"].item().decode() == RESEARCH_USE_ONLY
    assert header.get_intent()[0] == "label"


def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "seg.nii.gz"
    write_nifti_labels(path, labelled(ct()), None)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), hard))
    try:
        with pytest.raises(OSError, match="too large"):
            write_nifti_labels(path, np.random.default_rng(0).integers(0, 5, (20, 64, 64)).astype(np.uint8), None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_arrays_are_refused(tmp_path):
    like = save(tmp_path / "ct.nii", ct(), np.eye(4))
    with pytest.raises(ValueError, match="grid"):
        write_nifti_labels(tmp_path / "seg.nii.gz", labelled(ct()), None, like=like)  # (i, j, k), not (D, H, W)
    with pytest.raises(ValueError, match="uint8"):
        write_nifti_labels(tmp_path / "seg.nii.gz", ct(), None)
    with pytest.raises(ValueError, match="names"):
        write_nifti_maps(tmp_path, np.zeros((1, 2, 2, 2), np.float16), ["../cyst"], None)
    (tmp_path / "text.nii").write_text("no NIfTI")
    with pytest.raises(InputError, match="readable NIfTI"):
        write_nifti_labels(tmp_path / "seg.nii.gz", labelled(ct()), None, like=tmp_path / "text.nii")
    assert {path.name for path in tmp_path.iterdir()} == {"ct.nii", "text.nii"}


def test_probabilities_are_held_to_the_bit_one_file_a_class(tmp_path):
    save(tmp_path / "ct.nii.gz", ct(), affine_of(rotation()))
    scan, _ = read_nifti(tmp_path / "ct.nii.gz")
    maps = np.random.default_rng(1).dirichlet(np.ones(3), scan.hu.shape).astype(np.float16).transpose(3, 0, 1, 2)
    classes = ("background", "liver", "cyst")
    paths = write_nifti_maps(tmp_path, maps, classes, scan.affine, like=tmp_path / "ct.nii.gz")
    assert [path.name for path in paths] == [f"probability_{name}.nii.gz" for name in classes]
    for path, values in zip(paths, maps, strict=True):
        image, other = nib.load(path), sitk.ReadImage(path)
        assert image.get_data_dtype() == np.float32
        np.testing.assert_array_equal(np.asarray(image.dataobj).T, values)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(other), values)
        np.testing.assert_array_equal(image.affine, nib.load(tmp_path / "ct.nii.gz").affine)
        assert other.GetDirection() == sitk.ReadImage(tmp_path / "ct.nii.gz").GetDirection()


def test_color_table_is_read_by_the_rules_of_slicer(tmp_path):
    """Slicer skips lines with #, then reads id, name and four numbers, divided by spaces."""
    write_color_table(tmp_path / "seg.ctbl")
    lines = (tmp_path / "seg.ctbl").read_text().splitlines()
    assert lines[0] == "# Color table file seg.ctbl"
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert lines[1] == f"# {len(rows)} values"
    assert [int(row[0]) for row in rows] == list(range(len(NAMES)))
    assert [row[1] for row in rows] == list(NAMES.values())
    assert all(len(row) == 6 for row in rows)
    assert {int(row[0]): tuple(map(int, row[2:5])) for row in rows if row[5] == "255"} == COLORS
    assert rows[0][2:] == ["0"] * 4
