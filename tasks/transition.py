"""A question and its answer as a short clip, and back (arXiv 2510.24448, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tasks.base import UserError, suggest

Image = npt.NDArray[np.uint8]  # (H, W, 3)
Clip = npt.NDArray[np.uint8]  # (F, H, W, 3)

MODES = ("discrete", "linear", "trajectory", "image")


def clip(first: Image, last: Image, frames: int, mode: str, middle: Sequence[Image] = ()) -> Clip:
    """The transition video from the picture `first` to the picture `last`, uint8 (F, H, W, 3).

    discrete     `first` for the first half (F // 2 frames), `last` for the rest: 4 + 5 at F = 9. The paper's choice.
    linear       a cross-fade in equal steps.
    trajectory   first, middle, last resampled to F frames in equal steps of time, nearest state.
                 `middle` holds the pictures strictly between; without it this is the same as discrete.
    image        the image-to-image control, no transition: always two frames, whatever `frames` says. Frame 0 is the
                 condition and frame 1 is the one-frame target.
    """
    _check(frames, mode)
    pictures = [np.asarray(p, dtype=np.uint8) for p in (first, *middle, last)]
    for picture in pictures:
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.shape != pictures[0].shape:
            raise UserError(f"pictures of a clip are (H, W, 3) and equally large; got {[p.shape for p in pictures]}")
    if mode == "image":
        return np.stack([pictures[0], pictures[-1]])
    if mode == "linear":
        alpha = np.linspace(0, 1, frames, dtype=np.float32)[:, None, None, None]
        mixed = (1 - alpha) * pictures[0] + alpha * pictures[-1]
        return np.round(mixed).astype(np.uint8)
    states = pictures if mode == "trajectory" else [pictures[0], pictures[-1]]
    if mode == "discrete":
        picked = [int(f >= frames // 2) for f in range(frames)]
    else:  # nearest state, halves up, so that two states give the discrete clip
        picked = [(2 * f * (len(states) - 1) + frames - 1) // (2 * (frames - 1)) for f in range(frames)]
    return np.stack([states[i] for i in picked])


def ends(clip: Clip) -> tuple[Image, Image]:
    """The question's picture and the answer's picture: first and last frame. The inverse of `clip`."""
    return clip[0], clip[-1]


def answer_frames(frames: int, mode: str) -> range:
    """Indices of the frames of a clip that show the finished answer whatever the puzzle is; the last is always one."""
    _check(frames, mode)
    if mode == "image":
        return range(1, 2)
    return range(frames // 2 if mode == "discrete" else frames - 1, frames)


def _check(frames: int, mode: str) -> None:
    if mode not in MODES:
        raise UserError(f"unknown transition {mode!r}; one of {', '.join(MODES)}.{suggest(mode, MODES)}")
    if frames < 2 and mode != "image":
        raise UserError(f"a transition needs at least 2 frames, not {frames}")
