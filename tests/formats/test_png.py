import numpy as np
import pytest
from PIL import Image

from lesionseg.errors import InputError
from lesionseg.formats.png import read_png_image, read_png_labels, write_png

GREY = np.arange(30, dtype=np.uint8).reshape(5, 6)


def save(path, array, mode=None, **options):
    Image.fromarray(array, mode).save(path, **options)
    return path


def test_labels_come_back_as_written(tmp_path):
    write_png(tmp_path / "m.png", GREY[None])
    np.testing.assert_array_equal(read_png_labels(tmp_path / "m.png"), GREY[None])
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_labels_of_every_kind_of_file(tmp_path):
    binary = GREY % 2
    palette = Image.fromarray(GREY % 3, "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "palette.png", transparency=0)
    Image.fromarray(binary * 255).convert("1").save(tmp_path / "bit.png")
    opaque = np.full(GREY.shape, 255, np.uint8)
    table = {
        "palette.png": GREY % 3,
        "bit.png": binary,
        save(tmp_path / "wide.png", GREY.astype(np.uint16) * 1000).name: GREY.astype(int) * 1000,
        save(tmp_path / "rgb.png", np.stack([GREY] * 3, -1)).name: GREY,
        save(tmp_path / "rgba.png", np.stack([GREY] * 3 + [opaque], -1)).name: GREY,
        save(tmp_path / "la.png", np.stack([GREY, opaque], -1)).name: GREY,
    }
    for name, expected in table.items():
        np.testing.assert_array_equal(read_png_labels(tmp_path / name), expected[None], err_msg=name)


def test_a_palette_of_greys_stands_for_its_greys(tmp_path):
    """As programs that make files smaller write it: the indices are another order of the values."""
    labels = np.array([[0, 2], [3, 0]], np.uint8)
    indexed = Image.fromarray(np.array([[2, 1], [0, 2]], np.uint8), "P")
    indexed.putpalette([value for grey in (3, 2, 0) for value in [grey] * 3])
    indexed.save(tmp_path / "small.png")
    Image.fromarray(labels).quantize(8).save(tmp_path / "quantized.png")
    for name in ("small.png", "quantized.png"):
        np.testing.assert_array_equal(read_png_labels(tmp_path / name), labels[None])


def test_a_file_that_viewers_turn_is_refused(tmp_path):
    exif = Image.Exif()
    for orientation in (6, 1):
        exif[0x0112] = orientation
        Image.fromarray(GREY).save(tmp_path / f"{orientation}.png", exif=exif)
    for read in (read_png_labels, lambda path: read_png_image(path, -100, 100)):
        with pytest.raises(InputError, match="an EXIF orientation that turns them") as error:
            read(tmp_path / "6.png")
        assert error.value.code == "png-turned"
        read(tmp_path / "1.png")


@pytest.mark.parametrize(("array", "white"), [(GREY, 255), (GREY.astype(np.uint16) * 2000, 65535)])
def test_the_window_maps_black_and_white(tmp_path, array, white):
    array = array.copy()
    array[0, 0], array[0, 1] = 0, white
    hu = read_png_image(save(tmp_path / "a.png", array), -160, 240)
    assert hu.dtype == np.int16
    assert hu.shape == (1, 5, 6)
    assert (hu[0, 0, 0], hu[0, 0, 1]) == (-160, 240)
    np.testing.assert_allclose(hu[0], -160 + array / white * 400, atol=0.5)


def test_grey_palette_is_an_image(tmp_path):
    palette = Image.fromarray(GREY % 3, "P")
    palette.putpalette([0, 0, 0, 128, 128, 128, 255, 255, 255])
    palette.save(tmp_path / "a.png")
    hu = read_png_image(tmp_path / "a.png", 0, 255)
    np.testing.assert_array_equal(hu[0], np.array([0, 128, 255])[GREY % 3])


def test_colour_and_transparency_are_refused(tmp_path):
    colour = np.stack([GREY, GREY, GREY + 1], -1)
    clear = np.stack([GREY] * 3 + [GREY], -1)
    for path, word in (
        (save(tmp_path / "colour.png", colour), "colour"),
        (save(tmp_path / "clear.png", clear), "see-through"),
        (save(tmp_path / "la.png", np.stack([GREY, GREY], -1)), "see-through"),
        (save(tmp_path / "key.png", GREY, transparency=3), "see-through"),
    ):
        for read in (read_png_labels, lambda path: read_png_image(path, 0, 100)):
            with pytest.raises(InputError, match=f"got {word}") as error:
                read(path)
            assert error.value.code == "png-colour"


def test_unreadable_files_and_windows_are_refused(tmp_path):
    whole = save(tmp_path / "a.png", GREY).read_bytes()
    for name, content in {"empty.png": b"", "text.png": b"text" * 50, "cut.png": whole[:-20]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name) as error:
            read_png_labels(tmp_path / name)
        assert error.value.code == "unreadable"
    for window in ((100, 100), (200, -200), (0, 1e6), (float("nan"), 1)):
        with pytest.raises(InputError, match="window_low_hu below"):
            read_png_image(tmp_path / "a.png", *window)


def test_mutated_files_end_in_input_error_or_an_image(tmp_path):
    rng = np.random.default_rng(0)
    original = save(tmp_path / "a.png", GREY).read_bytes()
    outcomes = set()
    for _ in range(300):
        data = bytearray(original)
        for place in rng.integers(len(data), size=rng.integers(1, 4)):
            data[place] = rng.integers(256)
        (tmp_path / "mutated.png").write_bytes(data)
        try:
            read_png_labels(tmp_path / "mutated.png")
            outcomes.add("read")
        except InputError:
            outcomes.add("refused")
    assert "refused" in outcomes
