"""What is on disk about backbones of our own: those that ship, those made here, what was drawn and read of them, and how they
did at the exam. No torch: weights are known by their files' headers."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import pretrain
import vdmreason
from tasks.base import UserError
from vdmreason import jobs, store
from vdmreason.ui import public

ZOO = Path(pretrain.__file__).resolve().parent / "zoo"
RESULTS = (
    Path(vdmreason.__file__).resolve().parent.parent / "benchmarks" / "results"
)  # in a checkout; an installed copy has none
PASSED_OVER = ("work", "checkpoint", "checkpoints", "show", "probe", "previews", "clips", "adapter")
HASHED = 200 << 20  # bytes of weights that are read for their sum; larger ones have it in pretrain.json or not at all
EXAM_N = 300  # training examples of the exam that backbones are set beside


@dataclass(frozen=True)
class Recipe:
    """What is the same for all backbones of a recipe."""

    title: str
    arxiv: str  # of the paper that it follows
    about: str
    sizes: tuple[str, ...]  # the first is the usual one
    published: tuple[str, ...] = ()  # sizes that need a GPU
    shown: bool = False  # `vdmreason pretrain show` draws it
    probed: bool = False  # `vdmreason probe` reads it
    data: str = "procedural clips"


RECIPES: dict[str, Recipe] = {
    "nextvid": Recipe(
        "NExT-Vid", "2512.21004", "masked next-frame prediction",
        ("small", "tiny", "vit-l", "vit-h", "vit-g"), ("vit-l", "vit-h", "vit-g"), True, True,
    ),
    "internvideo_next": Recipe(
        "InternVideo-Next", "2512.01342", "a diffusion decoder and an image teacher, then latents of the first stage",
        ("small", "tiny", "base", "large"), ("base", "large"), True, True,
    ),
    "lvmae": Recipe(
        "LVMAE", "2411.13683", "a masked autoencoder of long video that decodes the important tokens alone",
        ("small", "tiny", "vit-b", "vit-l"), ("vit-b", "vit-l"), True, True,
    ),
    "tokenizer": Recipe(
        "LVMAE's tokenizer", "2411.13683", "patches of video in a few numbers, and which of them matter",
        ("small", "tiny", "b", "l"), ("b", "l"), True,
    ),
    "cogvideox": Recipe("CogVideoX", "2408.06072", "video diffusion, latents and v-prediction", ("small", "tiny", "medium")),
    "causal_lm": Recipe("Qwen3", "2505.09388", "the next token", ("small", "tiny", "large"), ("large",), data="plain text"),
    "image_teacher": Recipe("SigLIP 2", "2502.14786", "what still pictures show: InternVideo-Next's teacher", ("small", "tiny")),
}  # fmt: skip


@dataclass(frozen=True)
class Backbone:
    """A folder that a recipe wrote or is writing."""

    key: str  # "zoo/nextvid", or the folder under the runs: "pretrain/my-nextvid"
    folder: Path
    recipe: str  # a name of RECIPES, or "" where the folder does not say
    state: str  # "ships", or a job's state: "running", "done", ...
    size: str = ""
    seed: int | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)  # by part
    data: str = ""
    updates: int = 0
    minutes: float | None = None
    machine: str = ""
    command: str = ""
    log: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # stage -> its last numbers
    weights: str = ""  # sha256 over the weights' files, "" where there are none yet
    error: str = ""

    @property
    def name(self) -> str:
        return self.key.partition("/")[2] if self.state == "ships" else self.key

    @property
    def title(self) -> str:
        return RECIPES[self.recipe].title if self.recipe else "unknown recipe"

    @property
    def whole(self) -> bool:
        """Whether there are weights to look into."""
        return bool(self.weights)


def found() -> list[Backbone]:
    """Every backbone that ships, then those under the runs, the newest sign of life first."""
    ours = [_look(f"zoo/{path.name}", path, shipped=True) for path in sorted(ZOO.glob("*")) if path.is_dir()]
    ours.sort(key=lambda b: list(RECIPES).index(b.recipe) if b.recipe in RECIPES else 99)
    root = store.runs_root()
    made = [(_beat(f), _look(str(f.relative_to(root)), f, shipped=False)) for f in _folders(root)]
    return [*ours, *(b for _, b in sorted(made, key=lambda pair: -pair[0]))]


def by_key(key: object) -> Backbone:
    """The backbone of a key that a browser names. Raises UserError where there is none."""
    backbone = next((b for b in found() if b.key == key), None)
    if backbone is None:
        raise UserError("That backbone is not on this machine any more. Choose another one.")
    return backbone


def _folders(root: Path) -> list[Path]:
    """The folders under `root` that `vdmreason pretrain` wrote or is writing."""
    kept = []
    for parent, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if "config.yaml" in files or "predictions.jsonl" in files:  # a run of the exam
            folders.clear()
            continue
        if _is_one(Path(parent), files, folders):
            kept.append(Path(parent))
            folders.clear()
        folders[:] = [f for f in folders if f not in PASSED_OVER]
    return kept


def _is_one(folder: Path, files: Sequence[str], folders: Sequence[str]) -> bool:
    if "pretrain.json" in files:
        return True
    if "job.json" in files and (_json(folder / jobs.JOB) or {}).get("kind") == "pretrain":
        return True
    return "state.json" in files and "work" in folders and "finetune.json" not in files


def _beat(folder: Path) -> float:
    return max((p.stat().st_mtime for n in ("state.json", "pretrain.json") if (p := folder / n).exists()), default=0.0)


def _json(path: Path) -> Any:
    try:
        return store.read_json(path)
    except (UserError, OSError):
        return None


def _words(command: str) -> list[str]:
    """A command line's words as a shell reads them; the video backbone's is a sentence, with an apostrophe."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def _look(key: str, folder: Path, shipped: bool) -> Backbone:
    record = _json(folder / "pretrain.json")
    record = record if isinstance(record, dict) else {}
    argv = (_json(folder / jobs.JOB) or {}).get("argv") or _words(str(record.get("command", "")))
    recipe = _recipe(folder, argv)
    status = None if shipped else jobs.status(folder)
    log = stages(record)
    seconds = sum(stage.get("seconds", 0.0) for stage in log.values())
    counted = [log["transformer"]] if "transformer" in log else log.values()  # not the VAE before it
    return Backbone(
        key=key, folder=folder, recipe=recipe, state="ships" if status is None else (status.state or "done"),
        size=str(record.get("size") or _after(argv, "--size")), seed=record.get("seed"),
        parameters=parameters(folder), data=_data(record, recipe), updates=int(sum(stage.get("updates", 0) for stage in counted)),
        minutes=seconds / 60 if seconds else record.get("minutes"), machine=str(record.get("machine", "")),
        command=str(record.get("command", "")), log=log, weights=weights(folder),
        error=public.clean(status.error) if status else "",
    )  # fmt: skip


def _recipe(folder: Path, argv: Sequence[str]) -> str:
    config = _json(folder / "config.json") or {}
    named = str(config.get("recipe") or "")
    if not named and "pretrain" in argv:
        named = next((word for word in argv[argv.index("pretrain") + 1 :] if not word.startswith("-")), "")
    named = named.replace("-", "_")
    kinds = {"Qwen3ForCausalLM": "causal_lm", "SiglipVisionModel": "image_teacher"}
    named = named or kinds.get((config.get("architectures") or [""])[0], "")
    named = named or ("cogvideox" if (folder / "model_index.json").exists() else folder.name)
    return named if named in RECIPES else ""


def _after(argv: Sequence[str], option: str) -> str:
    return argv[argv.index(option) + 1] if option in argv[:-1] else ""


def _data(record: Mapping[str, Any], recipe: str) -> str:
    given = str(record.get("data") or "procedural")
    usual = RECIPES[recipe].data if recipe else "procedural clips"
    return {"procedural": usual, "long": "long procedural clips"}.get(given, Path(given).name)


def stages(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The last numbers of every stage of a training, by the stage's name; "" where there is one alone."""
    log = record.get("log")
    if isinstance(log, Mapping):
        parts = {str(k): v for k, v in log.items() if isinstance(v, Mapping)} or {"": log}
    else:
        parts = {str(k): v for k, v in record.items() if isinstance(v, Mapping) and "updates" in v}
        parts = parts or ({"": record} if "updates" in record else {})
    return {
        name: {k: float(v) for k, v in part.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        for name, part in parts.items()
    }


def parameters(folder: Path) -> dict[str, int]:
    """Parameters by part: of a single file its weights' leading names, of several folders those."""
    single = folder / "model.safetensors"
    if single.exists():
        header = _header(single, store.stamp(single))
        parts: dict[str, int] = {}
        for name, count in header.items():
            part = name.partition(".")[0]
            parts[part] = parts.get(part, 0) + count
        return parts
    return {
        file.parent.name: sum(_header(file, store.stamp(file)).values())
        for file in sorted(folder.glob("*/diffusion_pytorch_model.safetensors"))
    }


@functools.lru_cache(maxsize=256)
def _header(path: Path, stamp: store.Stamp) -> dict[str, int]:
    """Name -> number of values, of the tensors in a safetensors file; {} where it is cut off."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError):
        return {}


def weights(folder: Path) -> str:
    """sha256 over the weights' files, in hex; "" where there are none, or none that can be summed in a moment."""
    deeper = [p for p in folder.glob("*/*.safetensors") if p.parent.name not in PASSED_OVER]
    files = sorted([*folder.glob("*.safetensors"), *deeper])
    if not files:
        return ""
    stamps = tuple(store.stamp(file) for file in files)
    if sum(found[1] for found in stamps if found) > HASHED:
        return str((_json(folder / "pretrain.json") or {}).get("weights", ""))
    return _sum(tuple(files), stamps)


@functools.lru_cache(maxsize=256)
def _sum(files: tuple[Path, ...], stamps: tuple[store.Stamp, ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Curves and progress


def metrics_files(backbone: Backbone) -> dict[str, Path]:
    """The stages that left numbers of their updates, in the order in which they were trained: stage -> file. Those that ship have
    short ones, `curve.jsonl` or `curve.<stage>.jsonl` (scripts/ship.py)."""
    found = [*backbone.folder.glob("work/metrics.jsonl"), *backbone.folder.glob("work/*/metrics.jsonl")]
    if found:
        found.sort(key=lambda file: file.stat().st_mtime)
        return {"" if file.parent.name == "work" else file.parent.name: file for file in found}
    curves = sorted(backbone.folder.glob("curve*.jsonl"))
    return {file.stem.removeprefix("curve").removeprefix("."): file for file in curves}


def numbers(backbone: Backbone) -> dict[str, list[dict[str, Any]]]:
    """stage -> its lines of metrics, in the order in which the stages were trained."""
    files = metrics_files(backbone)
    return {stage: lines for stage, file in files.items() if (lines := _lines(file, store.stamp(file)))}


@functools.lru_cache(maxsize=16)
def _lines(file: Path, stamp: store.Stamp) -> list[dict[str, Any]]:
    try:
        return store.read_lines(file)
    except (UserError, OSError):
        return []


@dataclass(frozen=True)
class Progress:
    """Where a pretraining stands. `updates` is 0 and `left` (seconds) None where it is not known yet."""

    step: int
    updates: int
    loss: float | None
    left: float | None


def progress(backbone: Backbone) -> Progress | None:
    """How far a pretraining of this machine has come; None before its first update."""
    lines = numbers(backbone)
    if not lines:
        return None
    stage, found = next(reversed(lines.items()))
    work = backbone.folder / "work" / stage
    step = int(found[-1].get("step", 0))
    plan = _json(work / "plan.json") or {}
    argv = (_json(backbone.folder / jobs.JOB) or {}).get("argv") or []
    asked = re.fullmatch(r"(\d+)u", _after(argv, "--budget"))
    updates = int(plan.get("updates") or (asked[1] if asked and len(lines) == 1 else 0))
    checkpoint = _json(work / "checkpoint" / "loop.json") or {}
    pace = plan.get("seconds_an_update") or (
        checkpoint["seconds"] / checkpoint["step"] if checkpoint.get("step") and checkpoint.get("seconds") else None
    )
    return Progress(step, updates, found[-1].get("loss"), pace * (updates - step) if pace and updates else None)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


@dataclass(frozen=True)
class View:
    """What to draw: which clip, which draw of noise and masks, and masks other than the recipe's own."""

    clip: int = 0
    seed: int = 0
    blocks: tuple[float, ...] = ()  # share of a frame that each of the masks' blocks covers; () as learnt
    hidden: float | None = None
    mask: str = ""


def blocks_of(backbone: Backbone) -> list[tuple[int, float]]:
    """The masks of blocks that a backbone learnt with: (how many blocks, share of a frame that each covers)."""
    config = _json(backbone.folder / "config.json") or {}
    if backbone.recipe == "internvideo_next":
        return [(int(n), float(s)) for n, s in config.get("blocks", [])] if config.get("stage") == 2 else []
    return [(int(n), float(s)) for n, s in config.get("masks", [])] if backbone.recipe == "nextvid" else []


def hidden_of(backbone: Backbone) -> float | None:
    """The share that a backbone's tube or semantic mask hides, where it has one."""
    config = _json(backbone.folder / "config.json") or {}
    return float(config["hidden"]) if backbone.recipe in ("internvideo_next", "lvmae") and "hidden" in config else None


def show_folder(backbone: Backbone, view: View) -> Path:
    """Where the pictures of a view are kept, and the job that makes them works."""
    parts = [backbone.recipe.replace("_", "-"), f"clip{view.clip}", f"seed{view.seed}"]
    parts += ["blocks" + "-".join(f"{share:.2f}" for share in view.blocks)] if view.blocks else []
    parts += [f"hidden{view.hidden:.2f}"] if view.hidden is not None else []
    parts += [view.mask] if view.mask else []
    return store.runs_root() / "show" / backbone.weights[:8] / "-".join(parts)


def show_command(backbone: Backbone, view: View, out: Path) -> list[str]:
    words = ["pretrain", "show", str(backbone.folder), "--clip", str(view.clip), "--seed", str(view.seed)]
    if view.blocks:
        counts = [count for count, _ in blocks_of(backbone)]
        words += ["--blocks", ",".join(f"{n}x{share:.2f}" for n, share in zip(counts, view.blocks, strict=True))]
    words += ["--hidden", f"{view.hidden:.2f}"] if view.hidden is not None else []
    words += ["--mask", view.mask] if view.mask else []
    return [*words, "--out", str(out / "sheet.png")]


def drawn(folder: Path) -> dict[str, Any] | None:
    """What `pretrain show` left in a folder: its JSON, and "sprite", the file of frames. None where it has not ended."""
    facts, sprite = _json(folder / "sheet.json"), folder / "sheet.strips.webp"
    return {**facts, "sprite": sprite} if isinstance(facts, dict) and sprite.is_file() else None


def usual_seconds(kind: str, backbone: Backbone) -> float | None:
    """How long jobs of a kind ("show", "probe") took here before: of these weights if there are any, else of all."""
    same, all_ = [], []
    for file in (store.runs_root() / kind).glob("*/*/job.json"):
        job, state = _json(file) or {}, _json(file.parent / "state.json") or {}
        if state.get("state") != "done" or not job.get("started"):
            continue
        seconds = state.get("beat", 0) - job["started"]
        all_.append(seconds)
        if file.parent.parent.name == backbone.weights[:8]:
            same.append(seconds)
    times = same or all_
    return float(np.median(times)) if times else None


# ---------------------------------------------------------------------------------------------------------------------
# Probes


def probe_folder(backbone: Backbone, labels: int, seeds: int, kind: str) -> Path:
    return (
        store.runs_root()
        / "probe"
        / backbone.weights[:8]
        / f"{backbone.recipe.replace('_', '-')}-{kind}-{labels}-{seeds}"
    )


def probe_command(backbone: Backbone, labels: int, seeds: int, kind: str, out: Path) -> list[str]:
    words = ["probe", str(backbone.folder), "--labels", str(labels), "--seeds", str(seeds), "--kind", kind]
    return [*words, "--out", str(out / "probe.json")]


def probes(backbone: Backbone) -> list[tuple[Path, dict[str, Any]]]:
    """What probes have read of these weights, the most labels first: (file, its content)."""
    here = store.runs_root() / "probe" / backbone.weights[:8]
    files = [backbone.folder / "probe.json", *here.glob("*/probe.json")] if backbone.weights else []
    kept = [(f, content) for f in files if isinstance(content := _json(f), dict) and content.get("rows")]
    return sorted(kept, key=lambda pair: -int(pair[1].get("labels", 0)) * int(pair[1].get("seeds", 1)))


@dataclass(frozen=True)
class Point:
    """A probe score and an exam's exact match for the same weights, each (value, low, high) in 0..1."""

    name: str
    task: str
    init: str  # "pretrained", or "random": never trained, in both
    probe: tuple[float, float, float]
    exam: tuple[float, float, float]


def exams() -> dict[tuple[str, str], dict[str, tuple[float, float, float]]]:
    """(sha8 of the weights, "pretrained" or "random") -> task -> exact match with EXAM_N examples, from the first table."""
    shas = {}
    for file in sorted(RESULTS.glob("first_table.*.jsonl")):
        for line in _lines(file, store.stamp(file)):
            shas[line.get("family")] = str(line.get("weights"))
    table = _json(RESULTS / "first_table.json") or {}
    results: dict[tuple[str, str], dict[str, tuple[float, float, float]]] = {}
    for row in table.get("rows", []):
        run, exact = row["run"], row["exact"]
        if run["n"] == EXAM_N and run["family"] in shas:
            scores = results.setdefault((shas[run["family"]], run["init"]), {})
            scores[run["task"]] = (exact["value"], exact["low"], exact["high"])
    return results


def points(backbones: Sequence[Backbone], column: str) -> list[Point]:
    """Every backbone that has both a probe score `column` and the exam, pretrained and never trained, task by task."""
    results, made, seen = exams(), [], set()
    for backbone in backbones:
        rows: list[dict[str, Any]] = next(
            (content["rows"] for _, content in probes(backbone) if column in content["rows"][0]["accuracy"]), []
        )
        for init, row in zip(("pretrained", "random"), rows, strict=False):
            place = (backbone.weights[:8], init)
            if place in seen or column not in row["accuracy"]:
                continue
            seen.add(place)
            score = row["accuracy"][column]
            for task, exact in results.get(place, {}).items():
                made.append(Point(backbone.title, task, init, (score["value"], score["low"], score["high"]), exact))
    return made


def spearman(pairs: Sequence[tuple[float, float]], draws: int = 1000) -> tuple[float, float, float]:
    """Rank correlation and its 95 % interval over backbones (percentile bootstrap, a fixed seed). Ties share their rank."""

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values], float)

    def rho(sample: np.ndarray) -> float:
        x, y = ranks(sample[:, 0]), ranks(sample[:, 1])
        return float(np.corrcoef(x, y)[0, 1]) if x.std() and y.std() else float("nan")

    data, rng = np.asarray(pairs, float), np.random.default_rng(0)
    found = [rho(data[rng.integers(len(data), size=len(data))]) for _ in range(draws)]
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return rho(data), float(low), float(high)


# ---------------------------------------------------------------------------------------------------------------------
# A new one


def pretrain_command(recipe: str, size: str, budget: str, seed: int, out: Path) -> list[str]:
    """The words after `vdmreason`. Raises UserError for a recipe, size or budget that is none."""
    if recipe not in RECIPES or size not in RECIPES[recipe].sizes:
        raise UserError("Choose a recipe and one of its sizes.")
    words = ["pretrain", recipe.replace("_", "-"), "--size", size, "--budget", budget, "--seed", str(seed)]
    return [*words, "--out", str(out)]


def start(kind: str, words: Sequence[str], folder: Path) -> jobs.Status:
    """Start `vdmreason <words>` as a job in `folder`, which must lie under the runs."""
    if not folder.resolve().is_relative_to(store.runs_root().resolve()):
        raise UserError("That folder does not lie under the runs.")
    return jobs.start(kind, [sys.executable, "-m", "vdmreason", *words], folder)
