"""What is painted can be read back: every style, size and value, under noise, blur and a colour cast."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFilter

from tasks.base import UserError
from tasks.render import FAR, FAR_OUTSIDE, PUBLISHED, STYLES, NotAPuzzle, Style, _moved, _shift, ansi, paint, read

VIDEO = [style for style in STYLES.values() if style.anchor == "corner"]
styles = pytest.mark.parametrize("style", STYLES.values(), ids=lambda s: s.name)
video_styles = pytest.mark.parametrize("style", VIDEO, ids=lambda s: s.name)


def random_grid(rng, rows, cols):
    return rng.integers(0, 16, (rows, cols)).astype(np.int8)


def blurred(picture, pixels):
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(pixels)))


@st.composite
def drawings(draw):
    """A grid of any size and a canvas that holds it."""
    rows, cols = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    canvas = draw(st.integers(rows, 30)), draw(st.integers(cols, 30))
    return draw(arrays(np.int8, (rows, cols), elements=st.integers(0, 15))), canvas


@given(drawings(), st.sampled_from(VIDEO))
@settings(max_examples=40, deadline=None)
def test_there_and_back(drawing, style):
    grid, canvas = drawing
    picture = paint(grid, style, canvas)
    assert picture.dtype == np.uint8 and picture.shape == (*style.pixels(canvas), 3)
    for size in (None, grid.shape):
        reading = read(picture, style, size)
        assert reading.grid.dtype == np.int8 and np.array_equal(reading.grid, grid)
        assert reading.certainty.shape == grid.shape and reading.certainty.min() == 1
        assert reading.size_certainty > 0.99


@given(drawings())
@settings(max_examples=6, deadline=None)
def test_there_and_back_on_paper(drawing):
    grid, canvas = drawing
    reading = read(paint(grid, STYLES["paper"], canvas), STYLES["paper"])
    assert np.array_equal(reading.grid, grid) and reading.certainty.min() == 1 and reading.size_certainty > 0.95


@video_styles
def test_every_size_clean_and_under_noise(style):
    """All 900 sizes at 8 pixels, some at the wider pitches; every fourth under sigma 25 of 255 on every pixel."""
    rng = np.random.default_rng(0)
    for count, number in enumerate(range(0, 900, {8: 1, 14: 31, 16: 31, 32: 97}[style.cell])):
        rows, cols = number // 30 + 1, number % 30 + 1
        grid = random_grid(rng, rows, cols)
        picture = paint(grid, style, (30, 30) if number % 7 == 0 else (min(rows + 2, 30), min(cols + 3, 30)))
        assert np.array_equal(read(picture, style).grid, grid), (rows, cols)
        if count % 4 == 0:
            noisy = np.clip(picture + rng.normal(0, 25, picture.shape), 0, 255).astype(np.uint8)
            reading = read(noisy, style)
            assert np.array_equal(reading.grid, grid), (rows, cols)
            assert 0 <= reading.certainty.min() and reading.certainty.max() < 1


def test_sizes_on_paper_under_noise():
    rng = np.random.default_rng(1)
    style = STYLES["paper"]
    for rows, cols in [(1, 1), (1, 12), (7, 8), (8, 7), (12, 12), (11, 12), (2, 3)]:
        grid = random_grid(rng, rows, cols)
        picture = paint(grid, style, (12, 12))
        noisy = np.clip(picture + rng.normal(0, 10, picture.shape), 0, 255)
        assert np.array_equal(read(noisy, style).grid, grid)


def test_a_black_grid_on_black_paper_has_its_size_from_the_lines():
    for shape in [(1, 1), (3, 5), (6, 6)]:
        black = np.zeros(shape, np.int8)
        assert np.array_equal(read(paint(black, STYLES["paper"], (6, 6)), STYLES["paper"]).grid, black)


@styles
def test_every_value_alone(style):
    for value in range(16):
        grid = np.full((2, 2), value, np.int8)
        assert np.array_equal(read(paint(grid, style, (4, 3)), style).grid, grid)


@styles
def test_blur(style):
    """By a fifth of a cell; the published palette, whose nearest colours lie 38 apart, stands an eighth."""
    grid = random_grid(np.random.default_rng(2), 6, 8)
    pixels = style.cell / (5 if style.anchor == "corner" else 8)
    reading = read(blurred(paint(grid, style, (9, 9)), pixels), style)
    assert np.array_equal(reading.grid, grid)
    assert reading.certainty.min() < 1


def test_published_pictures_have_the_published_sizes():
    """Square canvases of the official code, in pixels: hitori, sudoku, mini sudoku, chess and life."""
    paper = STYLES["paper"]
    for side, pixels in {5: 176, 9: 304, 4: 144, 8: 272}.items():
        assert paper.pixels((side, side)) == (pixels, pixels)
    picture = paint(np.array([[1]], np.int8), paper, (1, 1))  # 34 pixels on 48, so 7 of margin, then the line
    assert picture[6, 20].tolist() == [0, 0, 0] and picture[7, 20].tolist() == [85, 85, 85]
    assert picture[9, 9].tolist() == [0, 116, 217] and picture[38, 38].tolist() == [0, 116, 217]
    assert picture[39, 20].tolist() == [85, 85, 85] and picture[41, 20].tolist() == [0, 0, 0]


def test_video_pictures_start_in_the_corner():
    picture = paint(np.array([[3, 0]], np.int8), STYLES["video-8"], (2, 3))
    assert picture.shape == (16, 24, 3)
    assert (picture[:8, :8] == FAR[3]).all() and (picture[:8, 8:16] == FAR[0]).all()
    assert (picture[8:] == FAR_OUTSIDE).all() and (picture[:, 16:] == FAR_OUTSIDE).all()


def test_colours_are_far_apart_and_still_arcs():
    colours = np.array([*FAR, FAR_OUTSIDE], float)
    distance = np.linalg.norm(colours[:, None] - colours, axis=-1)[np.triu_indices(17, 1)]
    assert distance.min() > 115
    published = np.array(PUBLISHED[:10], float)
    assert np.linalg.norm(colours[:10] - published, axis=-1).max() < 65
    for i in range(10):  # every colour is nearest to the ARC colour whose name it bears
        assert np.linalg.norm(published - colours[i], axis=-1).argmin() == i


@styles
def test_certainty_tells_the_doubtful_cell(style):
    grid = np.zeros((3, 3), np.int8)
    picture = paint(grid, style, (3, 3)).astype(float)
    y, x = style.origin(picture.shape[:2], (3, 3))
    top, left = y + style.line + style.pitch, x + style.line + style.pitch
    between = (np.array(style.palette[0], float) + style.palette[9]) / 2
    picture[top : top + style.cell, left : left + style.cell] = between
    certainty = read(picture, style).certainty
    assert certainty[1, 1] == pytest.approx(0, abs=1e-6)
    assert np.delete(certainty.ravel(), 4).min() == 1


def test_size_certainty_falls_when_the_edge_is_blurred_away():
    style = STYLES["video-16"]
    grid = random_grid(np.random.default_rng(3), 5, 5)
    picture = paint(grid, style, (6, 6)).astype(float)
    clear = read(picture, style).size_certainty
    inside = picture[:80, 64:80]  # the last column fades into the outside
    inside[:] = 0.52 * np.array(style.outside) + 0.48 * inside
    assert read(picture, style).size_certainty < clear
    assert read(picture, style, size=(5, 5)).size_certainty == 1


@styles
@pytest.mark.parametrize("own", [True, False])
def test_a_reference_takes_out_a_colour_cast(style, own):
    rng = np.random.default_rng(4)
    grid, known = random_grid(rng, 6, 6), random_grid(rng, 5, 6)

    def cast(picture):
        return np.clip(picture * np.array([0.85, 0.95, 0.9]) + np.array([25, -8, 15]), 0, 255)

    picture = cast(paint(grid, style, (7, 7)))
    reference = (picture, grid) if own else (cast(paint(known, style, (7, 7))), known)
    reading = read(picture, style, reference=reference)
    assert np.array_equal(reading.grid, grid)
    assert reading.certainty.min() > 0.6 > read(picture, style, size=(6, 6)).certainty.min()


@styles
@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_a_reference_takes_out_a_displacement(style, down, right, seed):
    """Up to a fifth of a cell, wherever the drawing went; the same one back."""
    most = max(1, round(0.2 * style.cell))
    by = (max(-most, min(most, down)), max(-most, min(most, right)))
    rng = np.random.default_rng(seed)
    grid, known = random_grid(rng, 6, 6), random_grid(rng, 6, 6)
    pictures = [_moved(paint(g, style, (7, 7)).astype(float), (-by[0], -by[1])) for g in (grid, known)]
    assert _shift(pictures[1], known, style) == by
    assert np.array_equal(read(pictures[0], style, reference=(pictures[1], known)).grid, grid)


@styles
@pytest.mark.parametrize("noise", [0, 8])
@pytest.mark.parametrize("level", [0, 128, 200, 255])
def test_a_blank_clip_is_no_grid_by_its_own_first_frame_either(style, level, noise):
    rng = np.random.default_rng(level)
    known = random_grid(rng, 6, 6)
    blank = np.clip(level + rng.normal(0, noise, (*style.pixels((7, 7)), 3)), 0, 255)
    with pytest.raises(NotAPuzzle, match="reference"):
        read(blank, style, reference=(blank, known))


def test_a_reference_of_one_colour_shifts_only():
    style = STYLES["video-8"]
    plain, grid = np.zeros((4, 4), np.int8), random_grid(np.random.default_rng(5), 4, 4)
    reading = read(
        paint(grid, style, (4, 4)).astype(float) + 20,
        style,
        reference=(paint(plain, style, (4, 4)).astype(float) + 20, plain),
    )
    assert np.array_equal(reading.grid, grid) and reading.certainty.min() > 0.999


def other_pictures():
    rng = np.random.default_rng(6)
    y, x = np.mgrid[:160, :160] / 160
    smooth = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)).resize(
        (160, 160), Image.Resampling.BICUBIC
    )
    return {
        "noise": rng.integers(0, 256, (160, 160, 3)).astype(np.uint8),
        "gradient": (np.stack([y, x, 1 - y], -1) * 255).astype(np.uint8),
        "blurred shapes": np.asarray(smooth),
        "plain grey": np.full((160, 160, 3), 120, np.uint8),
        "other colours": rng.integers(0, 256, (10, 10, 3)).astype(np.uint8).repeat(16, 0).repeat(16, 1),
    }


@pytest.mark.parametrize("kind", other_pictures())
@pytest.mark.parametrize("style", ["video-8", "video-16", "paper"])
def test_a_picture_that_is_no_puzzle_is_refused(kind, style):
    with pytest.raises(NotAPuzzle) as caught:
        read(other_pictures()[kind], STYLES[style])
    assert f"not a grid in style {style}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((16, 16), np.uint8),
        np.zeros((16, 16, 4), np.uint8),
        np.zeros((17, 16, 3), np.uint8),
        np.zeros((0, 16, 3), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        np.full((16, 16, 3), np.nan),
        np.full((16, 16, 3), "red"),
        None,
    ],
    ids=["no channels", "four channels", "odd pixels", "empty", "tiny", "nan", "text", "none"],
)
def test_images_of_the_wrong_kind(image):
    with pytest.raises(NotAPuzzle):
        read(image, STYLES["video-8"])


@styles
def test_told_sizes_must_fit(style):
    picture = paint(np.zeros((3, 3), np.int8), style, (3, 3))
    for size in [(4, 3), (3, 31), (0, 3)]:
        with pytest.raises(NotAPuzzle):
            read(picture, style, size)


@styles
def test_paint_refuses_what_is_no_grid_or_too_large(style):
    for grid, canvas in [([[16]], (1, 1)), ([[0]] * 31, (31, 31)), ([[0, 0]], (1, 1)), ([[0.5]], (1, 1))]:
        with pytest.raises(UserError):
            paint(grid, style, canvas)


def test_canvases_beyond_thirty_cells_hold_smaller_grids():
    style = Style("wide", 8)
    grid = random_grid(np.random.default_rng(7), 30, 30)
    assert np.array_equal(read(paint(grid, style, (32, 32)), style).grid, grid)


def test_ansi(monkeypatch):
    grid = np.array([[0, 1], [2, 15]], np.int8)
    wrong = np.array([[False, True], [False, False]])
    monkeypatch.delenv("NO_COLOR", raising=False)
    lines = ansi(grid, wrong).splitlines()
    assert len(lines) == 2 and all(line.endswith("\x1b[0m") for line in lines)
    assert "48;2;0;116;217" in lines[0] and "><" in lines[0] and "><" not in lines[1]
    assert "><" not in ansi(grid)
    monkeypatch.setenv("NO_COLOR", "1")
    assert ansi(grid, wrong) == "0 1!\n2 f"
    with pytest.raises(UserError):
        ansi(grid, wrong[:1])
