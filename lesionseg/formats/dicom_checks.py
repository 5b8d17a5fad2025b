"""What makes DICOM files one CT in Hounsfield units on a regular grid; every fault is refused with its reason."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from lesionseg.errors import InputError, some
from lesionseg.formats.dicom_grid import COSINE_ROUNDING, frame_places, positions_mm
from lesionseg.scan import GEOMETRY_TOLERANCE_VOXELS

ENHANCED = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
#: Direction cosines of two slices may differ this much; writers round them.
ORIENTATION_TOLERANCE = 1e-4
#: Cosines of two decimals turn the normal by this much at most.
_COARSE_DEGREES = 0.75
#: No CT has more rows or columns; more are a broken header, and would be allocated before the pixels are missed.
MAX_SIDE_PX = 4096


class Slice(NamedTuple):
    """A DICOM file and what it holds."""

    path: Path
    dataset: Dataset


def choose_series(folder: Path, files: Sequence[Slice], series: str | None) -> list[Slice]:
    """The files of the one CT series, or of the one named by (the end of) its UID; else `InputError` with the list.

    A series of localizers counts only where there is no other CT.
    """
    groups: dict[str, list[Slice]] = defaultdict(list)
    for item in files:
        groups[str(item.dataset.get("SeriesInstanceUID", ""))].append(item)
    ct = {uid: group for uid, group in groups.items() if any(is_ct(item.dataset) for item in group)}
    ct = {uid: group for uid, group in ct.items() if not all(is_localizer(item.dataset) for item in group)} or ct
    if not ct:
        raise _no_ct(folder, files)
    chosen = [uid for uid in ct if series is None or uid.endswith(series)]
    if len(chosen) != 1:
        tail = next(n for n in range(8, 65) if len({uid[-n:] for uid in ct}) == len(ct))
        listed = "; ".join(f"{word('…' + uid[-tail:])} {_describe(group)}" for uid, group in ct.items())
        raise InputError(
            folder,
            expected="one CT series" if series is None else f"one CT series whose UID ends in {series}",
            got=f"{len(chosen)} of {len(ct)}: {listed}" if series is not None else f"{len(ct)}: {listed}",
            remedy="name one of them by the end of its UID (`lesionseg segment --series`, `read_scan(series=)`)",
            code="several-series",
        )
    return ct[chosen[0]]


def is_ct(dataset: Dataset) -> bool:
    """Of a class of CT images."""
    return dataset.get("SOPClassUID") in (CTImageStorage, *ENHANCED)


def is_localizer(dataset: Dataset) -> bool:
    """A scout view, on which others were planned."""
    return "LOCALIZER" in _image_type(dataset)


def check_series(where: Path, slices: Sequence[Slice]) -> None:
    """Raise `InputError` unless single-frame files form one CT series on a regular grid."""
    for item in slices:
        _check_image(item.path, item.dataset)
    for name, value in _SHARED.items():
        _check_shared(where, slices, name, value)
    for item in slices:
        _check_hounsfield(item.path, item.dataset, ("HU", "US"))
    _check_grid(where, slices)


def _check_grid(where: Path, slices: Sequence[Slice]) -> None:
    """Raise `InputError` unless slices, or frames, lie one after another along their normal at equal distances."""
    for item in slices:
        _check_plane(item.path, item.dataset)
    _check_orientation(where, slices)
    if len(slices) > 1:
        _check_positions(where, slices)


def check_enhanced(path: Path, dataset: Dataset) -> None:
    """Raise `InputError` unless the frames of a multi-frame CT form a regular grid in Hounsfield units, by one rescale.

    Here type US is refused: perfusion and other maps carry it.
    """
    _check_image(path, dataset)
    frames = [Slice(path, place) for place in frame_places(dataset)]
    if len(frames) != (count := int(dataset.get("NumberOfFrames") or 1)):
        raise fault(path, f"places of {count} frames", f"{len(frames)}", "export the original CT", "geometry")
    for frame in frames:
        _check_hounsfield(path, frame.dataset, ("HU",))
    if len({(frame.dataset.RescaleSlope, frame.dataset.RescaleIntercept) for frame in frames}) > 1:
        raise fault(path, "one rescale in all frames", "several", "convert the file to single slices", "rescale")
    if len({tuple(frame.dataset.get("PixelSpacing") or ()) for frame in frames}) > 1:
        raise fault(path, "one pixel spacing in all frames", "several", "convert the file to single slices", "mixed")
    _check_grid(path, frames)


def fault(where: Path, expected: str, got: str, remedy: str, code: str) -> InputError:
    """The `InputError` of these parts, on one line of source."""
    return InputError(where, expected=expected, got=got, remedy=remedy, code=code)


def _no_ct(folder: Path, files: Sequence[Slice]) -> InputError:
    modalities = ", ".join(sorted({word(item.dataset.get("Modality")) for item in files}))
    got, remedy = f"modality {modalities}", "name the folder that holds the slices of one CT series"
    if not files:
        got = "no DICOM file"
    elif not all(item.dataset.get("SOPClassUID") for item in files):
        got, remedy = f"{got}, without SOPClassUID", "export the series again with its UIDs"
    elif "CT" in modalities.split(", "):
        got += ", but of another class than CT images"
    return fault(folder, "a CT series", got, remedy, "not-ct" if files else "no-dicom")


def _describe(group: Sequence[Slice]) -> str:
    """What tells series apart: modality, slices, spacing in mm, the number a viewer shows."""
    dataset = group[0].dataset
    count = sum(int(item.dataset.get("NumberOfFrames") or 1) for item in group)
    parts = [word(dataset.get("Modality")), f"{count} slice{'s' if count > 1 else ''}"]
    if spacing := " x ".join(f"{float(mm):.4g}" for mm in dataset.get("PixelSpacing") or ()):
        parts.append(f"{spacing} mm in plane")
    if (step := _step_mm(group)) is not None:
        parts.append(f"one every {step:.4g} mm")
    elif thickness := dataset.get("SliceThickness"):
        parts.append(f"{float(thickness):.4g} mm thick")
    if (number := dataset.get("SeriesNumber")) is not None:
        parts.append(f"series {word(number)}")
    return f"({', '.join(parts)})"


def _step_mm(group: Sequence[Slice]) -> float | None:
    """Median distance of neighbouring slices; None where there are none, or no good positions."""
    try:
        steps = np.diff(np.sort(positions_mm([item.dataset for item in group])[:, 0]))
    except (AttributeError, LookupError, TypeError, ValueError):
        return None
    return float(np.median(steps)) if len(steps) and np.isfinite(steps).all() else None


def word(value: object) -> str:
    """A code as a message may quote it. A broken length makes any value swallow those after it, the name among them."""
    text = str(value)
    return text if re.fullmatch(r"…?[A-Za-z0-9_.-]{1,64}", text) else "malformed"


def _image_type(dataset: Dataset) -> tuple[str, ...]:
    value = dataset.get("ImageType") or ()
    return tuple(str(part).strip().upper() for part in ([value] if isinstance(value, str) else value))


def _check_image(path: Path, dataset: Dataset) -> None:
    """A CT image with pixels of one channel."""
    modality = dataset.get("Modality")
    if not is_ct(dataset) or modality != "CT":
        got = f"modality {word(modality)}, class {word(dataset.get('SOPClassUID'))}"
        raise fault(path, f"a CT image (class {CTImageStorage})", got, "take the file out of the series", "not-ct")
    if is_localizer(dataset):
        raise fault(path, "an axial image", "a localizer", "take the file out of the series", "localizer")
    if not any(tag in dataset for tag in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise fault(path, "an image with pixels", "none", "export the series again", "no-pixels")
    sides = (dataset.get("Rows"), dataset.get("Columns"))
    if not all(isinstance(side, int) and 0 < side <= MAX_SIDE_PX for side in sides):
        got = " and ".join(word(side) for side in sides)
        raise fault(path, f"1 to {MAX_SIDE_PX} rows and columns", got, "export the series again", "size")
    photometric, samples = dataset.get("PhotometricInterpretation"), dataset.get("SamplesPerPixel")
    if photometric != "MONOCHROME2" or samples != 1:
        got = f"{word(photometric)} with {word(samples)} sample{'s' * (samples != 1)} per pixel"
        raise fault(path, "MONOCHROME2 (more is brighter)", got, "export the original CT image", "photometric")
    stored, high = dataset.get("BitsStored"), dataset.get("HighBit")
    if isinstance(stored, int) and high != stored - 1:  # some decoders shift by the difference, some do not
        got = f"high bit {word(high)} of {stored} bits stored"
        expected = "a high bit one less than the bits stored (PS3.5 8.1.1)"
        raise fault(path, expected, got, "export the series again", "bits")
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        if not isinstance(dataset.get(name) or 0, int | float):
            raise fault(path, f"one number as {name}", "another", "export the original CT image", "padding")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.name == syntax or not syntax.is_transfer_syntax:
        raise fault(path, "a transfer syntax of the standard", "another", "export the series again", "transfer-syntax")


def _check_hounsfield(path: Path, transform: Dataset, kinds: tuple[str, ...]) -> None:
    """A slope and an intercept turn stored values into Hounsfield units (PS3.3 C.8.2.1; no type means HU).

    Type US (unspecified) is let pass in a plain CT slice: converters (gdcm) write it into any CT.
    """
    missing = [name for name in ("RescaleSlope", "RescaleIntercept") if transform.get(name) is None]
    kind = transform.get("RescaleType") or "HU"
    if missing:
        got = "no " + " and no ".join(missing)
    elif not np.isfinite([float(transform.RescaleSlope), float(transform.RescaleIntercept)]).all():
        got = "a rescale that is not finite"
    elif float(transform.RescaleSlope) <= 0:
        got = f"a RescaleSlope of {float(transform.RescaleSlope):g}"
    elif kind not in kinds:
        got = f"RescaleType {word(kind)}"
    else:
        return
    expected = "pixels that rescale to Hounsfield units (RescaleSlope, RescaleIntercept)"
    raise fault(path, expected, got, "export the original CT with its rescale attributes", "rescale")


def _check_plane(path: Path, dataset: Dataset) -> None:
    """Position, two unit vectors at right angles and spacing: the place of a slice in the patient."""
    wanted = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    for name, length in wanted.items():
        value = np.array(dataset.get(name) or (), dtype=float)
        if value.shape != (length,) or not np.isfinite(value).all() or (length == 2 and value.min() <= 0):
            got = "a broken one" if value.size else "none"
            raise fault(path, f"{name} with {length} numbers", got, "export the original CT", "geometry")
    rows, columns = cosines = np.array(dataset.ImageOrientationPatient, dtype=float).reshape(2, 3)
    deviation = np.abs(cosines @ cosines.T - np.eye(2)).max()
    coarse = 1e-6 < deviation <= 40 * COSINE_ROUNDING and np.allclose(cosines, cosines.round(2), rtol=0, atol=1e-9)
    if coarse or deviation > 4 * COSINE_ROUNDING:  # three decimals cause 2√3 at most
        expected = "an ImageOrientationPatient of two unit vectors at right angles, to three decimals"
        lengths = " and ".join(f"{np.linalg.norm(vector):.5g}" for vector in cosines)
        rounded = ", rounded to two decimals" if coarse else ""
        got = f"lengths {lengths} with a product of {rows @ columns:.3g}{rounded}"
        raise fault(path, expected, got, "export the original CT", "geometry")


def _patient(dataset: Dataset) -> Hashable:
    return str(dataset.get("PatientID", "")), str(dataset.get("PatientName", ""))


#: What all slices of a series share: the name in messages, and how it is read. The values are never shown.
_SHARED: dict[str, Callable[[Dataset], Hashable]] = {
    "patient": _patient,
    "study": lambda dataset: dataset.get("StudyInstanceUID"),
    "frame of reference": lambda dataset: dataset.get("FrameOfReferenceUID"),
    "kind (ORIGINAL or DERIVED)": lambda dataset: _image_type(dataset)[:1],
    "number of rows and columns": lambda dataset: (dataset.get("Rows"), dataset.get("Columns")),
    "pixel spacing": lambda dataset: tuple(map(float, dataset.get("PixelSpacing") or ())),
    "manufacturer": lambda dataset: dataset.get("Manufacturer"),
}


def _check_shared(where: Path, slices: Sequence[Slice], name: str, value: Callable[[Dataset], Hashable]) -> None:
    groups: dict[Hashable, list[Slice]] = defaultdict(list)
    for item in slices:
        groups[value(item.dataset)].append(item)
    if len(groups) > 1:
        odd = min(groups.values(), key=len)
        got = f"{len(groups)} different ones: {_names(odd)} differ{'s' if len(odd) == 1 else ''} from the others"
        raise fault(where, f"one {name} in all slices", got, "keep the slices of one CT in the folder", "mixed")


def _check_orientation(where: Path, slices: Sequence[Slice]) -> None:
    all_of = np.array([item.dataset.ImageOrientationPatient for item in slices], dtype=float)
    odd = [
        item
        for item, other in zip(slices, np.abs(all_of - np.median(all_of, axis=0)).max(1), strict=True)
        if other > ORIENTATION_TOLERANCE
    ]
    if odd:
        got = f"another in {_names(odd)}"
        raise fault(where, "one orientation in all slices", got, "keep the slices of one stack", "orientation")


def _check_positions(where: Path, slices: Sequence[Slice]) -> None:
    """Slices follow each other along their normal at equal distances, each within 0.1 voxel of its place."""
    positions = positions_mm([item.dataset for item in slices])
    positions = positions[np.argsort(positions[:, 0])]
    steps = np.diff(positions[:, 0])
    step = float(np.median(steps))
    sideways = positions[:, 1:] - positions[0, 1:]
    pixel = np.array(slices[0].dataset.PixelSpacing, dtype=float)[::-1]  # stated as between rows, between columns
    regular = np.linspace(positions[0], positions[-1], len(positions))[:, 0]
    faults = []
    if np.any(np.abs(sideways) > GEOMETRY_TOLERANCE_VOXELS * pixel):
        shifts = np.hypot(*sideways.T)
        tilt = np.degrees(np.arctan2(shifts[-1], abs(positions[-1, 0] - positions[0, 0])))
        why = "gantry tilt" if tilt > _COARSE_DEGREES else "gantry tilt, or a normal of rounded cosines"
        cause = f" ({tilt:.3g}° from the normal: {why})" if shifts.argmax() == len(shifts) - 1 else ""
        faults.append(f"slices that shift sideways by up to {shifts.max():.4g} mm{cause}")
    if doubled := [place for place, d in zip(positions[1:, 0], steps, strict=True) if d < 1e-3]:
        several = "s" if len(doubled) > 1 else ""
        faults.append(f"{len(doubled)} slice{several} at a position already taken ({_list_mm(doubled)})")
    elif np.abs(positions[:, 0] - regular).max() > GEOMETRY_TOLERANCE_VOXELS * max(step, 1e-6):
        worst = np.argsort(-np.abs(steps - step), kind="stable")[:4]
        uneven = ", ".join(f"{steps[i]:.4g} mm after {positions[i, 0]:.4g}" for i in sorted(worst))
        faults.append(f"uneven distances: mostly {step:.4g} mm, but {uneven} (missing slices)")
    if faults:
        expected = "slices at equal distances along their normal"
        remedy = "add the missing slices, remove the doubled, or resample the scan to a regular grid"
        raise fault(where, expected, f"{len(slices)} slices with " + "; and ".join(faults), remedy, "positions")


def _names(slices: Sequence[Slice]) -> str:
    return some((item.path.name for item in slices), 3)


def _list_mm(places: Sequence[float]) -> str:
    return some(f"{place:.4g}" for place in places) + " mm along the normal"
