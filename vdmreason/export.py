"""A task's examples as a folder for others: parquet that `datasets.load_dataset(folder)` reads, clips, and a card.

    <out>/data/train-00000-of-00003.parquet     question and answer as grids, as JSON text and as pictures
          clips/train/000000.webp               the transition video, without loss
          README.md                             the card
          export.json                           what was asked for, so that the same command goes on where it was stopped

Parquet is written by pyarrow: pip install -e '.[export]'.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import tasks
from tasks.base import Example, Grid, Split, Task, UserError
from tasks.render import STYLES, Style, paint
from tasks.text import write
from tasks.transition import clip
from vdmreason import store
from vdmreason.progress import progress

if TYPE_CHECKING:
    from PIL import Image

SHARD = 500  # examples a parquet file
FRAMES = 9
PAGE = Style("page", 20, line=1, line_colour=(120, 120, 120))  # for people
ARROW = 24  # pixels between question and answer, and around


def export(
    name: str,
    out: str | Path,
    train: int,
    test: int,
    seed: int = 0,
    style: str = "video-16",
    mode: str = "discrete",
    clips: bool = True,
) -> Path:
    """Write the first `train` and `test` examples of a task. Files that are whole are kept, so a stopped export goes on.

    Raises UserError for a folder that holds another export, and where pyarrow is missing.
    """
    out, task = Path(out), tasks.get(name)
    wanted = {
        "task": task.name,
        "train": train,
        "test": test,
        "seed": seed,
        "style": style,
        "mode": mode,
        "clips": clips,
    }
    begun = store.read_json(out / "export.json")
    if begun is not None and begun != wanted:
        changed = [key for key in wanted if begun.get(key) != wanted[key]]
        raise UserError(f"{out}: holds another export ({', '.join(changed)} differ). Take another --out.")
    if begun is None and out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty. Take another --out.")
    counts: dict[Split, int] = {"train": train, "test": test}
    # Before anything is written: what is refused here must not leave a folder that refuses the corrected command.
    drawn = {split: tasks.examples(task, split, count, seed) if count else [] for split, count in counts.items()}
    store.write_json(out / "export.json", wanted)
    with progress(f"{task.name}: export", train + test) as show:
        done = 0
        for split, examples in drawn.items():
            shards = -(-len(examples) // SHARD)
            for shard in range(shards):
                part = examples[shard * SHARD : (shard + 1) * SHARD]
                path = out / "data" / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
                if not path.exists():
                    rows = [
                        _row(task, example, shard * SHARD + i, split, STYLES[style], mode, out if clips else None)
                        for i, example in enumerate(part)
                    ]
                    _write(rows, path)
                done += len(part)
                show(done, None, path.name)
    (out / "README.md").write_text(card(task, wanted), encoding="utf-8")
    return out


def _row(
    task: Task, example: Example, index: int, split: Split, style: Style, mode: str, clips: Path | None
) -> dict[str, Any]:
    """One example's columns; its clip goes to a file."""
    question, answer = paint(example.question, style, example.canvas), _painted(example.answer, style, example.canvas)
    moving = None
    if clips is not None and answer is not None:
        moving = f"clips/{split}/{index:06d}.webp"
        middle = [paint(frame, style, example.canvas) for frame in example.frames[1:-1]] if mode == "trajectory" else []
        store.write_clip(clips / moving, clip(question, answer, FRAMES, mode, middle))
    return {
        "task": task.name,
        "index": index,
        "key": example.key,
        "question": example.question.tolist(),
        "answer": None if example.open else example.answer.tolist(),
        "question_json": write(example.question),
        "answer_json": None if example.open else write(example.answer),
        "question_image": {"bytes": _png(question), "path": f"{split}-{index:06d}-question.png"},
        "answer_image": None if answer is None else {"bytes": _png(answer), "path": f"{split}-{index:06d}-answer.png"},
        "clip": moving,
        "facts": json.dumps(dict(example.facts), default=store.plain, sort_keys=True),
    }


def _painted(grid: Grid, style: Style, canvas: tuple[int, int]) -> np.ndarray | None:
    """The picture, or None for an answer that nobody knows or that is larger than the picture."""
    fits = grid.size and grid.shape[0] <= canvas[0] and grid.shape[1] <= canvas[1]
    return paint(grid, style, canvas) if fits else None


def picture(task: Task, examples: Sequence[Example], across: int = 3) -> Image.Image:
    """Question and answer of each example with an arrow between, `across` pairs a row; numbers where values are numbers."""
    from PIL import Image, ImageDraw

    pairs = []
    for example in examples:
        grids = [example.question, *([] if example.open else [example.answer])]
        sides = [_for_people(task, grid) for grid in grids]
        height, widths = max(side.height for side in sides), [side.width for side in sides]
        pair = Image.new("RGB", (sum(widths) + ARROW, height), "white")
        for side, left in zip(sides, (0, widths[0] + ARROW), strict=False):  # behind an open one's arrow is nothing
            pair.paste(side, (left, (height - side.height) // 2))
        x, y, half = widths[0] + ARROW // 2, height // 2, ARROW // 4
        draw = ImageDraw.Draw(pair)
        draw.line((x - half, y, x + half, y), "black", 2)
        draw.polygon((x + half, y, x, y - half, x, y + half), "black")
        pairs.append(pair)
    wide, high = max(pair.width for pair in pairs), max(pair.height for pair in pairs)
    columns = min(across, len(pairs))
    sheet = Image.new(
        "RGB", (columns * (wide + ARROW) + ARROW, -(-len(pairs) // columns) * (high + ARROW) + ARROW), "white"
    )
    for k, pair in enumerate(pairs):
        sheet.paste(pair, (ARROW + k % columns * (wide + ARROW), ARROW + k // columns * (high + ARROW)))
    return sheet


def _for_people(task: Task, grid: Grid) -> Image.Image:
    from PIL import Image, ImageDraw, ImageFont

    drawn = Image.fromarray(paint(grid, PAGE, (grid.shape[0], grid.shape[1])))
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(PAGE.cell * 0.7)
    for (r, c), value in np.ndenumerate(grid):
        label, light = task.colours.get(int(value), "").partition(",")[0], sum(PAGE.palette[value]) > 300
        if label.isdigit():  # "1, or shaded" is 1 too
            middle = (PAGE.line + PAGE.pitch * k + PAGE.cell / 2 for k in (c, r))
            pen.text(tuple(middle), label, "black" if light else "white", font, anchor="mm")
    return drawn


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise UserError("parquet is written by pyarrow, which is not installed; run: pip install pyarrow") from None
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    grid = pa.list_(pa.list_(pa.int8()))
    text = {name: pa.string() for name in ("task", "key", "question_json", "answer_json", "clip", "facts")}
    types = {
        **text,
        "index": pa.int64(),
        "question": grid,
        "answer": grid,
        "question_image": image,
        "answer_image": image,
    }
    schema = pa.schema([(name, types[name]) for name in rows[0]])
    # The two columns that are more than their bytes, in the words of the datasets library.
    features = {name: {"_type": "Image"} for name in ("question_image", "answer_image")}
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with store.new_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema), temporary)


def card(task: Task, wanted: dict[str, Any]) -> str:
    """The data set's card: what is in it, how it was made, by which command."""
    values = "\n".join(f"| {value} | {meaning} |" for value, meaning in task.colours.items())
    clips = (
        f"`clips/` holds each transition video of {FRAMES} frames ({wanted['mode']}), without loss. "
        if wanted["clips"]
        else ""
    )
    command = (
        f"vdmreason tasks export {task.name} --out FOLDER --n {wanted['train']} --test {wanted['test']} "
        f"--seed {wanted['seed']} --style {wanted['style']} --mode {wanted['mode']}"
    )
    splits = "\n".join(
        f"  - split: {split}\n    path: data/{split}-*.parquet" for split in ("train", "test") if wanted[split]
    )
    apart = ""  # of a puzzle with examples of its own nobody asked
    if type(task).canonical is not Task.canonical:
        apart = "The two share no question, no symmetric twin of one included, whatever their sizes.\n"
    elif task.stock("train") is None:  # a task that says of no questions that they are twins
        apart = "The two share no question, whatever their sizes.\n"
    return f"""---
configs:
- config_name: default
  data_files:
{splits}
---

# {task.name}

{task.about}

{wanted["train"]:,} training and {wanted["test"]:,} test examples, seed {wanted["seed"]}.
{apart}Pictures are drawn in the style `{wanted["style"]}`. {clips}

| value | meaning |
|---|---|
{values}

Columns: `question` and `answer` (rows of values), the same as `question_json` and `answer_json`, as `question_image` and
`answer_image`, `clip` (a path), `key` (a hash of the pair), `facts` (JSON).

Made by `{command}`.
"""
