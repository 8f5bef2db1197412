"""What all video arms share: the puzzle as a picture, and the size of that picture without a look at the answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from tasks.base import Example
from tasks.render import STYLES, Style, paint

LEAST = 3  # cells a side of the picture: the small backbones have seen nothing of one or two


class Drawn(Protocol):
    """The options that say how a grid is drawn."""

    @property
    def style(self) -> str: ...
    @property
    def pixels(self) -> int: ...
    @property
    def canvas(self) -> tuple[int, int] | None: ...


@dataclass(frozen=True, eq=False)
class Question:
    """What a video arm is asked: a picture. The canvas, which is public, tells how large a cell is drawn."""

    picture: np.ndarray  # uint8 (H, W, 3)
    canvas: tuple[int, int]  # (rows, cols) of the picture, in cells


def style_of(options: Drawn, canvas: tuple[int, int]) -> Style:
    """The style, its cells enlarged in whole steps until the longer side is nearest to `options.pixels`."""
    style = STYLES[options.style]
    if options.pixels:
        side = max(canvas) * style.cell
        style = replace(style, cell=style.cell * max(1, round(options.pixels / side)))
    return style


def question(example: Example, options: Drawn) -> Question:
    """The question's picture, of a size that the answer has no part in."""
    rows, cols = example.canvas
    canvas = options.canvas or (max(rows, LEAST), max(cols, LEAST))
    return Question(paint(example.question, style_of(options, canvas), canvas), canvas)


def answer_picture(example: Example, asked: Question, options: Drawn) -> np.ndarray | None:
    """The answer's picture, as large as the question's; None where it is not known or does not fit into it. Nine of the 400
    puzzles of ARC-AGI-1's evaluation set have an answer larger than all that can be seen before."""
    if example.open or any(side > room for side, room in zip(example.answer.shape, asked.canvas, strict=True)):
        return None
    return paint(example.answer, style_of(options, asked.canvas), asked.canvas)
