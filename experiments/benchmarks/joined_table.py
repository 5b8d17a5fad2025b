"""What benchmarks measured, as one table: printed, and left as FOLDER/performance.md.

Usage: joined_table.py FOLDER BENCHMARK…

Takes FOLDER/BENCHMARK.json of each, and says which of them left none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rounds import text


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    files = {name: folder / f"{name}.json" for name in names}
    measured = [json.loads(file.read_text()) for file in files.values() if file.exists()]
    missing = [name for name, file in files.items() if not file.exists()]
    origins = {(content["commit"], content["machine"]) for content in measured}
    made_by = "; ".join(f"commit {commit}, {machine}" for commit, machine in sorted(origins, key=str))
    table = text([row for content in measured for row in content["rows"]])
    notes = [note for content in measured for note in content["notes"]]
    notes += [f"not in the table, as they measured nothing: {', '.join(missing)}"] * bool(missing)
    told = f"{table}\n\n" + "".join(f"- {note}\n" for note in notes) + f"\n{made_by}\n"
    (folder / "performance.md").write_text(told)
    print(told, end="")


if __name__ == "__main__":
    main()
