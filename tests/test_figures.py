import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lesionseg.figures import Panel, contact_sheet, overlay, window
from lesionseg.labels import COLORS


def slice_with_lesions():
    hu, labels = np.full((64, 64), -90, np.int16), np.zeros((64, 64), np.uint8)
    labels[10:50, 8:58] = 1
    labels[20:30, 15:25] = 2
    labels[20:30, 40:45] = 4
    hu[labels == 1] = 110
    return hu, labels


def outlines(axes):
    """Colour → all points of the lines drawn in it, in pixels (x, y)."""
    found = {}
    for lines in axes.collections:
        points = [path.vertices for path in lines.get_paths() if len(path.vertices)]
        if points:
            found[tuple(np.round(np.array(to_rgb(lines.get_edgecolor()[0])) * 255).astype(int))] = np.concatenate(
                points
            )
    return found


def test_window_is_linear_and_clipped():
    values = window(np.array([-1000, -100, 70, 240, 3000], np.int16))
    np.testing.assert_allclose(values, [0, 0, 0.5, 1, 1])
    assert values.dtype == np.float32


def test_outlines_run_between_the_pixels_of_each_mask():
    hu, labels = slice_with_lesions()
    axes = Figure().add_subplot()
    overlay(axes, hu, labels)
    found = outlines(axes)
    assert set(found) == {COLORS[1], COLORS[2], COLORS[4]}
    # First and last pixel of each mask, less and plus half: the liver is outlined as a whole, lesions included.
    for label, (top, bottom, left, right) in {1: (10, 49, 8, 57), 2: (20, 29, 15, 24), 4: (20, 29, 40, 44)}.items():
        x, y = found[COLORS[label]].T
        assert (x.min(), x.max(), y.min(), y.max()) == (left - 0.5, right + 0.5, top - 0.5, bottom + 0.5)


def test_a_mask_at_the_border_of_the_slice_keeps_a_closed_outline():
    labels = np.full((16, 16), 1, np.uint8)
    axes = Figure().add_subplot()
    overlay(axes, labels.astype(np.int16), labels)
    x, y = outlines(axes)[COLORS[1]].T
    assert (x.min(), x.max(), y.min(), y.max()) == (-0.5, 15.5, -0.5, 15.5)


@pytest.mark.parametrize("n", [1, 2, 7, 24])
def test_a_sheet_shows_every_panel_with_its_words(n):
    hu, labels = slice_with_lesions()
    figure = contact_sheet([Panel(hu, labels, f"case {i}", "a note", (0.8, 0.8)) for i in range(n)], title="all")
    assert len(figure.axes) == n
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert [word for word in words if word.startswith("case")] == [f"case {i}" for i in range(n)]
    assert words.count("5 cm") == n
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["liver", "cyst", "metastasis"]


def test_panels_are_cut_to_the_liver_and_do_not_overlap():
    hu, labels = slice_with_lesions()
    figure = contact_sheet([Panel(hu, labels, "x" * 25, "y" * 36, (0.8, 0.8))] * 6)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        height, width = axes.images[0].get_array().shape
        assert (height, width) == (62, 62)  # liver 50 wide, 1 more on each side, 8 % margin
    boxes = [axes.get_tightbbox(canvas.get_renderer()) for axes in figure.axes]
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])


def test_a_panel_without_outlines_is_cut_all_the_same():
    hu, labels = slice_with_lesions()
    with_lines, without = contact_sheet([Panel(hu, labels), Panel(hu, labels, outlined=False)]).axes[:2]
    assert (bool(outlines(with_lines)), bool(outlines(without))) == (True, False)
    assert with_lines.images[0].get_array().shape == without.images[0].get_array().shape != hu.shape


def test_proportions_follow_the_spacing():
    hu, labels = slice_with_lesions()
    (axes,) = contact_sheet([Panel(hu, labels, spacing_mm=(1.0, 0.5))]).axes
    assert axes.get_aspect() == 2.0


def test_lesions_alone_are_shown_in_the_whole_slice():
    hu, labels = slice_with_lesions()
    labels[labels == 1] = 0
    (axes,) = contact_sheet([Panel(hu, labels)]).axes
    assert axes.images[0].get_array().shape == (64, 64)


def test_a_slice_without_liver_or_spacing_is_shown_whole():
    hu = np.zeros((20, 30), np.int16)
    figure = contact_sheet([Panel(hu, np.zeros((20, 30), np.uint8), "empty")])
    (axes,) = figure.axes
    assert axes.images[0].get_array().shape == (20, 30)
    assert not figure.legends
    assert [text.get_text() for text in axes.texts] == ["empty", ""]
