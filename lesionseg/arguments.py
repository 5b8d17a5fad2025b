"""The command line of every verb: what `lesionseg VERB --help` says."""

from __future__ import annotations

import argparse
from pathlib import Path

from lesionseg import __version__
from lesionseg.errors import InputError
from lesionseg.labels import LESION_TYPES

#: Verbs of LightningCLI; their options are those of Trainer, task and data module.
TRAINING_VERBS = {
    "fit": "train a net, test its last weights, write the tables of the run",
    "validate": "score a finished run on its inner validation",
    "test": "score a finished run on its test part and write its tables again",
}
#: What `lesionseg.parallel.processes.worker_count` takes.
_ONE_A_CORE = "one a core, 8 at most"


def parser() -> argparse.ArgumentParser:
    """Parses a command line into a namespace, whose `verb` is the name of what to run, e.g. `prepare lits`."""
    whole = argparse.ArgumentParser(prog="lesionseg", description="Find and name liver lesions in CT.")
    whole.add_argument("--version", action="version", version=f"lesionseg {__version__}")
    whole.add_argument("--debug", action="store_true", help="show tracebacks")
    verbs = whole.add_subparsers(metavar="VERB", required=True)
    _add_phantom(verbs.add_parser("phantom", help="generate abdominal CT with lesions, in the public layouts"))
    _add_prepare(verbs.add_parser("prepare", help="make a store from LiTS or from a table of slices"))
    _add_implant(verbs.add_parser("implant", help="make a store of real liver slices with implanted, named lesions"))
    _add_check(verbs.add_parser("check", help="report every problem at once, and draw the masks on the images"))
    _add_compare(verbs.add_parser("compare", help="compare freeze schedules: table, intervals, figure"))
    _add_export(verbs.add_parser("export", help="make a model folder of trained runs, to share and to segment with"))
    _add_segment(verbs.add_parser("segment", help="find the lesions of new studies, in DICOM or NIfTI"))
    _add_evaluate(verbs.add_parser("evaluate", help="score the whole cascade on the cases of a store"))
    for name, text in TRAINING_VERBS.items():
        usage = f"lesionseg {name} --config YAML [--config YAML …] [--KEY VALUE …]"
        verbs.add_parser(name, help=text, usage=usage, description=f"{text}. {where_keys_are_listed(name)}")
    return whole


def where_keys_are_listed(verb: str) -> str:
    """Which commands print the hundreds of keys of a training verb."""
    net = "lesionseg.tasks.LesionTask"
    return f"`lesionseg {verb} --help all` lists the keys, `lesionseg {verb} --model.help {net}` those of a net"


def _add_phantom(verb: argparse.ArgumentParser) -> None:
    verb.set_defaults(verb="phantom")
    verb.add_argument("output", type=Path, metavar="OUT", help="folder to make; holds lits/ and slices/")
    verb.add_argument("--volumes", type=int, default=12, help="LiTS-like volumes for pretraining (%(default)s)")
    verb.add_argument("--slices", type=int, default=240, help="single slices with named lesions (%(default)s)")
    verb.add_argument("--size", type=int, default=128, help="pixels along the side of a slice (%(default)s)")
    verb.add_argument("--seed", type=int, default=0, help="the same seed gives the same files (%(default)s)")


def _add_prepare(verb: argparse.ArgumentParser) -> None:
    kinds = verb.add_subparsers(metavar="KIND", required=True)
    lits = kinds.add_parser("lits", help="LiTS challenge folders of any nesting, or Decathlon Task03_Liver")
    lits.set_defaults(verb="prepare lits")
    lits.add_argument("root", type=Path, metavar="ROOT", help="folder that holds the files")
    lits.add_argument("--strict", action="store_true", help="refuse an unknown orientation instead of warning")
    _add_store(lits)
    slices = kinds.add_parser("slices", help="single slices with named lesions, listed in a table")
    slices.set_defaults(verb="prepare slices")
    slices.add_argument(
        "table", type=Path, metavar="slices.csv", help="columns patient_id,image,mask and optionally lesion_type,"
        "liver_mask,spacing_mm,window_low_hu,window_high_hu",
    )  # fmt: skip
    slices.add_argument(
        "--liver", type=Path, metavar="RUN",
        help="liver net for a table without liver_mask; on a GPU where there is one, then in one process by default",
    )  # fmt: skip
    _add_labels(slices)
    _add_store(slices)


def _add_store(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="STORE", help="the store to make")
    _add_case_options(verb)
    _add_engine(verb, _ONE_A_CORE)


def _add_check(verb: argparse.ArgumentParser) -> None:
    verb.set_defaults(verb="check")
    verb.add_argument("target", type=Path, metavar="STORE|ROOT|slices.csv")
    verb.add_argument("-o", "--output", type=Path, metavar="PNG", help="the contact sheet (TARGET-check.png)")
    verb.add_argument("--folds", type=int, default=3, help="folds that the patients must suffice for (%(default)s)")
    _add_labels(verb)
    _add_case_options(verb)
    verb.add_argument("--workers", type=int, metavar="N", help=f"processes ({_ONE_A_CORE})")


def _add_compare(verb: argparse.ArgumentParser) -> None:
    verb.set_defaults(verb="compare")
    verb.add_argument("root", type=Path, metavar="RUNS", help="folder of runs, SCHEDULE/foldK-seedS")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for table, figure, page")
    verb.add_argument("--against", metavar="ROW", help="the row that the others are compared with (baseline)")


def _add_implant(verb: argparse.ArgumentParser) -> None:
    verb.set_defaults(verb="implant")
    verb.add_argument("store", type=Path, metavar="STORE", help="real CT, made by `lesionseg prepare`")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="STORE2", help="the store to make")
    verb.add_argument("--slices", type=int, metavar="N", help="how many, taken of all patients in turn (all with room)")
    verb.add_argument("--seed", type=int, default=0, help="the same seed gives the same store (%(default)s)")
    verb.add_argument("--exclude-trained", type=Path, metavar="RUN", help="leave out the patients that a run has seen")
    verb.add_argument("--workers", type=int, metavar="N", help=f"processes ({_ONE_A_CORE})")


def _add_export(verb: argparse.ArgumentParser) -> None:
    verb.set_defaults(verb="export")
    verb.add_argument("--liver", type=Path, required=True, metavar="RUN", help="run of the liver net")
    lesion = verb.add_mutually_exclusive_group(required=True)
    lesion.add_argument(
        "--lesion", type=Path, nargs="+", metavar="RUN", help="runs of lesion nets: folds and seeds of one schedule"
    )
    lesion.add_argument(
        "--best-of", type=Path, metavar="RUNS", help="those of the schedule that `compare` finds best, marked as such"
    )
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL", help="the model folder to make")


def _add_segment(verb: argparse.ArgumentParser) -> None:
    verb.set_defaults(verb="segment")
    verb.add_argument(
        "input", type=Path, metavar="INPUT", help="a NIfTI or DICOM file, a DICOM folder, or a folder of many studies"
    )  # fmt: skip
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="takes one folder a study")
    _add_model(verb)
    verb.add_argument("--series", metavar="UID", help="the CT series to take, by the end of its UID")
    verb.add_argument(
        "--formats", metavar="nifti,dicom-seg,dicom-sr,csv,json,html", help="what to write (all that fit the input)"
    )
    verb.add_argument("--probabilities", action="store_true", help="write the probability of every class as well")
    verb.add_argument(
        "--liver-mask", type=Path, metavar="FILE", help="the liver of a single study, NIfTI or DICOM-SEG, on its grid"
    )


def _add_evaluate(verb: argparse.ArgumentParser) -> None:
    verb.set_defaults(verb="evaluate")
    verb.add_argument("store", type=Path, metavar="STORE", help="made by `lesionseg prepare`")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of this evaluation")
    _add_model(verb)
    verb.add_argument("--exclude-trained", action="store_true", help="leave out the patients that the model has seen")
    verb.add_argument("--submission", action="store_true", help="write label maps as the LiTS challenge takes them")


def _add_model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", type=Path, required=True, metavar="MODEL", help="folder made by `lesionseg export`")
    verb.add_argument("--tta", action="store_true", help="average with the mirror image of every slice")
    verb.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    verb.add_argument("--batch-size", type=int, metavar="N", help="slices at once (1 on a CPU, 8 on a GPU)")
    _add_engine(verb, "one on a GPU, else one a core with 3 GB of memory each")


def _add_labels(verb: argparse.ArgumentParser) -> None:
    default = ",".join(f"{name}={i}" for i, name in enumerate(LESION_TYPES, 1))
    verb.add_argument(
        "--labels",
        type=_labels,
        metavar=default,
        help="value of each type in the masks, and of `liver` if it is drawn there (%(metavar)s)",
    )


def _add_case_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--salt-file", type=Path, metavar="FILE", help="secret bytes mixed into the pseudonyms")
    verb.add_argument(
        "--groups",
        type=Path,
        metavar="CSV",
        help="table case,patient: scans of one patient (case: volume-N, liver_N, or the image as slices.csv has it)",
    )
    verb.add_argument(
        "--exclude", nargs="+", action="extend", default=[], metavar="CASE", help="cases to leave out, named likewise"
    )


def _add_engine(verb: argparse.ArgumentParser, usual: str) -> None:
    engine = verb.add_mutually_exclusive_group()
    engine.add_argument("--workers", type=int, metavar="N", help=f"processes side by side ({usual})")
    engine.add_argument("--dask", metavar="ADDRESS", help="work on the Dask cluster of this scheduler, tcp://HOST:PORT")


def _labels(text: str) -> dict[str, int]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    labels = {name: int(value) for name, _, value in pairs if value.isdecimal()}
    if len(labels) < len(pairs):
        raise InputError(
            "--labels", expected="name=value,…, each name once", got=text, remedy="e.g. cyst=1,metastasis=3"
        )
    return labels
