import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest

from lesionseg.errors import InputError
from lesionseg.formats.nifti import PHANTOM_MARK, read_nifti, read_nifti_labels
from lesionseg.scan import Case, to_canonical

SHAPE = (4, 5, 6)  # i, j, k
AFFINE = np.array([[-0.7, 0, 0, 10.0], [0, -0.8, 0, 20.0], [0, 0, 2.5, -30.0], [0, 0, 0, 1]])


def voxels(shape=SHAPE, dtype=np.int16):
    return (np.arange(np.prod(shape)).reshape(shape) - 60).astype(dtype)


def save(path, array=None, affine=AFFINE, **header):
    image = nib.Nifti1Image(voxels() if array is None else array, affine)
    for field, value in header.items():
        image.header[field] = value
    nib.save(image, path)
    return path


def refused(path, *words, strict=False):
    with pytest.raises(InputError) as error:
        read_nifti(path, strict=strict)
    message = str(error.value)
    assert str(path) in message
    assert "expected" in message
    assert "\n" not in message
    for word in words:
        assert word in message
    return error.value


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_every_voxel_keeps_its_value_and_place(tmp_path, name):
    affine = AFFINE @ np.array([[0, 1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    scan, warnings = read_nifti(save(tmp_path / name, affine=affine))
    assert warnings == ()
    assert scan.scan_id == "a"
    assert not scan.generated
    assert scan.hu.shape == SHAPE[::-1]
    assert scan.spacing_mm == pytest.approx((0.8, 0.7, 2.5))
    for i, j, k in itertools.product(*map(range, SHAPE)):
        assert scan.hu[k, j, i] == voxels()[i, j, k]
        x, y, z, _ = affine @ (i, j, k, 1)
        np.testing.assert_allclose((scan.affine @ (k, j, i, 1))[:3], (-x, -y, z), atol=1e-5)


@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_all_48_orientations_of_one_scan_become_the_same(tmp_path, axes, signs):
    image = nib.Nifti1Image(voxels(), AFFINE)  # radiological: x to the left falls, so i, j, k run L, P, S
    mask = nib.Nifti1Image((voxels() + 60).astype(np.uint8), AFFINE)
    turn = np.array(list(zip(axes, signs, strict=True)))
    nib.save(image.as_reoriented(turn), tmp_path / "turned.nii")  # nibabel is the reference
    nib.save(mask.as_reoriented(turn), tmp_path / "mask.nii")
    scan, _ = read_nifti(tmp_path / "turned.nii")
    labels = read_nifti_labels(tmp_path / "mask.nii", scan, range(voxels().size))
    expected, _ = read_nifti(save(tmp_path / "plain.nii"))
    np.testing.assert_array_equal(expected.hu, voxels().T)
    case = to_canonical(Case(scan, labels, "p"))
    assert np.shares_memory(case.scan.hu, scan.hu)  # turned, and in memory once
    assert np.shares_memory(case.labels, labels)
    np.testing.assert_array_equal(case.scan.hu, expected.hu)
    np.testing.assert_array_equal(case.labels, expected.hu + 60)
    np.testing.assert_allclose(case.scan.affine, expected.affine, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_types_and_byte_orders_are_voxel_exact(tmp_path, dtype):
    values = voxels(dtype=np.int32) + 60
    header = nib.Nifti1Header(endianness=">")
    for name, image in (
        ("little.nii", nib.Nifti1Image(values.astype(dtype), AFFINE)),
        ("big.nii", nib.Nifti1Image(values.astype(dtype), AFFINE, header)),
        ("two.nii.gz", nib.Nifti2Image(values.astype(dtype), AFFINE)),
    ):
        image.header.set_data_dtype(dtype)
        nib.save(image, tmp_path / name)
        np.testing.assert_array_equal(read_nifti(tmp_path / name)[0].hu, values.T)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_scaling_of_the_header_is_applied(tmp_path, dtype):
    path = save(tmp_path / "a.nii", voxels(dtype=np.int32).astype(dtype))
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([1.1, -1024], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(raw)
    theirs = np.asarray(nib.load(path).dataobj, dtype=np.float32)
    np.testing.assert_array_equal(read_nifti(path)[0].hu, np.rint(theirs.T))


def test_gzip_is_known_by_its_bytes_not_by_the_name(tmp_path):
    plain = save(tmp_path / "a.nii")
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "plain.nii.gz").write_bytes(plain.read_bytes())
    for name in ("packed.nii", "plain.nii.gz"):
        np.testing.assert_array_equal(read_nifti(tmp_path / name)[0].hu, voxels().T)


@pytest.mark.parametrize(("shape", "read"), [((4, 5), (1, 5, 4)), ((4, 5, 1), (1, 5, 4)), ((4, 5, 6, 1), (6, 5, 4))])
def test_slices_and_single_frames_are_put_right(tmp_path, shape, read):
    scan, _ = read_nifti(save(tmp_path / "a.nii", voxels(shape)))
    assert scan.hu.shape == read
    assert np.isnan(scan.spacing_mm[0]) == (len(shape) == 2)  # two axes state no thickness
    assert scan.spacing_mm[1:] == pytest.approx(np.linalg.norm(scan.affine[:3, 1:3], axis=0))
    np.testing.assert_array_equal(scan.hu.ravel(), voxels(shape).T.ravel())


def test_phantom_is_known_by_its_mark(tmp_path):
    assert read_nifti(save(tmp_path / "a.nii", descrip=PHANTOM_MARK))[0].generated
    assert not read_nifti(save(tmp_path / "b.nii", descrip=PHANTOM_MARK + " 2"))[0].generated


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -1, 1, 1]), None])
def test_unset_affine_makes_the_geometry_unknown_with_one_warning(tmp_path, affine):
    path = save(tmp_path / "volume-28.nii", affine=affine)
    scan, warnings = read_nifti(path)
    assert scan.spacing_mm is None
    assert scan.affine is None
    assert len(warnings) == 1
    assert "volume-28" not in warnings[0]  # reports that name no patient hold it
    np.testing.assert_array_equal(scan.hu, voxels().T)
    assert refused(path, "identity", strict=True).code == "unknown-geometry"


def test_true_spacing_of_one_millimetre_is_known(tmp_path):
    for affine in (np.diag([-1.0, 1, 1, 1]), np.array([[1.0, 0, 0, -5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])):
        scan, warnings = read_nifti(save(tmp_path / "a.nii", affine=affine), strict=True)
        assert scan.spacing_mm == (1, 1, 1)
        assert warnings == ()


def test_sform_and_qform_must_agree(tmp_path):
    image = nib.Nifti1Image(voxels(), AFFINE)
    image.set_qform(AFFINE, code=1)
    nib.save(image, tmp_path / "same.nii")
    read_nifti(tmp_path / "same.nii")
    shifted = AFFINE.copy()
    shifted[0, 3] += 0.08 * 0.7  # below the tolerance of 0.1 voxel
    image.set_qform(shifted, code=1)
    nib.save(image, tmp_path / "near.nii")
    read_nifti(tmp_path / "near.nii")
    image.set_qform(AFFINE @ np.diag([-1, 1, 1, 1]), code=1)
    nib.save(image, tmp_path / "differ.nii")
    assert refused(tmp_path / "differ.nii", "sform", "qform", "voxels apart").code == "sform-qform"


def test_wrong_content_is_refused_with_the_reason(tmp_path):
    shear, far = AFFINE.copy(), AFFINE * 1000
    shear[0, 2], far[3] = 0.4, (0, 0, 0, 1)
    flat = bytearray(save(tmp_path / "flat.nii").read_bytes())
    flat[296:312] = bytes(16)  # srow_y of the sform
    (tmp_path / "flat.nii").write_bytes(flat)
    nan = voxels(dtype=np.float32)
    nan[0, 0, 0] = np.nan
    unit = voxels(dtype=np.float32) / 60
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    table = [
        (save(tmp_path / "frames.nii", voxels((4, 5, 6, 2))), "dimensions", "4 x 5 x 6 x 2"),
        (save(tmp_path / "shear.nii", affine=shear), "affine", "cosine"),
        (tmp_path / "flat.nii", "affine", "spacing"),
        (save(tmp_path / "far.nii", affine=far), "affine", "2500"),
        (save(tmp_path / "nan.nii", nan), "hu", "1 voxel that is NaN"),
        (save(tmp_path / "inf.nii", np.full(SHAPE, np.inf, np.float32)), "hu", "infinite"),
        (save(tmp_path / "beyond.nii", voxels(dtype=np.int32) * 1000), "hu", "-60000"),
        (save(tmp_path / "normalised.nii", unit), "hu", "normalised"),
        (save(tmp_path / "rgb.nii", rgb), "dtype", "type"),
        (save(tmp_path / "complex.nii", voxels(dtype=np.complex64)), "dtype", "complex64"),
        (save(tmp_path / "metre.nii", xyzt_units=1), "units", "meter"),
    ]
    for path, code, word in table:
        assert refused(path, word).code == code, path


def test_unreadable_files_are_refused(tmp_path):
    plain, packed = save(tmp_path / "a.nii").read_bytes(), save(tmp_path / "a.nii.gz").read_bytes()
    flipped = bytearray(packed)
    flipped[-6] ^= 1  # the checksum of gzip
    for name, content in {
        "empty.nii": b"",
        "text.nii": b"no NIfTI at all" * 100,
        "cut.nii": plain[:-1],
        "cut.nii.gz": packed[:-20],
        "short.nii.gz": packed[:40],
        "checksum.nii.gz": bytes(flipped),
        "inside.nii.gz": gzip.compress(plain[:-1]),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert refused(tmp_path / name).code == "unreadable", name
    assert refused(tmp_path / "missing.nii").code == "unreadable"


def test_mutated_files_end_in_input_error_or_a_scan(tmp_path):
    rng = np.random.default_rng(0)
    original = save(tmp_path / "a.nii").read_bytes()
    outcomes = []
    for n in range(300):
        data = bytearray(original)
        for place in rng.integers(0, 352 if n % 2 else len(data), size=rng.integers(1, 6)):
            data[place] = rng.integers(256)
        path = tmp_path / "mutated.nii.gz"
        path.write_bytes(gzip.compress(bytes(data), 1) if n % 3 else bytes(data[: rng.integers(len(data))]))
        try:
            read_nifti(path)
            outcomes.append("read")
        except InputError:
            outcomes.append("refused")
    assert set(outcomes) == {"read", "refused"}


class TestLabels:
    def scan(self, tmp_path, affine=AFFINE):
        return read_nifti(save(tmp_path / "scan.nii", affine=affine))[0]

    def mask(self, dtype=np.uint8):
        return (voxels() % 3).astype(dtype)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
    def test_values_are_read_whatever_their_type(self, tmp_path, dtype):
        labels = read_nifti_labels(save(tmp_path / "m.nii.gz", self.mask(dtype)), self.scan(tmp_path), (0, 1, 2))
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, self.mask().T)

    @pytest.mark.parametrize(
        "change",
        [
            np.diag([-1.0, 1, 1, 1]),
            np.diag([1.0, 1, 1.1, 1]),
            np.array([[1, 0, 0, 0.2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
        ],
        ids=["flipped", "stretched", "shifted"],
    )
    def test_another_grid_is_refused(self, tmp_path, change):
        path = save(tmp_path / "m.nii", self.mask(), AFFINE @ change)
        with pytest.raises(InputError, match=r"grid of its image .* voxels apart") as error:
            read_nifti_labels(path, self.scan(tmp_path), (0, 1, 2))
        assert error.value.code == "mask-geometry"

    def test_a_difference_below_a_tenth_of_a_voxel_is_rounding(self, tmp_path):
        near = AFFINE.copy()
        near[:3, 3] += 0.09 * np.array([0.7, 0.8, 2.5])
        read_nifti_labels(save(tmp_path / "m.nii", self.mask(), near), self.scan(tmp_path), (0, 1, 2))

    def test_another_shape_is_refused(self, tmp_path):
        path = save(tmp_path / "m.nii", self.mask()[:, :, 1:])
        with pytest.raises(InputError, match=r"\(6, 5, 4\).*got \(5, 5, 4\)"):
            read_nifti_labels(path, self.scan(tmp_path), (0, 1, 2))

    def test_unknown_geometry(self, tmp_path):
        unset = save(tmp_path / "m.nii", self.mask(), np.eye(4))
        with pytest.raises(InputError, match="cannot be matched"):
            read_nifti_labels(unset, self.scan(tmp_path), (0, 1, 2))
        labels = read_nifti_labels(unset, self.scan(tmp_path, np.eye(4)), (0, 1, 2))
        np.testing.assert_array_equal(labels, self.mask().T)

    @pytest.mark.parametrize(("value", "got"), [(3, "the value 3"), (-1, "whole"), (0.5, "whole"), (np.nan, "whole")])
    def test_other_values_are_refused(self, tmp_path, value, got):
        mask = self.mask(np.float32)
        mask[1, 1, 1] = value
        with pytest.raises(InputError, match=got) as error:
            read_nifti_labels(save(tmp_path / "m.nii", mask), self.scan(tmp_path), (0, 1, 2))
        assert error.value.code == "mask-values"
        assert "0, 1, 2" in str(error.value)


def test_a_file_that_cannot_be_opened_is_named_where_and_nowhere_else(tmp_path):
    (tmp_path / "a.nii").mkdir()
    with pytest.raises(InputError) as error:
        read_nifti(tmp_path / "a.nii")
    assert error.value.where == str(tmp_path / "a.nii")
    assert error.value.got == "Is a directory"
