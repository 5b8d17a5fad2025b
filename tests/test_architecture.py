"""The floors of the package: a file imports only from floors below its own; the files of a folder share a floor."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import lesionseg

ROOT = Path(lesionseg.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FLOORS: list[set[str]] = [
    {"__init__", "addresses", "block_names", "boxes", "collector", "errors", "machine", "norms", "pages",
     "writing"},
    {"device", "folders", "labels", "locking", "scan", "inputs", "paper", "provenance", "reading", "request", "runs",
     "trainer", "unet"},
    {"arguments", "lesions", "measurements", "variance", "crops", "networks", "schedules", "run_weights", "ranks",
     "phantom", "figures", "schedule_figure", "parallel"},
    {"segmentation", "metrics", "model_net", "results", "run_folder", "naming", "calibration", "matching", "pacing",
     "burned_in", "implant", "epoch_means"},
    {"formats", "model", "findings", "command_line", "inference"},
    {"data", "cascade", "liver_predictor", "grid", "report", "statistics", "studies", "wording"},
    {"tasks", "callbacks", "significance", "ranking", "grid_basis", "held_out", "run_checks", "run_identity",
     "study_folder", "deliver", "outcomes", "cascade_folder"},
    {"compare_table", "comparison_page", "run_cli"},
    {"compare", "evaluation", "export", "segment", "training"},
    {"cli"},
]  # fmt: skip
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """Room and file in it, for all that a file imports from the package, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            names = [f"{node.module}.{name}" for name in names]
        for package, *parts in (name.split(".") for name in names):
            if package == ROOT.name:
                room = parts[0] if parts and parts[0] in FLOOR else "__init__"
                inner = parts[1] if len(parts) > 1 and (ROOT / room / f"{parts[1]}.py").exists() else "__init__"
                yield room, inner


def test_every_room_has_its_floor():
    assert {room_of(file) for file in FILES} == set(FLOOR)


def test_imports_lead_down():
    up = [
        f"{file.relative_to(ROOT)} imports {room}"
        for file in FILES
        for room, _ in imports(file)
        if room != room_of(file) and FLOOR[room] >= FLOOR[room_of(file)]
    ]
    assert up == []


def test_no_circles_within_a_room():
    for folder in {file.parent for file in FILES} - {ROOT}:
        files = {
            file.stem: {inner for room, inner in imports(file) if room == folder.name} for file in folder.glob("*.py")
        }
        list(TopologicalSorter(files).static_order())  # CycleError names the circle
