"""LVMAE, our own backbone (`pretrain/lvmae.py`), sits the exam: the answer's frames are hidden, the decoder says their codes,
the frozen tokenizer draws them; LoRA is on encoder and decoder. There is no noise: a question has one answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import next_frame
from adapters.base import Flavour
from adapters.next_frame import SMALL, NextFrameArm, frame, ready, redraw
from tasks.base import UserError

__all__ = ["ARM", "FLAVOURS", "Options", "frame", "load"]

ARM = "video"
ZOO = Path(__file__).resolve().parents[1] / "pretrain" / "zoo" / "lvmae"
FLAVOURS = {
    "small": Flavour(
        "small", str(ZOO), "ships with the project; pretrained by us on procedural video", 3_900_000, False, SMALL
    ),
    "tiny": Flavour("tiny", "", "the real class with random weights, for tests", 70_000, False, SMALL),
}


@dataclass(frozen=True)
class Options(next_frame.Options):
    """How the puzzle becomes a clip and its next tubelet an answer."""

    context: int = 2


def load(
    flavour: Flavour,
    options: Options,
    *,
    init: str = "pretrained",
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> NextFrameArm:
    """A folder that `vdmreason pretrain lvmae` wrote. `init="random"` draws encoder and decoder anew from `seed`; the tokenizer,
    in which the answer is written, stays."""
    from pretrain import lvmae

    def made(random: bool) -> Any:
        if not flavour.base:
            return lvmae.LVMAE(lvmae.FLAVOURS["tiny"])
        model = lvmae.load(flavour.base, random_weights=random)
        if model.config.target == "pixels":
            raise UserError(
                f"{flavour.base} was trained on normalised pixels, from which no answer can be drawn. Pretrain one with --target "
                "codes or levels."
            )
        return model

    return ready(flavour, options, made, (), draw, init=init, seed=seed, device=device, dtype=dtype)


def draw(model: Any) -> None:
    redraw(model.encoder)
    redraw(model.decoder)
