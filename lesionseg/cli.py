"""The one door: `lesionseg VERB …`. What a verb needs is imported when it runs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lesionseg import __version__
from lesionseg.collector import collector_at_rest
from lesionseg.errors import InputError, printable
from lesionseg.labels import LESION_TYPES

if TYPE_CHECKING:
    from lesionseg.data.store import StoreKind
    from lesionseg.scan import CaseSource

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
#: Verbs of LightningCLI; their options are those of Trainer, task and data module.
TRAINING_VERBS = {
    "fit": "train a net, test its last weights, write the tables of the run",
    "validate": "score a finished run on its inner validation",
    "test": "score a finished run on its test part and write its tables again",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        return _run(args)
    except (InputError, KeyboardInterrupt, OSError, FloatingPointError) as error:
        if debug:
            traceback.print_exc()
        status, message = _explain(error)
        print(f"lesionseg: {message}", file=sys.stderr)
        return status


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, InputError):
        return WRONG_INPUT, f"wrong input: {error}"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted; the same command continues"
    return FAILED, printable(f"failed: {error}")


def _run(args: list[str]) -> int:
    if args and args[0] in TRAINING_VERBS and args[1:] not in (["-h"], ["--help"]):
        from lesionseg.request import is_done

        if args[0] == "fit" and is_done(args):
            print("this run is done already")
            return DONE
        with collector_at_rest():
            import wandb.apis.public  # noqa: F401 (while modules are few: it looks at all of them, many times)

            from lesionseg.training import run

        return run([args[0], "--help"] if args[1:] == ["--help", "all"] else args)
    options = _with_absolute_paths(_parser().parse_args(args))
    return options.verb(options) or DONE


def _with_absolute_paths(options: argparse.Namespace) -> argparse.Namespace:
    """With `--dask`: its workers have working directories of their own."""
    if vars(options).get("dask") is not None:
        for name, value in vars(options).items():
            setattr(options, name, value.absolute() if isinstance(value, Path) else value)
    return options


def _phantom(options: argparse.Namespace) -> None:
    with collector_at_rest():
        from lesionseg.phantom.write import write_phantom

    write_phantom(options.output, volumes=options.volumes, slices=options.slices, size=options.size, seed=options.seed)


def _prepare_lits(options: argparse.Namespace) -> None:
    with collector_at_rest():
        from lesionseg.data import lits

    sources = lits.cases(options.root, groups=options.groups, exclude=options.exclude, strict=options.strict)
    _prepare(sources, "lits", options)


def _prepare_slices(options: argparse.Namespace) -> None:
    with collector_at_rest():
        from lesionseg.data import slices

    predict = None
    if options.liver is not None:
        with collector_at_rest():
            from lesionseg.cascade import LiverPredictor

        predict = LiverPredictor(options.liver)
    sources = slices.cases(
        options.table, labels=options.labels, groups=options.groups, exclude=options.exclude, predict_liver=predict
    )
    _prepare(sources, "slices", options)


def _prepare(sources: Sequence[CaseSource], kind: StoreKind, options: argparse.Namespace) -> None:
    with collector_at_rest():
        from lesionseg.data.prepare import prepare

    salt = _salt(options.salt_file)
    prepare(sources, options.output, kind=kind, salt=salt, workers=options.workers, dask=options.dask)


def _implant(options: argparse.Namespace) -> None:
    with collector_at_rest():
        from lesionseg.data.implanted import implant_store

    implant_store(
        options.store,
        options.output,
        slices=options.slices,
        seed=options.seed,
        exclude_trained=options.exclude_trained,
        workers=options.workers,
    )


def _check(options: argparse.Namespace) -> int:
    with collector_at_rest():
        from lesionseg.data.check import report

    sheet = options.output or Path(f"{options.target.resolve().stem}-check.png")
    wrong = report(
        options.target,
        sheet,
        labels=options.labels,
        groups=options.groups,
        exclude=options.exclude,
        folds=options.folds,
        workers=options.workers,
    )
    return WRONG_INPUT if wrong else DONE


def _compare(options: argparse.Namespace) -> None:
    with collector_at_rest():
        from lesionseg.compare import compare

    compare(options.root, options.output, against=options.against)


def _export(options: argparse.Namespace) -> None:
    with collector_at_rest():
        from lesionseg.export import best_runs, export

    lesions, selected = (options.lesion, None) if options.best_of is None else best_runs(options.best_of)
    export(options.liver, lesions, options.output, selected=selected)


def _segment(options: argparse.Namespace) -> int:
    with collector_at_rest():
        from lesionseg.segment import segment

    outcomes = segment(
        options.input,
        options.output,
        options.model,
        series=options.series,
        formats=None if options.formats is None else options.formats.split(","),
        liver_mask=options.liver_mask,
        probabilities=options.probabilities,
        tta=options.tta,
        device=options.device,
        batch_size=options.batch_size,
        workers=options.workers,
        dask=options.dask,
    )
    endings = Counter(outcome.ending for outcome in outcomes)
    for ending in ("failed", "refused"):  # told of each on stdout; a script may look at stderr alone
        if n := endings[ending]:
            again = "the same command takes them up again"
            print(f"lesionseg: {n} of {len(outcomes)} {ending}, see summary.csv; {again}", file=sys.stderr)
    if "failed" in endings:
        return FAILED
    return WRONG_INPUT if "refused" in endings or set(endings) == {"passed over"} else DONE


def _evaluate(options: argparse.Namespace) -> None:
    with collector_at_rest():
        from lesionseg.evaluation.evaluate import evaluate

    evaluate(
        options.store,
        options.model,
        options.output,
        device=options.device,
        batch_size=options.batch_size,
        tta=options.tta,
        exclude_trained=options.exclude_trained,
        submission=options.submission,
        workers=options.workers,
        dask=options.dask,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lesionseg", description="Find and name liver lesions in CT.")
    parser.add_argument("--version", action="version", version=f"lesionseg {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verb = verbs.add_parser("phantom", help="generate abdominal CT with lesions, in the public layouts")
    verb.set_defaults(verb=_phantom)
    verb.add_argument("output", type=Path, metavar="OUT", help="folder to make; holds lits/ and slices/")
    verb.add_argument("--volumes", type=int, default=12, help="LiTS-like volumes for pretraining (%(default)s)")
    verb.add_argument("--slices", type=int, default=240, help="single slices with named lesions (%(default)s)")
    verb.add_argument("--size", type=int, default=128, help="pixels along the side of a slice (%(default)s)")
    verb.add_argument("--seed", type=int, default=0, help="the same seed gives the same files (%(default)s)")

    kinds = verbs.add_parser("prepare", help="make a store from LiTS or from a table of slices").add_subparsers(
        metavar="KIND", required=True
    )
    verb = kinds.add_parser("lits", help="LiTS challenge folders of any nesting, or Decathlon Task03_Liver")
    verb.set_defaults(verb=_prepare_lits)
    verb.add_argument("root", type=Path, metavar="ROOT", help="folder that holds the files")
    verb.add_argument("--strict", action="store_true", help="refuse an unknown orientation instead of warning")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="STORE", help="the store to make")
    verb.add_argument("--salt-file", type=Path, metavar="FILE", help="secret bytes mixed into the pseudonyms")
    _add_case_options(verb)
    _add_engine(verb, "one a core")
    verb = kinds.add_parser("slices", help="single slices with named lesions, listed in a table")
    verb.set_defaults(verb=_prepare_slices)
    verb.add_argument(
        "table", type=Path, metavar="slices.csv", help="columns patient_id,image,mask and optionally lesion_type,"
        "liver_mask,spacing_mm,window_low_hu,window_high_hu",
    )  # fmt: skip
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="STORE", help="the store to make")
    verb.add_argument("--liver", type=Path, metavar="RUN", help="liver net for a table without liver_mask")
    verb.add_argument("--salt-file", type=Path, metavar="FILE", help="secret bytes mixed into the pseudonyms")
    _add_labels(verb)
    _add_case_options(verb)
    _add_engine(verb, "one a core")

    _add_implant(verbs.add_parser("implant", help="make a store of real liver slices with implanted, named lesions"))

    verb = verbs.add_parser("check", help="report every problem at once, and draw the masks on the images")
    verb.set_defaults(verb=_check)
    verb.add_argument("target", type=Path, metavar="STORE|ROOT|slices.csv")
    verb.add_argument("-o", "--output", type=Path, metavar="PNG", help="the contact sheet (TARGET-check.png)")
    verb.add_argument("--folds", type=int, default=3, help="folds that the patients must suffice for (%(default)s)")
    _add_labels(verb)
    _add_case_options(verb)
    verb.add_argument("--workers", type=int, metavar="N", help="processes (one a core)")

    verb = verbs.add_parser("compare", help="compare freeze schedules: table, intervals, figure")
    verb.set_defaults(verb=_compare)
    verb.add_argument("root", type=Path, metavar="RUNS", help="folder of runs, SCHEDULE/foldK-seedS")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for table and figure")
    verb.add_argument("--against", metavar="ROW", help="the row that the others are compared with (baseline)")

    _add_export(verbs.add_parser("export", help="make a model folder of trained runs, to share and to segment with"))
    _add_segment(verbs.add_parser("segment", help="find the lesions of new studies, in DICOM or NIfTI"))
    _add_evaluate(verbs.add_parser("evaluate", help="score the whole cascade on the cases of a store"))

    for name, text in TRAINING_VERBS.items():
        usage = f"lesionseg {name} --config YAML [--config YAML …] [--KEY VALUE …]"
        verbs.add_parser(name, help=text, usage=usage, description=f"{text}; `{name} --help all` lists every key")
    return parser


def _add_implant(verb: argparse.ArgumentParser) -> None:
    verb.set_defaults(verb=_implant)
    verb.add_argument("store", type=Path, metavar="STORE", help="real CT, made by `lesionseg prepare`")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="STORE2", help="the store to make")
    verb.add_argument("--slices", type=int, metavar="N", help="how many, taken of all patients in turn (all with room)")
    verb.add_argument("--seed", type=int, default=0, help="the same seed gives the same store (%(default)s)")
    verb.add_argument("--exclude-trained", type=Path, metavar="RUN", help="leave out the patients that a run has seen")
    verb.add_argument("--workers", type=int, metavar="N", help="processes (one a core)")


def _add_export(verb: argparse.ArgumentParser) -> None:
    verb.set_defaults(verb=_export)
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
    verb.set_defaults(verb=_segment)
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
    verb.set_defaults(verb=_evaluate)
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
    verb.add_argument("--groups", type=Path, metavar="CSV", help="table case,patient: scans of one patient")
    verb.add_argument("--exclude", nargs="+", action="extend", default=[], metavar="CASE", help="cases to leave out")


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


def _salt(path: Path | None) -> bytes:
    if path is None:
        return b""
    if not path.is_file() or not path.stat().st_size:
        raise InputError(path, expected="a file of secret bytes", got="none", remedy="openssl rand -out FILE 32")
    return path.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
