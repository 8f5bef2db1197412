"""Write docs/tasks/: a page a family, from what its file says of itself, with a picture of examples.

    python scripts/task_pages.py

A test holds the pages against the code.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tasks  # noqa: E402
from vdmreason.export import picture  # noqa: E402

PAGES = ROOT / "docs" / "tasks"
MOST = 8  # variants on a page; the command lists all
SHOWN = 3  # examples in a picture
BORROWED = ("reasoning_gym",)
KEYS = {"puzzles": "puzzles", "views": "views", "published": "published distance"}


def variants(family: str) -> list[str]:
    """Those on the page: the listed ones, of ARC one puzzle a data set."""
    listed = tasks.variants(family)
    if family == "arc":
        listed = list({name.rsplit("/", 1)[0].replace("conceptarc/", ""): name for name in reversed(listed)}.values())[
            ::-1
        ]
        listed = [name for name in listed if not name.startswith("conceptarc/") or "/Center/" in name]
    return listed[:MOST]


def page(family: str) -> str:
    """The page of a family as Markdown; without table and picture where its tasks are another library's."""
    said = (importlib.import_module(f"tasks.{family}").__doc__ or "").strip()
    if family in BORROWED:
        return f"# {family}\n\n{said}\n"
    names = variants(family)
    rows = []
    for name in names:
        task = tasks.get(name)
        card = task.card()
        rows.append("| " + " | ".join([f"`{name}`", task.about, *(card.get(key, "") for key in KEYS)]) + " |")
    values = tasks.get(names[0]).card()["values"]
    return f"""# {family}

{said}

![question and answer of {names[0]}]({family}.png)

Values of `{names[0]}`: {values}.

| task | asks for | {" | ".join(KEYS.values())} |
|---|---|{"---|" * len(KEYS)}
{chr(10).join(rows)}

All of them: `vdmreason tasks list {family}`. Examples in the terminal: `vdmreason tasks show {names[0]}`. As a data set:
`vdmreason tasks export {names[0]} --out FOLDER`.
"""


def index() -> str:
    """The list of the pages."""
    lines = []
    for family in tasks.families():
        said = (importlib.import_module(f"tasks.{family}").__doc__ or "").strip()
        lines.append(f"- [{family}]({family}.md): {said.splitlines()[0]}")
    table = (ROOT / "benchmarks" / "results" / "generators.md").read_text(encoding="utf-8")
    speed = json.loads((ROOT / "benchmarks" / "results" / "generators.json").read_text(encoding="utf-8"))
    return f"""# The tasks

One file a family in `tasks/`; these pages are made by `python scripts/task_pages.py`.

{chr(10).join(lines)}

## How fast they are made

Beside the generators of [the paper](https://arxiv.org/abs/2510.24448), commit `{speed["peer"][:7]}`, in the same run:
`{speed["command"]}`. CPU seconds of one core. A data set is 5,000 training examples and 200 for the test, as far from all
of them as was published (hanoi: 400 and 40); theirs is worked out from the two rates measured. Ours are all different, with
training and test apart and one solution proven; theirs are drawn with replacement and unproven.

{table}"""


def drawing(family: str) -> Image.Image:
    """The page's picture."""
    name = variants(family)[0]
    count = min(SHOWN, tasks.count(name, "train") or SHOWN)
    return picture(tasks.get(name), tasks.examples(name, "train", count)).quantize(64)


def main() -> None:
    PAGES.mkdir(parents=True, exist_ok=True)
    (PAGES / "README.md").write_text(index(), encoding="utf-8")
    for family in tasks.families():
        (PAGES / f"{family}.md").write_text(page(family), encoding="utf-8")
        if family in BORROWED:
            continue
        drawing(family).save(PAGES / f"{family}.png", optimize=True)
        print(f"docs/tasks/{family}.md")


if __name__ == "__main__":
    main()
