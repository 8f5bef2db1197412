"""A report as one page and as Markdown, from the same tables. Text only: every number was computed before.

The page loads nothing from anywhere: styles, drawings and the few lines that sort a table are in it.
"""

from __future__ import annotations

import html as escape
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdmreason import arc_scores
from vdmreason.report_figures import PALETTES, Figures
from vdmreason.statistics import DRAWS, TARGETS, Bound, Interval

if TYPE_CHECKING:
    from vdmreason.report import Gathered

NONE = "–"
CAVEAT_SHORT = "Small backbones: see the caveat on top."
PAPER = "arXiv 2510.24448"


@dataclass(frozen=True)
class Table:
    title: str
    about: str  # what the numbers are, in a sentence or two
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    appendix: bool = False


# ---------------------------------------------------------------------------------------------------------------------
# Numbers as text


def percent(of: Interval | float | None) -> str:
    """ "53.0 [43.3, 62.5]" of a share, "53.0" of a plain one; no interval where there is none."""
    if of is None:
        return NONE
    if isinstance(of, Interval):
        known = not math.isnan(of.low)
        return f"{100 * of.value:.1f}" + (f" [{100 * of.low:.1f}, {100 * of.high:.1f}]" if known else "")
    return f"{100 * of:.1f}"


def points(of: Interval | None) -> str:
    """A difference of two shares, in percentage points with its sign."""
    return NONE if of is None else f"{100 * of.value:+.1f} [{100 * of.low:+.1f}, {100 * of.high:+.1f}]"


def examples(of: Bound, among: Sequence[int]) -> str:
    """A number of examples: "42 [31, 80]"; not reached: "≥ 300"; `among` = (smallest, largest n tested)."""
    ends = [_end(of.ci_low, among), _end(of.ci_high, among)]
    if of.known:
        return f"{_round(of.low)} [{ends[0]}, {ends[1]}]"
    value = f"≥ {_round(of.low)}" if math.isinf(of.high) else f"≤ {_round(of.high)}"
    surer = (of.ci_low, of.ci_high) == (of.low, of.high)  # no draw says anything else
    return value if surer else f"{value} [{ends[0]}, {ends[1]}]"


def _end(value: float, among: Sequence[int]) -> str:
    if value <= 0:
        return f"≤ {among[0]}"
    return f"≥ {among[1]}" if math.isinf(value) else _round(value)


def times(of: Bound) -> str:
    """A ratio: "6.8× [4.1, 11.9]", "≥ 33× [20, no limit]", or that nothing is known."""
    if of.unbounded:
        return "not known"
    interval = f" [{_round(of.ci_low) if of.ci_low > 0 else '0'}, {_round(of.ci_high)}]"
    if of.known:
        return f"{_round(of.low)}×{interval}"
    return (f"≥ {_round(of.low)}×" if math.isinf(of.high) else f"≤ {_round(of.high)}×") + interval


def _ns(among: Sequence[int] | None) -> str:
    """The n behind a number; None: they differ from task to task."""
    return "not the same" if among is None else ", ".join(map(str, among)) or NONE


def _counts(seeds: Sequence[int]) -> str:
    """How many seeds stand behind the n: "3", or "1–3"."""
    return "–".join(dict.fromkeys(str(end(seeds)) for end in (min, max))) if seeds else NONE


def _round(value: float) -> str:
    if math.isinf(value):
        return "no limit"
    whole = value >= 20 or abs(value - round(value)) < 1e-6 * value
    return f"{value:.0f}" if whole else f"{value:.2g}" if value < 1 else f"{value:.1f}"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def tables(gathered: Gathered, found: Mapping[str, Any]) -> list[Table]:
    """All tables that have a row, in the order of the page."""
    made = [
        _glance(found),
        _efficiency(found),
        _needed(found),
        _settings(found),
        _accuracy(found),
        _tests(found),
        *_arc(found),
        _thresholds(found),
        _paths(found),
        _missing(gathered),
        _provenance(gathered),
    ]
    return [table for table in made if table.rows]


def _glance(found: Mapping[str, Any]) -> Table:
    """A row an arm, a column an n: the learning curves as they are read. With a star, fewer seeds than the others have."""
    rows: dict[tuple[str, str], dict[int, str]] = {(r["task"], r["series"]): {} for r in found["accuracy"]}
    whole = max((len(r["seeds"]) for r in found["accuracy"]), default=0)
    for r in found["accuracy"]:
        star = "*" if len(r["seeds"]) < whole else ""
        rows[r["task"], r["series"]][r["n"]] = f"{percent(r['exact'])}{star}"
    ns = sorted({n for cells in rows.values() for n in cells})
    return Table(
        "At a glance",
        "Exact match in %, mean over seeds [95 % interval], by the number of training examples."
        + f" *: fewer than {whole} seeds." * (whole > 1),
        ("task", "arm", *(f"n = {n}" for n in ns)),
        [(*key, *(cells.get(n, NONE) for n in ns)) for key, cells in rows.items()],
    )


def _efficiency(found: Mapping[str, Any]) -> Table:
    pooled = [{**row, "task": f"all {row['tasks']} tasks"} for row in found["pooled"] if row["tasks"] > 1]
    return Table(
        "Who needs fewer examples",
        "Data-efficiency ratio n(language) / n(video) at an accuracy: above 1 the video arm needs fewer examples. A target "
        "that one arm did not reach (or had at the smallest n already) gives a bound; one that both missed says nothing, and "
        "is shown as that. Area: difference of the areas under the learning curves in log n, video less language, in "
        "percentage points of mean accuracy. Both over the n and seeds that both arms have. All tasks: geometric mean of ratios "
        "and mean of areas, with the doubt of tasks drawn like these.",
        (
            "task",
            "video arm",
            "language arm",
            "n",
            "seeds",
            *(f"ratio at {100 * t:.0f} %" for t in TARGETS),
            "area, video − language",
        ),
        [
            (
                r["task"],
                r["video"],
                r["language"],
                _ns(r["n"]),
                _counts(r["seeds"]),
                *(times(r[f"{t:g}"]) for t in TARGETS),
                points(r["area"]),
            )
            for r in (*found["ratio"], *pooled)
        ],
    )


def _needed(found: Mapping[str, Any]) -> Table:
    return Table(
        "How many examples an accuracy takes",
        "n at which the isotonic fit over log n reaches the accuracy. ≥: not reached at the largest n; ≤: there at the "
        "smallest n already. Area: mean accuracy over log n, from the smallest to the largest; of two arms with other n it is "
        "not the same.",
        ("task", "arm", "n", "seeds", *(f"n for {100 * t:.0f} %" for t in TARGETS), "area, %"),
        [
            (
                r["task"],
                r["series"],
                _ns(r["n"]),
                _counts(r["seeds"]),
                *(examples(r[f"{t:g}"], (r["n"][0], r["n"][-1])) for t in TARGETS),
                percent(r["area"]),
            )
            for r in found["needed"]
        ],
    )


def _settings(found: Mapping[str, Any]) -> Table:
    return Table(
        "Which setting",
        "Mean accuracy in % (over log n, then over tasks) of each arm under each of its settings, over the tasks and n that all "
        "of them have; the interval is for these very tasks. *: the arm's highest, which is flattered by having been picked: "
        "choose a setting here, then compare arms with it on other seeds.",
        ("arm", "tasks", "mean accuracy, %"),
        [(r["series"], str(len(r["tasks"])), percent(r["area"]) + "*" * r["highest"]) for r in found["settings"]],
    )


def _accuracy(found: Mapping[str, Any]) -> Table:
    return Table(
        "Accuracy",
        "Exact match in %, mean over seeds. Right: by the rules of the task, any best answer. Cells: share of cells equal. "
        "Unread: answers that could not be read, which count as wrong. Copy and nearest need no model; the codec ceiling is "
        "what the true answers score when they are written and read the arm's way.",
        ("task", "arm", "n", "seeds", "tests", "exact", "right", "cells", "unread", "copy", "nearest", "codec"),
        [
            (
                r["task"], r["series"], str(r["n"]), str(len(r["seeds"])), str(r["tests"]), percent(r["exact"]),
                percent(r["right"]), percent(r["cells"]), percent(r["unreadable"]), percent(r["copy"]),
                percent(r["nearest"]), percent(r["codec"]),
            )
            for r in found["accuracy"]
        ],
    )  # fmt: skip


def _tests(found: Mapping[str, Any]) -> Table:
    def each(row: Mapping[str, Any]) -> str:
        return "; ".join(f"{m['first']}:{m['second']} (p {p_value(m['p'])})" for m in row["mcnemar"])

    return Table(
        "Two arms on the same test examples",
        "Difference in exact match, first less second, in percentage points. p: sign flips over seeds and examples, two-sided "
        "(about these trained adapters). Holm: corrected over the tasks and n of the same comparison. p over seeds: "
        "whole seeds flipped (about other seeds; with S seeds it cannot go below 2 / 2^S, 0.25 for three). McNemar: by seed, "
        "answers that only the first : only the second had right, exact p.",
        ("task", "first", "second", "n", "seeds", "difference", "p", "Holm", "p over seeds", "McNemar by seed"),
        [
            (
                r["task"], r["first"], r["second"], str(r["n"]), str(len(r["seeds"])), points(r["difference"]),
                p_value(r["p"]), p_value(r["p_holm"]), p_value(r["p_seeds"]) if len(r["seeds"]) > 1 else NONE, each(r),
            )
            for r in found["tests"]
        ],
    )  # fmt: skip


def _arc(found: Mapping[str, Any]) -> list[Table]:
    arc = found["arc"].items()
    scores = [
        (s, r["series"], r["rule"], str(r["puzzles"]), percent(r["score"])) for s, of in arc for r in of["scores"]
    ]
    parts = ("video only", "both", "language only", "neither", "one arm only")
    overlaps = [
        (s, r["video"], r["language"], str(r["attempts"]), str(r["n"]), *(str(r[p]) for p in parts), p_value(r["p"]))
        for s, of in arc
        for r in of["overlap"]
    ]
    shares = ("cells", "size", "unreadable", "copy", "nearest")
    near = [
        (s, r["series"], str(r["puzzles"]), *(percent(r[key]) for key in shares))
        for s, of in arc
        for r in of["near"]["arms"]
    ]
    nearer = [
        (s, r["video"], r["language"], str(r["puzzles"]), points(r["difference"]), p_value(r["p"]))
        for s, of in arc
        for r in of["near"]["pairs"]
    ]
    return [
        Table(
            "ARC puzzles",
            "Score in %, over the puzzles that were tried and are whole. strict@k: a puzzle counts if every test input is "
            "solved within k attempts, which are the votes of the first seed, then of the next. concept@3: a test input counts "
            "within 3, mean over concepts. Interval: Wilson.",
            ("puzzles", "arm", "rule", "tried", "score"),
            scores,
        ),
        Table(
            "Who solved which ARC puzzle",
            "Puzzles that both arms tried. One arm only: tried by one of the two, not counted. p: McNemar, exact. "
            f"Published ({PAPER}, other models, 400 puzzles, two attempts): video only 52, both 15, language only 17, "
            "neither 316.",
            ("puzzles", "video arm", "language arm", "attempts", "tried by both", *parts, "p"),
            overlaps,
        ),
        Table(
            "How near the ARC answers are",
            "Of the first answer to each test input, in %: cells equal to the right answer's (none where the size is another), "
            "mean over puzzles; answers of the right size; answers that could not be read. Copy and nearest: the cells that two "
            "baselines without a model have right, over the same puzzles. Interval: Wilson, over puzzles.",
            ("puzzles", "arm", "tried", "cells", "right size", "unread", "copy, cells", "nearest, cells"),
            near,
        ),
        Table(
            "Which arm's ARC answers are nearer",
            "Difference in the cells of the table above, video less language, in percentage points, over the puzzles that both "
            "tried; p by sign flips over puzzles. About these seeds: of others it says nothing.",
            ("puzzles", "video arm", "language arm", "tried by both", "difference", "p"),
            nearer,
        ),
    ]


def _thresholds(found: Mapping[str, Any]) -> Table:
    def shown(of: Bound) -> str:
        return f"{of.low:.0f}" if of.known else f"> {of.low:.0f}"

    rows = [(r["task"], r["series"], shown(r["threshold"])) for r in found["thresholds"]]
    about = "The smallest tested n with at least 90 % exact match, as the paper reports it; no interval."
    return Table("Cellular automata: n for 90 %", about, ("task", "arm", "n"), rows)


def _paths(found: Mapping[str, Any]) -> Table:
    def length(of: Interval | None) -> str:
        return NONE if of is None else f"{of.value:.3f} [{of.low:.3f}, {of.high:.3f}]"

    return Table(
        "Paths",
        "PSR: share of answers whose path connects start and end, in %; an unread answer does not. RPL: length over the "
        "shortest length, over the valid answers only.",
        ("task", "arm", "n", "seeds", "PSR", "RPL", "valid answers"),
        [
            (r["task"], r["series"], str(r["n"]), str(len(r["seeds"])), percent(r["path_success"]),
             length(r["relative_length"]), str(r["valid"]))
            for r in found["paths"]
        ],
    )  # fmt: skip


def _missing(gathered: Gathered) -> Table:
    rows = [(gap["trial"], gap["id"], gap["state"], gap["why"] or NONE) for gap in gathered.missing]
    about = "They are in no number above."
    return Table("Trials that do not count", about, ("trial", "id", "state", "why"), rows, appendix=True)


def _provenance(gathered: Gathered) -> Table:
    rows = []
    for trial in gathered.trials:
        origin = trial.result.get("provenance") or {}
        commit = " ".join(commit[:9] for commit in trial.commits) or NONE
        commit += " + changes" * trial.dirty
        rows.append(
            (
                trial.id, trial.task, trial.series.name, str(trial.run.n), str(trial.run.seed), str(len(trial.records)),
                f"{trial.run.family} {trial.run.flavour}", commit, str(origin.get("device") or NONE),
                str(origin.get("data") or NONE)[:8], str(origin.get("backbone") or NONE)[:8], str(origin.get("date") or NONE),
            )
        )  # fmt: skip
    return Table(
        "Where the numbers come from",
        "One line a trial that counts. Data: hash over its training examples. Weights: fingerprint of the frozen backbone.",
        ("id", "task", "arm", "n", "seed", "tests", "backbone", "commit", "device", "data", "weights", "date"),
        rows,
        appendix=True,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Sentences


def _status(gathered: Gathered) -> str:
    text = f"{len(gathered.trials)} of {gathered.planned} trials."
    if gathered.finished:
        asked = len(gathered.missing)
        ask = "asks" if asked == 1 else "ask"
        return text + (
            f" {asked} {ask} what nobody knows the answer to, and count nowhere." if asked else " None is missing."
        )
    states = Counter(gap["state"] for gap in gathered.missing)
    return (
        f"{text} This sweep is not finished: "
        + ", ".join(f"{n} {state}" for state, n in states.most_common())
        + (". What is missing is left out of every number; it is never counted as zero.")
    )


def _short(found: Mapping[str, Any]) -> list[str]:
    """What the tables say, a line a comparison of two arms; only what was computed."""
    lines = []
    for row in found["pooled"]:
        tests = [t for t in found["tests"] if (t["first"], t["second"]) == (row["video"], row["language"])]
        clear = [t for t in tests if t["clear"]]
        first = sum(t["difference"].value > 0 for t in clear)
        text = f"{row['video']} against {row['language']} over {row['tasks']} task{'s' * (row['tasks'] > 1)}: "
        text += f"n(language) / n(video) at 50 % is {times(row['0.5'])}"
        if row["area"] is not None:
            text += f"; mean accuracy over log n differs by {points(row['area'])} points"
        if tests:
            text += f"; of {len(tests)} paired tests {first} are clear for the video arm, {len(clear) - first} for the "
            text += (
                f"language arm, {len(tests) - len(clear)} for neither (Holm over them at 5 %, and an interval without 0"
            )
            text += "; of one seed none is called clear)" if any(len(t["seeds"]) < 2 for t in tests) else ")"
        lines.append(text + ".")
    for puzzles, of in found["arc"].items():
        for row in of["overlap"]:
            if row["attempts"] == arc_scores.attempts_at(puzzles) and row["n"]:
                video, language = (row[f"{kind} only"] + row["both"] for kind in ("video", "language"))
                lines.append(
                    f"{puzzles}, {row['attempts']} attempts: of {row['n']} that both tried {row['video']} solved {video}, "
                    f"{row['language']} {language}, both {row['both']} (every test input; McNemar, p {p_value(row['p'])})."
                )
        for row in of["near"]["pairs"]:
            lines.append(
                f"{puzzles}, first answers to {row['puzzles']} puzzle{'s' * (row['puzzles'] > 1)} that both tried: right cells, "
                f"{row['video']} less {row['language']}, {points(row['difference'])} points."
            )
    return lines


def _method(gathered: Gathered) -> str:
    seeds = sorted({trial.run.seed for trial in gathered.trials})
    puzzles = {trial.task for trial in gathered.trials if trial.finite}
    count = len({trial.task for trial in gathered.trials} - puzzles)
    things = [
        f"{number} {name}{'s' * (number > 1)}"
        for number, name in ((count, "task"), (len(puzzles), "ARC puzzle"))
        if number
    ]
    answers = sum(len(trial.records) for trial in gathered.trials)
    return (
        f"{' and '.join(things) or 'No task'}, seeds {', '.join(map(str, seeds)) or 'none'}, {answers} test answers. "
        "Intervals are 95 %, of two stages, seeds (Student's t, of rates on the scale of log odds) and test examples, by "
        f"{DRAWS} draws from fixed names; the wider of what the two say (vdmreason/statistics.py, which has what they cover in "
        "simulations). One seed, or seeds that are all wrong or all right: the interval is over test examples only and says "
        "nothing of other seeds. The primary metric is exact match."
    )


PUBLISHED_CAPTION = (
    f"Thin dashed lines: published, other models, other test sizes ({PAPER}: CogVideoX1.5-5B and Qwen3-4B-Instruct, one seed, "
    "200 tests). They are not results of this sweep."
)


def _caption(figures: Figures) -> str:
    control = "; dotted line, open circles: random-init control" if any(c for _, _, c in figures.legend) else ""
    text = (
        f"Exact match against n (logarithmic). Line: mean over seeds; band: 95 % interval; dots: seeds{control}. Grey: copy "
        "the input (dotted), nearest training example (dashed), codec ceiling (dash-dotted)."
    )
    return f"{text} {PUBLISHED_CAPTION}" if figures.published else text


ANSWERS = "What the arms answered, as the video arms see grids. Green: right, under the rules of the task."


def _title(gathered: Gathered) -> str:
    return "Sweep report: " + " + ".join(gathered.names)


# ---------------------------------------------------------------------------------------------------------------------
# Markdown


def markdown(
    gathered: Gathered,
    found: Mapping[str, Any],
    made: Sequence[Table],
    caveat: str,
    figures: Figures,
    written: Sequence[str],
) -> str:
    lines = [f"# {_title(gathered)}", "", f"**{_status(gathered)}**", ""]
    if caveat:
        lines += [f"> **Caveat.** {caveat}", ""]
    short = _short(found)
    lines += [f"- {line}" for line in short] + ([""] if short else [])
    lines += [_method(gathered), ""]
    if gathered.notes:
        lines += ["## Before you compare", "", *(f"- {note}" for note in gathered.notes), ""]
    if figures.problem:
        lines += [figures.problem, ""]
    small = f"{CAVEAT_SHORT} " if caveat else ""
    for file in figures.files:
        if file.endswith(".svg") and file not in (name for _, _, name in figures.answers):
            about = _caption(figures) if "accuracy" in file else "Who solved which ARC puzzle."
            lines += [f"![{about}]({file})", "", about, ""]
    lines += [line for table in made if not table.appendix for line in _markdown_table(table, small)]
    if figures.answers:
        lines += ["## Answers", "", small + ANSWERS, ""]
    for sheet, _, file in figures.answers:
        lines += [f"![{sheet.about}]({file})", "", sheet.about, ""]
    lines += [line for table in made if table.appendix for line in _markdown_table(table, small)]
    lines += ["## Files", "", *(f"- {text}" for text in _files(gathered, figures, written)), ""]
    return "\n".join(lines)


def _markdown_table(table: Table, small: str) -> list[str]:
    head = [f"## {table.title}", "", small + table.about, "", _markdown_row(table.columns)]
    return [*head, _markdown_row(["---"] * len(table.columns)), *(_markdown_row(row) for row in table.rows), ""]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def _files(gathered: Gathered, figures: Figures, written: Sequence[str]) -> list[str]:
    found = [f"read from {source}" for source in gathered.sources]
    found += [*written, "report.json: every number of the tables, unrounded"]
    return found + ([f"figures: {', '.join(figures.files)}"] if figures.files else [])


# ---------------------------------------------------------------------------------------------------------------------
# The page

CSS = """
:root { color-scheme: light dark; --paper:#faf9f7; --card:#fff; --ink:#1d1c1a; --quiet:#66625b; --line:#e3dfd8;
 --warn:#fdf1dc; --warn-line:#d9a441; --focus:#2563a8; }
@media (prefers-color-scheme: dark) { :root { --paper:#141517; --card:#1c1e21; --ink:#ecebe7; --quiet:#a6a29a;
 --line:#303338; --warn:#33290f; --warn-line:#a37a22; --focus:#7cb8ff; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--paper); color:var(--ink); font:15px/1.55 system-ui, sans-serif; }
main { max-width:1180px; margin:0 auto; padding:28px 20px 60px; }
h1 { font-size:1.6rem; line-height:1.2; margin:0 0 8px; letter-spacing:-.01em; overflow-wrap:anywhere; }
h2 { font-size:1.12rem; margin:36px 0 6px; }
p, li { max-width:78ch; } ul { padding-left:1.2em; margin:8px 0; }
.quiet, figcaption, .about { color:var(--quiet); font-size:.88rem; max-width:110ch; }
.status { font-weight:600; margin:0 0 12px; }
.caveat { background:var(--warn); border-left:4px solid var(--warn-line); padding:10px 14px; border-radius:6px; max-width:none; }
.small { color:var(--ink); background:var(--warn); border-radius:4px; padding:1px 6px; }
.panels { display:grid; grid-template-columns:repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap:14px; margin:12px 0 8px; }
.panels > div, .overlap, .answers { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:8px; }
svg { width:100%; height:auto; display:block; color:var(--ink); } .overlap { max-width:540px; margin:12px 0; }
.answers { overflow-x:auto; margin:8px 0; } .answers svg { min-width:640px; }
.legend { display:flex; flex-wrap:wrap; gap:4px 18px; padding:0; margin:10px 0 0; list-style:none; font-size:.88rem; }
.legend i { display:inline-block; width:26px; border-top:3px solid; margin-right:7px; vertical-align:middle; }
.legend i.control { border-top-style:dotted; } .legend i.thin { border-top:1.5px dashed; }
.wide { overflow-x:auto; border:1px solid var(--line); border-radius:10px; background:var(--card); margin-top:8px; }
table { border-collapse:collapse; width:100%; font-size:.85rem; font-variant-numeric:tabular-nums; }
th, td { text-align:left; padding:6px 10px; border-bottom:1px solid var(--line); vertical-align:top; }
td { min-width:22ch; } td.short { white-space:nowrap; min-width:0; } wbr { display:none; } tr:last-child td { border-bottom:0; }
th { background:var(--card); white-space:nowrap; font-weight:600; }
th button { all:unset; cursor:pointer; } th button:focus-visible { outline:2px solid var(--focus); outline-offset:2px; }
th button::after { content:"\\2195"; opacity:.35; margin-left:4px; }
th[aria-sort=ascending] button::after { content:"\\2191"; opacity:1; }
th[aria-sort=descending] button::after { content:"\\2193"; opacity:1; }
summary { cursor:pointer; margin-top:30px; font-size:1.12rem; font-weight:600; }
@media (max-width:600px) { wbr { display:inline; } table { font-size:.8rem; } th, td { padding:5px 7px; }
 td.name { white-space:normal; overflow-wrap:break-word; min-width:9ch; }
 main { padding:18px 12px 40px; } h1 { font-size:1.3rem; } }
@media print { .wide { overflow:visible; } }
"""

# Click a head: by number where both cells hold one, else by text; "≥ 300" sorts after 300.
SORT = """
const sortable = (root) => {
const key = t => { const m = t.replace('−','-').match(/[-+]?[0-9]+[0-9.]*/);
  return /^[≥≤<>+-]?\\s*[0-9]/.test(t) && m ? Number(m[0]) + (/^[≥>]/.test(t) ? 1e-9 : 0) : null };
root.querySelectorAll('th button').forEach(b => b.addEventListener('click', () => {
  const th = b.parentElement, body = th.closest('table').tBodies[0], i = th.cellIndex;
  const up = th.getAttribute('aria-sort') !== 'ascending';
  th.parentElement.querySelectorAll('th').forEach(h => h.removeAttribute('aria-sort'));
  th.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  [...body.rows].sort((r, s) => { const a = r.cells[i].textContent, b = s.cells[i].textContent, x = key(a), y = key(b);
    const words = x === null && y === null ? a.localeCompare(b) : x === null ? 1 : -1;
    return (up ? 1 : -1) * (x !== null && y !== null ? x - y : words) })
    .forEach(r => body.append(r)) })) };
"""
JS = SORT + "sortable(document);\n"


def html(
    gathered: Gathered,
    found: Mapping[str, Any],
    made: Sequence[Table],
    caveat: str,
    figures: Figures,
    written: Sequence[str],
) -> str:
    title = escape.escape(_title(gathered))
    parts = [f"<h1>{title}</h1>", f'<p class="status">{escape.escape(_status(gathered))}</p>']
    if caveat:
        parts.append(f'<p class="caveat"><strong>Caveat.</strong> {escape.escape(caveat)}</p>')
    parts += [_list(_short(found)), f'<p class="quiet">{escape.escape(_method(gathered))}</p>']
    if gathered.notes:
        parts += ["<h2>Before you compare</h2>", _list(gathered.notes)]
    parts += _drawings(figures)
    small = f'<span class="small">{CAVEAT_SHORT}</span> ' if caveat else ""
    parts += [_table(table, small) for table in made if not table.appendix]
    if figures.answers:
        parts.append(f'<h2>Answers</h2><p class="about">{small}{ANSWERS}</p>')
    for number, (sheet, svg, _) in enumerate(figures.answers):
        shown = f'<div class="answers" tabindex="0">{svg}</div><p class="about">{escape.escape(sheet.about)}</p>'
        parts.append(
            f"<details{' open' * (not number)}><summary>{escape.escape(sheet.name)}</summary>{shown}</details>"
        )
    for table in (table for table in made if table.appendix):
        head = f"{escape.escape(table.title)} ({len(table.rows)})"
        parts.append(f"<details><summary>{head}</summary>{_table(table, small)}</details>")
    parts += ["<h2>Files</h2>", _list(_files(gathered, figures, written))]
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\n'
        f"<style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + f"\n</main>\n<script>{JS}</script></body></html>\n"
    )


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape.escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _drawings(figures: Figures) -> list[str]:
    if figures.problem:
        return [f"<p>{escape.escape(figures.problem)}</p>"]
    parts = []
    if figures.panels:
        swatches = [
            f'<li><i style="color:{colour}"{" class=control" if control else ""}></i>{escape.escape(name)}</li>'
            for name, colour, control in figures.legend
        ]
        if figures.published:
            swatches += [
                f'<li><i class="thin" style="color:{palette[0]}"></i>published {kind} model, not ours</li>'
                for kind, palette in PALETTES.items()
            ]
        drawn = "".join(f"<div>{svg}</div>" for svg in figures.panels.values())
        parts.append(
            f'<h2>Learning curves</h2><figure style="margin:0"><ul class="legend">{"".join(swatches)}</ul>'
            f'<div class="panels">{drawn}</div><figcaption>{escape.escape(_caption(figures))}</figcaption></figure>'
        )
    parts += [f'<div class="overlap">{svg}</div>' for svg in figures.overlaps.values()]
    return parts


def _table(table: Table, small: str) -> str:
    heads = "".join(f'<th scope="col"><button>{escape.escape(name)}</button></th>' for name in table.columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    title = "" if table.appendix else f"<h2>{escape.escape(table.title)}</h2>"
    return (
        f'{title}<p class="about">{small}{escape.escape(table.about)}</p><div class="wide" tabindex="0">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    """Numbers stay in one line; names may break where the screen is narrow."""
    number = text.lstrip("≥≤<>+-− ")[:1].isdigit()
    kind = "" if len(text) > 40 else ' class="short"' if number else ' class="short name"'
    shown = escape.escape(text)
    if not number:
        shown = shown.replace("/", "/<wbr>").replace("_", "_<wbr>")
    return f"<td{kind}>{shown}</td>"
