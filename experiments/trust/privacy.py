"""Planted markers, looked for in every file that the whole chain writes and in all that it says.

Usage: privacy.py [--seed N] [--output JSON]

The small grid is made from sources that carry a patient's name, id, birth date, accession number, institution and
physician in their headers, tables, file names and folders, under a user and on a machine of telling names. Then:
prepare, fit, compare, export, evaluate, segment of NIfTI. Looked into: every file but the sources, the salt and the key
tables, which stay with the user; packed ones are unpacked. DICOM-SEG and DICOM-SR hold the patient's identity by
design, and nothing else does; `config.yaml` of a run holds the paths that were typed, and stays in its folder; text
burned into pixels is not looked for, and cannot be taken out.
"""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import pydicom
import small_grid
from rows import Row, asked, publish

MARKERS = {
    "name": "Quxmueller",
    "id": "MRN00427719",
    "birth date": "19630412",
    "accession number": "ACC7731904",
    "institution": "Sankt-Ursinus",
    "physician": "Brinkwerth",
    "folder": "share-of-wilhelmine",
    "user": "user-of-dr-x",
    "machine": "workstation-of-dr-x",
}
#: What stays with the user: beside a store, who is who.
KEYS = ".key.csv"
#: Of a run: its settings, with the paths that were typed.
SETTINGS = "config.yaml"
_NAMED = "LESIONSEG_NAMED_MACHINE"


def on_a_named_machine() -> None:
    """Go on under a machine's name that no other process sees; without leave to, only the environment says it."""
    if _NAMED in os.environ:
        subprocess.run(["hostname", MARKERS["machine"]], check=True)
    elif shutil.which("unshare") and subprocess.run(["unshare", "--uts", "true"], capture_output=True).returncode == 0:
        os.environ[_NAMED] = "yes"
        os.execvp("unshare", ["unshare", "--uts", sys.executable, *sys.argv])


def plant(source: Path) -> None:
    """Markers in headers, tables and file names of the phantom."""
    for path in sorted((source / "lits").rglob("*.nii.gz")):
        image = nib.load(path)
        image.header["db_name"], image.header["aux_file"] = MARKERS["name"], MARKERS["id"]
        nib.save(image, path)
    table = source / "slices" / "slices.csv"
    rows = list(csv.DictReader(table.open()))
    for row in rows:
        image = source / "slices" / row["image"]
        if image.exists():
            ds = pydicom.dcmread(image)
            ds.PatientName, ds.PatientID = f"{MARKERS['name']}^Erika", MARKERS["id"]
            ds.PatientBirthDate, ds.AccessionNumber = MARKERS["birth date"], MARKERS["accession number"]
            ds.InstitutionName, ds.ReferringPhysicianName = MARKERS["institution"], MARKERS["physician"]
            ds.save_as(image.with_name(f"{MARKERS['id']}-{image.name}"))
            image.unlink()
        row["image"] = str(Path(row["image"]).with_name(f"{MARKERS['id']}-{Path(row['image']).name}"))
        row["patient_id"] = f"{MARKERS['name']} {MARKERS['birth date']} {row['patient_id']}"
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def chain(folder: Path) -> list[list[str]]:
    """Every verb that writes, in order."""
    salt = ["--salt-file", str(folder / "salt")]
    run = folder / "runs" / "baseline" / "fold0-seed0"
    return [
        [*small_grid.prepare_lits(folder), *salt],
        [*small_grid.prepare(folder, folder / "slices"), *salt],
        small_grid.fit_liver(folder),
        small_grid.fit(folder, run),
        ["compare", str(folder / "runs"), "--output", str(folder / "compare")],
        small_grid.export(folder, run, folder / "model"),
        ["evaluate", f"{folder}/lits", "--model", f"{folder}/model", "--exclude-trained", "--output", f"{folder}/eval"],
        small_grid.segment(folder, folder / "segmented"),
    ]


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and unpacked content of every file, its name in the content; where a link leads, too."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith("source") or name == "salt" or name.endswith(KEYS):
            continue
        content = name.encode()
        if path.is_symlink():
            content += os.readlink(path).encode()
        elif path.is_file():
            data = path.read_bytes()
            content += gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        yield name, content.replace(str(folder).encode(), b"") if path.name == SETTINGS else content


def hits(name: str, content: bytes) -> Iterator[str]:
    """Markers in a content, in the encodings that files have."""
    for what, word in MARKERS.items():
        if any(word.encode(encoding) in content for encoding in ("utf-8", "utf-16-le", "utf-16-be")):
            yield f"{what} in {name}"


def main() -> int:
    options = asked(__file__)
    on_a_named_machine()
    os.environ.update(WANDB_MODE="offline", OMP_NUM_THREADS="1")
    os.environ.update(USER=MARKERS["user"], LOGNAME=MARKERS["user"], HOSTNAME=MARKERS["machine"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / MARKERS["folder"]
        folder.mkdir()
        os.environ["HOME"] = str(folder / "home")
        (folder / "home").mkdir()
        (folder / "salt").write_bytes(os.urandom(32))
        if small_grid.run(small_grid.phantom(folder)).returncode:
            sys.exit("the phantom failed")
        plant(folder / "source")
        said = b""
        for words in chain(folder):
            done = small_grid.run(words)
            if done.returncode:
                sys.exit(f"{words[0]} failed\n{done.stderr}")
            # A command may repeat the paths that it was given; nobody else reads them.
            said += (done.stdout + done.stderr).replace(str(folder), "").encode()
        keys = "".join(path.read_text() for path in folder.glob(f"*{KEYS}"))
        if not all(MARKERS[what] in keys for what in ("name", "id", "birth date")):
            sys.exit("the markers were not planted")
        files = dict(contents(folder))
        found = [*hits("what the commands said", said), *(hit for file in files for hit in hits(file, files[file]))]
    detail = f"{len(MARKERS)} markers: {', '.join(MARKERS)}"
    rows = [Row("files and folders of the whole chain, markers found in them", len(files), len(found), detail)]
    return publish(rows, found, options.output, options.seed)


if __name__ == "__main__":
    sys.exit(main())
