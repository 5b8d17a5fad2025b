"""Our rows and the neighbours on the same cells, each training measured; then the table of them all.

Usage: run.py OUT --pretraining RUN --schedules NAME ... [--neighbours NAME ...] [--folds N] [--seeds N ...] [--jobs N]
              [--against ROW] [--placed 'WORD ...'] [--check] -- OPTION ...
    OUT: takes rows/ROW/foldK-seedS, logs/, nnunet/ and table.md
    --neighbours: of `SCRIPTS` and `NNUNETS`, by default all of them; ROW_mirrored: a row of ours tested again with
        mirror images averaged; ROW_unmirrored: one of nnU-Net's without
    --check: only see that there are such rows
    OPTION: what `lesionseg fit` is told of every cell: profile, store, epochs

A training is a process of its own, from its start to the tables of its test, with its share of the cores. What is done
is not done again; what was interrupted begins anew, so that every time is that of a whole training.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from lesionseg.errors import InputError
from lesionseg.machine import cores
from lesionseg.request import request_sha256

HERE = Path(__file__).parent
#: The row whose phases the gradual neighbours follow, as in `cell.py`, which loads torch.
PHASES = HERE.parent / "schedules" / "hierarchical_unfreezing.yaml"
STAND_IN, COST_FILE = "no_freezing", "cost.json"
#: Neighbours that train our net, by row: their scripts.
SCRIPTS = {
    "lightning_backbone_finetuning": "backbone_finetuning.py",
    "finetuning_scheduler": "fts.py",
    "fastai_gradual_unfreezing": "gradual_unfreezing.py",
}
#: Behind the name of one of our rows: its nets tested again, with mirror images averaged; of one of nnU-Net's: without.
MIRRORED, UNMIRRORED = "_mirrored", "_unmirrored"
#: nnU-Net's rows: which of its trainers ("": its default), and whether from its own pretraining (by that trainer).
NNUNETS = {
    "nnunet": ("", False),
    "nnunet_finetuned": ("", True),
    "nnunet_adam": ("--adam", False),
    "nnunet_adam_finetuned": ("--adam", True),
}


@dataclass(frozen=True)
class Job:
    """One process to measure.

    Attributes:
        folder: what it makes.
        command: its words.
        rests_on: words, and files and folders by their content: where they are the same, it is done already.
    """

    folder: Path
    command: Sequence[object]
    rests_on: Sequence[object]

    @property
    def request(self) -> str:
        return request_sha256([str(word) for word in self.rests_on])

    @property
    def done(self) -> bool:
        try:
            return json.loads((self.folder / COST_FILE).read_text())["request"] == self.request
        except (OSError, ValueError):
            return False


@dataclass(frozen=True)
class Plan:
    """What the command line asks for."""

    out: Path
    pretraining: Path
    schedules: Sequence[str]
    neighbours: Sequence[str]
    folds: int
    seeds: Sequence[int]
    fit_options: Sequence[str]

    def cells(self, row: str) -> list[tuple[int, int, Path]]:
        """Fold, seed and run folder of each cell of a row."""
        rows = self.out / "rows" / row
        return [(fold, seed, rows / f"fold{fold}-seed{seed}") for seed in self.seeds for fold in range(self.folds)]

    def ours(self) -> list[Job]:
        """Cells of our rows."""
        return [self._fit(row, *cell) for row in self.schedules for cell in self.cells(row)]

    def lightning(self) -> list[Job]:
        """Cells of the neighbours that train our net."""
        return [_peer(SCRIPTS[row], *pair) for row in self.neighbours if row in SCRIPTS for pair in self._pairs(row)]

    def mirrored(self) -> list[Job]:
        """Cells of our rows that are tested again."""
        again = [triple for row in self.schedules for triple in self._again(row, MIRRORED)]
        return [_peer("mirrored.py", trained, folder) for _, trained, folder in again]

    def nnunet_data(self) -> list[Job]:
        """nnU-Net's planning and preprocessing."""
        if not set(NNUNETS) & set(self.neighbours):
            return []
        folds = [folder for _, seed, folder in self.cells(STAND_IN) if seed == self.seeds[0]]
        return [_peer("nnunet_data.py", self.pretraining, self.datasets, *folds, rests_on=folds)]

    def nnunet_from_scratch(self) -> list[Job]:
        """Its pretrainings, and its cells that need none; both are trained by its plan for the cells."""
        pairs = [((self.pretraining, self.nnunet_pretraining(row)), ["--pretrain", *words])
                 for row, words in self._nnunets(finetuned=True)]  # fmt: skip
        pairs += [(pair, words) for row, words in self._nnunets(finetuned=False) for pair in self._pairs(row)]
        return [_peer("nnunet.py", *pair, self.datasets, *words, rests_on=[self.nnunet_plan]) for pair, words in pairs]

    def nnunet_finetuned(self) -> list[Job]:
        """Its cells that start from its pretrainings."""
        jobs = []
        for row, words in self._nnunets(finetuned=True):
            held = self.nnunet_pretraining(row) / "checkpoint_final.pth"
            more = (self.datasets, "--pretrained", held, *words)
            jobs += [_peer("nnunet.py", *pair, *more, rests_on=[held]) for pair in self._pairs(row)]
        return jobs

    def nnunet_unmirrored(self) -> list[Job]:
        """Cells of its rows that are tested again."""
        jobs = []
        for row, words in [*self._nnunets(finetuned=False), *self._nnunets(finetuned=True)]:
            for cell, trained, folder in self._again(row, UNMIRRORED):
                more = (self.datasets, "--unmirrored", trained, *words)
                jobs.append(_peer("nnunet.py", cell, folder, *more, rests_on=[trained]))
        return jobs

    def _nnunets(self, *, finetuned: bool) -> list[tuple[str, list[str]]]:
        """Its rows of one kind, each with the words that choose its trainer."""
        asked = {row: trainer for row, (trainer, kind) in NNUNETS.items() if kind == finetuned}
        return [(row, trainer.split()) for row, trainer in asked.items() if row in self.neighbours]

    def nnunet_pretraining(self, row: str) -> Path:
        """Folder of the pretraining that a row starts from."""
        return self.out / "nnunet" / f"pretraining_of_{row}"

    @property
    def datasets(self) -> Path:
        return self.out / "nnunet" / "datasets"

    @property
    def nnunet_plan(self) -> Path:
        """As `nnunet_data.plan` leaves it."""
        return self.datasets / "preprocessed" / "Dataset001_Cells" / "nnUNetPlans.json"

    def _fit(self, row: str, fold: int, seed: int, folder: Path) -> Job:
        configs = [HERE.parent / "finetune" / "lesion.yaml", HERE.parent / "schedules" / f"{row}.yaml"]
        words = [
            *(word for path in configs for word in ("--config", path)), *self.fit_options,
            "--data.folds", self.folds, "--data.fold", fold, "--seed_everything", seed,
            "--model.init_args.weights", self.pretraining,
        ]  # fmt: skip
        fit = [sys.executable, "-m", "lesionseg.cli", "fit", *words, "--trainer.default_root_dir", folder]
        return Job(folder, fit, words)

    def _pairs(self, row: str) -> list[tuple[Path, Path]]:
        """Each cell that a neighbour takes the place of, and the folder of its run."""
        stands_in = [folder for *_, folder in self.cells(STAND_IN)]
        return list(zip(stands_in, [folder for *_, folder in self.cells(row)], strict=True))

    def _again(self, row: str, suffix: str) -> list[tuple[Path, Path, Path]]:
        """Of each cell of a row that is to be tested again: ours in its place, its run, the folder of the new one."""
        again = f"{row}{suffix}"
        if again not in self.neighbours:
            return []
        return [(cell, trained, folder) for (cell, trained), (_, folder)
                in zip(self._pairs(row), self._pairs(again), strict=True)]  # fmt: skip


def _peer(script: str, run: Path, folder: Path, *more: object, rests_on: Sequence[object] = ()) -> Job:
    """A script of this folder that reads a run and makes a folder."""
    sources = [HERE / name for name in (script, "cell.py", *({"nnunet_data.py"} if "nnunet" in script else ()))]
    if script in SCRIPTS.values():
        sources.append(PHASES)
    return Job(folder, [sys.executable, HERE / script, run, folder, *more], [*sources, run, *rests_on])


def measure(job: Job, log: Path, threads: int, placed: Sequence[str] = ()) -> float:
    """Run a job, behind the words that give it GPUs of its own, and leave what it cost in its folder: its seconds.

    Raises:
        RuntimeError: it failed; its log is named.
    """
    shutil.rmtree(job.folder, ignore_errors=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    # before it runs: who edits a script meanwhile does not get its result for that of the new one
    request = job.request
    began = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen([*placed, *(str(w) for w in job.command)], stdout=file, stderr=file, env=environment)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{job.folder} failed: see {log}")
    wall_s = time.perf_counter() - began
    cost = {"request": request, "wall_s": wall_s, "cpu_s": used.ru_utime + used.ru_stime,
            "peak_mib": used.ru_maxrss / 1024, "threads": threads}  # fmt: skip
    (job.folder / COST_FILE).write_text(json.dumps(cost, indent=1) + "\n")
    return wall_s


def run_all(jobs: Sequence[Job], out: Path, side_by_side: int, placed: Sequence[str] = ()) -> None:
    """Run what is not done, so many at a time; the first failure ends it when those that run have ended."""
    threads = max(cores() // side_by_side, 1)
    waiting = [job for job in jobs if not job.done]

    def run(job: Job) -> None:
        name = f"{job.folder.parent.name}-{job.folder.name}"
        seconds = measure(job, out / "logs" / f"{name}.log", threads, placed)
        print(f"{name}: {seconds:.0f} s", flush=True)

    with ThreadPoolExecutor(side_by_side) as pool:
        futures = [pool.submit(run, job) for job in waiting]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        for future in futures:
            if not future.cancelled():
                future.result()


def rows_for(schedules: Sequence[str], neighbours: Sequence[str]) -> list[str]:
    """The neighbours that there are beside these rows of ours and these neighbours."""
    again = [f"{row}{MIRRORED}" for row in schedules] + [f"{row}{UNMIRRORED}" for row in NNUNETS if row in neighbours]
    return [*SCRIPTS, *NNUNETS, *again]


def check_rows(schedules: Sequence[str], neighbours: Sequence[str], against: str) -> None:
    """Refuse rows that could not be trained or compared.

    Raises:
        InputError: no such neighbour, no row that they take the place of, or none to compare with.
    """
    if STAND_IN not in schedules:
        raise InputError("PEER_SCHEDULES", expected=f"{STAND_IN}, whose cells the neighbours take, among them",
                         got=" ".join(schedules), remedy="add it")  # fmt: skip
    known, rows = rows_for(schedules, neighbours), [*schedules, *neighbours]
    if unknown := [row for row in neighbours if row not in known]:
        raise InputError("NEIGHBOURS", expected=f"some of {', '.join(known)}", got=", ".join(unknown),
                         remedy="correct it")  # fmt: skip
    if against not in rows:
        raise InputError("AGAINST", expected=f"a row: {', '.join(rows)}", got=against, remedy="correct it")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--pretraining", type=Path, required=True)
    parser.add_argument("--schedules", nargs="+", required=True)
    parser.add_argument("--neighbours", nargs="*", default=[*SCRIPTS, *NNUNETS])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--against", default=STAND_IN)
    parser.add_argument("--placed", type=shlex.split, default=[], help="words before each training")
    parser.add_argument("--check", action="store_true", help="only see that there are such rows")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    given = vars(parser.parse_args(words[:end]))
    side_by_side, against, placed, only_check = (given.pop(name) for name in ("jobs", "against", "placed", "check"))
    try:
        check_rows(given["schedules"], given["neighbours"], against)
    except InputError as error:
        print(f"lesionseg: wrong input: {error}", file=sys.stderr)
        sys.exit(2)
    if only_check:
        return
    plan = Plan(**given, fit_options=words[end + 1 :])
    try:
        for stage in (plan.ours, lambda: plan.nnunet_data() + plan.mirrored() + plan.lightning(),
                      plan.nnunet_from_scratch, plan.nnunet_finetuned, plan.nnunet_unmirrored):  # fmt: skip
            run_all(stage(), plan.out, side_by_side, placed)
    except RuntimeError as error:
        sys.exit(f"peers: {error}")
    except KeyboardInterrupt:
        sys.exit("peers: interrupted; the same command continues")
    table = [HERE / "table.py", plan.out, "--against", against, "--rows", *plan.schedules, *plan.neighbours,
             "--folds", plan.folds, "--seeds", *plan.seeds]  # fmt: skip
    sys.exit(subprocess.run([sys.executable, *map(str, table)]).returncode)


if __name__ == "__main__":
    main()
