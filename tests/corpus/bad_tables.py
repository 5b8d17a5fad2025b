"""Bad `slices.csv` and groups files."""

from bad_images import labels, nifti, table
from bad_kinds import Bench, bad, family, lines

HEAD = "patient_id,image,mask,liver_mask"
ROW = "p1,a.dcm,map.png,liver.png"


def slices(bench: Bench, text) -> list[str]:
    words = table(bench)
    bench.write("slices.csv", text)
    return words


family(
    "slices.csv",
    {
        "empty": "",
        "the heading alone": lines(HEAD),
        "no column of patients": lines("image,mask,liver_mask", "a.dcm,map.png,liver.png"),
        "a column of another name": lines(f"{HEAD},leison_type", f"{ROW},cyst"),
        "a column twice": lines(f"{HEAD},mask", f"{ROW},map.png"),
        "semicolons": lines(HEAD.replace(",", ";"), ROW.replace(",", ";")),
        "a row with too many fields": lines(HEAD, f"{ROW},left,over"),
        "a patient without a name": lines(HEAD, ROW.replace("p1", "")),
        "an image that is not there": lines(HEAD, ROW.replace("a.dcm", "b.dcm")),
        "a mask outside of the folder": lines(HEAD, ROW.replace("map.png", "../../map.png")),
        "an unknown type": lines(f"{HEAD},lesion_type", f"{ROW},adenoma"),
        "a spacing that is no number": lines(f"{HEAD},spacing_mm", f"{ROW},about 1"),
        "a spacing below zero": lines(f"{HEAD},spacing_mm", f"{ROW},-0.7"),
        "a spacing that is not the image's": lines(f"{HEAD},spacing_mm", f"{ROW},2.5"),
        "one image under two patients": lines(HEAD, ROW, ROW.replace("p1", "p2")),
        "of a spreadsheet, not CSV": b"PK\x03\x04" + b"\0\xff" * 60,
        "in UTF-16": lines(HEAD, ROW).encode("utf-16"),
    },
    slices,
)


@bad("slices.csv", "missing")
def no_table(bench):
    return ["prepare", "slices", str(bench.folder / "none.csv"), "--output", bench.out]


@bad("slices.csv", "a folder in its place")
def folder_for_a_table(bench):
    return ["prepare", "slices", str(bench.folder), "--output", bench.out]


def groups(bench: Bench, text) -> list[str]:
    folder = bench.folder / "lits"
    folder.mkdir()
    nifti(folder / "volume-0.nii")
    nifti(folder / "segmentation-0.nii", labels())
    bench.write("groups.csv", text)
    words = ["--groups", str(bench.folder / "groups.csv"), "--output", bench.out, "--workers", "1"]
    return ["prepare", "lits", str(folder), *words]


family(
    "groups file",
    {
        "empty": "",
        "other columns": lines("scan,person", "volume-0,A"),
        "an unknown case": lines("case,patient", "volume-0,A", "volume-7,A"),
        "a case without a patient": lines("case,patient", "volume-0,"),
        "a case twice, two patients": lines("case,patient", "volume-0,A", "volume-0,B"),
        "no text": b"\xff\xfe\0\0\x81",
    },
    groups,
)


@bad("groups file", "missing")
def no_groups(bench):
    return [word.replace("groups.csv", "none.csv") for word in groups(bench, "")]
