"""Random slices with their neighbours per second: our store, and the ways a user would take in its place.

Usage: random_slice.py [--lits FOLDER] [--volumes N] [--slices N] [--repeats N] [--output JSON]

A way gives HU (3, H, W) and labels (H, W) of a random slice of a random case, as often as it can on one core, with the
files in the cache of the system: the store of `prepare`, whose files are opened for each slice; nii.gz, sliced by
nibabel; plain nii likewise, and with its images kept open; `.npy` files of the same numbers, mapped for each slice, and
mapped once; MONAI's `PersistentDataset`, loaded whole; the arrays that nnU-Net's own preprocessing writes (float32,
blosc2), opened and sliced as its data loader does (which takes one slice of them; three here, as of all). Disk use
stands beside. A last rival is our store packed: blosc2 with LZ4, a slice a chunk, opened once; for it, the samples that
training sees (read, cut, augmented, 320 pixels) are compared as well.

Before anything is timed, a few slices of every case are read in each way and must be equal to the last bit, HU and
classes. nnU-Net's are normalised and resampled to the spacing it planned, so that they cannot be.

Cases: phantoms as `lits_size.py` makes them, or those of a LiTS folder (`--lits`), in the orientation of the store.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from lits_size import size_mb, write_lits
from rounds import Row, left_out_if_missing, publish, rounds, seconds

from lesionseg.data import lits
from lesionseg.data.augment import Augmentation
from lesionseg.data.dataset import Draw, SliceDataset
from lesionseg.data.prepare import prepare
from lesionseg.data.pseudonyms import with_pseudonyms
from lesionseg.data.slice_table import SliceTable
from lesionseg.data.store import Store
from lesionseg.inputs import InputSpec, neighbours
from lesionseg.labels import TARGETS

OURS, NNUNET, PACKED = "lesionseg", "nnU-Net's blosc2 arrays", "the same store, packed (LZ4), opened once"


@dataclass(frozen=True)
class Way:
    """How to read slice `i` of case `n`, what it takes on the disk, and how many slices make a round."""

    read: Callable[[int, int], tuple[np.ndarray, np.ndarray]]
    disk_mb: float
    slices: int


def ours(store: Store, cases: list[str]) -> Way:
    """As `SliceDataset` reads."""

    def read(n: int, i: int) -> tuple[np.ndarray, np.ndarray]:
        hu, labels = store.hu_slices(cases[n], near(i)), store.label_slices(cases[n], slice(i, i + 1))
        return neighbours(hu, min(i, 1)), labels[0]

    return Way(read, size_mb(store.path), 400)


def near(i: int) -> slice:
    return slice(max(i - 1, 0), i + 2)


def nifti(files: list[tuple[Path, Path]], slices: int, *, once: bool = False) -> Way:
    """Packed or not, by nibabel, which reads what is before a slice as well where the file is packed.

    Args:
        files: image and mask of each case.
        slices: of a round.
        once: open each file once, and keep it open.
    """

    def opened(n: int) -> list[nib.Nifti1Image]:
        return [nib.load(file, keep_file_open=once) for file in files[n]]

    held = [opened(n) for n in range(len(files))] if once else None

    def read(n: int, i: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = held[n] if held else opened(n)
        hu = np.asarray(image.dataobj[..., near(i)]).T
        return neighbours(hu, min(i, 1)), np.asarray(mask.dataobj[..., i]).T.astype(np.uint8)

    return Way(read, size_mb(*(file for pair in files for file in pair)), slices)


def unpacked(files: list[tuple[Path, Path]], folder: Path) -> list[tuple[Path, Path]]:
    """The same as plain nii."""
    folder.mkdir()
    made = [tuple(folder / file.name.removesuffix(".gz") for file in pair) for pair in files]
    for pair, plain in zip(files, made, strict=True):
        for file, copy in zip(pair, plain, strict=True):
            nib.save(nib.load(file), copy)
    return made


def npy(files: list[tuple[Path, Path]], folder: Path) -> list[tuple[Path, Path]]:
    """`.npy` files of int16 and uint8, as anyone would write them."""
    folder.mkdir()
    made = []
    for n, pair in enumerate(files):
        made.append((folder / f"{n}-image.npy", folder / f"{n}-mask.npy"))
        for file, path, kind in zip(pair, made[-1], (np.int16, np.uint8), strict=True):
            np.save(path, np.ascontiguousarray(np.asarray(nib.load(file).dataobj).T.astype(kind)))
    return made


def mapped(files: list[tuple[Path, Path]], *, once: bool) -> Way:
    """`.npy` files, mapped for each slice or once: then two files stay open for each case."""

    def opened(n: int) -> list[np.memmap]:
        return [np.load(path, mmap_mode="r") for path in files[n]]

    held = [opened(n) for n in range(len(files))] if once else None

    def read(n: int, i: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = held[n] if held else opened(n)
        return neighbours(np.array(image[near(i)]), min(i, 1)), np.array(mask[i])

    return Way(read, size_mb(*(file for pair in files for file in pair)), 400)


def monai(files: list[tuple[Path, Path]], folder: Path) -> Way:
    from monai.data import PersistentDataset
    from monai.transforms import Compose, LoadImaged

    load = LoadImaged(["image", "label"], dtype=np.int16)
    items = [{"image": str(image), "label": str(label)} for image, label in files]
    dataset = PersistentDataset(items, Compose([load]), folder)
    for item in dataset:  # fills the folder
        del item

    def read(n: int, i: int) -> tuple[np.ndarray, np.ndarray]:
        case = dataset[n]
        hu, labels = (case[key].numpy().T for key in ("image", "label"))
        return neighbours(hu, i), labels[i].astype(np.uint8)

    return Way(read, size_mb(folder), 8)


def nnunet(root: Path, folder: Path) -> Way:
    from nnunet_cases import plan, preprocess

    cases = plan(folder, root)
    output = preprocess(folder, cases)
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    dataset = nnUNetDatasetBlosc2(str(output))

    def read(n: int, i: int) -> tuple[np.ndarray, np.ndarray]:
        data, labels, _, _ = dataset.load_case(cases[n])
        around = data[0, near(i)]
        return neighbours(around, min(i, 1)), labels[0, i].astype(np.uint8)

    return Way(read, size_mb(output), 100)


class PackedStore(Store):
    """A store whose arrays are blosc2 files, a slice a chunk, in a folder beside it; each is opened once."""

    @cached_property
    def _held(self) -> dict[tuple[str, str], Any]:
        return {}

    def hu_slices(self, case_id: str, part: slice) -> np.ndarray:
        return self._opened(case_id, "hu")[part]

    def label_slices(self, case_id: str, part: slice) -> np.ndarray:
        return self._opened(case_id, "labels")[part]

    def _opened(self, case_id: str, name: str) -> Any:
        import blosc2

        if (case_id, name) not in self._held:
            self._held[case_id, name] = blosc2.open(str(packed(self) / f"{case_id}-{name}.b2nd"), mmap_mode="r")
        return self._held[case_id, name]


def packed(store: Store) -> Path:
    return store.path.with_name("packed")


def pack(store: Store) -> PackedStore:
    import blosc2

    blosc2.set_nthreads(1)
    packed(store).mkdir()
    how = {"codec": blosc2.Codec.LZ4, "clevel": 5, "nthreads": 1}
    for record in store.records:
        for name, array in (("hu", store.hu(record.case_id)), ("labels", store.labels(record.case_id))):
            path = str(packed(store) / f"{record.case_id}-{name}.b2nd")
            blosc2.asarray(np.asarray(array), chunks=(1, *array.shape[1:]), cparams=how, urlpath=path)
    return PackedStore(store.path, store.kind, store.records, store.manifest_sha256)


def refuse_unequal(ways: dict[str, Way], depths: list[int]) -> None:
    """See that all ways return what ours does, at both ends of every case and in its middle.

    Raises:
        ValueError: one does not.
    """
    fold = TARGETS["lesion"].apply  # lesions have another id in the store than in the files, and one class
    for n, depth in enumerate(depths):
        for i in (0, depth // 2, depth - 1):
            hu, labels = ways[OURS].read(n, i)
            for name, way in ways.items():
                their_hu, their_labels = way.read(n, i)
                if not (np.array_equal(hu, their_hu) and np.array_equal(fold(labels), fold(their_labels))):
                    raise ValueError(f"case {n}, slice {i}: {name} returns something else than {OURS}")


def slices_per_second(way: Way, depths: list[int], rng: np.random.Generator) -> float:
    drawn = [(n, int(rng.integers(depths[n]))) for n in rng.integers(len(depths), size=way.slices)]

    def read_all() -> None:
        for n, i in drawn:
            way.read(n, i)  # and let go: to keep them all would measure the memory

    return way.slices / seconds(read_all)()


def samples_per_second(dataset: SliceDataset, rng: np.random.Generator, samples: int = 100) -> float:
    draws = [Draw(int(n), 0) for n in rng.integers(len(dataset), size=samples)]

    def read_all() -> None:
        for draw in draws:
            dataset[draw]

    return samples / seconds(read_all)()


def training_samples(store: Store) -> SliceDataset:
    """Slices with liver as the lesion net of the paper sees them."""
    refs = SliceTable(store.records, range(len(store.records)), all_slices=False)
    spec = InputSpec(size_px=320, region="liver")
    return SliceDataset(store, refs, TARGETS["lesion"], spec, augmentation=Augmentation())


def measure(root: Path, folder: Path, repeats: int, notes: list[str]) -> tuple[list[Row], dict[str, float]]:
    sources = lits.cases(root)
    store = prepare(sources, folder / "store", kind="lits")
    cases, files = [job.case_id for job in with_pseudonyms(sources, b"")], [source.files for source in sources]
    depths = [store.record(case).shape[0] for case in cases]
    rng, packed_store = np.random.default_rng(0), None
    plain, arrays = unpacked(files, folder / "nii"), npy(files, folder / "npy")
    ways = {
        OURS: ours(store, cases),
        "nii.gz, sliced by nibabel": nifti(files, 4),
        "nii, sliced by nibabel": nifti(plain, 100),
        "nii, sliced by nibabel, opened once": nifti(plain, 100, once=True),
        ".npy, mapped": mapped(arrays, once=False),
        ".npy, mapped once": mapped(arrays, once=True),
        "MONAI PersistentDataset": monai(files, folder / "monai"),
    }
    with left_out_if_missing(NNUNET, notes):
        ways[NNUNET] = nnunet(root, folder / "nnunet")
    with left_out_if_missing(PACKED, notes):
        packed_store = pack(store)
        ways[PACKED] = replace(ours(packed_store, cases), disk_mb=size_mb(packed(packed_store)), slices=100)
    refuse_unequal({name: way for name, way in ways.items() if name != NNUNET}, depths)
    rates = rounds({name: partial(slices_per_second, way, depths, rng) for name, way in ways.items()}, repeats)
    least = {NNUNET: 8.0}
    rows = [
        Row("random slice with neighbours, one core", "slices/s", rates[OURS], name, "rival", rates[name],
            least=least.get(name))
        for name in ways if name != OURS
    ]  # fmt: skip
    rows += [
        Row("disk use", "MB", [ways[OURS].disk_mb], name, "rival", [way.disk_mb])
        for name, way in ways.items() if name != OURS and not name.endswith(" once")
    ]  # fmt: skip
    if packed_store is not None:
        stores = {OURS: store, PACKED: packed_store}
        samples = {name: partial(samples_per_second, training_samples(each), rng) for name, each in stores.items()}
        trained = rounds(samples, repeats)
        figure = "training sample, 320 px, one core"
        rows.append(Row(figure, "samples/s", trained[OURS], PACKED, "rival", trained[PACKED]))
    return rows, {name: way.disk_mb for name, way in ways.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lits", type=Path, help="folder of real cases, in the place of phantoms")
    parser.add_argument("--volumes", type=int, default=2)
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--side", type=int, default=512, metavar="PX")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/random_slice.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = options.lits or write_lits(folder / "lits", options.volumes, options.slices, options.side)
        notes: list[str] = []
        rows, disk_mb = measure(root, folder, options.repeats, notes)
    publish(rows, options.output, notes=notes, disk_mb=disk_mb)


if __name__ == "__main__":
    main()
