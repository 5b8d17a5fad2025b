"""Bad NIfTI, DICOM, DICOM-SEG and PNG."""

import gzip
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
from bad_kinds import Bench, bad, family, lines
from PIL import Image
from test_dicom import FAULTS, save, stack
from test_slices import AFFINE as SLICE_AFFINE
from test_slices import HU, LIVER_MASK, save_dicom, save_nifti, save_seg, spot

SHAPE = (6, 5, 4)  # i, j, k
AFFINE = np.array([[-0.7, 0, 0, 10.0], [0, -0.8, 0, 20.0], [0, 0, 2.5, -30.0], [0, 0, 0, 1]])


# ---- NIfTI ----


def voxels(dtype=np.int16):
    return (np.arange(np.prod(SHAPE)).reshape(SHAPE) - 60).astype(dtype)


def nifti(path: Path, array=None, affine=AFFINE, **header) -> Path:
    image = nib.Nifti1Image(voxels() if array is None else array, affine)
    for field, value in header.items():
        image.header[field] = value
    nib.save(image, path)
    return path


def labels() -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[1:5, 1:4], array[2:4, 2:3] = 1, 2
    return array


def volume(bench: Bench, change) -> list[str]:
    """The image of a LiTS case is spoilt."""
    folder = bench.folder / "lits"
    folder.mkdir()
    nifti(folder / "segmentation-0.nii", labels())
    change(folder / "volume-0.nii")
    return ["prepare", "lits", str(folder), "--output", bench.out, "--workers", "1"]


def mask(bench: Bench, change) -> list[str]:
    """The mask of a LiTS case is spoilt."""
    folder = bench.folder / "lits"
    folder.mkdir()
    nifti(folder / "volume-0.nii")
    change(folder / "segmentation-0.nii")
    return ["prepare", "lits", str(folder), "--output", bench.out, "--workers", "1"]


def content(data: bytes):
    return lambda path: path.write_bytes(data)


def rewritten(change):
    """The bytes of a good file, changed."""
    return lambda path: path.write_bytes(change(nifti(path).read_bytes()))


def with_(value, dtype=np.float32):
    array = voxels(dtype)
    array[0, 0, 0] = value
    return lambda path: nifti(path, array)


def sheared(path):
    affine = AFFINE.copy()
    affine[0, 2] = 0.4
    nifti(path, affine=affine)


def shifted():
    affine = AFFINE.copy()
    affine[0, 3] += 0.7
    return affine


def two_places(path):
    image = nib.Nifti1Image(voxels(), AFFINE)
    image.set_qform(AFFINE @ np.diag([-1, 1, 1, 1]), code=1)
    nib.save(image, path)


family(
    "NIfTI",
    {
        "empty file": content(b""),
        "text by the name of an image": content(b"this is no image\n" * 40),
        "the end cut off": rewritten(lambda data: data[:-9]),
        "packed, the end cut off": lambda path: path.write_bytes(gzip.compress(nifti(path).read_bytes())[:-30]),
        "a DICOM file by the name of NIfTI": content(b"\0" * 128 + b"DICM" + b"\0" * 400),
        "several time points": lambda path: nifti(path, np.zeros((*SHAPE, 2), np.int16)),
        "colour": lambda path: nifti(path, np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "complex numbers": lambda path: nifti(path, voxels(np.complex64)),
        "voxels that are no number": with_(np.nan),
        "values beyond CT": with_(70000, np.int32),
        "normalised to 0…1": lambda path: nifti(path, (voxels(np.float32) + 60) / 120),
        "normalised by mean and deviation": lambda path: nifti(path, voxels(np.float32) / 60),
        "sheared axes": sheared,
        "sform and qform apart": two_places,
        "metres": lambda path: nifti(path, xyzt_units=1),
        "half a metre between slices": lambda path: nifti(path, affine=AFFINE @ np.diag([1, 1, 200, 1])),
    },
    volume,
)
family(
    "NIfTI mask",
    {
        "of another size": lambda path: nifti(path, labels()[:-1]),
        "mirrored": lambda path: nifti(path, labels(), AFFINE @ np.diag([-1, 1, 1, 1])),
        "one voxel beside its image": lambda path: nifti(path, labels(), shifted()),
        "an unknown label": lambda path: nifti(path, labels() * 2),
        "probabilities": lambda path: nifti(path, labels() * np.float32(0.4)),
        "missing": lambda path: None,
    },
    mask,
)


# ---- DICOM ----


def series(bench: Bench, fault: str) -> list[str]:
    save(bench.folder / "study", FAULTS[fault][0](stack()))
    bench.model.save(bench.folder / "model")
    return ["segment", str(bench.folder / "study"), "--model", str(bench.folder / "model"), "--output", bench.out]


family("DICOM series", {fault: fault for fault in FAULTS}, series)


@bad("DICOM series", "two series in one folder")
def two_series(bench):
    save(bench.folder / "study" / "a", stack())
    save(bench.folder / "study" / "b", stack(series="other"))
    bench.model.save(bench.folder / "model")
    return ["segment", str(bench.folder / "study"), "--model", str(bench.folder / "model"), "--output", bench.out]


@bad("DICOM series", "no such series")
def no_such_series(bench):
    return [*two_series(bench), "--series", "9.9.9"]


@bad("DICOM series", "a folder without images")
def no_images(bench):
    bench.write("study/letter.txt", "Dear colleague")
    bench.model.save(bench.folder / "model")
    return ["segment", str(bench.folder / "study"), "--model", str(bench.folder / "model"), "--output", bench.out]


# ---- single slices, their masks ----


def table(bench: Bench, row: str = "p1,a.dcm,map.png,liver.png", more: str = "") -> list[str]:
    save_if_missing(bench)
    bench.write("slices.csv", lines(f"patient_id,image,mask,liver_mask{more}", row))
    return ["prepare", "slices", str(bench.folder / "slices.csv"), "--output", bench.out, "--workers", "1"]


def save_if_missing(bench: Bench) -> None:
    """A slice, its lesions and its liver, unless the kind has made them otherwise."""
    makers = {
        "a.dcm": save_dicom,
        "map.png": lambda path: Image.fromarray(spot((2, 2)) + spot((3, 3), value=2)).save(path),
        "liver.png": lambda path: Image.fromarray(LIVER_MASK).save(path),
    }
    for name, make in makers.items():
        if not (bench.folder / name).exists():
            make(bench.folder / name)


def slice_with(bench: Bench, change) -> list[str]:
    save_dicom(bench.folder / "a.dcm")
    ds = pydicom.dcmread(bench.folder / "a.dcm")
    change(ds)
    ds.save_as(bench.folder / "a.dcm")
    return table(bench)


family(
    "DICOM slice",
    {
        "sagittal": lambda ds: setattr(ds, "ImageOrientationPatient", [0, 1, 0, 0, 0, -1]),
        "MR": lambda ds: setattr(ds, "Modality", "MR"),
        "without rescale": lambda ds: delattr(ds, "RescaleSlope"),
        "without pixels": lambda ds: delattr(ds, "PixelData"),
        "without spacing": lambda ds: delattr(ds, "PixelSpacing"),
        "pixels cut short": lambda ds: setattr(ds, "PixelData", ds.PixelData[:-8]),
    },
    slice_with,
)


@bad("DICOM slice", "a page saved by the name of an image")
def page(bench):
    bench.write("a.dcm", "<!DOCTYPE html><title>Sign in</title>")
    return table(bench)


def png(bench: Bench, made) -> list[str]:
    name, image = made
    if isinstance(image, bytes):
        bench.write(name, image)
    else:
        image.save(bench.folder / name)
    if name == "image.png":
        return table(bench, "p1,image.png,map.png,liver.png,-200,250", ",window_low_hu,window_high_hu")
    return table(bench)


grey = Image.fromarray((HU + 60).astype(np.uint8))
family(
    "PNG",
    {
        "empty mask file": ("map.png", b""),
        "mask cut off": ("map.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 20),
        "image in colour": ("image.png", Image.merge("RGB", [grey, grey, grey.transpose(0)])),
        "mask in colours": ("map.png", Image.merge("RGB", [grey, grey, grey.transpose(0)])),
        "mask that is see-through": ("map.png", Image.merge("LA", [grey, grey])),
        "mask of another size": ("map.png", Image.new("L", (5, 8))),
        "mask of unknown labels": ("map.png", Image.fromarray(spot((2, 2), value=9))),
        "liver mask of another size": ("liver.png", Image.new("L", (60, 80))),
        "empty liver mask": ("liver.png", Image.new("L", (6, 8))),
    },
    png,
)


@bad("PNG", "an image without its window")
def no_window(bench):
    grey.save(bench.folder / "image.png")
    return table(bench, "p1,image.png,map.png,liver.png")


@bad("DICOM-SEG", "of another frame of reference")
def seg_elsewhere(bench):
    save_dicom(bench.folder / "a.dcm")
    ds = pydicom.dcmread(bench.folder / "a.dcm")
    ds.FrameOfReferenceUID = "1.2.4"
    ds.save_as(bench.folder / "a.dcm")
    save_seg(bench.folder / "seg.dcm", bench.folder / "a.dcm", frame="9.9", cyst=spot((2, 2)), liver=LIVER_MASK)
    return table(bench, "p1,a.dcm,seg.dcm,seg.dcm")


@bad("DICOM-SEG", "of the spleen")
def seg_of_the_spleen(bench):
    save_if_missing(bench)
    save_seg(bench.folder / "seg.dcm", bench.folder / "a.dcm", spleen=spot((2, 2)))
    return table(bench, "p1,a.dcm,seg.dcm,liver.png")


@bad("DICOM-SEG", "lesions without a type")
def seg_without_types(bench):
    save_if_missing(bench)
    save_seg(bench.folder / "seg.dcm", bench.folder / "a.dcm", lesion=spot((2, 2)))
    return table(bench, "p1,a.dcm,seg.dcm,liver.png")


def seg_with(bench: Bench, change) -> list[str]:
    save_if_missing(bench)
    save_seg(bench.folder / "seg.dcm", bench.folder / "a.dcm", cyst=spot((2, 2)), metastasis=spot((3, 3)))
    ds = pydicom.dcmread(bench.folder / "seg.dcm")
    change(ds)
    ds.save_as(bench.folder / "seg.dcm")
    return table(bench, "p1,a.dcm,seg.dcm,liver.png")


def of_the_kidney(ds):
    ds.SegmentSequence[0].AnatomicRegionSequence = [hd.sr.CodedConcept("64033007", "SCT", "Kidney")]


def of_another_series(ds):
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.4"


family(
    "DICOM-SEG",
    {
        "of the kidney": of_the_kidney,
        "of another study": lambda ds: setattr(ds, "StudyInstanceUID", "1.2.4"),
        "of another series": of_another_series,
        "a number twice": lambda ds: setattr(ds.SegmentSequence[1], "SegmentNumber", 1),
        "a label map": lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.66.7"),
        "of 8 bits": lambda ds: setattr(ds, "BitsAllocated", 8),
    },
    seg_with,
)


@bad("DICOM-SEG", "a CT in its place")
def ct_for_a_seg(bench):
    save_dicom(bench.folder / "b.dcm")
    return table(bench, "p1,a.dcm,b.dcm,liver.png")


@bad("DICOM-SEG", "NRRD in its place, and no liver")
def nrrd_for_a_seg(bench):
    bench.write("mask.nrrd", "NRRD0004")
    return table(bench, "p1,a.dcm,mask.nrrd,")


@bad("NIfTI mask", "of a slice, beside it")
def slice_mask_beside(bench):
    affine = SLICE_AFFINE.copy()
    affine[0, 3] = 40
    save_nifti(bench.folder / "mask.nii.gz", spot((2, 2)), affine)
    return table(bench, "p1,a.dcm,mask.nii.gz,liver.png")
