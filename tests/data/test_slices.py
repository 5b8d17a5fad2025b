import pickle
from dataclasses import dataclass
from types import SimpleNamespace

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from lesionseg.data import slices
from lesionseg.errors import InputError
from lesionseg.formats.png import write_png
from lesionseg.labels import BACKGROUND, LESION_IDS, LESION_TYPES, LIVER
from lesionseg.scan import to_canonical

SHAPE = (8, 6)
CYST, HEMANGIOMA, METASTASIS = (LESION_IDS[name] for name in ("cyst", "hemangioma", "metastasis"))
HU = (np.arange(48).reshape(SHAPE) * 5 - 60).astype(np.int16)
LIVER_MASK = np.zeros(SHAPE, np.uint8)
LIVER_MASK[1:7, 1:5] = 255
#: RAS affine (i, j, k) of a slice whose rows run back and columns run left: nothing to turn.
AFFINE = np.diag([-0.7, -0.8, 5.0, 1.0])
LPS_TO_RAS = np.diag([-1, -1, 1, 1])


@dataclass(frozen=True)
class WholeSlice:
    """Predicts liver in every pixel but the first."""

    identity: str = "weights-1"

    def __call__(self, scan):
        liver = np.ones(scan.hu.shape, bool)
        liver.flat[0] = False
        return liver


def spot(*places, value=1):
    mask = np.zeros(SHAPE, np.uint8)
    for place in places:
        mask[place] = value
    return mask


def save_dicom(path, hu=HU, **attributes):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CTImageStorage, meta.MediaStorageSOPInstanceUID, "CT"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness = [0.8, 0.7], 5
    ds.Rows, ds.Columns = hu.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.RescaleSlope, ds.RescaleIntercept, ds.PixelData = 1, 0, hu.astype("<i2").tobytes()
    for name, value in attributes.items():
        setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)


def save_seg(path, image, frame="1.2.3", **masks):
    """A DICOM-SEG as another tool writes it: segments named by their masks, and frames of the slice above as well."""
    source = pydicom.dcmread(image)
    source.FrameOfReferenceUID = frame
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(source, name, "")
    source.StudyDate = source.StudyTime = None
    kinds = {"liver": codes.SCT.Liver, "lesion": codes.SCT.Lesion, "spleen": codes.SCT.Spleen}
    kinds |= {name: Code(kind.code.value, "SCT", kind.code.meaning) for name, kind in LESION_TYPES.items()}
    described = [
        hd.seg.SegmentDescription(n, name, codes.SCT.Tissue, kinds[name], "MANUAL") for n, name in enumerate(masks, 1)
    ]
    arrays = np.stack([np.stack([mask, np.ones_like(mask)]) for mask in masks.values()], axis=-1) > 0
    affine = np.array([[0, 0, 0.7, 0], [0, 0.8, 0, 0], [2.5, 0, 0, 0], [0, 0, 0, 1]])
    volume = hd.Volume(arrays, affine, "PATIENT", frame, channels={"SegmentNumber": list(range(1, 1 + len(masks)))})
    hd.seg.Segmentation(
        [source], volume, "BINARY", described, generate_uid(), 1, generate_uid(), 1, "maker", "model", "1", "0"
    ).save_as(path)


def save_nifti(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array.T), affine), path)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "img").mkdir()
    save_dicom(tmp_path / "img" / "a.dcm")
    save_dicom(tmp_path / "img" / "b.dcm", HU + np.int16(1))
    write_png(tmp_path / "liver.png", LIVER_MASK)
    write_png(tmp_path / "map.png", spot((2, 2)) + spot((3, 3), value=2) + spot((4, 4), value=3))
    write_png(tmp_path / "cyst.png", spot((2, 2), value=255))
    write_png(tmp_path / "meta.png", spot((3, 3), (0, 0)))
    return tmp_path


def write(folder, text):
    path = folder / "slices.csv"
    path.write_text(text)
    return path


def found(folder, text, **options):
    return slices.find(write(folder, text), **options)


def only_problem(folder, text, **options):
    _, problems = found(folder, text, **options)
    assert len(problems) == 1, problems
    return problems[0]


def read_one(folder, text, **options):
    (source,) = slices.cases(write(folder, text), **options)
    return pickle.loads(pickle.dumps(source)).read()


def expected(**places):
    labels = np.where(LIVER_MASK > 0, LIVER, BACKGROUND).astype(np.uint8)
    for name, place in places.items():
        labels[place] = LESION_IDS[name]
    return labels[None]


def test_label_maps_in_the_order_of_the_types(folder):
    text = "patient_id,image,mask,liver_mask,age\np1,img/a.dcm,map.png,liver.png,54\np2,img/b.dcm,map.png,liver.png,\n"
    sources = slices.cases(write(folder, text))
    assert [(s.source_id, s.patient_id) for s in sources] == [("img/a.dcm", "p1"), ("img/b.dcm", "p2")]
    assert sources[0].files == (folder / "img/a.dcm", folder / "map.png", folder / "liver.png")
    case = sources[1].read()
    np.testing.assert_array_equal(case.scan.hu[0], HU + 1)
    assert case.scan.spacing_mm == pytest.approx((5, 0.8, 0.7))
    np.testing.assert_array_equal(case.labels, expected(cyst=(2, 2), hemangioma=(3, 3), metastasis=(4, 4)))
    assert not case.liver_predicted
    assert case.warnings == ()


def test_label_values_can_be_named(folder):
    text = "patient_id,image,mask,liver_mask\np1,img/a.dcm,map.png,liver.png\n"
    case = read_one(folder, text, labels={"metastasis": 1, "cyst": 3, "hemangioma": 2})
    np.testing.assert_array_equal(case.labels, expected(metastasis=(2, 2), hemangioma=(3, 3), cyst=(4, 4)))
    default, named = (slices.cases(folder / "slices.csv", labels=labels)[0].options for labels in (None, {"cyst": 7}))
    assert default != named


def test_a_label_map_may_hold_the_liver(folder):
    write_png(folder / "all.png", np.where(LIVER_MASK > 0, 9, 0) - spot((2, 2), value=5))
    labels = {"liver": 9, "metastasis": 4}
    case = read_one(folder, "patient_id,image,mask\np1,img/a.dcm,all.png\n", labels=labels)
    np.testing.assert_array_equal(case.labels, expected(metastasis=(2, 2)))
    assert not case.liver_predicted


def test_binary_masks_of_one_image_are_merged(folder):
    text = "patient_id,image,mask,lesion_type,liver_mask\np1,img/a.dcm,cyst.png,Cyst,liver.png\n"
    text += "p2,img/b.dcm,cyst.png,cyst,liver.png\np1,./img/a.dcm,meta.png,metastasis,liver.png\n"
    sources = slices.cases(write(folder, text))
    assert [source.source_id for source in sources] == ["img/a.dcm", "img/b.dcm"]
    case = sources[0].read()
    labels = expected(cyst=(2, 2), metastasis=(3, 3))
    labels[0, 0, 0] = METASTASIS  # outside of the liver mask: still a lesion
    np.testing.assert_array_equal(case.labels, labels)
    assert len(case.warnings) == 1
    assert "33% of the lesion pixels" in case.warnings[0]


def test_a_liver_that_is_all_lesion_is_warned_of(folder):
    """As of a LiTS mask, or of what `segment` wrote, whose 1 is the liver and here a cyst."""
    write_png(folder / "lits.png", np.where(LIVER_MASK > 0, 1, 0) + spot((2, 2)))
    case = read_one(folder, "patient_id,image,mask,liver_mask\np1,img/a.dcm,lits.png,liver.png\n")
    assert case.warnings == ("100% of the liver is lesion: does a value of the mask mean the liver? (--labels)",)


def test_overlapping_types_are_refused_and_equal_types_are_not(folder):
    rows = "patient_id,image,mask,lesion_type,liver_mask\np1,img/a.dcm,cyst.png,cyst,liver.png\n"
    again = rows + "p1,img/a.dcm,cyst.png,cyst,liver.png\n"
    np.testing.assert_array_equal(read_one(folder, again).labels, expected(cyst=(2, 2)))
    with pytest.raises(InputError, match=r"slices\.csv:3.*1 pixels of metastasis") as error:
        read_one(folder, rows + "p1,img/a.dcm,cyst.png,metastasis,liver.png\n")
    assert error.value.code == "masks-overlap"


@pytest.mark.parametrize("affine", [AFFINE, np.eye(4)])
def test_nifti_images_and_masks(folder, affine):
    save_nifti(folder / "a.nii.gz", HU[..., None].transpose(2, 0, 1), affine)
    save_nifti(folder / "flat.nii", HU, affine)
    save_nifti(folder / "mask.nii.gz", spot((2, 2), value=3).astype(np.float32), affine)
    for name in ("a.nii.gz", "flat.nii"):
        text = f"patient_id,image,mask,liver_mask\np1,{name},mask.nii.gz,liver.png\n"
        case = read_one(folder, text)
        np.testing.assert_array_equal(case.scan.hu[0], HU)
        np.testing.assert_array_equal(case.labels, expected(metastasis=(2, 2)))
        assert any("second NIfTI axis" in warning for warning in case.warnings)  # the liver is a PNG


def test_a_nifti_mask_must_lie_on_the_dicom_slice(folder):
    text = "patient_id,image,mask,liver_mask\np1,img/a.dcm,mask.nii,liver.png\n"
    save_nifti(folder / "mask.nii", spot((2, 2)))
    np.testing.assert_array_equal(read_one(folder, text).labels, expected(cyst=(2, 2)))
    save_nifti(folder / "mask.nii", spot((2, 2)), AFFINE @ np.diag([1, -1, 1, 1]))
    with pytest.raises(InputError, match="voxels apart"):
        read_one(folder, text)


@pytest.mark.parametrize(
    ("rows", "columns", "turned"),
    [
        ((1, 0, 0), (0, 1, 0), False),  # on the back
        ((0.9962, 0, 0.0872), (0, 1, 0), False),  # 5° askew
        ((-1, 0, 0), (0, -1, 0), True),  # prone
        ((0, -1, 0), (1, 0, 0), True),  # on the right side
        ((0, 1, 0), (-1, 0, 0), True),
        ((-1, 0, 0), (0, 1, 0), True),  # mirrored
    ],
)
def test_a_png_mask_has_the_rows_and_columns_that_the_dicom_stores(folder, rows, columns, turned):
    """However the patient lies: mask and pixels are turned alike. Where they are, the case says so."""
    save_dicom(folder / "img/t.dcm", np.where(spot((2, 4)) > 0, 77, 10), ImageOrientationPatient=[*rows, *columns])
    write_png(folder / "one.png", spot((2, 4)))
    case = read_one(folder, "patient_id,image,mask,liver_mask\np1,img/t.dcm,one.png,liver.png\n")
    np.testing.assert_array_equal(case.labels, expected(cyst=(2, 4)))
    for one in (case, to_canonical(case)):
        np.testing.assert_array_equal(one.labels == CYST, one.scan.hu == 77)
    (place,) = np.argwhere(case.labels == CYST)
    where = np.array(rows) * 0.7 * 4 + np.array(columns) * 0.8 * 2  # PS3.3 C.7.6.2.1.1
    np.testing.assert_allclose((case.scan.affine @ [*place, 1])[:3], where, atol=1e-4)  # the cosines are rounded
    assert [warning.partition(":")[0] for warning in case.warnings] == [
        "PNG beside a DICOM slice turned in the patient"
    ] * turned
    save_nifti(folder / "one.nii", spot((2, 4)), LPS_TO_RAS @ case.scan.affine[:, [2, 1, 0, 3]])
    save_nifti(folder / "liver.nii", LIVER_MASK, LPS_TO_RAS @ case.scan.affine[:, [2, 1, 0, 3]])
    again = read_one(folder, "patient_id,image,mask,liver_mask\np1,img/t.dcm,one.nii,liver.nii\n")
    np.testing.assert_array_equal(again.labels, case.labels)
    assert again.warnings == ()


def test_png_images_need_their_window(folder):
    grey = np.arange(48, dtype=np.uint8).reshape(SHAPE)
    Image.fromarray(grey).save(folder / "a.png")
    head = "patient_id,image,mask,liver_mask,window_low_hu,window_high_hu,spacing_mm\n"
    case = read_one(folder, head + "p1,a.png,map.png,liver.png,-160,240,0.8;0.7\n")
    np.testing.assert_array_equal(case.scan.hu[0], np.rint(-160 + grey / 255 * 400))
    assert case.scan.affine is None
    assert np.isnan(case.scan.spacing_mm[0])
    assert case.scan.spacing_mm[1:] == (0.8, 0.7)
    assert case.warnings == ()
    assert read_one(folder, head + "p1,a.png,map.png,liver.png,-160,240,\n").scan.spacing_mm is None
    for window, word in ((",", "window_low_hu and window_high_hu for a PNG"), ("1,", "number for window_high_hu"),
                         ("9,1", "window_low_hu below"), ("a,b", "number for window_low_hu")):  # fmt: skip
        problem = only_problem(folder, head + f"p1,a.png,map.png,liver.png,{window},\n")
        assert word in str(problem)


@pytest.mark.parametrize(
    ("cell", "spacing"), [("0.8 x 0.7", (0.8, 0.7)), ("0.804;0.7", (0.8, 0.7)), ("0.8x0.7", (0.8, 0.7))]
)
def test_spacing_of_the_table_agrees_with_the_image(folder, cell, spacing):
    head = "patient_id,image,mask,liver_mask,spacing_mm\np1,img/a.dcm,map.png,liver.png,"
    assert read_one(folder, f"{head}{cell}\n").scan.spacing_mm[1:] == pytest.approx(spacing)
    with pytest.raises(InputError, match=r"slices\.csv:2.*0\.8 x 0\.7.*got 0\.75 x 0\.75") as error:
        read_one(folder, f"{head}0.75\n")
    assert error.value.code == "spacing"


def test_a_type_that_was_forgotten_makes_no_cyst(folder):
    """A mask of ones in a table of binary ones; of zeros, or a map of several types, it may stand."""
    write_png(folder / "one.png", spot((2, 2)))
    write_png(folder / "none.png", spot((2, 2), value=0))
    head = "patient_id,image,mask,liver_mask,lesion_type\np1,img/b.dcm,meta.png,liver.png,metastasis\n"
    for mask, told in (("one.png", True), ("none.png", False), ("map.png", False)):
        sources = slices.cases(write(folder, f"{head}p2,img/a.dcm,{mask},liver.png,\n"))
        read = next(source for source in sources if source.source_id == "img/a.dcm").read
        if told:
            with pytest.raises(
                InputError, match=r"slices\.csv:3: expected a lesion_type, as other rows .* have"
            ) as error:
                read()
            assert error.value.code == "lesion-type"
        else:
            read()
    assert read_one(folder, "patient_id,image,mask,liver_mask\np2,img/a.dcm,one.png,liver.png\n")


@pytest.mark.parametrize(
    ("column", "cell", "known"),
    [("type", "metastasis", "lesion_type"), ("liver", "liver.png", "liver_mask"), ("comment", "liver.png", None)],
)
def test_a_column_that_holds_what_a_known_one_would_is_told(folder, column, cell, known):
    _, problems = found(folder, f"patient_id,image,mask,{column}\np1,img/a.dcm,cyst.png,{cell}\n",
                        predict_liver=SimpleNamespace(identity="none"))  # fmt: skip
    told = [problem for problem in problems if problem.code == "table-columns"]
    assert len(told) == (known is not None)
    if known:
        assert f"expected the column {known}; got its cells in {column}; name it {known}, or remove it" in str(told[0])


def test_the_liver_of_the_table_takes_the_place_of_that_of_the_map(folder):
    wide = np.ones_like(LIVER_MASK)
    wide[2, 2] = 2
    write_png(folder / "wide.png", wide)
    text = "patient_id,image,mask,liver_mask\np1,img/a.dcm,wide.png,liver.png\n"
    case = read_one(folder, text, labels={"liver": 1, "cyst": 2})
    np.testing.assert_array_equal(case.labels, expected(cyst=(2, 2)))


def test_a_comma_of_decimals_is_not_one_between_two_spacings(folder):
    head = "patient_id,image,mask,liver_mask,spacing_mm\np1,img/a.dcm,map.png,liver.png,"
    with pytest.raises(InputError, match=r"slices\.csv:2: expected a number for spacing_mm; got 1,05; ") as error:
        read_one(folder, f'{head}"1,05"\n')
    assert error.value.code == "table-cell"


def test_without_liver_mask_a_net_must_find_it(folder):
    text = "patient_id,image,mask\np1,img/a.dcm,map.png\np2,img/b.dcm,map.png\n"
    problem = only_problem(folder, text)
    assert problem.code == "no-liver"
    for word in ("slices.csv:2", "2 of 2 images", "liver_mask", "--liver"):
        assert word in str(problem)
    first, second = slices.cases(folder / "slices.csv", predict_liver=WholeSlice())
    case = pickle.loads(pickle.dumps(first)).read()
    assert case.liver_predicted
    assert case.labels[0, 0, 0] == BACKGROUND
    assert (case.labels == LIVER).sum() == HU.size - 4
    assert second.options != slices.cases(folder / "slices.csv", predict_liver=WholeSlice("weights-2"))[1].options


def test_groups_and_exclude(folder):
    text = "patient_id,image,mask,liver_mask\np1,img/a.dcm,map.png,liver.png\np2,img/b.dcm,map.png,liver.png\n"
    (folder / "groups.csv").write_text("case,patient\nimg/b.dcm,p1\n")
    sources = slices.cases(write(folder, text), groups=folder / "groups.csv")
    assert [source.patient_id for source in sources] == ["p1", "p1"]
    assert sources[1].read().patient_id == "p1"
    assert [s.source_id for s in slices.cases(folder / "slices.csv", exclude=["img/a.dcm"])] == ["img/b.dcm"]
    assert only_problem(folder, text, exclude=["a.dcm"]).code == "exclude"


@pytest.mark.parametrize(
    ("text", "code", "word"),
    [
        ("", "table-unreadable", "empty table"),
        ("patient_id,image,mask\n", "table-columns", "a header alone"),
        ("patient,image,mask\np1,img/a.dcm,map.png\n", "table-columns", "no patient_id in patient,image,mask"),
        ("patient_id,image,mask,liver_masks\np,img/a.dcm,map.png,liver.png\n", "table-columns", "got liver_masks"),
        ("patient_id,image,mask\np1;img/a.dcm;map.png\n", "table-columns", "got 1"),
        ("patient_id,image,mask\n,img/a.dcm,map.png\n", "table-cell", "patient_id"),
        ("patient_id,image,mask\np1,img/c.dcm,map.png\n", "missing-file", "img/c.dcm"),
        ("patient_id,image,mask\np1,img,map.png\n", "missing-file", "got img"),
        (f"patient_id,image,mask\np1,{'a' * 5000},map.png\n", "missing-file", "aaa"),  # longer than a name may be
        ("patient_id,image,mask,liver_mask\np1,img/a.dcm,map.png,no.png\n", "missing-file", "no.png"),
        ("patient_id,image,mask,lesion_type\np1,img/a.dcm,cyst.png,adenoma\n", "lesion-type", "adenoma"),
        ("patient_id,image,mask,spacing_mm\np1,img/a.dcm,map.png,wide\n", "table-cell", "wide"),
        ("patient_id,image,mask,spacing_mm\np1,img/a.dcm,map.png,-1\n", "spacing", "-1"),
        ("patient_id,image,mask,spacing_mm\np1,img/a.dcm,map.png,1;2;3\n", "spacing", "1;2;3"),
    ],
)
def test_faults_of_the_table(folder, text, code, word):
    problem = only_problem(folder, text)
    assert problem.code == code
    assert word in str(problem)
    assert "slices.csv" in str(problem)


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ("p1,img/a.dcm,cyst.png,cyst,liver.png", "p2,img/a.dcm,meta.png,metastasis,liver.png", "patient_id"),
        ("p1,img/a.dcm,cyst.png,cyst,liver.png", "p1,img/a.dcm,meta.png,metastasis,", "liver_mask"),
        ("p1,img/a.dcm,map.png,,liver.png", "p1,img/a.dcm,map.png,,liver.png", "lesion_type"),
        ("p1,img/a.dcm,cyst.png,cyst,liver.png", "p1,img/a.dcm,map.png,,liver.png", "lesion_type"),
    ],
)
def test_rows_of_one_image_must_agree(folder, first, second, word):
    problem = only_problem(folder, f"patient_id,image,mask,lesion_type,liver_mask\n{first}\n{second}\n")
    assert problem.code == "rows-differ"
    assert "slices.csv:3" in str(problem)
    assert word in str(problem)


def test_all_faults_are_found_at_once_and_the_first_is_raised(folder):
    text = "patient_id,image,mask,lesion_type,liver_mask\np1,img/a.dcm,cyst.png,adenoma,liver.png\n"
    text += "p1,img/x.dcm,cyst.png,cyst,liver.png\n\np2,img/b.dcm,cyst.png,cyst,liver.png\n"
    sources, problems = found(folder, text, exclude=["img/y.dcm"])
    assert [problem.code for problem in problems] == ["lesion-type", "missing-file", "exclude"]
    assert [str(problem.where).rsplit(":", 1)[-1] for problem in problems[:2]] == ["2", "3"]
    assert [source.source_id for source in sources] == ["img/b.dcm"]
    with pytest.raises(InputError, match=r"slices\.csv:2.*adenoma"):
        slices.cases(folder / "slices.csv")


@pytest.mark.parametrize("labels", [{"adenoma": 1}, {"cyst": 1, "metastasis": 1}, {"cyst": 0}, {"cyst": 256}, {}])
def test_wrong_label_values_are_refused(folder, labels):
    text = "patient_id,image,mask,liver_mask\np1,img/a.dcm,map.png,liver.png\n"
    assert only_problem(folder, text, labels=labels).code == "labels"


class TestDicomSeg:
    """`whole.dcm`: the liver holds its lesions, as this package writes it; `apart`: it lies beside them."""

    @pytest.fixture
    def seg(self, folder):
        lesions = {"cyst": spot((2, 2)), "metastasis": spot((3, 3), (0, 0))}
        save_seg(folder / "whole.dcm", folder / "img/a.dcm", liver=LIVER_MASK, **lesions)
        save_seg(folder / "apart", folder / "img/a.dcm", liver=LIVER_MASK * (1 - spot((2, 2), (3, 3))), **lesions)
        save_seg(folder / "lesions.dcm", folder / "img/a.dcm", **lesions)
        save_seg(folder / "untyped.dcm", folder / "img/a.dcm", lesion=spot((2, 2)), liver=LIVER_MASK)
        return folder

    def labels(self, **places):
        labels = expected(**places)
        labels[0, 0, 0] = METASTASIS
        return labels

    @pytest.mark.parametrize("name", ["whole.dcm", "apart"])
    def test_its_codes_tell_types_and_liver(self, seg, name):
        """The slice above, which the SEG holds as well, does not matter; `labels` is for other formats."""
        case = read_one(seg, f"patient_id,image,mask\np1,img/a.dcm,{name}\n", labels={"cyst": 7})
        np.testing.assert_array_equal(case.labels, self.labels(cyst=(2, 2), metastasis=(3, 3)))
        assert not case.liver_predicted
        assert case.warnings == ()

    @pytest.mark.parametrize("name", ["whole.dcm", "apart"])
    def test_a_lesion_type_stands_for_all_its_lesions(self, seg, name):
        case = read_one(seg, f"patient_id,image,mask,lesion_type\np1,img/a.dcm,{name},metastasis\n")
        labels = self.labels(metastasis=(3, 3))
        labels[0, 2, 2] = METASTASIS
        np.testing.assert_array_equal(case.labels, labels)

    def test_beside_masks_of_other_formats(self, seg):
        text = "patient_id,image,mask,lesion_type,liver_mask\np1,img/a.dcm,lesions.dcm,metastasis,liver.png\n"
        assert read_one(seg, text).labels[0, 2, 2] == METASTASIS
        text = "patient_id,image,mask,liver_mask\np1,img/a.dcm,map.png,whole.dcm\n"
        case = read_one(seg, text)
        assert (case.labels[0, 1, 1], case.labels[0, 4, 4], case.labels[0, 0, 1]) == (LIVER, METASTASIS, BACKGROUND)
        write_png(seg / "small.png", spot((5, 3)))
        case = read_one(seg, "patient_id,image,mask,liver_mask\np1,img/a.dcm,whole.dcm,small.png\n")
        assert np.argwhere(case.labels[0] == LIVER).tolist() == [[5, 3]]

    def test_a_liver_is_needed_where_it_holds_none(self, seg):
        text = "patient_id,image,mask\np1,img/a.dcm,lesions.dcm\n"
        assert only_problem(seg, text, labels={"liver": 9, "cyst": 1}).code == "no-liver"
        case = read_one(seg, text, predict_liver=WholeSlice())
        assert case.liver_predicted
        assert case.labels[0, 7, 5] == LIVER
        with pytest.raises(InputError, match="coded as liver; got lesions alone"):
            read_one(seg, "patient_id,image,mask,liver_mask\np1,img/a.dcm,map.png,lesions.dcm\n")

    def test_on_another_image_or_without_types_it_is_refused(self, seg):
        save_seg(seg / "clash.dcm", seg / "img/a.dcm", liver=LIVER_MASK, cyst=spot((2, 2)), metastasis=spot((2, 2)))
        other = pydicom.dcmread(seg / "img/b.dcm")
        other.FrameOfReferenceUID = "1.2.4"
        other.save_as(seg / "other.dcm")
        Image.fromarray(LIVER_MASK).save(seg / "a.png")
        for image, mask, code, word in (
            ("img/a.dcm", "untyped.dcm", "lesion-type", "a lesion without type"),
            ("img/a.dcm", "clash.dcm", "masks-overlap", "1 pixels that are metastasis and cyst"),
            ("other.dcm", "whole.dcm", "mask-geometry", "frame of reference"),
            ("a.png", "whole.dcm", "mask-geometry", "place in the patient"),
        ):
            text = f"patient_id,image,mask,window_low_hu,window_high_hu\np1,{image},{mask},-100,200\n"
            with pytest.raises(InputError, match=word) as error:
                read_one(seg, text)
            assert error.value.code == code

    def test_a_slice_that_it_leaves_unmarked_is_told_of(self, folder):
        """Free of lesions, perhaps, and perhaps not the slice that was meant."""
        save_dicom(folder / "f.dcm", FrameOfReferenceUID="1.2.3")
        save_seg(folder / "above.dcm", folder / "f.dcm", cyst=spot(), metastasis=spot())
        for columns, liver in (("liver_mask", "liver.png"), ("lesion_type,liver_mask", "cyst,liver.png")):
            case = read_one(folder, f"patient_id,image,mask,{columns}\np1,f.dcm,above.dcm,{liver}\n")
            np.testing.assert_array_equal(case.labels, expected())
            assert case.warnings == ("the DICOM-SEG marks nothing on this slice, and 1 other slice",)
        save_seg(folder / "liver.dcm", folder / "f.dcm", cyst=spot(), liver=LIVER_MASK)
        case = read_one(folder, "patient_id,image,mask,liver_mask\np1,f.dcm,liver.dcm,liver.dcm\n")
        np.testing.assert_array_equal(case.labels, expected())
        assert case.warnings == ()

    def test_of_another_series_or_study_it_is_refused(self, seg):
        """Though it lies where the image does: of another phase, or of another patient at the same table position."""
        study, series = generate_uid(), generate_uid()
        for attributes in ({"FrameOfReferenceUID": "1.2.3", "SeriesInstanceUID": series}, {"StudyInstanceUID": study}):
            save_dicom(seg / "other.dcm", **attributes)
            with pytest.raises(InputError, match=r"the (series|study) of its image; got another") as error:
                read_one(seg, "patient_id,image,mask\np1,other.dcm,whole.dcm\n")
            assert error.value.code == "seg-source"

    def test_what_cannot_be_used_shows_before_an_image_is_read(self, seg):
        save_seg(seg / "spleen.dcm", seg / "img/a.dcm", liver=LIVER_MASK, spleen=spot((2, 2)))
        text = "patient_id,image,mask\np1,img/a.dcm,spleen.dcm\np2,img/b.dcm,img/a.dcm\n"
        _, problems = found(seg, text)
        assert [problem.code for problem in problems] == ["seg-code", "format"]
        assert "spleen (SCT 78961009)" in str(problems[0])


@pytest.mark.parametrize(
    ("values", "labels", "taken"),
    [
        ((1, 2), None, True),  # LiTS: liver and lesion
        ((7, 7), None, True),
        ((5, 6), None, False),  # organs
        ((1, 4), None, False),
        ((1, 3), None, True),  # the liver, and a lesion by the values of the types
        ((1, 2), {"liver": 9, "cyst": 4}, True),
        ((9, 4), {"liver": 9, "cyst": 4}, True),
        ((9, 8), {"liver": 9, "cyst": 4}, False),
    ],
)
def test_a_map_of_organs_is_no_liver_mask(folder, values, labels, taken):
    liver = np.where(LIVER_MASK > 0, values[0], 0)
    write_png(folder / "several.png", np.where(spot((2, 2)) > 0, values[1], liver).astype(np.uint8))
    write_png(folder / "empty.png", spot())
    text = "patient_id,image,mask,liver_mask\np1,img/a.dcm,empty.png,several.png\n"
    if taken:
        np.testing.assert_array_equal(read_one(folder, text, labels=labels).labels, expected())
        return
    with pytest.raises(InputError, match=r"a mask of the liver; got the values \d, \d, as of organs") as error:
        read_one(folder, text, labels=labels)
    assert error.value.code == "mask-values"


def test_masks_that_do_not_fit_are_refused(folder):
    write_png(folder / "high.png", spot((2, 2), value=9))
    write_png(folder / "turned.png", spot((2, 2)).T)
    (folder / "mask.bmp").write_bytes(b"BM")
    for mask, kind, code, word in (
        ("high.png", "", "mask-values", "values 0, 1, 2, 3; got the value 9"),
        ("turned.png", "", "mask-shape", r"\(1, 8, 6\).*got \(1, 6, 8\)"),
        ("mask.bmp", "", "format", "a DICOM-SEG, PNG or NIfTI"),
        ("map.png", "cyst", "mask-values", "binary mask.*got values 1, 2, 3"),
    ):
        text = f"patient_id,image,mask,liver_mask,lesion_type\np1,img/a.dcm,{mask},liver.png,{kind}\n"
        with pytest.raises(InputError, match=word) as error:
            read_one(folder, text)
        assert error.value.code == code


@pytest.mark.parametrize("columns", ["mask", "mask,liver_mask", "mask,lesion_type,liver_mask"])
@pytest.mark.parametrize(("name", "got"), [("mask.nrrd", ".nrrd"), ("mask", "another file")])
def test_another_format_is_told_before_a_liver_that_is_missing(folder, columns, name, got):
    """And before an image is read; in the column of the liver as well."""
    (folder / name).write_bytes(b"NRRD0004\n" + bytes(200))
    cells = {"mask": "map.png" if "liver" in columns else name, "lesion_type": "cyst", "liver_mask": name}
    row = ",".join(cells[column] for column in columns.split(","))
    problem = only_problem(folder, f"patient_id,image,{columns}\np1,img/a.dcm,{row}\n")
    assert problem.code == "format"
    assert str(problem).startswith(f"{folder / name}: expected a DICOM-SEG, PNG or NIfTI; got {got}; save the mask")


def test_images_that_are_no_axial_slice_are_refused(folder):
    save_nifti(folder / "volume.nii", np.stack([HU, HU]))
    sagittal = np.array([[0, 0, 5, 0], [-0.7, 0, 0, 0], [0, 0.8, 0, 0], [0, 0, 0, 1.0]])
    save_nifti(folder / "sagittal.nii", HU, sagittal)
    for name, word in (("volume.nii", "2 slices"), ("sagittal.nii", "another plane")):
        with pytest.raises(InputError, match=word):
            read_one(folder, f"patient_id,image,mask,liver_mask\np1,{name},map.png,liver.png\n")
