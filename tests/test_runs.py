"""What a run folder says of itself, and what is refused."""

import subprocess
import sys

import pytest

from lesionseg.errors import InputError
from lesionseg.runs import RunInfo


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000, b'{"name": 1}', b'{"trained_on": 1}'],
    ids=["empty", "a list", "no fields", "null", "no UTF-8", "nested without end", "few fields", "a wrong field"],
)
def test_a_garbled_run_json_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a run\.json that cannot be read"):
        RunInfo.read(tmp_path)


def test_a_comparison_does_without_torch():
    """Loading it would be most of the time that `compare` takes."""
    script = "import sys, lesionseg.compare; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "lesionseg.runs" in done.stdout.split()
    assert "torch" not in done.stdout.split()
