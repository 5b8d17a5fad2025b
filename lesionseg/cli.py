"""The one door: `lesionseg VERB …`. What a verb needs is imported when it runs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lesionseg.arguments import TRAINING_VERBS, parser
from lesionseg.collector import collector_at_rest
from lesionseg.errors import InputError, printable

if TYPE_CHECKING:
    from lesionseg.data.store import StoreKind
    from lesionseg.scan import CaseSource

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


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
        _leave(status)
        return status
    except Exception as error:
        _leave(FAILED, error)
        raise


def _leave(status: int, error: BaseException | None = None) -> None:
    """See `lesionseg.ranks.leave`; no verb without ranks loads torch for it."""
    if "lesionseg.ranks" in sys.modules:
        from lesionseg.ranks import leave

        leave(status, error)


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, InputError):
        return WRONG_INPUT, f"wrong input: {error}"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted; the same command continues"
    return FAILED, printable(f"failed: {error}")


def _run(args: list[str]) -> int:
    if args and args[0] in TRAINING_VERBS and args[1:] not in (["-h"], ["--help"]):
        from lesionseg.request import done_in

        if args[0] == "fit" and (folder := done_in(args)) is not None:
            print(printable(f"{folder} is done already"))
            return DONE
        # Else each rank warns, in many words, of a setting that freezing needs (`ranks.joined`).
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        with collector_at_rest():
            if args[0] == "fit":  # W&B will ask for it; it looks at all modules, many times: while they are few
                import wandb.apis.public  # noqa: F401
            from lesionseg.training import run

        return run([args[0], "--help"] if args[1:] == ["--help", "all"] else args)
    options = _with_absolute_paths(parser().parse_args(args))
    return VERBS[options.verb](options) or DONE


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
            from lesionseg.device import inference_on
            from lesionseg.liver_predictor import LiverPredictor

        predict = LiverPredictor(options.liver)
        if options.workers is None and inference_on().device.type != "cpu":
            options.workers = 1  # as in `segment`: each process would hold the net on the GPU
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
        salt=_salt(options.salt_file),
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


def _salt(path: Path | None) -> bytes:
    if path is None:
        return b""
    if not path.is_file() or not path.stat().st_size:
        raise InputError(path, expected="a file of secret bytes", got="none", remedy="openssl rand -out FILE 32")
    return path.read_bytes()


#: What runs a verb, by the name that `arguments.parser` gives it.
VERBS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "phantom": _phantom,
    "prepare lits": _prepare_lits,
    "prepare slices": _prepare_slices,
    "implant": _implant,
    "check": _check,
    "compare": _compare,
    "export": _export,
    "segment": _segment,
    "evaluate": _evaluate,
}


if __name__ == "__main__":
    sys.exit(main())
