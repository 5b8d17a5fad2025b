"""All that `make benchmark` measured, as one table: printed, and left as FOLDER/performance.md.

Usage: joined_table.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rounds import text


def main() -> None:
    folder = Path(sys.argv[1])
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    measured = [content for content in found if "rows" in content]
    origins = {(content["commit"], content["machine"]) for content in measured}
    made_by = "; ".join(f"commit {commit}, {machine}" for commit, machine in sorted(origins, key=str))
    table = text([row for content in measured for row in content["rows"]])
    (folder / "performance.md").write_text(f"{table}\n\n{made_by}\n")
    print(f"{table}\n\n{made_by}")


if __name__ == "__main__":
    main()
