"""What a comparison rests on, and what it warns of, a sentence each."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from lesionseg.grid import Grid
from lesionseg.paper import in_paper_order
from lesionseg.results import REFERENCE
from lesionseg.runs import THEN, RunInfo
from lesionseg.variance import effective_patients

#: Below this many patients the table warns of its intervals, and below this many degrees of freedom between runs, folds
#: x (seeds − 1), of its tests: what `experiments/benchmarks/simulated_comparisons.py` printed stands in the warnings.
FEW_PATIENTS, FEW_RUNS = 30, 6


def basis(grid: Grid) -> list[str]:
    """What the table rests on, one sentence each."""
    infos = [run.info for run in grid.runs]
    info = infos[0]
    slices, lesions = grid.tables(grid.schedules[0])
    reference = lesions[(lesions.kind == REFERENCE) & (lesions.seed == grid.seeds[0])]
    n_slices = len(slices[["case_id", "slice"]].drop_duplicates())
    types = ", ".join(f"{name} {(reference.type == name).sum()}" for name in grid.lesion_types)
    seeds, folds = ", ".join(map(str, grid.seeds)), ", ".join(map(str, grid.folds))
    commits, versions = _listed(i.commit or "unknown" for i in infos), _listed(i.version for i in infos)
    weights = next((i.encoder_weights for i in infos if i.encoder_weights), None)
    lines = [
        f"Data: {data_kind(grid)}; store {info.store_sha256[:12]}.",
        f"Test: {len(grid.patients)} patients, {n_slices} slices, {len(reference)} lesions ({types}); "
        f"folds {folds} of {info.folds}; seeds {seeds}; last weights after {info.epochs} epochs.",
        f"Net: encoder {info.encoder}, {encoder_weights(weights)}; configuration {info.config_sha256[:12]}.",
        f"Code: commit {commits}, version {versions}; machine: {_listed(i.machine for i in infos)}.",
    ]
    if len(grid.seeds) == 1:
        lines.append("One seed: the intervals hold given these trained models, they do not cover training anew.")
    else:
        lines.append(f"{len(grid.seeds)} seeds: figures are means over seeds; the intervals cover patients and runs.")
    lines += few_patients(reference.groupby("patient_id").size(), len(grid.patients)) + few_runs(
        len(grid.folds), len(grid.seeds)
    )
    return lines + silent_runs(grid) + mixed_code(grid) + mixed_ranks(grid)


def few_patients(lesions: Iterable[int], n: int) -> list[str]:
    """What to say of intervals over n patients with so many reference lesions (in any order), if anything."""
    counts = np.array(list(lesions), float)
    alike = float(effective_patients(counts[:, None])[0])
    if min(n, alike or n) >= FEW_PATIENTS:
        return []
    as_many = f", who tell of lesions as much as {alike:.1f} with equally many" if 0 < alike < 0.8 * n else ""
    return [
        f"Only {n} patients{as_many}: intervals of so few may be too narrow (simulated, a 95 % interval of a figure "
        "held the truth in 86 to 98 % of tables of 3 patients, 93 to 97 % of 5, 94 to 96 % of 12 and of 30, 92 to 96 % "
        "of 30 who have from one to 75 lesions)."
    ]


def few_runs(folds: int, seeds: int) -> list[str]:
    """What to say of tests over so few runs, if anything."""
    if seeds == 1 or folds * (seeds - 1) >= FEW_RUNS:
        return []
    return [
        f"Only {folds * seeds} runs a row: the tests are somewhat too sure (simulated, 5 rows without a difference: a "
        "false alarm after Holm in 6 to 8 % of tables of 3 folds and 2 seeds, 10 to 13 % of 1 fold and 3 seeds)."
    ]


def silent_runs(grid: Grid) -> list[str]:
    """What to say of runs whose net marked no pixel of the test part, if anything."""
    tables = ((run.info, run.lesions) for run in grid.runs)
    silent = [
        info
        for info, lesions in tables
        if len(lesions) and (lesions.kind == REFERENCE).all() and not lesions.overlap.any()
    ]
    if not silent:
        return []
    names = ", ".join(f"{info.name} (fold {info.fold}, seed {info.seed})" for info in silent)
    return [
        f"**These runs marked no lesion in any slice of their test part**: {names}. That tells of too few epochs "
        "or of a learning rate that does not fit, not of a schedule."
    ]


def mixed_code(grid: Grid) -> list[str]:
    """What to say of runs that were not all trained by one committed state of the code, if anything.

    A finished run stays as it is when the code changes: its fingerprint is of settings, data and weights.
    """
    states = {_code(run.info) for run in grid.runs}
    if len(states) == 1 and not any("-dirty" in state or THEN in state for state in states):
        return []
    return [
        "**Rows may differ by their code** and not by their schedule alone: it was changed between runs or within one, "
        f"or not committed (-dirty). Rows by code: {_rows_by(grid, _code)}."
    ]


def _code(info: RunInfo) -> str:
    """The state of the code that trained a run: a commit tells it, or outside a checkout the version."""
    return info.commit or f"version {info.version}"


def mixed_ranks(grid: Grid) -> list[str]:
    """What to say of runs that were not all trained by as many ranks, if anything; `docs/scaling.md` says why."""
    if len({run.info.ranks for run in grid.runs}) == 1:
        return []
    return [
        "**Rows may differ by the number of ranks that trained them** and not by their schedule alone: batch norm and "
        f"loss see the share of one rank. Rows by ranks: {_rows_by(grid, lambda info: str(info.ranks))}."
    ]


def data_kind(grid: Grid) -> str:
    """Generated or real CT, and whether the lesions are the patients' own, in words."""
    if any(run.info.generated for run in grid.runs):
        return "phantom, generated CT"
    return "real CT with implanted lesions" if any(run.info.implanted for run in grid.runs) else "real CT"


def encoder_weights(weights: str | None) -> str:
    """Where the encoder's first weights come from (`RunInfo.encoder_weights`), in words."""
    return {None: "no ImageNet", "imagenet": "ImageNet", "file": "weights of a local file"}.get(weights, str(weights))


def _rows_by(grid: Grid, key: Callable[[RunInfo], str]) -> str:
    """Names of the rows for each value of something that runs differ in."""
    rows: dict[str, set[str]] = {}
    for run in grid.runs:
        rows.setdefault(key(run.info), set()).add(run.info.name)
    return "; ".join(f"{value}: {', '.join(in_paper_order(names))}" for value, names in sorted(rows.items()))


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))
