"""Grids and clips as a browser shows them: small lossless WebP images in `data:` addresses, so nothing is fetched."""

from __future__ import annotations

import base64
import io
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tasks.base import Grid, UserError
from tasks.render import STYLES, paint

Picture = npt.NDArray[np.uint8]  # (H, W, 3)
Clip = npt.NDArray[np.uint8]  # (F, H, W, 3)
LARGEST = 64 << 20  # pixels of a film that is made into a file: 100 frames of 720 x 480 are half of it


def palette() -> list[str]:
    """The sixteen colours of the values, as "#rrggbb": those that the video arm is shown."""
    return [f"#{bytes(colour).hex()}" for colour in STYLES["video-8"].palette]


def cells(grid: Grid | Sequence[Sequence[int]] | None) -> list[list[int]] | None:
    """A grid as plain lists, for JSON."""
    return None if grid is None else np.asarray(grid).astype(int).tolist()


def image(grid: Grid | Sequence[Sequence[int]] | None, alt: str) -> str:
    """A grid as a small image in HTML, a pixel a cell; "no grid" in a box where there is none."""
    values = np.asarray([] if grid is None else grid, np.int8)
    if not values.size:
        return '<div class="unread">no grid</div>'
    return f'<img src="{webp(paint(values, STYLES["video-8"], (values.shape[0], values.shape[1])))}" alt="{alt}">'


def figure(image: str, caption: str) -> str:
    """A small figure in HTML; `image` is an element."""
    return f'<figure class="thumb">{image}<figcaption>{caption}</figcaption></figure>'


def thumb(grid: Grid | Sequence[Sequence[int]] | None, caption: str) -> str:
    """A grid as a small figure in HTML."""
    return figure(image(grid, caption), caption)


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


def clip_of(film: Any) -> Clip:
    """The inverse of `film`, for one that comes back from a browser: the clip (F, H, W, 3). Raises UserError for anything
    that is no such film, before it is decoded."""
    given = film if isinstance(film, dict) else {}
    sizes = [given.get(key) for key in ("frames", "columns", "width", "height")]
    frames, columns, width, height = (size if type(size) is int and 0 < size <= 4096 else 0 for size in sizes)
    address = given.get("sprite")
    if not frames * columns * width * height or not isinstance(address, str):
        raise UserError("That is no film of this page.")
    rows = math.ceil(frames / columns)
    kind, _, data = address.partition(",")
    if kind != "data:image/webp;base64" or len(data) > 12 << 20 or rows * height * columns * width > 64 << 20:
        raise UserError("That is no film of this page.")
    try:
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=["WEBP"]) as image:
            if image.size != (columns * width, rows * height):
                raise UserError("That is no film of this page.")
            sheet = np.asarray(image.convert("RGB"))
    except (ValueError, OSError):
        raise UserError("That is no film of this page.") from None
    tiles = sheet.reshape(rows, height, columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    return tiles[:frames]


def encoded(clip: Clip, kind: str, seconds: float = 2.0) -> str:
    """A clip (F, H, W, 3) as a file others can play, in a `data:` address: "gif", or "mp4" in H.264, yuv420p, with even sides,
    its index in front. Enlarged without smoothing to at least 256 pixels, so that no player blurs a cell. Raises UserError."""
    factor = max(1, math.ceil(256 / max(clip.shape[1:3])))
    clip = np.concatenate([clip, clip[-1:].repeat(max(1, len(clip) // 3), 0)])  # the answer rests at the end
    if clip[..., 0].size * factor**2 > LARGEST:
        raise UserError("This film is too long to be kept as a file.")
    large = clip.repeat(factor, 1).repeat(factor, 2)
    pace = len(clip) / seconds
    if kind == "gif":
        # One palette for all frames: with one each, a player flickers.
        frames = [Image.fromarray(frame).quantize(64, dither=Image.Dither.NONE) for frame in large]
        file = io.BytesIO()
        frames[0].save(
            file, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / pace), loop=0, optimize=False
        )
        return "data:image/gif;base64," + base64.b64encode(file.getvalue()).decode()
    if kind == "mp4":
        return "data:video/mp4;base64," + base64.b64encode(_mp4(large, pace)).decode()
    raise UserError("A film can be kept as mp4 or gif.")


def _mp4(clip: Clip, pace: float) -> bytes:
    try:
        import av
    except ImportError:
        raise UserError("Writing mp4 needs PyAV: pip install -e '.[video]'. GIF works without.") from None
    height, width = clip.shape[1] // 2 * 2, clip.shape[2] // 2 * 2
    # In a file of its own: to put the index in front the muxer opens what it wrote by its name.
    with (
        tempfile.TemporaryDirectory() as folder,
        av.open(f"{folder}/film.mp4", "w", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=max(1, round(pace)), options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in clip:
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(shown))
        container.mux(stream.encode())
        container.close()
        return Path(f"{folder}/film.mp4").read_bytes()


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
