"""Every kind of good but odd input, through the whole chain to a store: taken, and exact to the voxel."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from bad_images import AFFINE, labels, nifti, voxels
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from test_dicom import canonical, canonical_hu, localizer, save, stack
from test_slices import HU, LIVER_MASK, expected, save_dicom, save_nifti, spot

from lesionseg.cli import main
from lesionseg.data.store import Store
from lesionseg.formats import read_scan
from lesionseg.labels import UNTYPED_LESION

# ---- NIfTI ----


def turned(path, array):
    """Stored with other axes, two of them mirrored."""
    image = nib.Nifti1Image(array, AFFINE)
    wanted = nib.orientations.axcodes2ornt("SRA")
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(AFFINE), wanted)), path)


def with_qform_alone(path, array):
    image = nib.Nifti1Image(array, None)
    image.set_qform(AFFINE, code=1)
    image.set_sform(None, code=0)
    nib.save(image, path)


def scaled(path, array):
    """Stored as uint16 with slope and intercept: nibabel would choose them anew."""
    header = nib.Nifti1Image(array.astype(np.uint16), AFFINE).header
    header["scl_slope"], header["scl_inter"], header["vox_offset"], header["magic"] = 1, -1024, 352, b"n+1"
    path.write_bytes(header.binaryblock + b"\0" * 4 + (array + 1024).astype("<u2").tobytes(order="F"))


def big_endian(path, array):
    image = nib.Nifti1Image(array, AFFINE, nib.Nifti1Header(endianness=">"))
    image.set_data_dtype(array.dtype)
    nib.save(image, path)


def volumes(write):
    """Image and mask by one writer."""

    def make(folder):
        write(folder / "volume-0.nii", voxels())
        write(folder / "segmentation-0.nii", labels())

    return make


def image_by(write, name="volume-0.nii"):
    def make(folder):
        write(folder / name)
        nifti(folder / "segmentation-0.nii", labels())

    return make


def mask_by(write, name="segmentation-0.nii"):
    def make(folder):
        nifti(folder / "volume-0.nii")
        write(folder / name)

    return make


def deep(folder):
    (folder / "Training Batch 1" / "ü").mkdir(parents=True)
    (folder / "masks").mkdir()
    nifti(folder / "Training Batch 1" / "ü" / "volume-0.nii")
    nifti(folder / "masks" / "segmentation-0.nii", labels())


NIFTI = {
    "other axes, mirrored": volumes(turned),
    "qform alone": volumes(with_qform_alone),
    "big endian": volumes(big_endian),
    "version 2": volumes(lambda path, array: nib.save(nib.Nifti2Image(array, AFFINE), path)),
    "slope and intercept": image_by(lambda path: scaled(path, voxels())),
    "floats": image_by(lambda path: nifti(path, voxels(np.float64))),
    "32 bits": image_by(lambda path: nifti(path, voxels(np.int32))),
    "packed, without the name of it": image_by(lambda path: path.write_bytes(gzip.compress(nifti(path).read_bytes()))),
    "plain, by the name of packed": image_by(
        lambda path: path.write_bytes(nifti(path.with_name("x.nii")).rename(path).read_bytes()), "volume-0.nii.gz"
    ),
    "a fourth axis of one": image_by(lambda path: nifti(path, voxels()[..., None])),
    "a mask of floats": mask_by(lambda path: nifti(path, labels().astype(np.float32))),
    "a mask with rounded affine": mask_by(lambda path: nifti(path, labels(), np.round(AFFINE + 0.004, 2))),
    "folders in folders, with spaces": deep,
}


@pytest.mark.parametrize("kind", NIFTI)
def test_nifti(kind, tmp_path):
    folder = tmp_path / "lits"
    folder.mkdir()
    NIFTI[kind](folder)
    assert main(["prepare", "lits", str(folder), "--output", str(tmp_path / "store"), "--workers", "1"]) == 0
    store = Store.open(tmp_path / "store", verify=True)
    (case,) = store.records
    np.testing.assert_array_equal(store.hu(case.case_id), voxels().T)
    np.testing.assert_array_equal(store.labels(case.case_id), np.where(labels() == 2, UNTYPED_LESION, labels()).T)
    assert case.spacing_mm == pytest.approx((2.5, 0.8, 0.7))


# ---- DICOM ----


def transferred(syntax):
    def make(folder):
        slices = stack(canonical_hu((5, 32, 32)))
        for ds in slices:
            if syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
                ds.compress(syntax, generate_instance_uid=False)
            else:
                ds.file_meta.TransferSyntaxUID = syntax
            if syntax == ExplicitVRBigEndian:
                ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        save(folder, slices)
        return canonical_hu((5, 32, 32))

    return make


def series(change):
    def make(folder):
        save(folder, change(stack()))
        return canonical_hu()

    return make


def set_all(**fields):
    def change(slices):
        for ds in slices:
            for name, value in fields.items():
                setattr(ds, name, value)
        return slices

    return change


def among_others(folder):
    save(folder, stack())
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / ".hidden.dcm").write_bytes(b"")
    report = stack(series="report")[0]
    report.SOPClassUID, report.Modality = SecondaryCaptureImageStorage, "OT"
    report.save_as(folder / "report.dcm")
    localizer().save_as(folder / "scout.dcm")
    return canonical_hu()


def signed(slices):
    for ds in slices:
        hu = np.frombuffer(ds.PixelData, "<u2").astype(np.int32) - 1024
        ds.PixelRepresentation, ds.RescaleIntercept, ds.PixelData = 1, 0, hu.astype("<i2").tobytes()
    return slices


def rounded(slices):
    for ds, by in zip(slices, (0, 0.1, -0.1, 0.1, 0), strict=True):
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y, float(z) + by]
    return slices


def without_frame(slices):
    for ds in slices:
        del ds.FrameOfReferenceUID
    return slices


DICOM = {
    "implicit VR": transferred(ImplicitVRLittleEndian),
    "big endian": transferred(ExplicitVRBigEndian),
    "deflated": transferred(DeflatedExplicitVRLittleEndian),
    "RLE": transferred(RLELossless),
    "JPEG-LS": transferred(JPEGLSLossless),
    "JPEG 2000": transferred(JPEG2000Lossless),
    "among other files, a report and a scout": among_others,
    "slices out of order": series(lambda slices: [slices[i] for i in (3, 0, 4, 1, 2)]),
    "signed pixels": series(signed),
    "rounded positions": series(rounded),
    "without frame of reference": series(without_frame),
    "names in Greek": series(set_all(SpecificCharacterSet="ISO_IR 126", PatientName="Διονυσιος")),
    "a name in an unknown character set": series(set_all(SpecificCharacterSet="ISO_IR 9999")),
    "dates that are none": series(set_all(StudyDate="20250230", StudyTime="9")),
}


@pytest.mark.parametrize("kind", DICOM)
def test_dicom(kind, tmp_path):
    hu = DICOM[kind](tmp_path / "study ü")
    np.testing.assert_array_equal(canonical(read_scan(tmp_path / "study ü")).hu, hu)


# ---- slices and their tables ----

HEAD, ROW = "patient_id,image,mask,liver_mask", "p1,a.dcm,map.png,liver.png"


def palette(folder):
    image = Image.fromarray(spot((2, 2)) + spot((3, 3), value=2), "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(folder / "map.png")
    return f"{HEAD}\n{ROW}\n"


def wide(folder):
    Image.fromarray((spot((2, 2)) + spot((3, 3), value=2)).astype(np.uint16)).save(folder / "map.png")
    return f"{HEAD}\n{ROW}\n"


def as_nifti(folder):
    save_nifti(folder / "map.nii.gz", (spot((2, 2)) + spot((3, 3), value=2)).astype(np.float32))
    return f"{HEAD}\n{ROW.replace('map.png', 'map.nii.gz')}\n"


def one_bit_each(folder):
    Image.fromarray(spot((2, 2), value=255)).convert("1").save(folder / "cyst.png")
    Image.fromarray(spot((3, 3), value=255)).convert("1").save(folder / "other.png")
    rows = "p1,a.dcm,cyst.png,liver.png,cyst\np1,a.dcm,other.png,liver.png,hemangioma\n"
    return f"{HEAD},lesion_type\n{rows}"


def odd_names(folder):
    (folder / "a.dcm").rename(folder / "Bild 1, axial.DCM")
    return f'{HEAD}\n"Müller, Änne","Bild 1, axial.DCM",map.png,liver.png\n'


SLICES = {
    "plain": lambda _: f"{HEAD}\n{ROW}\n",
    "a byte order mark": lambda _: f"\ufeff{HEAD}\n{ROW}\n",
    "line ends of Windows": lambda _: f"{HEAD}\r\n{ROW}\r\n",
    "no line end at the end": lambda _: f"{HEAD}\n{ROW}",
    "empty lines": lambda _: f"{HEAD}\n\n{ROW}\n,,,\n",
    "spaces around the cells": lambda _: f"{HEAD}\n{ROW.replace(',', ' , ')}\n",
    "columns of her own": lambda _: f"{HEAD},age,scanner\n{ROW},54,Ångström\n",
    "a mask with a palette": palette,
    "a mask of 16 bits": wide,
    "a mask in NIfTI": as_nifti,
    "a binary mask for each type": one_bit_each,
    "names with commas, spaces and umlauts": odd_names,
}


@pytest.mark.parametrize("kind", SLICES)
def test_slices(kind, tmp_path):
    folder = tmp_path / "slices ü"
    folder.mkdir()
    save_dicom(folder / "a.dcm")
    Image.fromarray(spot((2, 2)) + spot((3, 3), value=2)).save(folder / "map.png")
    Image.fromarray(LIVER_MASK).save(folder / "liver.png")
    (folder / "slices.csv").write_bytes(SLICES[kind](folder).encode())
    words = ["prepare", "slices", str(folder / "slices.csv"), "--output", str(tmp_path / "store"), "--workers", "1"]
    assert main(words) == 0
    store = Store.open(tmp_path / "store", verify=True)
    (case,) = store.records
    np.testing.assert_array_equal(store.hu(case.case_id)[0], HU)
    np.testing.assert_array_equal(store.labels(case.case_id), expected(cyst=(2, 2), hemangioma=(3, 3)))


def test_a_slice_without_a_lesion_is_one(tmp_path):
    """In PNG with a window, the value of black and of white."""
    Image.fromarray((HU + 60).astype(np.uint8)).save(tmp_path / "a.png")
    Image.new("L", HU.shape[::-1]).save(tmp_path / "map.png")
    Image.fromarray(LIVER_MASK).save(tmp_path / "liver.png")
    text = f"{HEAD},window_low_hu,window_high_hu\np1,a.png,map.png,liver.png,-60,195\n"
    (tmp_path / "slices.csv").write_text(text)
    words = ["prepare", "slices", str(tmp_path / "slices.csv"), "--output", str(tmp_path / "store"), "--workers", "1"]
    assert main(words) == 0
    store = Store.open(tmp_path / "store", verify=True)
    (case,) = store.records
    np.testing.assert_array_equal(store.hu(case.case_id)[0], HU)
    np.testing.assert_array_equal(store.labels(case.case_id), expected())
