"""`implant_store`: a store of real CT → a store of slices with implanted lesions, and a figure of both side by side.

STORE2/                  as `lesionseg prepare slices` makes it
STORE2.key.csv           which slice of STORE each case is
STORE2.implants.png      see `implants_figure`
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure

from lesionseg.data.implants import Plan, plan
from lesionseg.data.prepare import prepare
from lesionseg.data.pseudonyms import beside
from lesionseg.data.records import CaseRecord
from lesionseg.data.store import Store
from lesionseg.errors import InputError
from lesionseg.figures import Panel, contact_sheet
from lesionseg.labels import LESION_TYPES

#: Slices of each type that the figure shows side by side; patients whose own lesions it shows.
SHOWN, ROW = 2, 3
#: Lesions of about this diameter are shown of those that were in the store.
USUAL_MM = 20.0
_DPI = 110


def implant_store(
    source: Path,
    output: Path,
    *,
    slices: int | None = None,
    seed: int = 0,
    exclude_trained: Path | None = None,
    workers: int | None = None,
) -> Store:
    """Make a store of single slices with lesions implanted in the real CT of another, whole, and the figure beside it.

    Patients keep their pseudonyms, so that folds by patient hold; each record names its scan (`implanted_in`), so that
    no net is tested on implants in what it was trained on.

    Args:
        source: store of real CT.
        output: folder of the new store; see `prepare`.
        slices: see `implants.plan`, as are `seed` and `exclude_trained`.
        seed: the same one gives the same store.
        exclude_trained: a run that has seen patients who are to be left out.
        workers: see `prepare`.

    Raises:
        InputError: see `implants.plan` and `prepare`; or the new store would take the place of its source.
    """
    if output.resolve() == source.resolve():
        raise InputError(output, expected="a folder of its own for the new store", got="that of its source",
                         remedy="name another output folder")  # fmt: skip
    plans = plan(Store.open(source), slices=slices, seed=seed, exclude_trained=exclude_trained)
    made = prepare([planned.source for planned in plans], output, kind="slices", workers=workers)
    figure_path = beside(output, ".implants.png")
    implants_figure(plans).savefig(figure_path, dpi=_DPI)
    lesions = Counter(lesion.type for record in made.records for lesion in record.lesions)
    counts = ", ".join(f"{lesions[name]} {name}" for name in LESION_TYPES)
    patients = len({record.patient_id for record in made.records})
    print(f"{len(made.records)} slices of {patients} patients, lesions: {counts}; seen in {figure_path}")
    return made


def implants_figure(plans: list[Plan]) -> Figure:
    """Slices of each type as scanned, implanted, and outlined; in the last row, lesions that the store held."""
    panels: list[Panel] = []
    for kind in LESION_TYPES:
        for planned in [planned for planned in plans if planned.kind == kind][:SHOWN]:
            panels += _before_and_after(planned)
    panels += [panel for case in _real_lesions(plans[0].store)[:ROW] for panel in case]
    return contact_sheet(
        panels, title="as scanned, implanted, outlined; last row: the patients' own lesions", columns=3 * SHOWN
    )


def _before_and_after(planned: Plan) -> list[Panel]:
    (hu, labels), made, spacing_mm = planned.before(), planned.read(), planned.record.pixel_mm
    name, count = planned.record.case_id, f"slice {planned.index + 1}"
    return [
        Panel(hu[0], labels[0], name, f"{count} as scanned", spacing_mm, outlined=False),
        Panel(made.scan.hu[0], labels[0], name, f"{planned.kind} implanted", spacing_mm, outlined=False),
        Panel(made.scan.hu[0], made.labels[0], name, f"{planned.kind} implanted", spacing_mm),
    ]


def _real_lesions(store: Store) -> list[list[Panel]]:
    """One lesion of each patient, of the size next to what is usual for implants: plain and outlined."""
    shown = {}
    for record in store.records:
        sized = [lesion for lesion in record.lesions if lesion.diameter_mm is not None]
        if sized:
            lesion = min(sized, key=lambda lesion: abs((lesion.diameter_mm or 0) - USUAL_MM))
            shown[record.patient_id] = _plain_and_outlined(store, record, sum(lesion.slices) // 2)
    return list(shown.values())


def _plain_and_outlined(store: Store, record: CaseRecord, index: int) -> list[Panel]:
    here = slice(index, index + 1)
    hu, labels = store.hu_slices(record.case_id, here)[0], store.label_slices(record.case_id, here)[0]
    note = f"slice {index + 1}, the patient's own"
    return [Panel(hu, labels, record.case_id, note, record.pixel_mm, outlined=outlined) for outlined in (False, True)]
