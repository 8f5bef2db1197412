"""The figures of a report, by matplotlib where it is installed: files in SVG and PDF, and the same drawings for the page.

Drawings on the page carry no colour of their own for text and axes: they take the page's, light or dark. Baselines are grey
lines, the paper's points are thin dashed lines; neither is ever drawn like a result of ours.
"""

from __future__ import annotations

import io
import itertools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks import render
from vdmreason import store
from vdmreason.report_answers import Picture, Sheet

MISSING = "Figures were left out, for matplotlib is not installed: pip install matplotlib"
INK, QUIET = "#010101", "#8a8780"  # INK becomes the page's own text colour
PALETTES = {
    "video": ("#d9660f", "#8f5a3c", "#c0358a", "#b8920a", "#d62f3a", "#5f7d14", "#e58fa6"),  # warm
    "language": ("#2f7fd0", "#12938a", "#7a63d2", "#4d6b8a"),  # cool
}
BASELINES = {
    "copy": ("copy the input", (1, 1.5)),
    "nearest": ("nearest example", (5, 1.5)),
    "codec": ("codec ceiling", (8, 1.5, 1, 1.5)),
}
Published = Callable[[str], Mapping[str, Sequence[tuple[int, float]]]]


@dataclass
class Figures:
    """Drawings for the page, by name, and the files beside it. `problem`: why there are none."""

    panels: dict[str, str] = field(default_factory=dict)  # task -> SVG of its learning curves
    overlaps: dict[str, str] = field(default_factory=dict)  # ARC set -> SVG
    legend: list[tuple[str, str, bool]] = field(default_factory=list)  # (name, colour, control)
    published: bool = False  # whether any panel shows the paper's points
    answers: list[tuple[Sheet, str, str]] = field(default_factory=list)  # each with its SVG and its file
    files: list[str] = field(default_factory=list)
    problem: str = ""


def draw(found: Mapping[str, Any], sheets: Sequence[Sheet], published: Published, folder: Path) -> Figures:
    """All figures of a report's findings and of the answers to look at, and their files in `folder`."""
    try:
        import matplotlib
    except ImportError:
        return Figures(problem=MISSING)
    matplotlib.use("Agg")
    look: Any = {
        "font.size": 9, "svg.fonttype": "path", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": QUIET,
        "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "svg.hashsalt": "vdmreason",
        "pdf.fonttype": 42,
    }  # fmt: skip
    figures = Figures()
    with matplotlib.rc_context(look):
        _curves(figures, found["accuracy"], published, folder)
        _overlap(figures, found["arc"], folder)
        for number, sheet in enumerate(sheets):
            _answers(figures, sheet, number, folder)
    return figures


def _curves(figures: Figures, rows: Sequence[Mapping[str, Any]], published: Published, folder: Path) -> None:
    """One panel a task for the page, and all of them in one file."""
    from matplotlib import pyplot as plt

    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    if not by_task:
        return
    colours = _colours(rows)
    names = dict.fromkeys(
        (row["series"], colours[row["arm"], str(row["settings"])], bool(row["control"])) for row in rows
    )
    figures.legend = list(names)
    figures.published = any(published(task) for task in by_task)
    for number, (task, own) in enumerate(by_task.items()):
        figure, axes = plt.subplots(figsize=(3.7, 2.8), layout="constrained")
        _panel(axes, task, own, colours, published(task))
        figures.panels[task] = _inline(figure, f"c{number}")
        plt.close(figure)
    columns = min(3, len(by_task))
    lines = -(-len(by_task) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(3.5 * columns, 2.7 * lines + 0.9), squeeze=False, layout="constrained"
    )
    for axes, pair in itertools.zip_longest(grid.flat, by_task.items()):
        if pair is None:
            axes.set_axis_off()
        else:
            _panel(axes, pair[0], pair[1], colours, published(pair[0]))
    labels: dict[str, Any] = {}
    for axes in grid.flat:
        labels |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        labels.values(), labels.keys(), loc="outside lower center", ncols=min(3, columns), fontsize=7.5, frameon=False
    )
    _save(figures, figure, folder, "accuracy")
    plt.close(figure)


def _colours(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """A colour for each arm under its settings; a control has its arm's. The two arms that are named after their kind come
    first, and so look in every report as the published curves do."""
    colours: dict[tuple[str, str], str] = {}
    for kind, palette in PALETTES.items():
        arms = dict.fromkeys((row["arm"], str(row["settings"])) for row in rows if row["kind"] == kind)
        colours |= zip(sorted(arms, key=lambda arm: arm[0] != kind), itertools.cycle(palette), strict=False)
    return colours


def _panel(
    axes: Any,
    task: str,
    rows: Sequence[Mapping[str, Any]],
    colours: Mapping[tuple[str, str], str],
    paper: Mapping[str, Sequence[tuple[int, float]]],
) -> None:
    """Accuracy against n: line and band of each arm, its seeds as dots, baselines, the paper's points."""
    ns = sorted({row["n"] for row in rows})
    for kind, points in paper.items():
        if points:
            name = f"published {kind} model, not ours"
            axes.plot(
                *_split(points), color=PALETTES[kind][0], lw=0.9, ls=(0, (4, 3)), alpha=0.75, zorder=1, label=name
            )
    for key, (name, dashes) in BASELINES.items():
        style = {"color": QUIET, "lw": 1, "ls": (0, dashes), "zorder": 0, "label": name}
        known = [(row["n"], row[key]) for row in rows if row[key] is not None]
        if key == "nearest" and len({n for n, _ in known}) > 1:  # it grows with n
            axes.plot(*_split(sorted(dict(known).items())), **style)
        else:
            for value in sorted({round(v, 2) for _, v in known}):
                axes.axhline(100 * value, **style)
    for series in dict.fromkeys(row["series"] for row in rows):
        own = sorted((row for row in rows if row["series"] == series), key=lambda row: row["n"])
        colour, control = colours[own[0]["arm"], str(own[0]["settings"])], bool(own[0]["control"])
        x, y = [row["n"] for row in own], [100 * row["exact"].value for row in own]
        low, high = ([100 * getattr(row["exact"], end) for row in own] for end in ("low", "high"))
        style = {"ls": (0, (1, 1.2)), "marker": "o", "mfc": "none"} if control else {"ls": "-", "marker": "o"}
        if len(x) > 1:
            axes.fill_between(x, low, high, color=colour, alpha=0.07 if control else 0.15, lw=0, zorder=2)
        else:
            axes.errorbar(x, y, [[y[0] - low[0]], [high[0] - y[0]]], color=colour, capsize=3, lw=1, zorder=2)
        axes.plot(x, y, color=colour, lw=1.6, ms=4, zorder=4, label=series, **style)
        dots = [(row["n"], value) for row in own for value in row["by_seed"] if len(row["by_seed"]) > 1]
        axes.plot(*_split(dots), color=colour, ls="none", marker="o", ms=2.2, mec="none", alpha=0.65, zorder=3)
    axes.set(title=task, xscale="log", xlabel="training examples n", ylabel="exact match, %", ylim=(-4, 104))
    wide = max(ns) / min(ns) > 1
    axes.set_xlim((min(ns) / 1.35, max(ns) * 1.35) if wide else (min(ns) / 3, max(ns) * 3))
    axes.set_xticks(ns if len(ns) < 8 else ns[::2])
    axes.set_xticklabels([str(n) for n in (ns if len(ns) < 8 else ns[::2])])
    axes.minorticks_off()
    axes.grid(axis="y", color=QUIET, alpha=0.18, lw=0.7)


def _split(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [n for n, _ in points], [100 * value for _, value in points]


def _overlap(figures: Figures, arc: Mapping[str, Any], folder: Path) -> None:
    """One stacked bar a pair of arms and number of attempts: video only, both, language only, neither."""
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    parts = {
        "video only": PALETTES["video"][0],
        "both": "#7b6f86",
        "language only": PALETTES["language"][0],
        "neither": "#b9b5ad",
    }
    for number, (puzzles, of_set) in enumerate(arc.items()):
        rows = [row for row in of_set["overlap"] if row["n"]]
        if not rows:
            continue
        figure, axes = plt.subplots(figsize=(4.4, 1.1 + 0.5 * len(rows)), layout="constrained")
        for place, row in enumerate(rows):
            left = 0
            for part, colour in parts.items():
                alpha = 0.45 if part == "neither" else 1.0
                axes.barh(place, row[part], left=left, color=colour, alpha=alpha, label=part if not place else None)
                if row[part] >= 0.04 * row["n"]:
                    ink = INK if part == "neither" else "white"
                    axes.text(
                        left + row[part] / 2, place, str(row[part]), ha="center", va="center", color=ink, fontsize=8
                    )
                left += row[part]
        tries = [f"{row['attempts']} attempt{'s' * (row['attempts'] > 1)}" for row in rows]
        pairs = [f"{row['video']} | {row['language']}" for row in rows]
        one = len(set(pairs)) == 1
        labels = tries if one else [f"{pair}\n{count}" for pair, count in zip(pairs, tries, strict=True)]
        axes.set_yticks(range(len(rows)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(axis="x", labelsize=8)
        title = f"{puzzles}: {pairs[0]}" if one else puzzles
        axes.set(xlabel="puzzles", title=title, xlim=(0, max(row["n"] for row in rows)))
        figure.legend(loc="outside lower center", ncols=4, fontsize=7.5, frameon=False)
        figures.overlaps[puzzles] = _inline(figure, f"o{number}")
        _save(figures, figure, folder, f"overlap-{_plain(puzzles)}")
        plt.close(figure)


STYLE = render.STYLES["video-8"]  # as the video arms see grids


def _answers(figures: Figures, sheet: Sheet, number: int, folder: Path) -> None:
    """A sheet as one drawing: pictures a unit wide, rows as high as the highest of theirs."""
    from matplotlib import pyplot as plt

    heads = [_folded(text, 13) for text in sheet.heads]
    # of the rows' names, of the columns' heads, below each row with its notes
    label, head, gap = 1.2, 0.22 + 0.13 * max(text.count("\n") + 1 for text in heads), 0.3
    heights = [max((_size(picture)[1] for picture in pictures if picture), default=0.0) for _, pictures in sheet.rows]
    wide, tall = label + len(sheet.heads), head + sum(heights) + gap * len(heights)
    figure = plt.figure(figsize=(1.05 * wide, 1.05 * tall))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for column, text in enumerate(heads):
        axes.text(label + column + 0.5, head - 0.08, text, ha="center", va="bottom", fontsize=7.5, weight="bold")
    top = head
    for (name, pictures), height in zip(sheet.rows, heights, strict=True):
        axes.text(0.08, top + height / 2, _folded(name, 17), ha="left", va="center", fontsize=7.5)
        for column, picture in enumerate(pictures):
            if picture is not None:
                _picture(axes, picture, label + column + 0.5, top, height)
        top += height + gap
    axes.set(xlim=(0, wide), ylim=(tall, 0), aspect="auto")  # last: each picture sets them to its own
    file = f"answers-{_plain(sheet.name)}"
    if f"{folder.name}/{file}.svg" in figures.files:  # names that differ only in what no file's may hold
        file += f"-{number}"
    inline = _inline(figure, f"a{number}")
    figures.answers.append((sheet, inline, _save(figures, figure, folder, file)))
    plt.close(figure)


def _size(picture: Picture) -> tuple[float, float]:
    """(width, height) of a picture whose longer side is just short of a unit."""
    rows, cols = picture.grid.shape if picture.grid is not None else (1, 2)
    return 0.92 * cols / max(rows, cols), 0.92 * rows / max(rows, cols)


def _picture(axes: Any, picture: Picture, middle: float, top: float, height: float) -> None:
    """Draw it around x = `middle`, centred in a row of this height; the note below the row."""
    right = "#1f8a3d"
    if picture.grid is None:
        axes.text(middle, top + height / 2, "?", ha="center", va="center", color=QUIET, fontsize=16)
    else:
        w, h = _size(picture)
        x, y = middle - w / 2, top + (height - h) / 2
        pixels = render.paint(picture.grid, STYLE, picture.grid.shape)
        axes.imshow(pixels, extent=(x, x + w, y + h, y), interpolation="none", aspect="auto", zorder=1)
        edges = [x, x + w, x + w, x, x], [y, y, y + h, y + h, y]
        axes.plot(*edges, color=right if picture.right else QUIET, lw=1.6 if picture.right else 0.5, zorder=2)
    ink, weight = (right, "bold") if picture.right else (INK, "normal")
    axes.text(middle, top + height + 0.03, picture.note, ha="center", va="top", fontsize=6.5, color=ink, weight=weight)


def _folded(name: str, width: int) -> str:
    """A name in lines of so many letters; its own ends of lines stay."""
    return "\n".join(line for part in name.split("\n") for line in textwrap.wrap(part, width))


def _plain(name: str) -> str:
    """A task's name as part of a file's."""
    return re.sub(r"[^\w.-]+", "-", name)


def _save(figures: Figures, figure: Any, folder: Path, name: str) -> str:
    for ending in ("svg", "pdf"):
        with store.new_file(folder / f"{name}.{ending}") as temporary:
            nothing = {"CreationDate": None} if ending == "pdf" else {"Date": None}
            figure.savefig(temporary, format=ending, metadata=nothing, facecolor="white")
        figures.files.append(f"{folder.name}/{name}.{ending}")
    return f"{folder.name}/{name}.svg"


def _inline(figure: Any, prefix: str) -> str:
    """A figure as SVG inside a page: no header, no addresses, the page's text colour, ids that no other figure has."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    # a picture that is shown twice has one id, which nothing asks for
    svg = re.sub(r'(<image [^>]*?) id="[^"]*"', r"\1", svg)
    # ids and what points at them; a picture's own href is its bytes
    svg = re.sub(r'\b(id="|href="#)', rf"\1{prefix}-", svg).replace("url(#", f"url(#{prefix}-")
    svg = svg.replace(INK, "currentColor")
    return re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"\1\2", svg, count=1)
