"""Does the adaptive tokenizer find what moves, and is it worth keeping?

    python benchmarks/lvmae_scorer.py                        # the one that ships; results/lvmae_scorer.{json,md}
    python benchmarks/lvmae_scorer.py --tokenizer my-tokenizer --clips 64

On long procedural clips (`pretrain/long.py`, 64 px, the middle 32 frames) that no training draws the renderer knows which tokens
the moving object covers (by a tenth or more). Recall: how many of them are among the best tenth, by the learned scorer, one that
was never trained, pixel differences, optical flow (Farneback) and chance; with a background that stands and one that pans.
PSNR: what the tokenizer makes of a clip of which only the best half, quarter and tenth of the tokens stay, and the first frame
of each window, as in its training. Means over clips with 95 % intervals.
And how many of the codes all these clips' tokens use, and those of procedural clips of many kinds (`pretrain/data.py`).

The picture shows a clip whose background pans as the LVMAE that ships meets it: where the importance lies, what its encoder sees,
what is decoded, and what becomes of the rest.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pretrain import long, lvmae, tokenizer  # noqa: E402
from pretrain.data import clip  # noqa: E402
from pretrain.flow import flow_scores  # noqa: E402
from pretrain.recipe import to_pixels  # noqa: E402
from pretrain.stored import sum_of  # noqa: E402
from pretrain.tokenizer import Tokenizer, changes, psnr  # noqa: E402
from pretrain.vit3d import patchify  # noqa: E402
from vdmreason import store  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "lvmae_scorer.json"
SEED, SIDE, FRAMES, BEST, COVERED = 10**7 + 5, 64, 32, 0.1, 0.1
SHARES = (0.5, 0.25, 0.1)


def ways(model: Tokenizer) -> dict[str, Callable[[Tensor], Tensor]]:
    """Scores (B, N) of clips uint8 (B, F, H, W, 3), by what says them."""
    torch.manual_seed(0)
    fresh = Tokenizer(model.config).eval()
    tubelet, patch = model.config.tubelet, model.config.patch

    def difference(video: Tensor) -> Tensor:
        pixels = to_pixels(video)
        return changes(patchify(pixels, tubelet, patch).transpose(1, 2).unflatten(2, model.grid(pixels)))

    return {
        "learned scorer": lambda video: model.importance(to_pixels(video)),
        "untrained scorer": lambda video: fresh.importance(to_pixels(video)),
        "pixel difference": difference,
        "optical flow": lambda video: flow_scores(video, tubelet, patch),
        "chance": lambda video: torch.rand(len(video), math.prod(model.grid(to_pixels(video)))),
    }


@torch.no_grad()
def measure(model: Tokenizer, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    start, codes = long.middle(FRAMES), []
    scorers = ways(model)
    for background in ("still", "panning"):
        values: dict[str, list[float]] = {}
        for i in tqdm(range(count), desc=background, mininterval=2.0):
            made = long.long_clip(i, SEED, SIDE, None, range(start, start + FRAMES), background == "panning")
            video = torch.from_numpy(made.frames)[None]
            pixels, seen = to_pixels(video), torch.from_numpy(made.seen.astype(np.float32))[None, None]
            moving = patchify(seen, model.config.tubelet, model.config.patch)[0].mean(-1) >= COVERED
            codes.append(model.indices(model.encode(pixels)).flatten())
            total, places = len(moving), math.prod(model.grid(pixels)[1:])
            values.setdefault("tokens that move", []).append(moving.float().mean().item())
            kept = {"psnr, all tokens": torch.ones(total)}  # what is rebuilt from which tokens, in one batch
            for name, scores in scorers.items():
                best = scores(video)[0].argsort(descending=True)
                recall = moving[best[: round(BEST * total)]].sum() / moving.sum()
                values.setdefault(f"recall, {name}", []).append(recall.item())
                if name in ("learned scorer", "pixel difference", "chance"):
                    for share in SHARES:
                        stays = torch.zeros(total)
                        stays[best[: round(share * total)]] = 1
                        for window in stays.view(-1, model.config.window // model.config.tubelet, places):
                            window[0] = 1  # its first frame always stays, as in training
                        kept[f"psnr, {name}, {share:.0%}"] = stays
            for name, value in zip(kept, errors(model, pixels, torch.stack([*kept.values()])), strict=True):
                values.setdefault(name, []).append(value)
        found[background] = {name: interval(some) for name, some in values.items()}
    others = [torch.from_numpy(np.stack([clip(i, SEED, 16).frames for i in range(k, k + 8)])) for k in range(0, 64, 8)]
    drawn = [model.indices(model.encode(to_pixels(video))).flatten() for video in others]
    return found | {"used": used(model, torch.cat(codes)), "used by other clips": used(model, torch.cat(drawn))}


def used(model: Tokenizer, indices: Tensor) -> dict[str, Any]:
    """How many of the codes these are, how evenly, and how many levels of each number."""
    indices = indices.long()
    counts = indices.bincount().double()
    shares = counts[counts > 0] / counts.sum()
    levels = model.fsq.indices_to_level_indices(indices)
    return {
        "tokens": len(indices),
        "codes": len(shares),
        "of": math.prod(model.config.levels),
        "perplexity": (-(shares * shares.log()).sum()).exp().item(),
        "levels": [len(channel.unique()) for channel in levels.unbind(-1)],
        "of levels": list(model.config.levels),
    }


def errors(model: Tokenizer, pixels: Tensor, stays: Tensor) -> list[float]:
    """PSNR of what is rebuilt of one clip (1, 3, F, H, W) from each set of tokens, `stays` (K, N). A batch: convolutions of a
    single clip are several times slower on a CPU."""
    rebuilt = model.rebuilt(pixels.expand(len(stays), -1, -1, -1, -1), stays).clamp(-1, 1)
    return [psnr(loss).item() for loss in (rebuilt - pixels).square().mean((1, 2, 3, 4))]


def interval(values: list[float]) -> dict[str, float]:
    """The mean over clips and its 95 % interval (normal: there are dozens)."""
    half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {
        "value": float(np.mean(values)),
        "low": float(np.mean(values)) - half,
        "high": float(np.mean(values)) + half,
    }


def markdown(table: dict[str, Any]) -> str:
    found = table["found"]

    def cell(background: str, key: str, scale: float, digits: int) -> str:
        v = found[background].get(key)
        return (
            ""
            if v is None
            else f"{scale * v['value']:.{digits}f} [{scale * v['low']:.{digits}f}, {scale * v['high']:.{digits}f}]"
        )

    moving = 100 * found["still"]["tokens that move"]["value"]
    lines = [
        f"{table['clips']} clips of {FRAMES} frames of {SIDE} px a row, tokenizer `{table['tokenizer']}`. The object "
        f"covers {moving:.1f} % of the tokens. Recall among the best tenth in %, PSNR in dB [95 % interval over clips].",
        "",
        "| by | recall, background stands | recall, background pans | "
        + " | ".join(f"PSNR of the best {s:.0%}, pans" for s in SHARES) + " |",
        "|---" * (3 + len(SHARES)) + "|",
    ]  # fmt: skip
    for name in ("learned scorer", "untrained scorer", "pixel difference", "optical flow", "chance"):
        cells = [cell(b, f"recall, {name}", 100, 1) for b in ("still", "panning")]
        cells += [cell("panning", f"psnr, {name}, {s:.0%}", 1, 2) for s in SHARES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"All tokens: {cell('still', 'psnr, all tokens', 1, 2)} dB where the background stands, "
              f"{cell('panning', 'psnr, all tokens', 1, 2)} where it pans.", ""]  # fmt: skip
    for name, key in (
        ("these clips", "used"),
        ("64 of the clips of many kinds that it learned from in turn", "used by other clips"),
    ):
        use = found[key]
        levels = ", ".join(f"{n} of {of}" for n, of in zip(use["levels"], use["of levels"], strict=True))
        lines.append(
            f"Codes of {name}: {use['tokens']:,} tokens use {use['codes']:,} of {use['of']:,}, with a perplexity of "
            f"{use['perplexity']:,.0f}; levels number by number: {levels}."
        )
    return "\n".join(lines) + "\n"


def plot(file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    start = long.middle(FRAMES)
    panning = long.long_clip(3, SEED, SIDE, "bounces", range(start, start + FRAMES), True)
    model = lvmae.load(tokenizer.ZOO.with_name("lvmae")).eval()
    shown = lvmae.pictures(model, torch.from_numpy(panning.frames)[None])
    columns = range(3, FRAMES, 4)
    figure, axes = plt.subplots(len(shown), len(columns), figsize=(8, 1.03 * len(shown)), layout="constrained")
    for row, (name, frames) in zip(axes, shown.items(), strict=True):
        for axis, at in zip(row, columns, strict=True):
            axis.imshow(frames[at].numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(name.replace(", ", ",\n").replace(" from", "\nfrom"), fontsize=7)
    for axis, at in zip(axes[0], columns, strict=True):
        axis.set_title(f"frame {at}", fontsize=7)
    figure.savefig(file, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="small", help="a folder; small is the one that ships")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = tokenizer.load(given.tokenizer).eval()
    git = ["git", "describe", "--always", "--dirty"]
    table = {
        "command": "python " + " ".join(["benchmarks/lvmae_scorer.py", *sys.argv[1:]]),
        "commit": subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        "machine": "1 CPU thread",
        "tokenizer": given.tokenizer,
        "weights": sum_of(model)[:16],
        "clips": given.clips,
        "seed": SEED,
        "found": measure(model, given.clips),
        "versions": store.versions(),
    }
    store.write_json(given.out, table)
    text = markdown(table)
    given.out.with_suffix(".md").write_text(text)
    plot(given.out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
