"""Bad stores, run folders, model folders and checkpoints."""

import json

import torch
from bad_images import labels, nifti
from bad_kinds import Bench, bad, family


def edited(path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# ---- store ----


@bad("store", "missing")
def no_store(bench):
    return ["evaluate", str(bench.folder / "none"), "--model", str(bench.folder / "none"), "--output", bench.out]


def spoilt_store(bench: Bench, change) -> list[str]:
    store = bench.copy(bench.slices)
    change(store)
    bench.model.save(bench.folder / "model")
    return ["evaluate", str(store), "--model", str(bench.folder / "model"), "--output", bench.out]


def case_file(store, name):
    return sorted(store.glob(f"**/{name}"))[0]


family(
    "store",
    {
        "an empty folder": lambda store: [path.unlink() for path in sorted(store.rglob("*")) if path.is_file()],
        "manifest cut off": lambda store: (store / "manifest.json").write_text('{"format": 2, "cases": ['),
        "of another version": lambda store: edited(store / "manifest.json", format=99),
        "a case removed": lambda store: case_file(store, "hu.npy").unlink(),
        "a case cut short": lambda store: case_file(store, "hu.npy").write_bytes(b"\x93NUMPY"),
    },
    spoilt_store,
)


@bad("store", "a user's folder in the place of the output")
def not_a_store(bench):
    folder = bench.folder / "lits"
    folder.mkdir()
    nifti(folder / "volume-0.nii")
    nifti(folder / "segmentation-0.nii", labels())
    bench.write("out/thesis.docx", "two years of work")
    return ["prepare", "lits", str(folder), "--output", bench.out]


@bad("store", "a folder without LiTS cases")
def no_cases(bench):
    bench.write("lits/readme.txt", "soon")
    return ["prepare", "lits", str(bench.folder / "lits"), "--output", bench.out]


@bad("store", "generated slices to implant in")
def implant_in_the_phantom(bench):
    return ["implant", str(bench.slices), "--output", bench.out]


# ---- runs ----


@bad("run folder", "a folder without runs, to compare")
def nothing_to_compare(bench):
    bench.write("runs/notes.txt", "todo")
    return ["compare", str(bench.folder / "runs"), "--output", bench.out]


@bad("run folder", "missing, to export")
def no_run(bench):
    return ["export", "--liver", str(bench.folder / "none"), "--lesion", str(bench.run), "--output", bench.out]


@bad("run folder", "a lesion net as the liver net")
def lesion_for_liver(bench):
    return ["export", "--liver", str(bench.run), "--lesion", str(bench.run), "--output", bench.out]


def spoilt_run(bench: Bench, change) -> list[str]:
    run = bench.copy(bench.run)
    change(run)
    return bench.tune(bench.folder / "out", "--model.init_args.weights", str(run))


family(
    "run folder",
    {
        "not finished": lambda run: edited(run / "run.json", state="running"),
        "its description garbled": lambda run: (run / "run.json").write_bytes(b'{"state": "fin\xff\xfe'),
        "its description gone": lambda run: (run / "run.json").unlink(),
    },
    spoilt_run,
)


# ---- checkpoints ----


class Bomb:
    """Unpickled, it would write a file."""

    def __reduce__(self):
        return open, ("exploded", "w")


def checkpoint(bench: Bench, change) -> list[str]:
    run = bench.copy(bench.run)
    change(run / "checkpoints" / "last.ckpt")
    return bench.tune(bench.folder / "out", "--model.init_args.weights", str(run))


family(
    "checkpoint",
    {
        "empty": lambda path: path.write_bytes(b""),
        "cut off": lambda path: path.write_bytes(path.read_bytes()[:-5000]),
        "gone": lambda path: path.unlink(),
        "a pickle that would run code": lambda path: torch.save({"state_dict": Bomb()}, path),
        "of something else": lambda path: torch.save({"weights": torch.zeros(3)}, path),
    },
    checkpoint,
)


@bad("checkpoint", "a text by the name of encoder weights")
def text_for_weights(bench):
    path = bench.write("encoder.pt", "git-lfs pointer")
    return bench.fit(bench.folder / "out", "--model.init_args.encoder_weights", str(path))


@bad("checkpoint", "encoder weights of another encoder")
def other_encoder(bench):
    torch.save({"conv1.weight": torch.zeros(1, 1)}, bench.folder / "encoder.pt")
    return bench.fit(bench.folder / "out", "--model.init_args.encoder_weights", str(bench.folder / "encoder.pt"))


# ---- models ----


def spoilt_model(bench: Bench, change) -> list[str]:
    model = bench.folder / "model"
    bench.model.save(model)
    change(model)
    nifti(bench.folder / "volume.nii")
    return ["segment", str(bench.folder / "volume.nii"), "--model", str(model), "--output", bench.out]


def net(**fields):
    def change(model):
        held = json.loads((model / "model.json").read_text())
        edited(model / "model.json", liver=held["liver"] | fields)

    return change


family(
    "model folder",
    {
        "without model.json": lambda model: (model / "model.json").unlink(),
        "without weights": lambda model: (model / "liver.safetensors").unlink(),
        "weights cut off": lambda model: (model / "liver.safetensors").write_bytes(b"\x08\0\0\0"),
        "of a later version": lambda model: edited(model / "model.json", format=99),
        "model.json cut off": lambda model: (model / "model.json").write_text('{"format": 2,'),
        "an encoder from elsewhere": net(encoder="tu-hf-hub:someone/net"),
        "a temperature below zero": lambda model: edited(model / "model.json", temperature=-1),
        "no lesion net": lambda model: edited(model / "model.json", lesions=[]),
    },
    spoilt_model,
)


@bad("model folder", "a checkpoint in its place")
def checkpoint_for_a_model(bench):
    nifti(bench.folder / "volume.nii")
    last = str(bench.run / "checkpoints" / "last.ckpt")
    return ["segment", str(bench.folder / "volume.nii"), "--model", last, "--output", bench.out]
