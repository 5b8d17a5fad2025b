"""What scripts and notebooks take from the package is there, also of those that no test runs."""

import ast
import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "experiments").rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")])


def source(path):
    if path.suffix == ".py":
        return path.read_text()
    cells = (cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")
    return "\n".join(line for cell in cells for line in "".join(cell["source"]).splitlines() if line[:1] not in "%!")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_name_that_is_imported_is_there(path):
    for node in ast.walk(ast.parse(source(path))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lesionseg"):
            module = importlib.import_module(node.module)
            missing = [each.name for each in node.names if not hasattr(module, each.name)]
            for name in missing:
                importlib.import_module(f"{node.module}.{name}")
        elif isinstance(node, ast.Import):
            for each in node.names:
                if each.name.startswith("lesionseg"):
                    importlib.import_module(each.name)
