"""NExT-Vid, our own backbone (`pretrain/nextvid.py`), sits the exam: the answer is the next frame after the question.

The encoder reads the question, the predictor says what the next frame (of two real ones) is like, the decoder draws it from
noise; LoRA is on all three.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapters import next_frame
from adapters.base import Flavour
from adapters.next_frame import SMALL, NextFrameArm, frame, ready, redraw

__all__ = ["ARM", "FLAVOURS", "Options", "frame", "load"]

ARM = "video"
ZOO = Path(__file__).resolve().parents[1] / "pretrain" / "zoo" / "nextvid"
FLAVOURS = {
    "small": Flavour(
        "small", str(ZOO), "ships with the project; pretrained by us on procedural video", 3_700_000, False, SMALL
    ),
    "tiny": Flavour("tiny", "", "the real class with random weights, for tests", 70_000, False, SMALL),
}
UNUSED = ("teacher",)  # at the exam: alignment is pretraining's


@dataclass(frozen=True)
class Options(next_frame.Options):
    """How the puzzle becomes a clip and the next frame an answer."""


def load(
    flavour: Flavour,
    options: Options,
    *,
    init: str = "pretrained",
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> NextFrameArm:
    """A folder that `vdmreason pretrain nextvid` wrote. `init="random"` draws its weights anew from `seed` (`draw`), but for
    the last layer, which makes pixels of features."""
    from pretrain import nextvid

    def made(random: bool) -> Any:
        if flavour.base:
            return nextvid.load(flavour.base, random_weights=random)
        return nextvid.NextVid(replace(nextvid.FLAVOURS["tiny"], patch=8))

    return ready(flavour, options, made, UNUSED, draw, codec=codec, init=init, seed=seed, device=device, dtype=dtype)


def codec(model: Any) -> tuple[str, ...]:
    """The layer from features to a patch's pixels. It has 128 features for 384 numbers: with random weights 61 % of what a flat
    patch is lies where no features lead, and no LoRA helps (docs/log.md, 2026-11-26)."""
    return ("decoder.out",)


def draw(model: Any) -> None:
    """Random weights with open gates: fresh ones are closed, which training opens and a LoRA on attention and mlp can't."""
    redraw(model)
    for block in model.decoder.blocks:
        gates = block.modulation.bias.data.chunk(6)  # shift, scale, gate, twice
        gates[2].fill_(1.0)
        gates[5].fill_(1.0)
