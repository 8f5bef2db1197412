"""InternVideo-Next, our own backbone (`pretrain/internvideo_next.py`), sits the exam: the answer's frames are hidden, the
predictor says what is there, the diffusion decoder draws it patch by patch; LoRA is on encoder, predictor and decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapters import next_frame
from adapters.base import Flavour
from adapters.next_frame import SMALL, NextFrameArm, frame, ready, redraw

__all__ = ["ARM", "FLAVOURS", "Options", "frame", "load"]

ARM = "video"
ZOO = Path(__file__).resolve().parents[1] / "pretrain" / "zoo" / "internvideo_next"
FLAVOURS = {
    "small": Flavour(
        "small", str(ZOO), "ships with the project; pretrained by us on procedural video", 4_200_000, False, SMALL
    ),
    "tiny": Flavour("tiny", "", "the real class with random weights, for tests", 70_000, False, SMALL),
}
UNUSED = (
    "align",
    "align_positions",
    "pool",
    "latent",
    "reference",
)  # at the exam: alignment, latents of the first stage


@dataclass(frozen=True)
class Options(next_frame.Options):
    """How the puzzle becomes a clip and its second half an answer."""

    context: int = 2
    shift: float = 4.0


def load(
    flavour: Flavour,
    options: Options,
    *,
    init: str = "pretrained",
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> NextFrameArm:
    """A folder that `vdmreason pretrain internvideo-next` wrote. `init="random"` draws its weights anew from `seed` (`draw`), but
    for the last layer, which makes pixels of features."""
    from pretrain import internvideo_next

    def made(random: bool) -> Any:
        if flavour.base:
            return internvideo_next.load(flavour.base, random_weights=random)
        return internvideo_next.InternVideoNext(replace(internvideo_next.FLAVOURS["tiny"], patch=8))

    return ready(flavour, options, made, UNUSED, draw, codec=codec, init=init, seed=seed, device=device, dtype=dtype)


def codec(model: Any) -> tuple[str, ...]:
    """The layer from features to a patch's pixels: the decoder's last, whichever head draws them."""
    if hasattr(model.decoder, "out"):
        return ("decoder.out",)
    *_, last = (name for name, part in model.decoder.named_modules(prefix="decoder") if hasattr(part, "out_features"))
    return (last,)


def draw(model: Any) -> None:
    """Random weights with open gates: fresh ones are closed, which training opens and a LoRA on attention and mlp can't."""
    redraw(model)
    for block in getattr(model.decoder, "blocks", ()):
        block.modulation.bias.data.chunk(3)[2].fill_(1.0)  # shift, scale, gate
    for block in model.encoder.blocks:
        for scale in (block.scale1, block.scale2):
            if scale is not None:
                scale.data.fill_(1.0)
