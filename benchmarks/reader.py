"""How well grids are read back from pictures, by style and by what happened to the picture on the way.

    python benchmarks/reader.py                  # results/reader.{json,md}

Random grids of 10 x 10 cells and ten values on a canvas of 12 x 12, as two frames of a clip of nine: the first shows a known
grid, the last the one to be read. "alone" reads the last frame as it is; "by the first" takes place and colours from the
first frame, whose grid is known (`tasks.render.read`, `reference`). A size that is read wrongly makes every cell wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tasks.base import Grid  # noqa: E402
from tasks.render import STYLES, NotAPuzzle, Style, paint, read  # noqa: E402
from tasks.transition import clip  # noqa: E402
from vdmreason import store  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "reader.json"
CANVAS, SIDE, VALUES, FRAMES = (12, 12), 10, 10, 9
Frames = np.ndarray  # uint8 (F, H, W, 3)


def noise(sigma: float) -> Callable[[Frames, np.random.Generator], Frames]:
    return lambda frames, rng: _bytes(frames + rng.normal(0, sigma, frames.shape))


def blur(pixels: float) -> Callable[[Frames, np.random.Generator], Frames]:
    def blurred(frames: Frames, rng: np.random.Generator) -> Frames:
        return np.stack([np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(pixels))) for f in frames])

    return blurred


def shift(pixels: int) -> Callable[[Frames, np.random.Generator], Frames]:
    """Down and right, the edge repeated."""

    def shifted(frames: Frames, rng: np.random.Generator) -> Frames:
        padded = np.pad(frames, ((0, 0), (pixels, 0), (pixels, 0), (0, 0)), mode="edge")
        return padded[:, : frames.shape[1], : frames.shape[2]]

    return shifted


def cast(frames: Frames, rng: np.random.Generator) -> Frames:
    """A false gain and offset in every channel, as in the tests."""
    return _bytes(frames * np.array([0.85, 0.95, 0.9]) + np.array([25, -8, 15]))


def all_at_once(frames: Frames, rng: np.random.Generator) -> Frames:
    return noise(25)(blur(2)(shift(2)(cast(frames, rng), rng), rng), rng)


def through_the_vae() -> Callable[[Frames, np.random.Generator], Frames]:
    """There and back through the VAE of the shipped video backbone."""
    from adapters import cogvideox
    from adapters.base import flavour

    arm = cogvideox.load(flavour(cogvideox, "small"), cogvideox.Options())
    return lambda frames, rng: arm.decode(arm.encode(frames[None]))[0]


def _bytes(values: np.ndarray) -> Frames:
    return values.round().clip(0, 255).astype(np.uint8)


def cells_right(picture: np.ndarray, style: Style, grid: Grid, reference: tuple[Any, Grid] | None) -> float:
    try:
        found = read(picture, style, reference=reference).grid
    except NotAPuzzle:
        return 0.0
    return float((found == grid).mean()) if found.shape == grid.shape else 0.0


def markdown(command: str, grids: int, rows: list[dict[str, Any]]) -> str:
    """A row a fault, two columns a style."""
    styles = list(dict.fromkeys(row["style"] for row in rows))
    by_place = {(row["style"], row["fault"]): row for row in rows}
    lines = [
        f"Cells read right, in %: the frame alone / by the first frame. {grids} grids each. `{command}`",
        "",
        "| fault | " + " | ".join(styles) + " |",
        "|---|" + "---|" * len(styles),
    ]
    for fault in dict.fromkeys(row["fault"] for row in rows):
        found = [by_place[style, fault] for style in styles]
        cells = [f"{100 * row['alone_cells']:.1f} / {100 * row['by_first_cells']:.1f}" for row in found]
        lines.append(f"| {fault} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", type=int, default=20, help="grids a style and fault (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    faults: dict[str, Any] = {
        "none": lambda frames, rng: frames, "shipped VAE": through_the_vae(), "noise 10": noise(10), "noise 25": noise(25),
        "noise 50": noise(50), "blur 1 px": blur(1), "blur 2 px": blur(2), "blur 4 px": blur(4), "shift 1 px": shift(1),
        "shift 2 px": shift(2), "shift 3 px": shift(3), "colour cast": cast, "cast, shift 2, blur 2, noise 25": all_at_once,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name, style in STYLES.items():
        for fault, change in faults.items():
            rng = np.random.default_rng([given.seed, len(rows)])
            alone, by_first = [], []
            for _ in range(given.grids):
                known, grid = (rng.integers(0, VALUES, (SIDE, SIDE)).astype(np.int8) for _ in range(2))
                frames = clip(paint(known, style, CANVAS), paint(grid, style, CANVAS), FRAMES, "discrete")
                frames = change(frames, rng)
                alone.append(cells_right(frames[-1], style, grid, None))
                by_first.append(cells_right(frames[-1], style, grid, (frames[0], known)))
            row: dict[str, Any] = {"style": name, "fault": fault}
            for how, found in (("alone", alone), ("by_first", by_first)):
                row |= {f"{how}_cells": float(np.mean(found)), f"{how}_exact": float(np.mean(np.array(found) == 1))}
            rows.append(row)
            said = "   ".join(f"{row[f'{how}_cells']:7.1%} {row[f'{how}_exact']:5.0%}" for how in ("alone", "by_first"))
            print(f"{name:<10}{fault:<34}{said}", flush=True)
    command = f"python benchmarks/reader.py --grids {given.grids} --seed {given.seed}"
    store.write_json(RESULTS, {"command": command, "versions": store.versions(), "rows": rows})
    RESULTS.with_suffix(".md").write_text(markdown(command, given.grids, rows))


if __name__ == "__main__":
    main()
