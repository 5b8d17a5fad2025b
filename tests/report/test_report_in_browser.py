"""The page in headless Chromium, its WebGL in software (SwiftShader)."""

import io
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lesionseg.labels import COLORS
from lesionseg.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: Without a graphics card; composed on the CPU, or the first picture would wait for minutes.
WEBGL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-gpu-compositing"]
HOSTILE = """<img src=x onerror=alert(1)> </script><script>alert(1)</script> "'><svg onload=alert(1)> <!--"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def segmentation(make_segmentation):
    """Of a sagittal scan that runs from left to right and from head to feet."""
    return make_segmentation(order=(2, 1, 0), flip=(True, False, True))


@pytest.fixture(scope="module")
def hostile(make_segmentation):
    """Of a single slice of unknown spacing, with hostile words wherever words come from outside."""
    found = make_segmentation(depth=1, spacing=None, warnings=(HOSTILE,), settings={HOSTILE: HOSTILE})
    card = {"identity": HOSTILE, "lesions": [{"encoder": HOSTILE}], "selected": {HOSTILE: HOSTILE}}
    findings = (replace(found.findings[0], type=HOSTILE), *found.findings[1:])
    return replace(found, model=card, findings=findings)


@pytest.fixture(scope="module")
def pages(tmp_path_factory, segmentation, hostile):
    """The pages by name, opened from disk side by side, as each takes seconds to compile the shaders of NiiVue."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has none for root
    with sync_api.sync_playwright() as playwright:
        browsers = [
            playwright.chromium.launch(executable_path=CHROMIUM, args=[*options, *sandbox])
            for options in (WEBGL, ["--disable-3d-apis"])
        ]
        opened = {}
        for name, browser, found, title, width in (
            ("volume", browsers[0], segmentation, "study-1", 1400),
            ("slice", browsers[0], hostile, HOSTILE, 800),
            ("no webgl", browsers[1], segmentation, "study-1", 1400),
        ):
            path = tmp_path_factory.mktemp("page") / "report.html"
            write_report(path, found, title=title)
            opened[name] = watched(browser.new_page(viewport={"width": width, "height": 700}), path.as_uri())
        for page in opened.values():
            page.locator("html[data-viewer]").wait_for(state="attached")
        yield opened
        for browser in browsers:
            browser.close()


def watched(page, address):
    """Go there; what the page asks for and complains of is kept in `page.seen`."""
    page.set_default_timeout(60_000)
    page.seen = {"address": address, "requests": [], "complaints": []}
    page.on("request", lambda request: page.seen["requests"].append(request.url))
    page.on("pageerror", lambda error: page.seen["complaints"].append(str(error)))
    page.on("dialog", lambda dialog: page.seen["complaints"].append(dialog.message))
    page.on("console", lambda message: message.type == "error" and page.seen["complaints"].append(message.text))
    page.goto(address, wait_until="commit")
    return page


@pytest.fixture
def page(pages):
    return pages["volume"]


@pytest.fixture
def slice_page(pages):
    return pages["slice"]


def pixels(page):
    """The picture (H, W, 3) on the canvas."""
    return np.asarray(Image.open(io.BytesIO(page.locator("#canvas").screenshot())).convert("RGB")).astype(int)


def places_of(color, picture):
    """Rows and columns of the pixels that have this colour."""
    return np.nonzero((np.abs(picture - color) < 12).all(-1))


def jump(page, number):
    """Click the row of a lesion; voxel (i, j, k) and label under the crosshair then."""
    page.locator(f'#lesions tr[data-id="{number}"]').click()
    held = page.locator("#canvas")
    return tuple(map(int, held.get_attribute("data-voxel").split())), int(held.get_attribute("data-label"))


def test_the_viewer_starts_and_asks_for_nothing_but_the_file(pages):
    state = {name: page.evaluate("document.documentElement.dataset.viewer") for name, page in pages.items()}
    assert state == {"volume": "ready", "slice": "ready", "no webgl": "missing"}
    for page in pages.values():
        assert page.seen["requests"] == [page.seen["address"]]
        assert page.seen["complaints"] == []


def test_the_policy_holds_against_what_the_page_itself_might_ask(page):
    refused = page.evaluate(
        """async () => {
            const refused = [];
            document.addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
            await fetch("data:text/plain,x").catch(() => 0);
            await new Promise((done) => { const image = new Image(); image.onerror = done; image.src = "x.png"; });
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            await new Promise((done) => setTimeout(done, 50)); // the events come later
            return [refused.sort().join(), window.ran];
        }"""
    )
    page.seen["complaints"].clear()  # what the console said of these three
    assert refused == ["connect-src,img-src,script-src-elem", None]


def test_the_canvas_shows_ct_and_labels_on_the_patients_side(page):
    jump(page, 2)  # where all lesions are
    page.locator('[data-view="axial"]').click()
    page.locator("#opacity").fill("100")
    shown = pixels(page)
    assert np.std(shown) > 20
    middle = shown.shape[1] / 2
    for label, where in ((2, "right"), (3, "left"), (4, "left")):  # cyst in the patient's right, the others in the left
        rows, columns = places_of(COLORS[label], shown)
        assert len(rows) > 50
        assert (columns.mean() < middle) == (where == "right")  # radiological: the patient's right is on the left
    assert places_of(COLORS[3], shown)[0].mean() < places_of(COLORS[4], shown)[0].mean()  # nearer to the front
    page.locator("#opacity").fill("0")
    bare = pixels(page)
    assert [len(places_of(COLORS[label], bare)[0]) for label in (2, 3, 4)] == [0, 0, 0]
    page.locator("#opacity").fill("50")
    page.locator('[data-view="planes"]').click()


def test_a_click_on_a_row_moves_the_crosshair_into_the_lesion(page, segmentation):
    for finding in segmentation.findings:
        _, label = jump(page, finding.id)
        assert label == segmentation.labels[segmentation.lesion_ids == finding.id][0]
        assert page.locator("#lesions tr[aria-current]").get_attribute("data-id") == str(finding.id)
        said = page.locator("#place").inner_text()
        assert said.startswith(f"slice {finding.key_slice} ")
        assert said.endswith(finding.type)
        assert page.locator(f'.pictures button[data-id="{finding.id}"]').get_attribute("aria-pressed") == "true"
    number, centroid = 2, segmentation.findings[1].centroid_mm  # a convex one
    jump(page, number)
    words = page.locator("#place").inner_text().split("·")[1].split()
    stated = [(-1 if side in "RAI" else 1) * float(value) for side, value in zip(words[::2], words[1::2], strict=False)]
    np.testing.assert_allclose(stated, centroid, atol=1.25 / 2 + 0.3)


def test_headings_sort_both_ways(page):
    area = page.locator("#lesions thead th", has_text="area")
    column = [a.inner_text() for a in page.locator("#lesions thead th").all()].index(area.inner_text()) + 1

    def sort():
        area.locator("button").click()
        cells = page.locator(f"#lesions tbody td:nth-child({column})").all_inner_texts()
        return area.get_attribute("aria-sort"), [float(cell) for cell in cells]

    (up, rising), (down, falling) = sort(), sort()
    assert (up, down) == ("ascending", "descending")
    assert rising == sorted(rising) == falling[::-1]
    assert rising[0] < rising[-1]
    assert page.locator("th[aria-sort]").count() == 1
    page.locator("#lesions thead button", has_text="no.").click()


def test_all_of_it_works_by_keyboard(page):
    jump(page, 1)
    page.locator("#lesions thead button", has_text="type").focus()
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort]").inner_text().strip() == "type"
    page.locator("#lesions thead button", has_text="no.").press("Enter")
    page.locator('#lesions tr[data-id="1"]').press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("#lesions tr[aria-current]").get_attribute("data-id") == "2"
    (i, j, k), _ = jump(page, 2)
    canvas = page.locator("#canvas")
    for key, expected in (
        ("ArrowLeft", (i - 1, j, k)),
        ("ArrowDown", (i - 1, j + 1, k)),
        ("PageUp", (i - 1, j + 1, k + 1)),
    ):
        canvas.press(key)
        assert canvas.get_attribute("data-voxel") == "{} {} {}".format(*expected)
    page.locator("#next").press("Enter")
    assert page.locator("#lesions tr[aria-current]").get_attribute("data-id") == "3"


@pytest.mark.parametrize("width", [1400, 800])
def test_nothing_is_wider_than_the_screen(page, width):
    page.set_viewport_size({"width": width, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#canvas").bounding_box()["width"] > 500
    page.locator('#lesions tr[data-id="3"]').click()  # shows the lesion, wherever the table lies
    box = page.locator("#canvas").bounding_box()
    assert 0 <= box["y"] <= box["y"] + box["height"] <= 700


def test_the_use_stays_in_sight(page):
    page.locator("details").scroll_into_view_if_needed()
    assert page.evaluate("scrollY") > 100
    assert page.locator(".use").bounding_box()["y"] == 0


def test_hostile_words_stay_words(slice_page):
    assert slice_page.title() == f"{HOSTILE}: liver lesions"
    assert slice_page.locator("h1").inner_text() == HOSTILE
    assert slice_page.locator(".warnings li").inner_text() == HOSTILE
    assert slice_page.locator("#lesions tbody tr").first.locator("td").nth(1).inner_text() == HOSTILE
    assert slice_page.locator("img[src=x], svg[onload]").count() == 0
    assert slice_page.evaluate("document.documentElement.scrollWidth") <= 800


def test_a_single_slice_of_unknown_spacing_has_one_plane_and_no_sides(slice_page, hostile):
    assert slice_page.locator("[data-view]").count() == 0
    assert np.std(pixels(slice_page)) > 20
    assert jump(slice_page, 2)[1] == 3
    (_, h, w) = np.rint(hostile.findings[1].centroid_index)
    said = slice_page.locator("#place").inner_text()
    assert "mm" not in said
    assert abs(int(said.split()[1]) - h) <= 1
    assert abs(int(said.split()[3]) - w) <= 1


def test_without_webgl_the_page_says_so_and_keeps_its_table_and_pictures(pages, segmentation):
    page = pages["no webgl"]
    assert page.locator("#no-viewer").is_visible()
    assert not page.locator("#stage").is_visible()
    page.locator('#lesions tr[data-id="2"]').click()
    assert page.locator("#lesions tr[aria-current]").get_attribute("data-id") == "2"
    loaded = "Array.from(document.images, (image) => image.complete && image.naturalWidth)"
    assert page.evaluate(loaded) == [360] * len(segmentation.findings)
