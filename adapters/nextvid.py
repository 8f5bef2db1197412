"""NExT-Vid, our own backbone (`pretrain/nextvid.py`), sits the exam: the answer is the next frame after the question.

The encoder reads the question, the predictor says what the next frame (of two real ones) is like, the decoder draws it from
noise; LoRA is on all three.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters import next_frame
from adapters.base import Flavour, Lazy, load_errors
from adapters.next_frame import SMALL, NextFrameArm, checked, frame, redraw

if TYPE_CHECKING:
    import torch
else:
    torch = Lazy("torch")

__all__ = ["ARM", "FLAVOURS", "Options", "frame", "load"]

ARM = "video"
ZOO = Path(__file__).resolve().parents[1] / "pretrain" / "zoo" / "nextvid"
FLAVOURS = {
    "small": Flavour(
        "small", str(ZOO), "ships with the project; pretrained by us on procedural video", 3_700_000, False, SMALL
    ),
    "tiny": Flavour("tiny", "", "the real class with random weights, for tests", 70_000, False, SMALL),
}


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
    """A folder that `vdmreason pretrain nextvid` wrote. `init="random"` draws its weights anew from `seed` (`draw`)."""
    from pretrain import nextvid

    random = init != "pretrained" or not flavour.base
    with load_errors(flavour.base), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if flavour.base:
            model = nextvid.load(flavour.base, random_weights=random)
        else:
            model = nextvid.NextVid(replace(nextvid.FLAVOURS["tiny"], patch=8))
        model.teacher = None  # alignment is pretraining's
        if random:
            draw(model)
    return NextFrameArm(checked(model, options).to(device, getattr(torch, dtype)), options)


def draw(model: Any) -> None:
    """Random weights with open gates: fresh ones are closed, which training opens and a LoRA on attention and mlp can't."""
    redraw(model)
    for block in model.decoder.blocks:
        gates = block.modulation.bias.data.chunk(6)  # shift, scale, gate, twice
        gates[2].fill_(1.0)
        gates[5].fill_(1.0)
