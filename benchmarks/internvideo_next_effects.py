"""What each part of InternVideo-Next is good for, at small size on procedural video.

    python benchmarks/internvideo_next_effects.py run            # every trial that is not there yet; a killed one resumes
    python benchmarks/internvideo_next_effects.py run --arm "stage 2" --seed 0
    python benchmarks/internvideo_next_effects.py report         # results/internvideo_next_effects.{json,md,png}

Stage 1: the pixels' head (linear, an MLP, the diffusion decoder), alignment with the image teacher, and both. A linear head's
loss and a diffusion's have different scales, so that a difference between them could be one of weights: the linear one is run
with four weights. Stage 2, from the whole Stage 1 of the same seed: its target (Stage 1
frozen, an average, the image teacher), its masks, and the control that the paper lacks: Stage 1 continued for as many updates.

The image teacher is the one that ships (`pretrain/zoo/image_teacher`): told shapes and places of still pictures, so that what
alignment brings on those is given and not found; of motion it knows nothing. Clips have four frames here, every second one, and
tokens of one frame, as published.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import effects
import torch
from effects import FRAMES, GRID, PATCH, SIDE, Found, Study, clips, device, mean
from torch import Tensor

from pretrain import image_teacher, loop, probe
from pretrain import internvideo_next as iv
from pretrain.loop import Share
from pretrain.recipe import to_pixels
from pretrain.stored import sum_of
from pretrain.vit3d import Size

BATCH, UPDATES = 32, 2500  # clips an update
CLIPS = BATCH * UPDATES  # the long arms see them more than once
FIRST = 0.6  # share of the updates in Stage 1; its arms stop there
RATE, RATE_ON = 1e-3, 5e-4  # of Stage 1, and of what goes on from it, whichever stage that is

# As published but for what narrow models, short trainings and flat pictures need (docs/log.md).
FULL = iv.Config(
    Size(64, 3, 4),
    Size(64, 2, 4),
    Size(128, 2, 1),
    GRID,
    patch=PATCH,
    scale=0.0,
    dual_norm=False,
    rope=True,
    base=100.0,
    teacher="small",
    teacher_size=(96, 6),
    aligned=2,
    decoded=0.5,
    most=0.25,
    cut="random",  # of four frames the tail cut would leave a quarter of the clips one frame to see
)
WEIGHTS = (0.1, 0.3, 3.0)  # of the linear head's loss, beside 1
# What should favour Stage 2: three times the updates, all eight frames, and of a clip only its first two to see, so that no
# neighbour tells what moves.
EIGHT, TIMES = replace(FULL, grid=(8, 6, 6), cut="tail"), 3
FIRSTS: dict[str, iv.Config] = {
    "pixels, linear": replace(FULL, align=0.0, pool=0.0, head="linear"),
    "pixels, diffusion": replace(FULL, align=0.0, pool=0.0),
    "alignment": replace(FULL, pixels=0.0),
    "both, linear": replace(FULL, head="linear"),
    **{f"both, linear x {w:g}": replace(FULL, head="linear", pixels=w) for w in WEIGHTS},
    "both, MLP": replace(FULL, head="mlp"),
    "both, diffusion": FULL,
    "both, diffusion, block masks": replace(FULL, mask="blocks"),
    "eight frames, stage 1": EIGHT,
}
SECONDS: dict[str, dict[str, Any]] = {
    "stage 1 continued": {},
    "stage 2": {},
    "stage 2, average": {"momentum": 0.999},
    "stage 2, image teacher": {"latent": "image teacher"},
    "stage 2, semantic masks": {"mask": "semantic"},
    "eight frames, stage 1 continued": {},
    "eight frames, stage 2": {"mask": "frames"},
}


def frames_of(video: Tensor, config: iv.Config) -> Tensor:
    """Of clips (B, 8, H, W, 3) the frames that an encoder sees: every second one, or all."""
    return video[:, :: FRAMES // config.grid[0]]


def fitted(
    model: iv.InternVideoNext, work: Path, seed: int, start: int, updates: int, rate: float, parent: str = ""
) -> Found:
    """Train a stage in `work`; its log. `parent` says which Stage 1 it goes on from."""
    config = model.config
    kept = STUDY.clips(lambda numbers: clips(numbers, seed)[0], CLIPS, seed=seed, frames=FRAMES, side=SIDE)

    def batch_at(step: int, share: Share) -> dict[str, Any]:
        rows = share.rows(BATCH)
        first = (start + step) * BATCH % CLIPS
        numbers = range(first + rows.start, first + rows.stop)
        video = kept.span(numbers)["video"] if kept else clips(numbers, seed)[0]
        drawn = iv.draw(config, config.grid, BATCH, rows, seed, start + step)
        return {"video": frames_of(video, config), **drawn.batch(), "measure": step % 50 == 0}

    with STUDY.alone(work):
        return loop.fit(
            model,
            batch_at,
            work,
            updates=updates,
            schedule=iv.Stage(1.0, 4, BATCH, rate, 0.05).rates,
            settings={"config": asdict(config), "teacher": weights(), "seed": seed, "start": start}
            | ({"stage 1": parent} if parent else {}),
            **iv.OPTIMISER,
            title=f"{work.name}",
        )


@functools.cache
def weights() -> str:
    """Which image teacher it is."""
    return hashlib.sha256((image_teacher.ZOO / "model.safetensors").read_bytes()).hexdigest()[:12]


def times(arm: str) -> int:
    return TIMES if arm.startswith("eight") else 1


def first(arm: str, seed: int, updates: int) -> tuple[iv.InternVideoNext, Found]:
    """A Stage 1; from its checkpoint where it is there already."""
    updates *= times(arm)
    torch.manual_seed(seed)
    model = iv.InternVideoNext(FIRSTS[arm]).learn_from(iv.teacher_of(FULL))
    return model, fitted(model, STUDY.folder(arm, seed, updates), seed, 0, round(FIRST * updates), RATE)


def second(arm: str, seed: int, updates: int) -> tuple[iv.InternVideoNext, Found, str]:
    """The rest of the updates on the whole Stage 1 of the seed, and which that was. All arms begin them with a fresh optimiser,
    at the same rate."""
    model, _ = first("eight frames, stage 1" if arm.startswith("eight") else "both, diffusion", seed, updates)
    updates *= times(arm)
    parent = sum_of(model)[:12]
    if not arm.endswith("continued"):
        torch.manual_seed(seed + 100)
        model = iv.second_stage(model, **SECONDS[arm]).to(device())
    start = round(FIRST * updates)
    return model, fitted(model, STUDY.folder(arm, seed, updates), seed, start, updates - start, RATE_ON, parent), parent


def trial(arm: str, seed: int, updates: int) -> Found:
    torch.manual_seed(seed)
    if arm == "pixels":
        found = effects.read(
            lambda video: probe.raw_patches(frames_of(video, FULL), 1, PATCH), seed, measure=False, dense=True
        )
        return found
    found, config = {}, FULL
    encoder = iv.InternVideoNext(FULL).encoder
    if arm == "supervised":
        # At the rate of every second frame, as the others see the clips.
        seen = Every(encoder)
        work = STUDY.folder(arm, seed, updates)
        found["log"] = effects.supervised(seen, FULL.encoder.width, work, seed, updates, BATCH)
    elif arm in FIRSTS:
        model, found["log"] = first(arm, seed, updates)
        found["stage 1"] = sum_of(model)[:12]
    elif arm in SECONDS:
        model, found["log"], found["stage 1"] = second(arm, seed, updates)
    if arm in (*FIRSTS, *SECONDS):
        encoder, config = model.encoder, model.config
        found["passes"] = float(len(config.passes))
    encoder.to(device()).eval()
    # The heads for depth and tracks are told of four frames' tokens.
    dense = config.grid == GRID
    return found | effects.read(lambda video: encoder(to_pixels(frames_of(video, config))), seed, dense=dense)


def akin(one: Found, other: Found) -> bool:
    """Whether two trials of a seed may be paired. Where both have to do with the whole Stage 1, it must be the same one: that of
    a seed was trained twice, on a CPU and on a GPU, and they are as far apart as two seeds. Trials from before this was noted
    tell it by their machine."""
    grown = {"both, diffusion", *SECONDS}
    if not {one["arm"], other["arm"]} <= grown or not {one["arm"], other["arm"]} & set(SECONDS):
        return True
    if "stage 1" in one or "stage 1" in other:
        return bool(one.get("stage 1") == other.get("stage 1"))
    return "CPU" in one["machine"].split(",")[0] and "CPU" in other["machine"].split(",")[0]


class Every(torch.nn.Module):
    """Every second frame of a clip (B, 3, F, H, W) to an encoder."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, video: Tensor) -> Tensor:
        return self.encoder(video[:, :, ::2])


# What is compared with what, and what the paper found (linear probes on K400 and SSv2; tables 1, 3 and 4), in points.
EFFECTS = {
    "alignment, beside linear pixels": ("both, linear", "pixels, linear", "table 1a: +22.6, +3.7"),
    "linear pixels, beside alignment": ("both, linear", "alignment", "table 1a: -0.9, -0.3"),
    "diffusion decoder for linear head": ("both, diffusion", "both, linear", "table 1c: +6.4, +5.6"),
    **{
        f"diffusion decoder for linear head x {w:g}": (
            "both, diffusion",
            f"both, linear x {w:g}",
            "table 1c: +6.4, +5.6",
        )
        for w in WEIGHTS
    },
    "diffusion decoder for MLP": ("both, diffusion", "both, MLP", "table 1c: +6.1, +5.7"),
    "pixels by diffusion, beside alignment": ("both, diffusion", "alignment", "table 1a: +3.5, +3.3"),
    "semantic masks in Stage 1": ("both, diffusion", "both, diffusion, block masks", "table 4: +1.4, +0.6"),
    "Stage 2 after Stage 1": ("stage 2", "both, diffusion", "table 3: +1.1, +20.0"),
    "Stage 2 for Stage 1 continued": ("stage 2", "stage 1 continued", "not in the paper"),
    "Stage 2 for Stage 1 continued, eight frames, three times the updates": (
        "eight frames, stage 2",
        "eight frames, stage 1 continued",
        "not in the paper",
    ),
    "frozen Stage 1 for an average": ("stage 2", "stage 2, average", "table 3: +2.8, +2.6"),
    "frozen Stage 1 for the image teacher": ("stage 2", "stage 2, image teacher", "table 3: +1.5, +11.2"),
    "block masks in Stage 2": ("stage 2", "stage 2, semantic masks", "table 4: +1.7, +4.6"),
}

STUDY = Study(
    name="internvideo_next_effects",
    arms=(*FIRSTS, *SECONDS),
    effects=EFFECTS,
    trial=trial,
    updates=UPDATES,
    about="Small encoders, procedural video, an image teacher of our own. Stage 1 has 60 % of the updates; its arms stop there. "
    "Passes: masked views of a clip in an update, which is what arms of equal updates differ in. Depth and tracks: 400 labelled "
    "clips; of pairs a half is chance.",
    columns=("depth pairs", "depth ranks", "track IoU"),
    numbers={
        "passes": lambda row: mean(row, "passes"),
        "rank": lambda row: mean(row, "rank"),
        "IoU if nothing moves": lambda row: mean(row, "staying", 2),
        "ranks if all alike": lambda row: mean(row, "one rank", 2),
    },
    dim=lambda arm: arm in SECONDS,
    akin=akin,
)

if __name__ == "__main__":
    STUDY.main(__doc__)
