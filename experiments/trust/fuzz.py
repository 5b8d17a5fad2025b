"""Mutated files at every door that reads one: each ends in `InputError` or is read, and what is read is what it says.

Usage: fuzz.py [--nifti N] [--dicom N] [--text N] [--binary N] [--seed N] [--output JSON]

Images and text files are made here, then changed: bytes, header fields, lengths, values, the end cut off. Counted:
other exceptions, reads that take more than `HANG_S`, and files accepted whose shape, HU or geometry differ from what an
independent library (nibabel, GDCM) reads of them. Where that one refuses what is accepted here, it is told and is no
failure. The run folders, tables and settings are those of a small grid, which is made first.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import os
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gdcm
import nibabel as nib
import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element, write_file_meta_info
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from rows import Row, asked, publish
from small_grid import made_in, run, segment
from tally import ALONE, Tally, mutated, mutated_text

from lesionseg.cli import WRONG_INPUT
from lesionseg.cli import main as lesionseg
from lesionseg.comparison_page.histories import read_history
from lesionseg.data import lits, slices
from lesionseg.data.groups import read_groups
from lesionseg.data.store import Store, read_manifest
from lesionseg.errors import InputError
from lesionseg.formats.dicom import PADDING_HU, read_dicom_file
from lesionseg.formats.nifti import RAS_TO_LPS, read_nifti
from lesionseg.formats.png import read_png_labels
from lesionseg.held_out import inner_validation, training_store
from lesionseg.model import Model
from lesionseg.results import read_run
from lesionseg.run_weights import LAST_CHECKPOINT, read_net
from lesionseg.runs import RunInfo
from lesionseg.scan import Scan
from lesionseg.studies import RECORD
from lesionseg.study_folder import Record

#: Corners of a grid that two libraries place so far apart are rounding, in mm.
TOLERANCE_MM = 0.01


# ---- NIfTI ----


def nifti_originals(folder: Path, rng: np.random.Generator) -> list[bytes]:
    """Small volumes of several types and both versions."""
    affine = np.array([[-0.7, 0, 0, 10.0], [0, -0.8, 0, 20.0], [0, 0, 2.5, -30.0], [0, 0, 0, 1]])
    hu = rng.integers(-1000, 1500, (9, 8, 7))
    out = []
    for n, (kind, dtype) in enumerate([(nib.Nifti1Image, np.int16), (nib.Nifti1Image, np.float32),
                                       (nib.Nifti1Image, np.int32), (nib.Nifti2Image, np.int16)]):  # fmt: skip
        image = kind(hu.astype(dtype), affine)
        image.set_qform(affine, code=1)
        nib.save(image, folder / f"{n}.nii")
        out.append((folder / f"{n}.nii").read_bytes())
    return out


def nibabel_differs(path: Path, scan: Scan) -> str | None:
    """What nibabel reads differently of an accepted file."""
    try:
        image: Any = nib.load(path)
        theirs, affine = np.asarray(image.dataobj, np.float64), image.affine
    except Exception:  # whatever it says, it does not read the file
        return ALONE
    theirs = theirs.reshape((*theirs.shape, *(1,) * (3 - theirs.ndim)))[..., *(0,) * (theirs.ndim - 3)]
    hu = np.rint(theirs.T)
    if hu.shape != scan.hu.shape:
        return f"shape {scan.hu.shape}, nibabel {hu.shape}"
    if not np.array_equal(hu, scan.hu):
        return f"{np.count_nonzero(hu != scan.hu)} voxels differ from nibabel"
    if scan.affine is None:
        return None
    return _apart(scan, RAS_TO_LPS @ affine @ np.eye(4)[[2, 1, 0, 3]], "nibabel")


def _apart(scan: Scan, theirs: np.ndarray, library: str) -> str | None:
    assert scan.affine is not None
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in scan.hu.shape], [1], indexing="ij"), -1).reshape(-1, 4)
    distance = float(np.abs((scan.affine - theirs) @ corners.T).max())
    return None if distance <= TOLERANCE_MM else f"corners {distance:.3g} mm from those of {library}"


def fuzz_nifti(count: int, seed: int) -> Tally:
    """Mutated NIfTI files, packed and not."""
    rng, tally = np.random.default_rng(seed), Tally()
    nib.imageglobals.logger.setLevel(logging.CRITICAL + 1)
    with tempfile.TemporaryDirectory() as name:
        originals = nifti_originals(Path(name), rng)
        for n in range(count):
            data = mutated(originals[n % len(originals)], rng, head=352)
            path = Path(name) / ("a.nii" if n % 3 else "a.nii.gz")
            if n % 3 == 0:
                data = gzip.compress(data, 1)
                data = mutated(data, rng, head=24) if n % 2 else data
            path.write_bytes(data)
            tally.note(lambda path=path: read_nifti(path)[0], lambda scan, path=path: nibabel_differs(path, scan),
                       f"NIfTI {n} of seed {seed}")  # fmt: skip
    return tally


# ---- DICOM ----


def dicom_original(rng: np.random.Generator, syntax: str) -> FileDataset:
    """A single slice."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["a"])
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CTImageStorage, meta.MediaStorageSOPInstanceUID, "CT"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = (generate_uid(entropy_srcs=[word]) for word in "bc")
    ds.PatientName, ds.PatientID, ds.ImageType = "Doe^Jane", "1", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [-100.0, -50.0, 30.0], [1.0, 0, 0, 0, 1.0, 0]
    ds.PixelSpacing, ds.SliceThickness, ds.InstanceNumber = [0.8, 0.7], 3.0, 1
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 12, 10, 1, "MONOCHROME2"
    ds.PixelRepresentation, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 0, 16, 16, 15
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.PixelData = rng.integers(0, 2500, (12, 10), np.uint16).tobytes()
    ds["PixelData"].VR = "OW"
    return ds


#: Texts that a data element may hold by mistake.
TEXTS = ("", "0", "-1", "nan", "1e400", "abc", "1\\2", "1\\2\\3\\4\\5\\6\\7", "\\", " ", "9" * 16, "0.7\\0.7\\0.7", "é")


def edits(ds: FileDataset, rng: np.random.Generator) -> dict[int, bytes | None]:
    """One or two data elements, by tag, and the bytes that they get; None: they go."""
    elements = list(ds)
    return {
        int(elements[i].tag): None if rng.random() < 0.3 else _wrong_value(elements[i], rng)
        for i in rng.choice(len(elements), rng.integers(1, 3), replace=False)
    }


def _wrong_value(element: DataElement, rng: np.random.Generator) -> bytes:
    if element.VR == "US":
        return int(rng.choice((0, 1, 2, 8, 12, 15, 16, 17, 255, 65535))).to_bytes(2, "little")
    if element.VR == "OW":
        return element.value[: int(rng.integers(len(element.value) + 1)) // 2 * 2]
    value = TEXTS[rng.integers(len(TEXTS))].encode()
    return value + b" " * (len(value) % 2)


def dicom_bytes(ds: FileDataset, edited: Mapping[int, bytes | None]) -> bytes:
    """The file, with other bytes as the values of some elements: pydicom would convert them, or refuse."""
    implicit = ds.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, False
    out.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(out, ds.file_meta)
    out.is_implicit_VR = implicit
    for element in ds:
        if (tag := int(element.tag)) not in edited:
            write_data_element(out, element)
        elif (value := edited[tag]) is not None:
            size, long = len(value), implicit or element.VR == "OW"
            kind = b"" if implicit else element.VR.encode() + b"\0\0" * long
            out.write(
                struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind + struct.pack("<I" if long else "<H", size) + value
            )
    return out.getvalue()


def gdcm_differs(path: Path, scan: Scan) -> str | None:
    """What GDCM reads differently of an accepted slice."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        return ALONE
    image = reader.GetImage()
    columns, rows = image.GetDimension(0), image.GetDimension(1)
    if scan.hu.shape != (1, rows, columns):
        return f"shape {scan.hu.shape}, GDCM {rows} x {columns}"
    scalar = str(image.GetPixelFormat().GetScalarTypeAsString())
    types = {"UINT16": "<u2", "INT16": "<i2", "UINT8": "u1", "INT8": "i1", "UINT12": "<u2", "INT12": "<i2",
             "UINT32": "<u4", "INT32": "<i4"}  # fmt: skip
    if scalar not in types:
        return ALONE
    stored = np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), types[scalar])
    if stored.size != rows * columns:
        return ALONE
    hu = np.rint(stored.reshape(rows, columns) * image.GetSlope() + image.GetIntercept())
    known = scan.hu[0] != PADDING_HU
    if not np.array_equal(hu[known], scan.hu[0][known]):
        return f"{np.count_nonzero(hu != scan.hu[0])} voxels differ from GDCM"
    if scan.affine is None:
        return None
    cosines, spacing = np.array(image.GetDirectionCosines()), image.GetSpacing()
    theirs = scan.affine.copy()
    theirs[:3, 1], theirs[:3, 2] = cosines[3:6] * spacing[1], cosines[:3] * spacing[0]
    theirs[:3, 3] = [image.GetOrigin(i) for i in range(3)]
    return _apart(scan, theirs, "GDCM")


def fuzz_dicom(count: int, seed: int) -> Tally:
    """Mutated single slices: half by bytes, half by data elements."""
    rng, tally = np.random.default_rng(seed), Tally()
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(name) / "a.dcm"
        for n in range(count):
            syntax = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)[n % 2]
            ds = dicom_original(rng, syntax)
            content = dicom_bytes(ds, edits(ds, rng) if n % 4 < 2 else {})
            # Pixels, the last 240 bytes, may hold anything.
            path.write_bytes(content if n % 4 < 2 else mutated(content, rng, head=len(content) - 240))
            tally.note(lambda: read_dicom_file(path), lambda scan: gdcm_differs(path, scan),
                       f"DICOM {n} of seed {seed}")  # fmt: skip
    return tally


# ---- settings, tables, JSON ----


def settings_refused(path: Path) -> None:
    """`fit` with these settings on a store that does not exist: whatever else is wrong, it is refused."""
    words = ["fit", "--config", str(path), "--data.store", str(path.parent / "none"),
             "--trainer.default_root_dir", str(path.parent / "fit")]  # fmt: skip
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        status = lesionseg(words)
    if status != WRONG_INPUT:
        raise AssertionError(f"status {status}")
    raise InputError(path, expected="", got="", remedy="")


def doors(folder: Path) -> dict[str, tuple[Path, Callable[[], object]]]:
    """Each text file that the package reads: the file, and how it is read."""
    source, run_dir = folder / "source", folder / "run"
    groups = folder / "groups.csv"
    known = [case.source_id for case in lits.cases(source / "lits")]
    groups.write_text("case,patient\n" + "".join(f"{name},p{i // 2}\n" for i, name in enumerate(known)))
    table = source / "slices" / "slices.csv"
    settings = folder / "settings.yaml"
    settings.write_text((run_dir / "config.yaml").read_text())
    study = min((folder / "studies").glob("volume-*"))
    return {
        "settings, YAML": (settings, lambda: settings_refused(settings)),
        "slices.csv": (table, lambda: [case.read() for case in slices.cases(table)]),
        "groups, CSV": (groups, lambda: read_groups(groups, known)),
        "manifest.json of a store": (folder / "slices" / "manifest.json", lambda: read_manifest(folder / "slices")),
        "run.json": (run_dir / "run.json", lambda: RunInfo.read(run_dir)),
        "slices.csv of a run": (run_dir / "slices.csv", lambda: read_run(run_dir)),
        "lesions.csv of a run": (run_dir / "lesions.csv", lambda: read_run(run_dir)),
        "config.yaml of a run": (run_dir / "config.yaml", lambda: training_store(run_dir, RunInfo.read(run_dir))),
        "split.json of a run": (
            run_dir / "split.json",
            lambda: inner_validation(run_dir, Store.open(folder / "slices")),
        ),
        "metrics.csv of a run": (run_dir / "metrics.csv", lambda: read_history([read_run(run_dir)])),
        "schedule.json of a run": (run_dir / "schedule.json", lambda: read_history([read_run(run_dir)])),
        "model.json": (folder / "model" / "model.json", lambda: Model.load(folder / "model")),
        f"{RECORD} of a study": (study / RECORD, lambda: record_of(study)),
    }


def record_of(study: Path) -> Record:
    """What the folder of a study says of itself; `segment` makes it again where that is not what was written."""
    record = Record.read(study)
    if record is None:
        raise InputError(study, expected="", got="", remedy="")
    return record


def binary_doors(folder: Path) -> dict[str, tuple[Path, Callable[[], object], bool]]:
    """Each other file that the package has written: the file, how it is read, and whether every change must be seen."""
    store, run, model = folder / "slices", folder / "run", folder / "model"
    hu = sorted(store.rglob("hu.npy"))[0]
    mask = sorted((folder / "source" / "slices").rglob("*.png"))[0]
    return {
        "PNG": (mask, lambda: read_png_labels(mask), False),
        "hu.npy of a store": (hu, lambda: Store.open(store, verify=True), True),
        "last.ckpt of a run": (run / LAST_CHECKPOINT, lambda: read_net(run), False),
        "weights of a model": (model / "liver.safetensors", lambda: Model.load(model), True),
    }


def fuzz_binary(count: int, seed: int) -> dict[str, Tally]:
    """Mutated files of other kinds, `count` over all doors."""
    rng, tallies = np.random.default_rng(seed), dict[str, Tally]()
    with tempfile.TemporaryDirectory() as name:
        made_in(Path(name))
        for n in range(count):
            found = binary_doors(Path(name))
            door = list(found)[n % len(found)]
            path, read, all_seen = found[door]
            original = path.read_bytes()
            damaged = mutated(original, rng, head=min(len(original), 2000))
            path.write_bytes(damaged)
            wrong = "read, though it was changed" if all_seen and damaged != original else None
            tallies.setdefault(door, Tally()).note(read, lambda held, wrong=wrong: wrong, f"{door} {n} of seed {seed}")
            path.write_bytes(original)
    return tallies


def fuzz_text(count: int, seed: int) -> dict[str, Tally]:
    """Mutated text files, `count` over all doors."""
    rng, tallies = np.random.default_rng(seed), dict[str, Tally]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_in(folder)
        if run(segment(folder, folder / "studies")).returncode:
            sys.exit("segment failed")
        found = doors(folder)
        for n in range(count):
            door = list(found)[n % len(found)]
            path, read = found[door]
            original = path.read_text()
            path.write_bytes(mutated_text(original, rng))
            tallies.setdefault(door, Tally()).note(read, lambda held: None, f"{door} {n} of seed {seed}")
            path.write_text(original)
    return tallies


def row(what: str, tally: Tally) -> Row:
    """A tally as a line."""
    detail = ", ".join(f"{outcome} {n}" for outcome, n in sorted(tally.outcomes.items()))
    return Row(what, tally.count, len(tally.faults), detail)


def main() -> int:
    options = asked(__file__, nifti=(3000, "files"), dicom=(3000, "files"), text=(1300, "files"), binary=(400, "files"))
    os.environ["WANDB_MODE"] = "disabled"
    tallies = {"mutated NIfTI": fuzz_nifti(options.nifti, options.seed),
               "mutated DICOM": fuzz_dicom(options.dicom, options.seed)}  # fmt: skip
    tallies |= {f"mutated {door}": tally for door, tally in fuzz_text(options.text, options.seed).items()}
    tallies |= {f"mutated {door}": tally for door, tally in fuzz_binary(options.binary, options.seed).items()}
    rows = [row(what, tally) for what, tally in tallies.items()]
    return publish(rows, [fault for tally in tallies.values() for fault in tally.faults], options.output, options.seed)


if __name__ == "__main__":
    sys.exit(main())
