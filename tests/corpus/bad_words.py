"""Bad settings and command lines."""

from bad_images import nifti
from bad_kinds import Bench, bad, family, lines


def settings(bench: Bench, text) -> list[str]:
    return bench.tune(bench.folder / "out", "--config", str(bench.write("mine.yaml", text)))


family(
    "YAML",
    {
        "empty": "",
        "a list": lines("- data", "- model"),
        "a tab": lines("data:", "\tbatch_size: 2"),
        "not closed": "data: {batch_size: 2",
        "no text": b"\x89PNG\xff\xfe",
        "a key twice": lines("data:", "  batch_size: 2", "  batch_size: 4"),
        "a key misspelt": lines("data:", "  batchsize: 2"),
        "a word for a number": lines("data:", "  batch_size: many"),
        "a batch of none": lines("data:", "  batch_size: 0"),
        "an object of Python": lines("data: !!python/object/apply:os.system ['true']"),
        "a rate below zero": lines("model:", "  init_args:", "    lr: -0.1"),
        "an encoder that is none": lines("model:", "  init_args:", "    encoder: resnet19"),
        "a loss that is none": lines("model:", "  init_args:", "    loss: dice"),
        "a window upside down": lines("data:", "  input:", "    low_hu: 250", "    high_hu: -200"),
        "more folds than patients": lines("data:", "  folds: 40"),
        "a fold that is none": lines("data:", "  fold: 9"),
        "a block that is none": lines("schedule:", "  trains:", "    stage9: always"),
        "a block without its time": lines("schedule:", "  trains:", "    stem: null"),
        "a time beyond the training": lines("schedule:", "  trains:", "    stem: [0.5, 1.5]"),
        "a time that ends before it starts": lines("schedule:", "  trains:", "    stem: [0.8, 0.2]"),
        "nothing that trains": lines("schedule:", "  trains: {stem: never, stage1: never, stage2: never, "
                                     "stage3: never, stage4: never, decoder: never, head: never}"),
    },
    settings,
)  # fmt: skip


@bad("YAML", "missing")
def no_settings(bench):
    return bench.tune(bench.folder / "out", "--config", str(bench.folder / "none.yaml"))


def segment(bench: Bench, words) -> list[str]:
    bench.model.save(bench.folder / "model")
    nifti(bench.folder / "volume.nii")
    named = ["--model", str(bench.folder / "model"), "--output", bench.out]
    return ["segment", str(bench.folder / "volume.nii"), *named, *words]


family(
    "command line",
    {
        "an unknown verb": lambda _: ["segmnet", "study"],
        "no output": lambda bench: ["prepare", "lits", str(bench.folder)],
        "an unknown option": lambda bench: segment(bench, ["--modle", "x"]),
        "a number that is none": lambda bench: segment(bench, ["--workers", "two"]),
        "no workers": lambda bench: segment(bench, ["--workers", "0"]),
        "an unknown format": lambda bench: segment(bench, ["--formats", "nifti,docx"]),
        "an unknown device": lambda bench: segment(bench, ["--device", "tpu"]),
        "workers and a cluster": lambda bench: segment(bench, ["--workers", "1", "--dask", "tcp://127.0.0.1:1"]),
        "a cluster without a port": lambda bench: segment(bench, ["--dask", "127.0.0.1"]),
        "a salt of no bytes": lambda bench: ["prepare", "lits", str(bench.source / "lits"), "--output", bench.out,
                                             "--salt-file", str(bench.write("salt", ""))],
        "labels without values": lambda bench: ["prepare", "slices", str(bench.write("slices.csv", "")), "--output",
                                                bench.out, "--labels", "cyst,metastasis"],
        "a study that is not there": lambda bench: [segment(bench, [])[0], str(bench.folder / "none"),
                                                    *segment(bench, [])[2:]],
        "a phantom without slices": lambda bench: ["phantom", bench.out, "--slices", "-3"],
        "an unknown key of fit": lambda bench: bench.tune(bench.folder / "out", "--data.batchsize", "2"),
        "a schedule that is none": lambda bench: bench.tune(bench.folder / "out", "--config", "experiments/none.yaml"),
        "no store for fit": lambda bench: bench.tune(bench.folder / "out", "--data.store", str(bench.folder / "none")),
    },
    lambda bench, words: words(bench),
)  # fmt: skip
