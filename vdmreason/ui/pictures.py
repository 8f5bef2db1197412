"""Grids and clips as a browser shows them: small lossless WebP images in `data:` addresses, so nothing is fetched."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tasks.base import Grid
from tasks.render import STYLES

Picture = npt.NDArray[np.uint8]  # (H, W, 3)
Clip = npt.NDArray[np.uint8]  # (F, H, W, 3)


def palette() -> list[str]:
    """The sixteen colours of the values, as "#rrggbb": those that the video arm is shown."""
    return [f"#{bytes(colour).hex()}" for colour in STYLES["video-8"].palette]


def cells(grid: Grid | Sequence[Sequence[int]] | None) -> list[list[int]] | None:
    """A grid as plain lists, for JSON."""
    return None if grid is None else np.asarray(grid).astype(int).tolist()


def film(clip: Clip, truth: Picture | None = None) -> dict[str, Any]:
    """A clip (F, H, W, 3) as one sprite of tiles, row by row, and what a browser needs to cut it.

    `truth` is the true answer's picture, of the clip's size, for the onion skin and the difference.
    """
    frames, height, width, _ = clip.shape
    columns = math.ceil(math.sqrt(frames))
    rows = math.ceil(frames / columns)
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for i, frame in enumerate(clip):
        y, x = i // columns * height, i % columns * width
        sheet[y : y + height, x : x + width] = frame
    same_size = truth is not None and truth.shape[:2] == (height, width)
    return {
        "sprite": webp(sheet),
        "frames": frames,
        "columns": columns,
        "width": width,
        "height": height,
        "truth": webp(truth) if truth is not None and same_size else None,
    }


def webp(picture: Picture) -> str:
    """A picture as a lossless WebP in a `data:` address."""
    return _address(lambda file: Image.fromarray(picture).save(file, "WEBP", lossless=True, method=2))


def moving(clip: Clip, milliseconds: int = 160) -> str:
    """A clip as an endless animated WebP in a `data:` address; its last frame rests."""
    frames = [Image.fromarray(frame) for frame in clip]
    rests = [milliseconds] * (len(frames) - 1) + [1200]
    return _address(
        lambda file: frames[0].save(
            file, "WEBP", save_all=True, append_images=frames[1:], duration=rests, loop=0, lossless=True, method=2
        )
    )


def _address(save: Any) -> str:
    file = io.BytesIO()
    save(file)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
