import base64
import gzip
import hashlib
import io
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from lesionseg import report
from lesionseg.figures import WINDOW_HU
from lesionseg.report import write_report
from lesionseg.report.lesions import key_voxels
from lesionseg.report.pictures import MOST_PICTURES
from lesionseg.report.provenance import net_table
from lesionseg.report.volumes import embed
from lesionseg.scan import canonical
from lesionseg.segmentation import RESEARCH_USE_ONLY

#: HU that 8 bits cannot tell apart.
HALF_A_GREY = (WINDOW_HU[1] - WINDOW_HU[0]) / 255 / 2 + 1e-3
HOSTILE = (
    r"""<img src=x onerror=alert(1)> </script><script>alert(1)</script> "'><svg onload=alert(1)> <!-- {{ 7 }} $\bad{$"""
)


class Page(HTMLParser):
    """Elements and words of a page, as a parser other than a browser's sees them."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.held, self.text = [], {}, []
        self._inside = None
        self.source = path.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = len(self.elements) - 1 if tag in ("script", "style") else self._inside

    def handle_endtag(self, tag):
        self._inside = None if tag in ("script", "style") else self._inside

    def handle_data(self, data):
        if self._inside is None:
            self.text.append(data)
        else:
            self.held[self._inside] = self.held.get(self._inside, "") + data

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def script(self, name):
        return next(self.held[i] for i, (tag, a) in enumerate(self.elements) if tag == "script" and a.get("id") == name)

    def nifti(self, name):
        return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(self.script(name), validate=True)))


@pytest.fixture(scope="module")
def page_of(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("report")

    def make(segmentation, title="study-1", pictures=0):
        with pytest.MonkeyPatch.context() as patch:  # pictures take most of the time
            patch.setattr(report.pictures, "MOST_PICTURES", pictures)
            write_report(tmp_path / "report.html", segmentation, title=title)
        return Page(tmp_path / "report.html")

    return make


@pytest.fixture(scope="module")
def page(page_of, make_segmentation):
    """Of a volume with four lesions and a warning."""
    return page_of(make_segmentation(warnings=("Mind the gap.",)), pictures=MOST_PICTURES)


def test_the_vendored_viewer_is_the_one_that_is_recorded():
    folder = files(report)
    record = (folder / "niivue.LICENSE.txt").read_text()
    script = (folder / "niivue.min.js").read_bytes()
    assert re.search(r"^SHA-256: (\w+)$", record, re.M)[1] == hashlib.sha256(script).hexdigest()
    assert "Version: 0.69.0" in record
    assert "BSD 2-Clause License" in record


@pytest.mark.parametrize(
    ("name", "end"), [("niivue.min.js", b"</script"), ("page.js", b"</script"), ("../pages/page.css", b"</style")]
)
def test_nothing_inlined_can_end_its_element_or_change_on_the_way(name, end):
    content = (files(report) / name).read_bytes()
    assert not re.search(end + rb"|<!--|[\r\0]", content, re.I)


def test_policy_and_hashes(page):
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    rules = {name: values for name, *values in (rule.split() for rule in policy.split(";"))}
    inlined = {tag: [] for tag in ("script", "style")}
    for i, (tag, attributes) in enumerate(page.elements):
        if tag in inlined and "type" not in attributes:  # the others are data and never run
            digest = hashlib.sha256(page.held[i].encode()).digest()
            inlined[tag].append(f"'sha256-{base64.b64encode(digest).decode()}'")
    assert rules == {
        "default-src": ["'none'"],
        "script-src": inlined["script"],
        "style-src": inlined["style"],
        "img-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    assert len(inlined["script"]) == 2


def test_nothing_is_fetched(page):
    addresses = [a[key] for _, a in page.elements for key in ("src", "href", "srcset", "action", "data") if key in a]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert not any(key.startswith("on") or key == "style" for _, a in page.elements for key in a)


ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3)))


@pytest.mark.parametrize(("order", "flip"), ORIENTATIONS)
def test_every_voxel_of_the_page_lies_where_it_lies_in_the_scan(make_segmentation, order, flip):
    check_places(make_segmentation(order=order, flip=flip))


def test_an_oblique_scan_keeps_its_places(make_segmentation, make_affine):
    affine = make_affine((0, 1, 2), (True, False, False), (4.0, 1.5, 1.25))
    a, b = np.radians(14), np.radians(9)
    turn = np.eye(4)
    turn[:3, :3] = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    turn[:3, :3] @= [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    check_places(make_segmentation(affine=turn @ affine))


def check_places(segmentation):
    """All voxels of both volumes, by their places in the patient, against the arrays of the segmentation."""
    volumes = embed(segmentation, room_bytes=10**7)
    ct, labels = (nib.Nifti1Image.from_bytes(gzip.decompress(data)) for data in (volumes.ct, volumes.labels))
    assert ct.get_data_dtype() == labels.get_data_dtype() == np.uint8
    for image in (ct, labels):
        np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-3)
    index = np.stack(np.meshgrid(*map(np.arange, ct.shape), indexing="ij"), -1).reshape(-1, 3)
    ras = nib.affines.apply_affine(ct.affine, index)
    exact = nib.affines.apply_affine(np.linalg.inv(segmentation.scan.affine), ras * (-1, -1, 1))
    source = np.rint(exact).astype(int)
    np.testing.assert_allclose(source, exact, atol=0.01)
    clipped = np.clip(segmentation.scan.hu[tuple(source.T)], *WINDOW_HU)
    np.testing.assert_allclose(ct.get_fdata().reshape(-1), clipped, atol=HALF_A_GREY)
    np.testing.assert_array_equal(np.asarray(labels.dataobj).reshape(-1), segmentation.labels[tuple(source.T)])
    assert np.count_nonzero(labels.dataobj) == np.count_nonzero(segmentation.labels)  # the whole liver is there
    assert ct.shape < tuple(sorted(segmentation.scan.hu.shape)[::-1])  # and less than the whole scan


def test_the_page_jumps_to_a_voxel_of_the_lesion_and_names_its_slice(page_of, make_segmentation):
    segmentation = make_segmentation(order=(1, 2, 0), flip=(True, True, False))
    page = page_of(segmentation)
    data, labels = json.loads(page.script("data")), np.asarray(page.nifti("labels").dataobj)
    ids = canonical(segmentation.lesion_ids, segmentation.scan.affine)
    for finding in segmentation.findings:
        i, j, k = data["lesions"][str(finding.id)]
        assert labels[i, j, k] > 1
        assert ids[key_voxels(segmentation)[finding.id]] == finding.id
        assert data["index"][2]["first"] + data["index"][2]["step"] * k == finding.key_slice


def test_the_middle_of_the_first_lesion_lies_outside_it(make_segmentation):
    segmentation = make_segmentation()  # or the test above would show little
    middle = tuple(np.rint(segmentation.findings[0].centroid_index).astype(int))
    assert segmentation.lesion_ids[middle] != 1


def test_a_large_scan_is_thinned_out_until_the_page_is_small_enough(page, page_of, make_segmentation, monkeypatch):
    segmentation = make_segmentation()
    assert "voxels (slice" not in page.words
    limit = len(page_of(segmentation).source.encode()) - 8_000  # but for the spare bytes the page would do
    monkeypatch.setattr(report, "MAX_BYTES", limit + report._SPARE_BYTES)
    page = page_of(segmentation)
    assert len(page.source.encode()) <= limit + report._SPARE_BYTES
    data, labels = json.loads(page.script("data")), np.asarray(page.nifti("labels").dataobj)
    assert "1 × 1 × 2 voxels (slice × row × column) became one" in page.words
    for finding in segmentation.findings:
        i, j, k = data["lesions"][str(finding.id)]
        assert data["index"][2]["first"] + data["index"][2]["step"] * k == finding.key_slice
        assert labels[i, j, k] > 1


def test_thinned_voxels_are_means_in_the_right_place(page_of, make_segmentation, monkeypatch):
    segmentation = make_segmentation(depth=17)
    d, h, w = np.meshgrid(*map(np.arange, segmentation.scan.hu.shape), indexing="ij")
    segmentation = replace(segmentation, scan=replace(segmentation.scan, hu=(2 * d + 3 * h + w - 80).astype(np.int16)))
    monkeypatch.setattr(report.volumes, "MAX_VOXELS", 1_000)
    ct = page_of(segmentation).nifti("ct")
    assert ct.shape[0] * ct.shape[1] * ct.shape[2] <= 1_000
    index = np.stack(np.meshgrid(*map(np.arange, ct.shape), indexing="ij"), -1).reshape(-1, 3)
    ras = nib.affines.apply_affine(ct.affine, index)
    at = nib.affines.apply_affine(np.linalg.inv(segmentation.scan.affine), ras * (-1, -1, 1))
    inner = (index < np.array(ct.shape) - 1).all(1)  # the last voxels may be short of neighbours
    np.testing.assert_allclose(
        ct.get_fdata().reshape(-1)[inner], (at @ (2, 3, 1) - 80)[inner], atol=340 / 255 / 2 + 1e-3
    )


def test_the_table_says_what_the_findings_say(page_of, make_segmentation):
    segmentation = make_segmentation()
    page = page_of(segmentation)
    assert (
        "4 lesions: 1 cyst, 1 hemangioma, 1 metastasis, 1 undetermined. Liver with its lesions: 123 ml." in page.words
    )
    assert "long × short axis mm" in page.words
    first = segmentation.findings[0]
    row = (
        f"1 cyst 80 % 10 % 10 % {first.long_axis_mm:.1f} × {first.short_axis_mm:.1f} {first.area_mm2:.0f} "
        f"{first.volume_ml:.2f} {first.mean_hu:.0f} ± {first.sd_hu:.0f} {first.slices[0]}–{first.slices[1]}"
    )
    assert row in page.words
    assert [a["data-id"] for a in page.all("tr") if "data-id" in a] == ["1", "2", "3", "4"]


def test_unknown_spacing_is_said_and_sizes_are_in_pixels(page_of, make_segmentation):
    page = page_of(make_segmentation(spacing=None))
    assert "of unknown size" in page.words
    assert "long × short axis px" in page.words
    assert " mm" not in page.words.replace("single slice, mm", "").split("Model and settings")[0]
    assert json.loads(page.script("data"))["position_known"] is False


@pytest.mark.parametrize("spacing", [(float("nan"), 1.5, 1.25), None])
def test_a_single_slice(page_of, make_segmentation, make_affine, spacing):
    segmentation = make_segmentation(depth=1, spacing=spacing and (1.0, 1.5, 1.25))
    segmentation = replace(segmentation, scan=replace(segmentation.scan, spacing_mm=spacing))
    page = page_of(segmentation)
    assert page.nifti("ct").shape[2] == 1
    assert json.loads(page.script("data"))["single"] is True
    assert "volume" not in page.words
    assert "data-view" not in " ".join(key for a in page.all("button") for key in a)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lesions": False}, "No lesion was found. Liver with its lesions: 123 ml."),
        ({"liver": False}, "No liver was found, so no lesion was looked for."),
    ],
)
def test_nothing_found_is_said(page_of, make_segmentation, fields, said):
    segmentation = make_segmentation(**fields)
    page = page_of(segmentation)
    assert page.words.count(said) == 2  # in the heading and in the place of the table
    assert page.all("tr") == [{}] * 5  # of the nets alone
    if fields.get("liver") is False:
        assert page.nifti("ct").shape == segmentation.scan.hu.shape[::-1]


def test_lesions_beyond_the_largest_are_not_pictured_and_that_is_said(page, page_of, make_segmentation):
    assert "not pictured" not in page.words
    page = page_of(make_segmentation(), pictures=1)
    assert "The 1 largest of 4 lesions (not pictured: 3)." in page.words
    assert [a["alt"] for a in page.all("img")] == ["Lesion 1, cyst, slice 7"]


def test_key_pictures_show_the_lesion_and_carry_no_text_chunks(page):
    for attributes in page.all("img"):
        png = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        image = Image.open(io.BytesIO(png))
        assert image.info.keys() <= {"dpi"}
        assert image.size == (360, 360)
    assert [a["alt"] for a in page.all("img")][:2] == ["Lesion 1, cyst, slice 7", "Lesion 2, hemangioma, slice 9"]


def test_research_use_provenance_and_warnings_are_in_plain_sight(page):
    words = page.words
    for said in (
        RESEARCH_USE_ONLY,
        "Mind the gap.",
        "baseline 1 3 7",  # schedule, fold, folds, seed
        "0123456789ab",
        "efefefefefef",
        "calibration error (ECE) 0.123 before, 0.045 after",
        "chosen on the test folds",
        "feedc0ffee00",
        "scans seen in training 42",
        "least lesion on a single slice, mm² 12.6",
        "Copyright (c) 2021, Niivue",
    ):
        assert said in words
    assert "generated CT (the phantom)" not in words


def test_a_model_or_scan_of_the_phantom_is_named_beside_the_use(page_of, make_segmentation):
    segmentation = make_segmentation()
    generated = replace(
        segmentation,
        model=segmentation.model | {"generated": True},
        scan=replace(segmentation.scan, generated=True),
    )
    use = page_of(generated).words.split("study-1: liver lesions")[1].split("study-1")[0]
    assert (
        use.split()
        == (
            f"{RESEARCH_USE_ONLY} The model was trained on generated CT (the phantom): its results say nothing about "
            "patients. The scan is generated, not of a patient."
        ).split()
    )


def test_types_learned_from_implants_are_named_beside_the_use(page_of, make_segmentation):
    segmentation = make_segmentation()
    assert "implanted" not in page_of(segmentation).words
    words = page_of(replace(segmentation, model=segmentation.model | {"implanted": True})).words
    use = words.split("study-1: liver lesions")[1].split("study-1")[0]
    assert "learned its types from lesions implanted in real CT" in use
    assert "trained on implanted lesions yes" in " ".join(words.split())


def test_the_table_of_nets_says_what_names_lesions():
    titles, rows = net_table({"liver": {"naming": {"by": "pixels"}}, "lesions": [{"naming": {"by": "crops"}}, {}]})
    assert [row[titles.index("lesions named by")] for row in rows] == ["–", "crops", "–"]


@pytest.mark.parametrize("card", [{}, {"lesions": 3, "liver": None, "calibration": "<b>x", "selected": [1, None, {}]}])
def test_any_model_card_makes_a_page(page_of, make_segmentation, card):
    assert "Model and settings" in page_of(make_segmentation(model=card, lesions=False)).words


def test_hostile_text_stays_text(page, page_of, make_segmentation):
    plain, words = page, HOSTILE
    nets = [{"encoder": words, "provenance": {"name": words}}] * 4
    table = {words: words}
    card = {"identity": words, "calibration": table, "selected": table, "lesions": nets, "thresholds": table}
    segmentation = make_segmentation(warnings=(words,), settings={words: words}, seconds={"</dd><script>": 1.0})
    findings = tuple(replace(f, type=words, probabilities={words: 1.0}) for f in segmentation.findings)
    page = page_of(replace(segmentation, model=card, findings=findings), title=words, pictures=1)
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in plain.elements}
    assert len(page.all("script")) == len(plain.all("script"))
    assert not any(key.startswith("on") for _, a in page.elements for key in a)
    assert page.words.count(words) > 20


def test_nothing_names_the_patient(page, make_segmentation):
    parts = make_segmentation().scan.scan_id.encode().split(b"^")
    held = [page.source.encode(), *(gzip.decompress(base64.b64decode(page.script(n))) for n in ("ct", "labels"))]
    assert len(parts) == 3
    assert not any(part in content for part in parts for content in held)


def test_equal_input_gives_equal_bytes(page, page_of, make_segmentation):
    again = page_of(make_segmentation(warnings=("Mind the gap.",)), pictures=MOST_PICTURES)
    assert again.source == page.source
