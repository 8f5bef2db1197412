"""Does a longer view help, and does it matter which tokens are decoded? LVMAE at small size on long procedural clips.

    python benchmarks/lvmae_long.py run                      # every trial that is not there yet; a killed one resumes
    python benchmarks/lvmae_long.py run --arm adaptive --seed 0
    python benchmarks/lvmae_long.py report                   # results/lvmae_long.{json,md,png}

A trial pretrains an encoder on long clips without labels (`pretrain/long.py`, 32 px, windows of so many frames), fine-tunes it on
labelled ones of all three tasks at once, a head each, and is tested on others: how often something turned back, which of two
events came first and which second, how long a swing takes. What is seen is the middle of a clip of 128 frames, so short views
lack what the label is made of: that accuracy rises with frames is built into the task. What pretraining adds is told by the rows
that were never pretrained, and by one that was pretrained on 32 frames and sees 128.

All masks have the same updates, the same clips and, but for "none", the same budget of decoded tokens. Codes and importance are
those of the tokenizer that ships.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import effects
import torch
from effects import Found, Study
from torch import Tensor, nn

from pretrain import finetune, long, loop, lvmae, masks, tokenizer
from pretrain.loop import Share
from pretrain.probe import wilson
from pretrain.recipe import generator, to_pixels
from pretrain.vit3d import Size

SIDE, BATCH, UPDATES = 32, 16, 2000
LABELS, TUNED, TEST = 2000, 500, 1000  # of each task: labelled clips, fine-tuning updates, clips of the test
BASE = lvmae.Config(
    Size(64, 3, 4), Size(48, 2, 4), patch=8, positions="both", base=100.0, tokenizer="small", flavour="study"
)
# arm -> (frames it is pretrained on, 0 for never; decoder mask; frames that it is fine-tuned and tested on)
ARMS: dict[str, tuple[int, lvmae.Mask, int]] = {
    "adaptive": (64, "adaptive", 64),
    "random": (64, "random", 64),
    "uniform frames": (64, "uniform", 64),
    "flow": (64, "flow", 64),
    "EVEREST": (64, "everest", 64),
    "none (all decoded)": (64, "none", 64),
    "16 frames": (16, "adaptive", 16),
    "32 frames": (32, "adaptive", 32),
    "128 frames": (128, "adaptive", 128),
    "pretrained on 32, sees 128": (32, "adaptive", 128),
    "16 frames, never pretrained": (0, "adaptive", 16),
    "32 frames, never pretrained": (0, "adaptive", 32),
    "64 frames, never pretrained": (0, "adaptive", 64),
    "128 frames, never pretrained": (0, "adaptive", 128),
}


def pretrained(frames: int, mask: lvmae.Mask, seed: int, updates: int) -> tuple[lvmae.LVMAE, Found]:
    """A model after its pretraining. Arms that differ only in what they are tuned on share it."""
    torch.manual_seed(seed)
    model = lvmae.LVMAE(replace(BASE, mask=mask), tokenizer.load("small"))
    if not frames:
        return model, {}
    grid = (frames // BASE.tubelet, SIDE // BASE.patch, SIDE // BASE.patch)

    def batch_at(step: int, share: Share) -> dict[str, Any]:
        rows = share.rows(BATCH)
        video, _ = long.clips(range(step * BATCH + rows.start, step * BATCH + rows.stop), seed, frames, SIDE)
        drawn = lvmae.draw(model.config, grid, rows, seed, step)
        return {**drawn.batch(), "video": video, "measure": step % 50 == 0}

    work = STUDY.folder(f"pretrained {mask} {frames}", seed, updates)
    log = loop.fit(
        model,
        batch_at,
        work,
        updates=updates,
        schedule=lambda step, total: lvmae.rates(step, total, 1e-3, 0.05),
        **lvmae.OPTIMISER,
        title=f"{mask}, {frames} frames, seed {seed}",
    )
    return model, log


class Heads(nn.Module):
    """A head for each task on the mean of the tokens. `forward` is the loss."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.norm = encoder, nn.LayerNorm(encoder.size.width, 1e-6)
        self.heads = nn.ModuleDict({task: nn.Linear(encoder.size.width, count) for task, count in long.TASKS.items()})

    def pooled(self, video: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.norm(self.encoder(to_pixels(video), keep).mean(1))

    def forward(self, video: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Rows lie task by task, as many of each."""
        parts = zip(self.heads.values(), self.pooled(video, keep).chunk(3), labels.chunk(3), strict=True)
        losses = [nn.functional.cross_entropy(head(x), y, label_smoothing=0.1) for head, x, y in parts]
        return torch.stack(losses).mean()


def trial(arm: str, seed: int, updates: int) -> Found:
    before, mask, frames = ARMS[arm]
    model, log = pretrained(before, mask, seed, updates)
    torch.manual_seed(seed)
    tuned = Heads(model.encoder)
    factors = finetune.layer_rates(BASE.encoder.depth, 0.75)
    data = {task: finetune.LongClips(task, frames, SIDE, LABELS, TEST, seed) for task in long.TASKS}
    each = BATCH // 3

    def batch_at(step: int, share: Share) -> dict[str, Any]:
        numbers = [step * each + row for row in range(each)]
        parts = [data[task]("train", numbers) for task in long.TASKS]
        keep = None
        if frames >= 128:  # as published: a fifth of the places is dropped
            tubes = [masks.tube(1, 16, 0.2, generator(seed, step, row)) for row in range(3 * each)]
            keep = masks.over_time(torch.cat(tubes), range(frames // BASE.tubelet), 16)
        return {"video": torch.cat([p[0] for p in parts]), "labels": torch.cat([p[1] for p in parts]), "keep": keep}

    def schedule(step: int, total: int) -> dict[str, float]:
        rate = lvmae.rates(step, total, 2e-3, 0.05)[""]
        return {name: rate * factor for name, factor in factors.items()}

    work: Path = STUDY.folder(f"tuned {arm}", seed, updates)
    last = loop.fit(tuned, batch_at, work, updates=TUNED, schedule=schedule, weight_decay=0.05, decay_vectors=False,
                    betas=(0.9, 0.999), title=f"{arm}, seed {seed}: fine-tuning")  # fmt: skip
    found: Found = {"log": log, "tuning": last, **({"last_loss": log["loss"]} if log else {})}
    tuned.eval()
    with torch.no_grad():
        for task in long.TASKS:
            right = 0
            for start in range(0, TEST, 50):
                video, labels = data[task]("test", range(start, start + 50))
                right += int((tuned.heads[task](tuned.pooled(video)).argmax(-1) == labels).sum())
            low, high = wilson(right, TEST)
            found[f"{task}, fine-tuned"] = {"accuracy": right / TEST, "low": low, "high": high}
    return found


EFFECTS = {
    "adaptive against random": ("adaptive", "random", "table 1: adaptive best"),
    "adaptive against uniform frames": ("adaptive", "uniform frames", "table 1: adaptive best"),
    "adaptive against flow": ("adaptive", "flow", "table 1: adaptive best"),
    "adaptive against EVEREST": ("adaptive", "EVEREST", "table 1: adaptive best"),
    "adaptive against all decoded": ("adaptive", "none (all decoded)", "table 1: at least as good"),
    "32 frames against 16": ("32 frames", "16 frames", "table 4c: significant"),
    "64 frames against 32": ("adaptive", "32 frames", "table 4c: significant"),
    "128 frames against 64": ("128 frames", "adaptive", "table 4c: small"),
    "pretraining on 128 against 32, both see 128": ("128 frames", "pretrained on 32, sees 128", "table 2: 128 better"),
    "pretraining, at 64 frames": ("adaptive", "64 frames, never pretrained", "not in the paper"),
    "pretraining, at 128 frames": ("128 frames", "128 frames, never pretrained", "not in the paper"),
}
STUDY = Study(
    name="lvmae_long",
    arms=[arm for arm in ARMS if "never" not in arm],
    effects=EFFECTS,
    trial=trial,
    updates=UPDATES,
    about="Small encoders, procedural clips of 32 x 32 pixels, the middle frames of 128; updates of pretraining. Each then has "
    f"{TUNED} updates of fine-tuning.",
    classes=long.TASKS,
    labelled={"fine-tuned": LABELS},
    lines_of_scale=[arm for arm in ARMS if "never" in arm],
    numbers={"last pretraining loss": lambda row: effects.mean(row, "last_loss", 4)},
    dim=lambda arm: "frames" in arm,
)

if __name__ == "__main__":
    STUDY.main(__doc__)
