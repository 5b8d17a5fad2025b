"""README and docs: every command they show exists, every file they link to is there."""

import re
import subprocess
from pathlib import Path

import pytest

from lesionseg.arguments import parser
from lesionseg.cli import VERBS
from lesionseg.compare_table import FIGURE_DEFINITIONS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """Lines of the bash blocks of a page, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_the_figures_are_defined_as_in_every_table():
    assert FIGURE_DEFINITIONS in (ROOT / "docs" / "statistics.md").read_text()


def test_the_readme_shows_commands():
    assert {"make finetune", "make test"} <= set(commands(ROOT / "README.md"))


@pytest.mark.parametrize("command", [c for page in PAGES for c in commands(page)])
def test_commands_exist(command):
    program, *words = command.split()
    if program == "sbatch":  # a script that hands the words behind it to make
        script = next(word for word in words if not word.startswith("--"))
        assert "exec make" in (ROOT / script).read_text()
        program, words = "make", words[words.index(script) + 1 :]
    if program == "make":
        done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    elif program == "dask":  # `tests/parallel` runs it
        assert words[0] in ("scheduler", "worker")
    else:
        assert program == "lesionseg"
        assert parser().parse_args(words).verb in VERBS
