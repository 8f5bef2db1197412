"""One whole training step of a published NExT-Vid: does it run, how long, in how much memory.

    python benchmarks/nextvid_step.py --size vit-l --frames 16 --batch 1      # results/nextvid_step.jsonl, a line a run
    python benchmarks/nextvid_step.py --size vit-l --batch 32 --precision bf16  # on a GPU: MFU too

The step is the recipe's own: both masked passes, the reference encoder, the predictor, the decoder on pixels, backward,
clipping, AdamW, the moving average; one time and noise for a z, as in the longest stage. A first step warms up and is not
timed; all steps have the same masks. Tokens are those of the whole clips, as the paper counts them. For the MFU torch counts
the forward pass, three times for what trains and once for the reference, whatever is computed again to save memory; the
H200's peak is 989 TFLOP/s in bf16 (dense).
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
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pretrain import nextvid  # noqa: E402
from vdmreason import store  # noqa: E402

LINES = ROOT / "benchmarks" / "results" / "nextvid_step.jsonl"
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16


def measure(size: str, frames: int, batch: int, precision: str, checkpointing: bool, steps: int) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, side = nextvid.FLAVOURS[size], nextvid.RECIPES[size].side
    torch.manual_seed(0)
    model = nextvid.NextVid(config, checkpointing=checkpointing).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.04, fused=device == "cuda")
    grid = (frames // config.tubelet, side // config.patch, side // config.patch)
    video = torch.randint(0, 256, (batch, frames, side, side, 3), dtype=torch.uint8)

    drawn = nextvid.draw(config, model.target.width, grid, batch, range(batch), 1, 0, 0)
    given = send_to_device({"video": video, **drawn.batch()}, device)
    mixed = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")

    def step(counter: Any = None) -> float:
        with mixed, counter or contextlib.nullcontext():
            loss = model(**given)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.after_step()
        return loss.item()

    whole, reference = FlopCounterMode(display=False), FlopCounterMode(display=False)
    first = step(whole)
    with mixed, reference:  # the reference encoder's share, which has no way back
        model.encoder(nextvid.to_pixels(given["video"]))
    operations = 3 * whole.get_total_flops() - 2 * reference.get_total_flops()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    last = [step() for _ in range(steps)][-1]
    seconds = (time.monotonic() - began) / steps
    tokens = batch * grid[0] * grid[1] * grid[2]
    if device == "cuda":
        machine, memory = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()
    else:
        machine = f"{torch.get_num_threads()} CPU thread(s)"
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {
        "size": size, "frames": frames, "side": side, "batch": batch, "precision": precision, "checkpointing": checkpointing,
        "millions": {n: round(sum(p.numel() for p in m.parameters()) / 1e6, 1) for n, m in model.named_children()},
        "tokens": tokens, "seconds": seconds, "tokens_a_second": tokens / seconds,
        "tflop": operations / 1e12, "peak_gib": memory / 2**30, "losses": [first, last], "machine": machine,
    }  # fmt: skip
    peak = next((p for name, p in PEAK.items() if name in machine), None)
    if peak and precision == "bf16":
        found["mfu"] = operations / seconds / peak
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("vit-l", "vit-h", "vit-g", "small"), default="vit-l")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1, help="timed steps")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--checkpointing", action="store_true", help="spend time to save memory")
    given = parser.parse_args()
    found = measure(given.size, given.frames, given.batch, given.precision, given.checkpointing, given.steps)
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    found |= {"command": "python " + " ".join(["benchmarks/nextvid_step.py", *sys.argv[1:]]), "commit": git}
    found |= {"versions": store.versions()}
    with LINES.open("a") as file:
        file.write(json.dumps(found) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
