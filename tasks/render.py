"""A grid as a picture, and back: the grid's size and a certainty for every cell are read from the picture.

Two kinds of style. "video-8", "video-16" and "video-32" are made for video models: every cell is a square of 8, 16 or
32 pixels from the corner (0, 0) on, so that cell borders fall on the model's patch borders; no lines; cells of the
canvas that the grid does not use have a colour of their own, so that the picture tells the grid's size. "paper" is the
published drawing (arXiv 2510.24448, official code): 30 px cells with 2 px lines, centred on black.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tasks.base import MAX_SIDE, VALUES, Grid, UserError, as_grid, size_text

Image = npt.NDArray[np.uint8]  # (H, W, 3)
Floats = npt.NDArray[np.float64]
Colour = tuple[int, int, int]

# Colours found by maximising the smallest RGB distance between any two, `FAR_OUTSIDE` included (118 of 442), while 0..9
# stay near the colours that people know from ARC.
FAR: tuple[Colour, ...] = (
    (0, 0, 0),  # 0 black
    (0, 100, 255),  # 1 blue
    (255, 41, 72),  # 2 red
    (39, 248, 63),  # 3 green
    (255, 250, 0),  # 4 yellow
    (185, 168, 178),  # 5 grey
    (255, 24, 215),  # 6 magenta
    (234, 133, 0),  # 7 orange
    (113, 255, 255),  # 8 sky blue
    (136, 17, 3),  # 9 maroon
    (133, 70, 255),  # 10 violet
    (118, 140, 63),  # 11 olive
    (0, 224, 190),  # 12 teal
    (145, 1, 140),  # 13 purple
    (0, 134, 0),  # 14 dark green
    (255, 255, 255),  # 15 white
)
FAR_OUTSIDE: Colour = (27, 60, 115)  # dark slate blue

# As published: the ARC viewer's ten colours, and the official code's extension to sixteen.
PUBLISHED: tuple[Colour, ...] = (
    (0, 0, 0),
    (0, 116, 217),
    (255, 65, 54),
    (46, 204, 64),
    (255, 220, 0),
    (170, 170, 170),
    (240, 18, 190),
    (255, 133, 27),
    (127, 219, 255),
    (135, 12, 37),
    (163, 73, 164),
    (255, 182, 193),
    (0, 255, 255),
    (128, 0, 128),
    (192, 192, 192),
    (255, 255, 255),
)


@dataclass(frozen=True)
class Style:
    """How grids are drawn. `cell` and `line` are in pixels; with lines, one lies on every side of every cell."""

    name: str
    cell: int
    line: int = 0
    palette: tuple[Colour, ...] = FAR  # one colour a value
    outside: Colour = FAR_OUTSIDE  # of the canvas beyond the grid
    line_colour: Colour = (85, 85, 85)
    anchor: Literal["corner", "centre"] = "corner"  # where the grid lies on its canvas

    @property
    def pitch(self) -> int:
        """Pixels from one cell's left edge to the next cell's."""
        return self.cell + self.line

    def span(self, cells: int) -> int:
        """Pixels that so many cells in a row take, outer lines included."""
        return cells * self.pitch + self.line

    def pixels(self, canvas: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of a picture of `canvas` = (rows, cols) cells. A centred style rounds up to a multiple of 16."""
        height, width = self.span(canvas[0]), self.span(canvas[1])
        if self.anchor == "centre":
            return -(-height // 16) * 16, -(-width // 16) * 16
        return height, width

    def origin(self, picture: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """(y, x) of the top left pixel of a grid of `size` = (rows, cols) in a picture of (H, W) pixels."""
        if self.anchor == "corner":
            return 0, 0
        return (picture[0] - self.span(size[0])) // 2, (picture[1] - self.span(size[1])) // 2


STYLES: dict[str, Style] = {
    style.name: style
    for style in (
        Style("video-8", 8),
        Style("video-14", 14),  # for backbones whose patch is 14 pixels
        Style("video-16", 16),
        Style("video-32", 32),
        Style("paper", 30, line=2, palette=PUBLISHED, outside=(0, 0, 0), anchor="centre"),
    )
}


class NotAPuzzle(UserError):
    """The picture is not a drawing of a grid in this style."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A grid read from a picture.

    `certainty` (rows, cols) is (d2 - d1) / (d1 + d2) with d1, d2 the RGB distances of the cell's mean colour to the
    nearest and second nearest colour of the palette: 1 on the colour, 0 half way between two. `size_certainty` is the
    posterior probability of the size under a flat prior over sizes and Gaussian colour noise of `SIGMA` levels a cell;
    1 where the size was told.
    """

    grid: Grid
    certainty: npt.NDArray[np.float32]
    size_certainty: float


SIGMA = 32.0  # standard deviation of a cell's colour, levels of 255, when sizes are weighed against each other
# A picture is refused when the mean distance of its cells' colours from the style's colours exceeds `MAX_OFF`, or when
# the mean standard deviation inside its cells exceeds `MAX_ROUGH` (levels of 255). Colours drawn evenly from the RGB
# cube are 62 off (video styles) and 71 off (paper); even pixel noise is 74 rough. A drawing blurred by a codec stays
# below 30 and 30, and one under noise of sigma 25 below 10 and 25.
MAX_OFF = 45.0
MAX_ROUGH = 55.0
LEAST_GAIN = 0.2  # a reference in which colours differ by less than this share of what was drawn is blank


def paint(grid: Grid, style: Style, canvas: tuple[int, int]) -> Image:
    """The grid drawn on a canvas of (rows, cols) cells, uint8 (H, W, 3) with H, W = `style.pixels(canvas)`.

    Raises UserError when the grid is not a grid or larger than the canvas.
    """
    grid = as_grid(grid)
    rows, cols = grid.shape
    if rows > canvas[0] or cols > canvas[1]:
        raise UserError(f"a grid of {size_text(grid.shape)} cells does not fit on a canvas of {size_text(canvas)}")
    height, width = style.pixels(canvas)
    picture = np.empty((height, width, 3), dtype=np.uint8)
    picture[:] = style.outside
    y, x = style.origin((height, width), (rows, cols))
    picture[y : y + style.span(rows), x : x + style.span(cols)] = style.line_colour
    cells = np.array(style.palette, dtype=np.uint8)[grid]  # (rows, cols, 3)
    row_pixels = y + style.line + style.pitch * np.arange(rows)[:, None] + np.arange(style.cell)  # (rows, cell)
    col_pixels = x + style.line + style.pitch * np.arange(cols)[:, None] + np.arange(style.cell)
    blocks = cells.repeat(style.cell, axis=0).repeat(style.cell, axis=1)
    picture[np.ix_(row_pixels.ravel(), col_pixels.ravel())] = blocks
    return picture


def read(
    image: Any,
    style: Style,
    size: tuple[int, int] | None = None,
    reference: tuple[Any, Grid] | None = None,
) -> Reading:
    """The grid that `paint` drew, from a picture (H, W, 3) with values 0..255, noise and blur allowed.

    Every cell is the colour nearest to the mean of its inner 60 %. `size` = (rows, cols) tells the size; None finds the
    one that explains the picture best. `reference` = (image, grid) is a picture with the same faults whose grid is known
    (the first frame of a clip): where its drawing lies, to a fifth of a cell, is found on it and the picture moved back,
    gain and offset of each channel are fitted on it and the palette is moved along.
    Raises NotAPuzzle when the picture is not a drawing in this style.
    """
    picture = _picture(image, style)
    colours = np.array([*style.palette, style.outside, style.line_colour], dtype=np.float64)  # (VALUES + 2, 3)
    if reference is not None:
        known, grid = _picture(reference[0], style), as_grid(reference[1], "reference")
        if any(side > most for side, most in zip(grid.shape, _room(known, style), strict=True)):
            raise NotAPuzzle(f"the reference grid of {size_text(grid.shape)} cells is larger than its picture")
        shift = _shift(known, grid, style)
        picture, known = _moved(picture, shift), _moved(known, shift)
        colours = _calibrated(colours, known, grid, style)
    palette, outside, line_colour = colours[:VALUES], colours[VALUES], colours[VALUES + 1]

    room = _room(picture, style)
    if size is not None:
        if not (1 <= size[0] <= room[0] and 1 <= size[1] <= room[1]):
            raise NotAPuzzle(f"a grid of {size_text(size)} cells does not fit here, at most {size_text(room)} do")
        size_certainty = 1.0
    elif style.anchor == "corner":
        size, size_certainty = _corner_size(picture, style, palette, outside, room)
    else:
        size, size_certainty = _centred_size(picture, style, palette, outside, line_colour, room)

    means, rough = _cells(picture, style, size)  # (rows, cols, 3), (rows, cols)
    distance = _distance(means, palette)  # (rows, cols, VALUES)
    first, second = np.partition(distance, 1, axis=-1)[..., :2].transpose(2, 0, 1)
    _refuse_other_pictures(first, rough, style)
    certainty = (second - first) / (first + second)  # never 0 / 0: two colours are never the same
    return Reading(distance.argmin(-1).astype(np.int8), certainty.astype(np.float32), size_certainty)


def ansi(grid: Grid, wrong: npt.NDArray[np.bool_] | None = None, colour: bool | None = None) -> str:
    """The grid as lines of coloured blocks for a terminal with 24-bit colour, two characters a cell.

    Cells where `wrong` (rows, cols) is true carry the sign "><", so colour is never the only mark. Without colour
    (`colour=False`, or by default where the environment sets NO_COLOR) cells are hexadecimal digits, wrong ones
    with "!".
    """
    grid = as_grid(grid)
    wrong = np.zeros(grid.shape, dtype=bool) if wrong is None else np.asarray(wrong, dtype=bool)
    if wrong.shape != grid.shape:
        raise UserError(f"the mask of wrong cells is {size_text(wrong.shape)}, the grid {size_text(grid.shape)}")
    if colour is None:
        colour = not os.environ.get("NO_COLOR")
    lines = []
    for row, marks in zip(grid.tolist(), wrong.tolist(), strict=True):
        if colour:
            lines.append("".join(_block(v, mark) for v, mark in zip(row, marks, strict=True)) + "\x1b[0m")
        else:
            lines.append("".join(f"{v:x}{'!' if mark else ' '}" for v, mark in zip(row, marks, strict=True)).rstrip())
    return "\n".join(lines)


def _block(value: int, wrong: bool) -> str:
    r, g, b = PUBLISHED[value]
    ink = 0 if r * 0.3 + g * 0.6 + b * 0.1 > 110 else 255
    return f"\x1b[48;2;{r};{g};{b}m\x1b[38;2;{ink};{ink};{ink}m{'><' if wrong else '  '}"


# --- reading, step by step ---------------------------------------------------------------------------------------


def _picture(image: Any, style: Style) -> Floats:
    """A picture as float64 (H, W, 3), refused if it cannot hold a grid."""
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind not in "uif":
        raise NotAPuzzle(f"a picture is height x width x 3 colour values, got an array of shape {array.shape}")
    height, width = array.shape[:2]
    if height < style.span(1) or width < style.span(1):
        raise NotAPuzzle(f"{width}x{height} pixels are too few for style {style.name} ({style.cell} pixels a cell)")
    step = style.cell if style.anchor == "corner" else 16
    if height % step or width % step:
        raise NotAPuzzle(f"{width}x{height} pixels are no multiple of {step}, as pictures in style {style.name} are")
    picture = array.astype(np.float64)
    if not np.isfinite(picture).all():
        raise NotAPuzzle("the picture holds values that are not numbers")
    return picture


def _room(picture: Floats, style: Style) -> tuple[int, int]:
    """(rows, cols) of the largest grid that fits in the picture."""
    rows, cols = _canvas(picture, style)
    return min(rows, MAX_SIDE), min(cols, MAX_SIDE)


def _distance(colours: Floats, palette: Floats) -> Floats:
    """RGB distance of every colour (..., 3) to every one of the palette (n, 3): (..., n)."""
    return np.linalg.norm(colours[..., None, :] - palette, axis=-1)


def _cells(picture: Floats, style: Style, size: tuple[int, int]) -> tuple[Floats, Floats]:
    """Mean colour (rows, cols, 3) and standard deviation (rows, cols) of the inner 60 % of every cell."""
    y, x = style.origin(picture.shape[:2], size)
    margin = round(0.2 * style.cell)
    inner = np.arange(margin, style.cell - margin)
    row_pixels = y + style.line + style.pitch * np.arange(size[0])[:, None] + inner  # (rows, inner)
    col_pixels = x + style.line + style.pitch * np.arange(size[1])[:, None] + inner
    pixels = picture[row_pixels[:, None, :, None], col_pixels[None, :, None, :]]  # (rows, cols, inner, inner, 3)
    return pixels.mean((2, 3)), pixels.std((2, 3)).mean(-1)


def _corner_size(
    picture: Floats, style: Style, palette: Floats, outside: Floats, room: tuple[int, int]
) -> tuple[tuple[int, int], float]:
    """The rectangle from the corner whose cells look like values while the others look like the outside."""
    means, _ = _cells(picture, style, room)
    gain = _distance(means, outside[None])[..., 0] ** 2 - _distance(means, palette).min(-1) ** 2  # (rows, cols)
    evidence = gain.cumsum(0).cumsum(1)  # [r-1, c-1]: how much better (r, c) is than no grid at all
    return _best(evidence / (2 * SIGMA**2))


def _centred_size(
    picture: Floats, style: Style, palette: Floats, outside: Floats, line_colour: Floats, room: tuple[int, int]
) -> tuple[tuple[int, int], float]:
    """The size whose drawing, with the best value in every cell, has the least squared difference from the picture.

    Integral images make the squared difference of any box from any colour four look-ups.
    """
    stacked = np.concatenate([picture, (picture**2).sum(-1, keepdims=True)], axis=-1)
    table = np.zeros((picture.shape[0] + 1, picture.shape[1] + 1, 4))
    table[1:, 1:] = stacked.cumsum(0).cumsum(1)

    def boxes(tops: Any, bottoms: Any, lefts: Any, rights: Any) -> Floats:
        """Sums (rows, cols, 4) of R, G, B and squared length over every box of rows x columns."""
        bands = table[np.asarray(bottoms)] - table[np.asarray(tops)]  # (rows, W + 1, 4)
        return bands[:, np.asarray(rights)] - bands[:, np.asarray(lefts)]

    def difference(sums: Floats, area: int, colours: Floats) -> Floats:
        """Squared difference (..., n) of boxes with these sums from each of n colours."""
        return sums[..., 3:] - 2 * sums[..., :3] @ colours.T + area * (colours**2).sum(-1)

    height, width = picture.shape[:2]
    whole = boxes([0], [height], [0], [width])[0, 0]
    cost = np.empty(room)
    for rows in range(1, room[0] + 1):
        for cols in range(1, room[1] + 1):
            y, x = style.origin((height, width), (rows, cols))
            high, wide = style.span(rows), style.span(cols)
            block = boxes([y], [y + high], [x], [x + wide])[0, 0]
            tops = y + style.line + style.pitch * np.arange(rows)
            lefts = x + style.line + style.pitch * np.arange(cols)
            cells = boxes(tops, tops + style.cell, lefts, lefts + style.cell)
            lines = block - cells.sum((0, 1))
            line_area = high * wide - rows * cols * style.cell**2
            cost[rows - 1, cols - 1] = (
                difference(whole - block, height * width - high * wide, outside[None])[0]
                + difference(lines, line_area, line_colour[None])[0]
                + difference(cells, style.cell**2, palette).min(-1).sum()
            )
    return _best(-cost / style.cell**2 / (2 * SIGMA**2))  # a cell's pixels count as one sample: noise is shared


def _best(evidence: Floats) -> tuple[tuple[int, int], float]:
    """The size with the greatest log-likelihood in a table [rows - 1, cols - 1], and its posterior probability."""
    row, col = np.unravel_index(int(evidence.argmax()), evidence.shape)
    posterior = 1 / np.exp(evidence - evidence.max()).sum()
    return (int(row) + 1, int(col) + 1), float(posterior)


def _refuse_other_pictures(off: Floats, rough: Floats, style: Style) -> None:
    if rough.mean() > MAX_ROUGH:
        raise NotAPuzzle(f"this is not a grid in style {style.name}: its cells are not of one colour each")
    if off.mean() > MAX_OFF:
        raise NotAPuzzle(f"this is not a grid in style {style.name}: its colours are not the style's colours")


def _shift(picture: Floats, grid: Grid, style: Style) -> tuple[int, int]:
    """By how many pixels (down, right) a drawing lies off its place, at most a fifth of a cell: where it agrees best with
    the drawing of its grid (greatest correlation, so that a colour cast does not matter)."""
    drawn = paint(grid, style, _canvas(picture, style)).astype(np.float64)
    if drawn.shape != picture.shape:  # no canvas of whole cells has this size
        return 0, 0
    drawn -= drawn.mean((0, 1))
    if not drawn.any():  # one colour all over looks the same wherever it lies
        return 0, 0
    most = max(1, round(0.2 * style.cell))
    spectra = np.fft.rfft2(picture, axes=(0, 1)) * np.conj(np.fft.rfft2(drawn, axes=(0, 1)))
    # [y, x]: moved by so much, round the edge
    agreement = np.fft.irfft2(spectra, s=picture.shape[:2], axes=(0, 1)).sum(-1)
    agreement /= max(float(np.abs(agreement).max()), 1e-9)
    steps = range(-most, most + 1)
    return max(
        ((y, x) for y in steps for x in steps), key=lambda by: (round(agreement[by], 9), -abs(by[0]) - abs(by[1]))
    )


def _canvas(picture: Floats, style: Style) -> tuple[int, int]:
    """(rows, cols) of the canvas that a picture shows; a centred one may be drawn on any that rounds up to its size."""
    rows, cols = ((side - style.line) // style.pitch for side in picture.shape[:2])
    return rows, cols


def _moved(picture: Floats, by: tuple[int, int]) -> Floats:
    """A picture whose content lay too far down and right by so many pixels, put back; the edge is repeated."""
    height, width = picture.shape[:2]
    y, x = (np.clip(np.arange(side) + step, 0, side - 1) for side, step in ((height, by[0]), (width, by[1])))
    return picture[y[:, None], x[None, :]]


def _calibrated(colours: Floats, picture: Floats, grid: Grid, style: Style) -> Floats:
    """Where `colours` (n, 3) lie in a picture whose grid is known: least squares gain and offset of each channel."""
    room = _room(picture, style)
    seen = [_cells(picture, style, grid.shape)[0].reshape(-1, 3)]
    drawn = [colours[grid.ravel()]]
    if style.anchor == "corner":  # the cells beyond the grid show one more colour
        beyond = np.ones(room, dtype=bool)
        beyond[: grid.shape[0], : grid.shape[1]] = False
        seen.append(_cells(picture, style, room)[0][beyond])
        drawn.append(np.repeat(colours[VALUES][None], beyond.sum(), axis=0))
    return np.stack([_fit(np.concatenate(drawn)[:, k], np.concatenate(seen)[:, k], colours[:, k]) for k in range(3)], 1)


def _fit(drawn: Floats, seen: Floats, colours: Floats) -> Floats:
    """gain * colours + offset with seen = gain * drawn + offset; an offset alone where one level only was drawn."""
    spread = drawn - drawn.mean()
    gain = float(spread @ seen / (spread @ spread)) if np.ptp(drawn) > 32 else 1.0
    if gain < LEAST_GAIN:
        raise NotAPuzzle("the reference picture does not show its grid")
    return gain * (colours - drawn.mean()) + seen.mean()
