"""How often the statistics of a comparison are wrong, in simulated grids whose truth is known.

    python experiments/benchmarks/simulated_comparisons.py --output simulated.json   # 20 min on a core

Every table has five rows of the same true figures (in `shift` and `stated` the second is better). Patients, patients
under one schedule, runs, and patients in one run all have effects on the logit of finding and typing a lesion and of a
slice's Dice. Counted: how often the test of a row, and of any row after Holm's correction, sees a difference; how often
the 95 % intervals of a figure and of a difference hold the truth.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from lesionseg.significance import significance
from lesionseg.statistics import FIGURES, PRIMARY, PatientSums, patient_bootstrap

ROWS, ALPHA = 5, 0.05
RESAMPLES, PERMUTATIONS = 2000, 999
#: Of uneven patients: how far many lesions and a hard patient go together, and the most lesions of one.
CORRELATION, MOST_LESIONS = 0.5, 75
#: What is promised of every design that is not a limit: false alarms of a family, coverage of the intervals.
FALSE_ALARMS, COVERAGE = 0.06, (0.93, 0.97)
#: Runs and patients over which the truth of a design is taken.
TRUTH_DRAWS, TRUTH_PATIENTS = 60, 3000
#: How the shift is found whose true difference is the stated one.
BISECTIONS, STATED_TABLES = 7, 100


@dataclass(frozen=True)
class Design:
    """A grid and the standard deviations of its effects, as logits.

    Attributes:
        shift: how much better the second row is.
        stated: in place of `shift`, such that it is truly better by what tables state they could have shown.
        uneven: standard deviation of the logarithm of a patient's number of lesions; who has many is harder. 0: alike.
        schedule_sd: of a patient under one schedule, the same in all its runs.
        run_sd: of a run, the same for all patients of its fold.
        own_sd: of a patient in one run.
        seed_share: share of the variance between runs that all folds of a seed have in common; taken as 0.
        limit: what cannot hold here, and is counted to be told.
        tables: share of the tables asked for.
    """

    name: str
    patients: int
    seeds: int
    run_sd: float
    folds: int = 3
    shift: float = 0.0
    stated: bool = False
    uneven: float = 0.0
    patient_sd: float = 0.8
    schedule_sd: float = 0.3
    own_sd: float = 0.5
    seed_share: float = 0.0
    limit: str = ""
    tables: float = 1.0


DESIGNS = (
    Design("12 patients, 1 seed", 12, 1, run_sd=0),
    Design("30 patients, 1 seed", 30, 1, run_sd=0),
    Design("84 patients, 1 seed", 84, 1, run_sd=0),
    Design("12 patients, 3 seeds", 12, 3, run_sd=0.2),
    Design("30 patients, 3 seeds", 30, 3, run_sd=0.2),
    Design("84 patients, 3 seeds", 84, 3, run_sd=0.2),
    Design("84 patients, 3 seeds, runs alike", 84, 3, run_sd=0, tables=0.25),
    Design("84 patients, 3 seeds, runs far apart", 84, 3, run_sd=0.4, tables=0.25),
    Design("84 patients, 2 seeds", 84, 2, run_sd=0.2, tables=0.25, limit="six runs a row"),
    Design("84 patients, 1 seed, shift", 84, 1, run_sd=0, shift=0.4, tables=0.25),
    Design("84 patients, 3 seeds, shift", 84, 3, run_sd=0.2, shift=0.5, tables=0.25),
    *(Design(f"{n} patients, {seeds}, stated", n, int(seeds[0]), run_sd=0.2 if seeds == "3 seeds" else 0, stated=True,
             tables=0.1, limit="some figures near 1") for seeds in ("1 seed", "3 seeds") for n in (12, 30, 84)),
    Design("3 patients, 1 seed", 3, 1, run_sd=0, tables=0.25, limit="few patients"),
    Design("3 patients, 3 seeds", 3, 3, run_sd=0.2, tables=0.25, limit="few patients"),
    Design("5 patients, 1 seed", 5, 1, run_sd=0, tables=0.25, limit="few patients"),
    Design("5 patients, 3 seeds", 5, 3, run_sd=0.2, tables=0.25, limit="few patients"),
    Design("30 uneven patients, 1 seed", 30, 1, run_sd=0, uneven=1.1, tables=0.25, limit="lesions of few patients"),
    Design("30 uneven patients, 3 seeds", 30, 3, run_sd=0.2, uneven=1.1, tables=0.25, limit="lesions of few patients"),
    Design("84 patients, 3 seeds, 1 fold", 84, 3, run_sd=0.2, folds=1, tables=0.25, limit="three runs a row"),
    Design("84 patients, 3 seeds, folds alike", 84, 3, run_sd=0.2, seed_share=0.5, tables=0.25,
           limit="half of the variance of a run is its seed's, in all folds"),
    Design("84 patients, 1 seed, schedules meant", 84, 1, run_sd=0.2, tables=0.25,
           limit="one seed, read as if it said something of training anew"),
)  # fmt: skip


def main() -> int:
    """Print the shares of every design, write them with `--output`; 1 where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=4000, help="of a design; some take a quarter of it")
    parser.add_argument("--designs", nargs="*", help="names; default all", choices=[design.name for design in DESIGNS])
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    chosen = [design for design in DESIGNS if not args.designs or design.name in args.designs]
    results = []
    for design in chosen:
        results.append(simulate(design, max(1, round(args.tables * design.tables)), DESIGNS.index(design)))
        print_result(results[-1])
    if args.output is not None:
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    broken = [result["design"]["name"] for result in results if result["broken"]]
    print(f"promised and not held: {', '.join(broken)}" if broken else "all that is promised held")
    return int(bool(broken))


def simulate(design: Design, tables: int, seed: int) -> dict:
    """Shares over simulated tables, each by figure."""
    rng, start = np.random.default_rng(seed), time.perf_counter()
    if design.stated:
        design = replace(design, shift=stated_shift(design))
    truth = truth_of(design)
    shares: dict[str, list[np.ndarray]] = {}
    for _ in range(tables):
        for name, value in one_table(design, rng, truth).items():
            shares.setdefault(name, []).append(value)
    percent = {name: dict(zip(FIGURES, np.mean(values, axis=0), strict=True)) for name, values in shares.items()}
    return {
        "design": asdict(design),
        "tables": tables,
        "truth": dict(zip(FIGURES, truth[0], strict=True)),
        **{
            name: {figure: round(float(value), 4) for figure, value in values.items()}
            for name, values in percent.items()
        },
        "broken": [] if design.limit else broken_promises(percent),
        "seconds": round(time.perf_counter() - start),
    }


def stated_shift(design: Design) -> float:
    """Shift at which the true difference in the primary figure is the median of what tables state (`smallest_holm`)."""
    place, low, high = FIGURES.index(PRIMARY), 0.0, 4.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        tried, rng, stated = replace(design, shift=middle), np.random.default_rng(2027), []
        for _ in range(STATED_TABLES):
            rows = grid(tried, rng, design.patients, design.seeds, design.folds)
            table = significance({str(i): sums for i, sums in enumerate(rows)}, "0", 1)
            stated.append(table.query("schedule == '1' and figure == @PRIMARY").smallest_holm.item())
        same, better = truth_of(tried)[:, place]
        low, high = (middle, high) if better - same < np.median(stated) else (low, middle)
    return (low + high) / 2


def broken_promises(shares: dict[str, dict[str, float]]) -> list[str]:
    """Figures with more false alarms of a family, or with intervals that hold the truth more or less often."""
    return [
        *(f"family_wise {figure}" for figure, share in shares.get("family_wise", {}).items() if share > FALSE_ALARMS),
        *(
            f"{name} {figure}"
            for name in ("coverage", "coverage_of_difference")
            for figure, share in shares[name].items()
            if not COVERAGE[0] <= share <= COVERAGE[1]
        ),
    ]


def one_table(design: Design, rng: np.random.Generator, truth: np.ndarray) -> dict[str, np.ndarray]:
    """What is right and wrong in one table, (figures,) each."""
    rows = {f"row {i}": sums for i, sums in enumerate(grid(design, rng, design.patients, design.seeds, design.folds))}
    tests = significance(rows, "row 0", PERMUTATIONS, seed=int(rng.integers(2**31)))
    p, p_holm = (tests[name].to_numpy().reshape(ROWS, -1)[1:] for name in ("p", "p_holm"))
    two = {name: rows[name] for name in ("row 0", "row 1")}
    row = patient_bootstrap(two, "row 0", RESAMPLES, seed=int(rng.integers(2**31))).iloc[len(FIGURES) :]
    of_figure, of_difference = truth[1], truth[1] - truth[0]
    held = {
        "coverage": (row.low <= of_figure) & (of_figure <= row.high),
        "coverage_of_difference": (row.difference_low <= of_difference) & (of_difference <= row.difference_high),
    }
    shown = {"family_wise": (p_holm <= ALPHA).any(axis=0), "single": (p <= ALPHA).mean(axis=0)}
    if design.shift:
        shown = {"shown": p_holm[0] <= ALPHA}
    return shown | {name: value.to_numpy() for name, value in held.items()}


def grid(design: Design, rng: np.random.Generator, patients: int, seeds: int, folds: int) -> list[PatientSums]:
    """Sums of every row of a simulated grid."""
    fold = rng.permutation(patients) % folds
    shape = (ROWS, seeds, patients)
    run_sd = np.sqrt([1 - design.seed_share, design.seed_share]) * design.run_sd
    runs = rng.normal(0, run_sd[0], (ROWS, seeds, folds)) + rng.normal(0, run_sd[1], (ROWS, seeds, 1))
    many = rng.normal(0, 1, patients)  # lesions
    harder = CORRELATION * many * bool(design.uneven)
    own = np.sqrt(1 - CORRELATION**2 * bool(design.uneven)) * rng.normal(0, 1, patients) - harder
    skill = design.patient_sd * own + rng.normal(0, design.schedule_sd, (ROWS, 1, patients))
    skill = skill + runs[:, :, fold] + rng.normal(0, design.own_sd, shape)
    skill[1] += design.shift

    lesions, slices = (1 + rng.poisson(more, patients) for more in (2.65, 1.86))
    if design.uneven:
        lesions = np.ceil(np.exp(1 + design.uneven * many)).clip(max=MOST_LESIONS).astype(int)
        slices = np.ceil(lesions**0.7).astype(int)
    lesion_of, slice_of = (np.repeat(np.arange(patients), n) for n in (lesions, slices))
    ease = skill[:, :, lesion_of] + rng.normal(0, 1, len(lesion_of))  # a lesion is as hard in every row
    found = rng.random(ease.shape) < logistic(1.3 + ease)
    right = found & (rng.random(ease.shape) < logistic(0.8 + ease))
    view = skill[:, :, slice_of] + rng.normal(0, 0.5, len(slice_of))
    dice = logistic(view + rng.normal(0, 0.4, view.shape))
    false = rng.poisson(0.45 * np.exp(-0.7 * skill[:, :, slice_of]))

    found_sums, right_sums = by_patient(found, lesion_of, patients), by_patient(right, lesion_of, patients)
    lesions, slices = np.broadcast_to(lesions, shape), np.broadcast_to(slices, shape)
    sums = [by_patient(dice, slice_of, patients), by_patient(dice**2, slice_of, patients), found_sums, right_sums,
            right_sums, by_patient(false, slice_of, patients)]  # fmt: skip
    counts = [slices, slices, lesions, lesions, found_sums, slices]
    tops, bottoms = np.stack(sums, axis=-1).astype(float), np.stack(counts, axis=-1).astype(float)
    return [PatientSums(top, bottom, fold) for top, bottom in zip(tops, bottoms, strict=True)]


def truth_of(design: Design) -> np.ndarray:
    """Each row's true figures, (rows, figures): pooled over many patients, each with a run of its own."""
    rng, top, bottom = np.random.default_rng(2026), 0.0, 0.0
    for _ in range(TRUTH_DRAWS):
        rows = grid(design, rng, TRUTH_PATIENTS, 1, TRUTH_PATIENTS)
        top = top + np.array([row.sums.sum(axis=(0, 1)) for row in rows])
        bottom = bottom + np.array([row.counts.sum(axis=(0, 1)) for row in rows])
    pooled = top / bottom
    same = np.delete(pooled, 1, axis=0).mean(axis=0)  # all rows but the second are alike
    return np.array([same, pooled[1] if design.shift else same])


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def by_patient(values: np.ndarray, of: np.ndarray, patients: int) -> np.ndarray:
    """Sums of values (rows, seeds, items) by the patient of each item, (rows, seeds, patients); items in order."""
    return np.add.reduceat(values.astype(np.float64), np.searchsorted(of, np.arange(patients)), axis=-1)


def print_result(result: dict) -> None:
    design = result["design"]
    limit = f"; limit: {design['limit']}" if design["limit"] else ""
    print(f"{design['name']}: {result['tables']} tables, {result['seconds']} s{limit}")
    for name in ("single", "family_wise", "shown", "coverage", "coverage_of_difference"):
        if name in result:
            shares = (f"{figure} {100 * share:5.1f}" for figure, share in result[name].items())
            print(f"  {name.replace('_', ' '):24s}{'  '.join(shares)}")
    if result["broken"]:
        print(f"  NOT HELD: {', '.join(result['broken'])}")


if __name__ == "__main__":
    raise SystemExit(main())
