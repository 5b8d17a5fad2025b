"""The page in headless Chromium at three widths."""

import os
import shutil

import pytest

from lesionseg.compare import compare

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (1400, 800, 390)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def pages(tmp_path_factory, logged_root):
    """The page by width, opened from disk; what it asks for and complains of is kept."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    output = tmp_path_factory.mktemp("page")
    compare(logged_root, output)
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has none for root
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        opened = {}
        for width in WIDTHS:
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.seen = {"address": (output / "report.html").as_uri(), "requests": [], "complaints": []}
            page.on("request", lambda request, page=page: page.seen["requests"].append(request.url))
            page.on("pageerror", lambda error, page=page: page.seen["complaints"].append(str(error)))
            page.on("dialog", lambda dialog, page=page: page.seen["complaints"].append(dialog.message))
            page.on("console", lambda message, page=page: page.seen["complaints"].append(message.text))
            page.goto(page.seen["address"])
            opened[width] = page
        yield opened
        browser.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_it_asks_for_nothing_but_the_file_and_complains_of_nothing(pages, width):
    seen = pages[width].seen
    assert [address for address in seen["requests"] if not address.startswith("data:")] == [seen["address"]]
    assert seen["complaints"] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_every_picture_is_drawn_and_none_is_wider_than_the_page(pages, width):
    pictures = pages[width].evaluate(
        "[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.getBoundingClientRect().right])"
    )
    assert len(pictures) > 4
    assert all(drawn and right <= width for drawn, right in pictures)
    assert pages[width].evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("width", "columns"), [(1400, 2), (800, 1)])
def test_charts_stand_side_by_side_where_there_is_room(pages, width, columns):
    lefts = pages[width].evaluate("[...document.querySelectorAll('.charts img')].map(i => i.getBoundingClientRect().x)")
    assert len(set(lefts)) == columns


@pytest.mark.parametrize("width", WIDTHS)
def test_its_style_applies(pages, width):
    """The policy would keep out a style whose hash is not its own."""
    assert pages[width].evaluate("getComputedStyle(document.querySelector('.use')).position") == "sticky"
    right = pages[width].evaluate("getComputedStyle(document.querySelector('.right.shade9, .right')).textAlign")
    assert right == "right"
