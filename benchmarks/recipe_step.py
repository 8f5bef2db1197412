"""One whole training step of a recipe at its published size: does it run, how long, in how much memory.

    python benchmarks/recipe_step.py nextvid --size vit-l --batch 1            # results/recipe_step.jsonl, a line a run
    python benchmarks/recipe_step.py internvideo_next --size base --stage 2 --batch 1 --checkpointing
    python benchmarks/recipe_step.py lvmae --size vit-b --batch 1                              # 128 frames, 15 % decoded
    python benchmarks/recipe_step.py nextvid --size vit-l --batch 32 --precision bf16          # on a GPU: MFU too

The step is the recipe's own: all masked passes, the teachers, predictor, decoder, backward, clipping, AdamW, the moving
average. InternVideo-Next's image teacher has the shape of SigLIP2-giant and random weights, since no hub is asked here. A first
step warms up and is not timed; all steps have the same masks. Tokens are those of the whole clips, as the papers count them.
For the MFU torch counts the forward pass, three times for what trains and once for the teachers, whatever is computed again to
save memory; the H200's peak is 989 TFLOP/s in bf16 (dense).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from flops import counter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pretrain import image_teacher, internvideo_next, lvmae, nextvid  # noqa: E402
from pretrain.recipe import to_pixels  # noqa: E402
from pretrain.tokenizer import Config as TokenizerConfig  # noqa: E402
from pretrain.tokenizer import Stage, Tokenizer  # noqa: E402
from vdmreason import store  # noqa: E402

LINES = ROOT / "benchmarks" / "results" / "recipe_step.jsonl"
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16


def nextvid_step(
    size: str, stage: int, frames: int, batch: int, checkpointing: bool
) -> tuple[Any, dict[str, Any], Any]:
    """The model, what it is given, and the part of its forward pass that has no way back."""
    config, side = nextvid.FLAVOURS[size], nextvid.RECIPES[size].side
    model = nextvid.NextVid(config, checkpointing=checkpointing)
    grid = (frames // config.tubelet, side // config.patch, side // config.patch)
    # One time and noise for a z, as in the longest stage.
    drawn = nextvid.draw(config, model.target.width, grid, batch, range(batch), 1, 0, 0)
    return model, drawn.batch(), lambda pixels: model.encoder(pixels)


def internvideo_next_step(
    size: str, stage: int, frames: int, batch: int, checkpointing: bool
) -> tuple[Any, dict[str, Any], Any]:
    config, side = internvideo_next.FLAVOURS[size], internvideo_next.RECIPES[size].side
    model = internvideo_next.InternVideoNext(config, checkpointing=checkpointing)
    if stage == 2:
        model = internvideo_next.second_stage(model, checkpointing=checkpointing)
    elif size in ("base", "large"):
        model.learn_from(image_teacher.ImageTeacher(giant()))
    else:
        model.learn_from(internvideo_next.teacher_of(config))
    grid = (frames // config.tubelet, side // config.patch, side // config.patch)
    drawn = internvideo_next.draw(model.config, grid, batch, range(batch), 0, 0)
    return model, drawn.batch(), model.look if stage == 1 else model.encoder


def giant() -> Any:
    """The vision tower of SigLIP2-giant-opt, patch 16, 256 pixels, with random weights."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    size = {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 40, "num_attention_heads": 16}
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # drawn where a billion weights take no minutes
        return SiglipVisionModel(SiglipVisionConfig(**size, patch_size=16, image_size=256))


def lvmae_step(size: str, stage: int, frames: int, batch: int, checkpointing: bool) -> tuple[Any, dict[str, Any], Any]:
    """With codes and importance stored, as in a training on a set of videos: the tokenizer has nothing to do."""
    config, side = lvmae.FLAVOURS[size], lvmae.RECIPES[size].side
    stub = Tokenizer(TokenizerConfig((Stage(4, 0, 2, config.patch), Stage(4, 0)), 4))
    model = lvmae.LVMAE(config, stub, checkpointing=checkpointing)
    grid = (frames // config.tubelet, side // config.patch, side // config.patch)
    drawn = lvmae.draw(config, grid, range(batch), 0).batch()
    total = grid[0] * grid[1] * grid[2]
    drawn |= {"codes": torch.randint(2**18, (batch, total), dtype=torch.int32), "scores": torch.rand(batch, total)}
    return model, drawn, lambda pixels: None


STEPS = {"nextvid": nextvid_step, "internvideo_next": internvideo_next_step, "lvmae": lvmae_step}
RECIPES = {"nextvid": nextvid, "internvideo_next": internvideo_next, "lvmae": lvmae}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    made = STEPS[given.recipe]
    model, drawn, bare = made(given.size, given.stage, given.frames, given.batch, given.checkpointing)
    model.to(device)
    side = RECIPES[given.recipe].RECIPES[given.size].side
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.04, fused=device == "cuda")
    video = torch.randint(0, 256, (given.batch, given.frames, side, side, 3), dtype=torch.uint8)
    batch = send_to_device({"video": video, **drawn}, device)
    mixed = torch.autocast(device, torch.bfloat16, enabled=given.precision == "bf16")

    def step(counter: Any = None) -> float:
        with mixed, counter or contextlib.nullcontext():
            loss = model(**batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if hasattr(model, "after_step"):
            model.after_step()
        return loss.item()

    whole, reference = counter(), counter()
    first = step(whole)
    with mixed, reference, torch.no_grad():  # the teachers' share, which has no way back
        bare(to_pixels(batch["video"]))
    operations = 3 * whole.get_total_flops() - 2 * reference.get_total_flops()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    last = [step() for _ in range(given.steps)][-1]
    seconds = (time.monotonic() - began) / given.steps
    grid = model.grid(to_pixels(video[:1]))
    tokens = given.batch * grid[0] * grid[1] * grid[2]
    if device == "cuda":
        machine, memory = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()
    else:
        machine = f"{torch.get_num_threads()} CPU thread(s)"
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    asked = {k: getattr(given, k) for k in ("recipe", "size", "stage", "frames", "batch", "precision", "checkpointing")}
    found = {
        **asked, "side": side,
        "millions": {n: round(sum(p.numel() for p in m.parameters()) / 1e6, 1) for n, m in model.named_children()},
        "tokens": tokens, "seconds": seconds, "tokens_a_second": tokens / seconds,
        "tflop": operations / 1e12, "peak_gib": memory / 2**30, "losses": [first, last], "machine": machine,
    }  # fmt: skip
    peak = next((p for name, p in PEAK.items() if name in machine), None)
    if peak and given.precision == "bf16":
        found["mfu"] = operations / seconds / peak
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=STEPS)
    parser.add_argument("--size", help="of the recipe; by default the smallest published")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1, help="of InternVideo-Next")
    parser.add_argument("--frames", type=int, help="by default as published")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1, help="timed steps")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--checkpointing", action="store_true", help="spend time to save memory")
    given = parser.parse_args()
    given.size = given.size or {"nextvid": "vit-l", "internvideo_next": "base", "lvmae": "vit-b"}[given.recipe]
    given.frames = given.frames or (128 if given.recipe == "lvmae" else 32 if given.stage == 2 else 16)
    found = measure(given)
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    found |= {"command": "python " + " ".join(["benchmarks/recipe_step.py", *sys.argv[1:]]), "commit": git}
    found |= {"versions": store.versions()}
    with LINES.open("a") as file:
        file.write(json.dumps(found) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
