"""Adapters as things that travel: a card that says what one is, a folder for strangers, and the way to a hub and back.

    card(folder)        the model card, with the hub's metadata; `leave_card` writes it beside every adapter
    export, import_     a run's folder to one that diffusers and peft read directly, or to a zip of that, and back
    push, pull          the same by way of a model hub, with huggingface_hub's own client
    listing             what is here, shipped and own

An exported folder is flat, because those libraries look for the weights at its top:

    <out>/pytorch_lora_weights.safetensors, or adapter_model.safetensors and adapter_config.json
          README.md, config.yaml, result.json
          puzzle-<hash>.json                        where it was learned from a puzzle of one's own
          predictions.jsonl, clips/                 only where asked for

What comes in is not trusted: safetensors only, a fixed list of file names, scores counted again from the answers where
those came along. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adapters
import tasks
from adapters.base import Arm, adapter_file
from tasks import augment
from tasks.base import UserError, as_path, suggest
from vdmreason import config, store
from vdmreason.config import Run

ROOT = Path(__file__).resolve().parents[1]
DIFFUSERS, PEFT = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
PREFIX = {DIFFUSERS: "transformer.", PEFT: "base_model.model."}
SECOND = "transformer_2"  # the folder of the second LoRA, where a backbone is two transformers
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
#: All that is ever taken from a folder or a hub; the card is written anew.
TAKEN = re.compile(
    rf"(adapter/)?({re.escape(DIFFUSERS)}|{re.escape(PEFT)}|adapter_config\.json)"
    rf"|(adapter/)?{SECOND}/{re.escape(DIFFUSERS)}"
    r"|config\.yaml|result\.json|predictions\.jsonl|clips/\d{4,9}\.webp|puzzle-[0-9a-f]{16}\.json"
)
PUZZLE = re.compile(r"arc:(puzzle-[0-9a-f]{16}\.json)")  # a task whose file came along
CLIP = re.compile(r"clips/\d{4,9}\.webp")
BARE = ("family", "flavour", "task", "n")  # what a LoRA is for
RESULT = (
    "id",
    "run",
    "provenance",
    "answered",
    "codec",
    "complete",
    "scores",
    "baselines",
    "votes",
    "seconds_per_answer",
)
ELSEWHERE = "trained elsewhere"
# What a zip may hold: a LoRA of a large backbone and its clips fit well within, and weights hardly shrink by packing.
ZIP_FILES, ZIP_BYTES, ZIP_RATIO = 5000, 4 << 30, 50


def zoo() -> Path:
    """Where the adapters that ship lie."""
    return Path(os.environ.get("VDMREASON_ZOO", Path(adapters.__file__).parent / "zoo"))


# ---------------------------------------------------------------------------------------------------------------------
# The card


def card(folder: str | Path, name: str = "", hub: str = "") -> str:
    """The model card of a run's or an exported folder: YAML front matter in the hub's format, then plain sentences.

    `name` is the folder's in the examples (default: as one types it where it lies), `hub` its "owner/name" where it lies on one.
    Raises UserError for a folder without a config or an adapter.

        print(card("adapters/zoo/maze-7x7--causal_lm--n300"))
    """
    from huggingface_hub import ModelCard

    folder = Path(folder)
    run, weights = run_of(folder), weights_of(folder)
    if weights.parent == folder:
        run = travelling(run)
    result = store.read_json(folder / "result.json") or {}
    with _damaged(folder / "result.json"):
        front = _front_matter(run, weights, result)
        body = [
            f"# {_task(run.task)}, n = {run.n}: a LoRA for {_base(run)}",
            _what(run, result),
            "## Scores",
            _scores(run, result),
            "## Use",
            _use(run, folder, weights, name or _typed(folder), hub),
            "## Provenance",
            _provenance(run, weights, result),
        ]
    return str(ModelCard(f"---\n{front}\n---\n\n" + "\n\n".join(body) + "\n"))


def _typed(folder: Path) -> str:
    """A folder as one types it beside runs/ or in a checkout. Of a path elsewhere only the last part is anybody's business."""
    place, runs = folder.resolve(), store.runs_root().resolve()
    if place.is_relative_to(runs):
        return f"runs/{place.relative_to(runs).as_posix()}"
    return (
        place.relative_to(ROOT).as_posix()
        if place.is_relative_to(zoo().resolve()) and place.is_relative_to(ROOT)
        else place.name
    )


def leave_card(folder: str | Path) -> None:
    """Write the card of a run that has an adapter to its README.md, whole or not at all. One that is no card of ours stays."""
    path = Path(folder) / "README.md"
    if store.whole_folder(Path(folder) / "adapter") and (not path.exists() or _is_card(path)):
        store.write_text(path, card(folder))


def _is_card(path: Path) -> bool:
    """Whether a README.md has our key in its front matter."""
    front, end, _ = path.read_text(encoding="utf-8", errors="replace").partition("\n---")
    return front.startswith("---") and bool(end) and "\nvdmreason:" in front


def weights_of(folder: Path) -> Path:
    """The adapter's safetensors file of a run's folder (in adapter/) or of an exported one (at its top)."""
    inside = store.whole_folder(folder / "adapter")
    return adapter_file(inside or folder)[0]


def parts_of(weights: Path) -> list[Path]:
    """All files of an adapter, given its first."""
    return [path for path in (weights, weights.parent / SECOND / weights.name) if path.is_file()]


def run_of(folder: Path) -> Run:
    """The run of a folder, also of an exported one, where a puzzle's file lies beside the config that names it."""
    if not any(folder.glob("puzzle-*.json")):
        return store.read_config(folder)
    keys, puzzles = _said(folder)
    with config.said_of(folder / "config.yaml"):
        return config.resolve(keys | {key: f"arc:{path}" for key, path in puzzles.items()})


def _said(folder: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """The keys of a folder's config.yaml as they stand there, and for those that name a puzzle that came along its file."""
    _, keys = config.read_yaml(folder / "config.yaml", "", "A run needs at least task, n and family.")
    named = {key: PUZZLE.fullmatch(str(keys.get(key))) for key in ("task", "test_task")}
    return keys, {key: folder / name[1] for key, name in named.items() if name and (folder / name[1]).is_file()}


def travelling(run: Run) -> Run:
    """The run as it is told to strangers, without the places of its maker's disk: a puzzle's file by its content's hash, a
    backbone's folder by its last part. With such a place it is another run by its id, and else the same."""
    flavour, place = run.flavour, Path(run.flavour)
    if place.is_absolute() or flavour.startswith(("~", "..")):
        flavour = f"./{place.name}"
    elif flavour not in adapters.family(run.family).FLAVOURS and not flavour.startswith(".") and place.is_dir():
        flavour = f"./{flavour}"  # a folder here that was written like a hub id, as such were once
    return dataclasses.replace(
        run, task=_task_elsewhere(run.task), test_task=_task_elsewhere(run.test_task), flavour=flavour
    )


def _own_file(task: str) -> bool:
    return task.startswith("arc:")


def _task_elsewhere(task: str) -> str:
    """A task's name; of a puzzle of one's own that which it has where its file comes along."""
    if not _own_file(task):
        return task
    path = as_path(task.removeprefix("arc:"))
    return f"arc:puzzle-{sha256(path)[:16]}.json" if path.is_file() else f"arc:{path.name}"


def _task(name: str) -> str:
    """A task by name. Of a path on somebody's disk only the last part is anybody's business."""
    return f"arc:{Path(name).name}" if _own_file(name) else name


def _hub_id(run: Run) -> str:
    """The backbone's name on the hub, or "" where it has none."""
    base = config.flavour_of(run).base
    return (
        base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not base.startswith(".") and not Path(base).exists() else ""
    )


def _ships(run: Run) -> str:
    """The folder of a backbone that ships, as one writes it in a checkout; "" for others."""
    base = Path(config.flavour_of(run).base)
    return base.relative_to(ROOT).as_posix() if base.is_absolute() and base.is_relative_to(ROOT / "pretrain") else ""


def _base(run: Run) -> str:
    """The backbone by name. Of a path on somebody's disk only the last part is anybody's business."""
    return _hub_id(run) or _ships(run) or f"{run.family} {Path(run.flavour).name}"


def _elsewhere(result: Mapping[str, Any]) -> bool:
    return result.get("provenance", {}).get("origin") == ELSEWHERE


def _front_matter(run: Run, weights: Path, result: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    evaluations = []
    scores = result.get("scores") or {}
    for key, kind, title in (("exact", "exact_match", "exact match"), ("cells", "accuracy", "cells")):
        if key in scores:
            low, high = scores[key]["low"], scores[key]["high"]
            name = f"{title}, 95 % interval [{low:.4f}, {high:.4f}], {scores['n']} tests"
            slug = config.slug(_task(run.tested))
            evaluations.append(
                EvalResult("other", slug, _task(run.tested), kind, round(scores[key]["value"], 6), "visual reasoning",
                           dataset_split="test", metric_name=name)
            )  # fmt: skip
    licence: dict[str, Any] = {"license": "apache-2.0"}
    if _elsewhere(result):
        licence = {"license": "unknown"}
    elif base := _hub_id(run):
        licence = {
            "license": "other",
            "license_name": "as-the-base-model",
            "license_link": f"https://huggingface.co/{base}",
        }
    library = "diffusers" if weights.name == DIFFUSERS else "peft"
    facts = {"family": run.family, "flavour": Path(run.flavour).name if not _hub_id(run) else run.flavour, "init": run.init,
             "task": _task(run.task), "test_task": _task(run.tested), "n": run.n, "seed": run.seed, "run": run.id}  # fmt: skip
    data = ModelCardData(
        base_model=_hub_id(run)
        or None,  # the hub refuses what is not one of its names; ours is told below and in the text
        library_name=library,
        tags=["lora", "vdmreason", "visual-reasoning", "few-shot", config.slug(re.split("[/:]", run.task)[0])],
        metrics=["exact_match", "accuracy"] if evaluations else None,
        model_name=run.name if evaluations else None,
        eval_results=evaluations or None,
        vdmreason={"base": _base(run), **facts},
        **licence,
    )
    return str(data.to_yaml())


def _what(run: Run, result: Mapping[str, Any]) -> str:
    lora, flavour = run.lora, config.flavour_of(run)
    size = f", {flavour.parameters / 1e6:,.1f} M parameters" if flavour.parameters else ""
    lines = [
        f"- base: `{_base(run)}` (family `{run.family}`{size})",
        f"- init: {run.init}" + (" (a control: the backbone's weights are random)" if run.init == "random" else ""),
        f"- LoRA: rank {lora.rank}, alpha {lora.alpha}, on {' and '.join(lora.targets)} layers",
        f"- task: `{_task(run.task)}`, n = {run.n} training examples, seed {run.seed}",
    ]
    if run.augment > 1:
        lines.append(f"- each example seen under {run.augment} views")
    if _elsewhere(result):
        lines.append(
            "- trained elsewhere: task and n are as its importer says, and how long it was trained is not known"
        )
    else:
        lines.append(f"- {run.optim.updates} updates of {run.optim.batch}, learning rate {run.optim.lr:g}")
    text = "\n".join(lines)
    if _ships(run):
        text += (
            "\n\nThe backbone is small, lies in this project's checkout and was pretrained by us, on procedural video and plain "
            "text (this one: "
            f"{flavour.about.split('by us ')[-1]}). What it scores says nothing of the published models of its kind."
        )
    elif not flavour.base:
        text += "\n\nThe backbone is a tiny one with random weights, for tests."
    elif not _hub_id(run):
        text += "\n\nThe backbone is a checkpoint of its maker's own; without it this adapter is of no use."
    return text


def _scores(run: Run, result: Mapping[str, Any]) -> str:
    scores = result.get("scores")
    if not scores:
        return "Not scored yet."
    text = f"{scores['n']} test examples of `{_task(run.tested)}` that it was not trained on, 95 % intervals"
    text += ":" if result.get("complete", True) else f"; {run.test} are to be answered:"
    rows = [f"| exact | {_rate(scores['exact'])} |", f"| right by the rules | {_rate(scores['right'])} |"]
    rows += [f"| cells | {_rate(scores['cells'])} |", f"| unreadable | {_rate(scores['unreadable'])} |"]
    if result.get("codec"):
        rows.append(f"| codec ceiling (the true answers, written and read back) | {_rate(result['codec']['exact'])} |")
    for name, title in (("copy", "copy the input, exact"), ("nearest", "nearest training example, exact")):
        if name in result.get("baselines", {}):
            rows.append(f"| {title} | {_rate(result['baselines'][name]['exact'])} |")
    if run.votes > 1:
        text = f"Answers by vote over {run.votes} views. " + text
    return text + "\n\n| | |\n|---|---|\n" + "\n".join(rows)


def _rate(value: Mapping[str, float]) -> str:
    return f"{100 * value['value']:.1f} % [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _use(run: Run, folder: Path, weights: Path, name: str, hub: str) -> str:
    """Code that runs as it stands; from a checkout, where the backbone is ours."""
    live = weights.parent != folder and not hub  # a run's folder, not one that travels
    given = hub or (f"{name}/adapter" if live else name)
    library, code = _code(run, weights, given)
    if live:
        asks = f"vdmreason predict {name}"
        if _may_vote(run):
            asks += f"\nvdmreason predict {name} --set votes=4        # asked under four views, which vote"
    else:
        asks = f"vdmreason adapters {f'pull {hub}' if hub else f'import {name}'} --out runs/{run.name}"
        asks += f" --flavour {run.flavour}" * run.flavour.startswith(".")  # a folder, which lies where its owner has it
        asks += f"\nvdmreason predict runs/{run.name}"
    otherwise = getattr(run.arm_options(), "stock", "") if library == "diffusers" else ""
    return (
        f"In {library}:\n\n```python\n{code}\n```\n\n"
        + f"{otherwise}\n\n" * bool(otherwise)
        + f"In vdmreason, which asks it as it was trained to be asked and scores it:\n\n```sh\n{asks}\n```"
    )


def _code(run: Run, weights: Path, given: str) -> tuple[str, str]:
    """The library that reads the adapter, and how."""
    published = (_hub_id(run) or _ships(run)) if run.init == "pretrained" else ""
    # for classes of our own, and for weights that are drawn from a seed
    ours = (
        "import adapters\n\n"
        f"family = adapters.family({run.family!r})\n"
        f"flavour = adapters.base.flavour(family, {_spoken(run)!r})\n"
        f"arm = family.load(flavour, family.Options(), init={run.init!r}, seed={run.seed})\n"
    )
    if weights.name == DIFFUSERS and published:
        more = "" if _hub_id(run) else ", tokenizer=None, text_encoder=None"
        code = "from diffusers import DiffusionPipeline\n\n"
        code += f"pipeline = DiffusionPipeline.from_pretrained({published!r}{more})\n"
        code += f"pipeline.load_lora_weights({given!r})"
        if len(parts_of(weights)) > 1:
            code += f"\npipeline.load_lora_weights({given!r}, subfolder={SECOND!r}, load_into_transformer_2=True)"
        return "diffusers", code
    if weights.name == DIFFUSERS:
        model = f"arm.model[{'transformer'!r}]" if len(parts_of(weights)) > 1 else "arm.model"
        code = f"{ours}# what a pipeline's load_lora_weights calls\n"
        code += f"{model}.load_lora_adapter({given!r}, weight_name={DIFFUSERS!r})"
        if len(parts_of(weights)) > 1:
            code += (
                f"\narm.model[{SECOND!r}].load_lora_adapter({given!r}, weight_name={DIFFUSERS!r}, subfolder={SECOND!r})"
            )
        return "diffusers", code
    if published and adapters.family(run.family).ARM == "language":
        sees = any("language_model" in module for module in read_lora(weights).modules)  # part of a model with eyes
        auto = "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"
        code = f"from peft import PeftModel\nfrom transformers import {auto}\n\n"
        code += f"base = {auto}.from_pretrained({published!r})\n"
        return "peft", f"{code}model = PeftModel.from_pretrained(base, {given!r})"
    return "peft", f"from peft import PeftModel\n{ours}model = PeftModel.from_pretrained(arm.model, {given!r})"


def _may_vote(run: Run) -> bool:
    try:
        return len(augment.views(tasks.get(run.tested), 4)) == 4
    except UserError:  # the rule holds under fewer views
        return False


def _spoken(run: Run) -> str:
    return (
        run.flavour if _hub_id(run) or run.flavour in adapters.family(run.family).FLAVOURS else Path(run.flavour).name
    )


def _provenance(run: Run, weights: Path, result: Mapping[str, Any]) -> str:
    made = result.get("provenance") or {}
    commit = made.get("commit")
    facts = {
        "run": run.id,
        "commit": commit and f"{commit} ({'dirty: with changes that are not in it' if made.get('dirty') else 'clean'})",
        "sittings": ", ".join(f"{sat.get('commit')} on {sat.get('device')}" for sat in made.get("sittings") or ()),
        "device": made.get("device"),
        "python": made.get("python"),
        "libraries": ", ".join(f"{k} {v}" for k, v in (made.get("libraries") or {}).items()),
        "training data, sha256": made.get("data"),
        "backbone's weights": made.get("backbone"),
        "adapter, sha256": ", ".join(map(sha256, parts_of(weights))),
        "answered by": _answered(made, result),
        "command": made.get("command") if _public(made.get("command")) else None,
        "date": made.get("date"),
        "origin": made.get("origin"),
    }
    lines = [f"- {name}: `{_printable(value)}`" for name, value in facts.items() if value]
    return "\n".join(lines) + "\n\nThe full settings are in `config.yaml`."


def _answered(made: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Which code answered and on what, where that is not what trained."""
    keys = ("commit", "dirty", "device")
    told = [
        f"{sat.get('commit')} ({'dirty' if sat.get('dirty') else 'clean'}) on {sat.get('device')}"
        for sat in result.get("answered") or ()
        if any(sat.get(key) != made.get(key) for key in keys)
    ]
    return ", ".join(told)


def _public(command: object) -> bool:
    """Whether a command line names no place on its maker's disk."""
    return not re.search(r"(^|[\s='\":])[/~]", str(command or ""))


def _printable(value: object) -> str:
    """Text of unknown origin without what would end its quotes or move a terminal's cursor."""
    return "".join(c if c.isprintable() and c != "`" else " " for c in str(value))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """A file of the right format with the wrong content is one line too."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}: does not hold what it should ({type(error).__name__}: {error}). Delete it."
        ) from error


# ---------------------------------------------------------------------------------------------------------------------
# Out


def export(folder: str | Path, out: str | Path, answers: bool = False, hub: str = "") -> Path:
    """Write what a stranger needs of a run into a new folder: weights at its top, card, config and scores.

    An `out` that ends in .zip is that folder, packed. `answers`: predictions.jsonl and its clips too; training examples
    never. Raises UserError where there is no adapter, or where `out` is taken.

        export("runs/maze-7x7--cogvideox--n30--s0--ab12cd", "maze-lora")
        PeftModel.from_pretrained(base, "maze-lora")            # or pipeline.load_lora_weights("maze-lora")
    """
    folder, out = Path(folder), Path(out)
    run, weights = run_of(folder), weights_of(folder)
    told = travelling(run)
    _refuse_taken(out)
    if out.suffix == ".zip":
        with tempfile.TemporaryDirectory() as scratch, store.new_file(out) as packed:
            whole = export(folder, Path(scratch) / out.stem, answers, hub)
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
                for path in sorted(p for p in whole.rglob("*") if p.is_file()):
                    file.write(path, path.relative_to(scratch).as_posix())
        return out
    with store.new_folder(out.resolve(), fresh=True) as new:
        for part in parts_of(weights):
            _copy(part, new / part.relative_to(weights.parent))
            if told.id != run.id:
                _retell(new / part.relative_to(weights.parent), told)
        if (settings := weights.with_name("adapter_config.json")).is_file():
            _copy(settings, new / settings.name)
        store.write_config(new, told)
        for key in ("task", "test_task"):
            if match := PUZZLE.fullmatch(getattr(told, key)):
                _copy(as_path(getattr(run, key).removeprefix("arc:")), new / match[1])
        if result := store.read_json(folder / "result.json"):
            with _damaged(folder / "result.json"):
                made = dict(result.get("provenance") or {})
                if not _public(made.get("command")):
                    del made["command"]
                store.write_json(new / "result.json", _renamed(result | {"provenance": made}, run, told))
        if answers:
            _copy_answers(folder, new)
        # by the name that it will have, not by the temporary one
        store.write_text(new / "README.md", card(new, out.resolve().name, hub))
    return out


def _renamed(result: dict[str, Any], old: Run, new: Run) -> dict[str, Any]:
    """A run's result as that of another name for the same: its puzzle or its backbone is said to lie elsewhere."""
    if old.id == new.id:
        return result
    names = {"id": new.id, "run": config.to_dict(new)}
    made = {"adapter_of": old.id} | dict(result["provenance"]) | {"run": new.id}
    if made["adapter_of"] == new.id:  # back where it was made
        del made["adapter_of"]
    return result | {key: value for key, value in names.items() if key in result} | {"provenance": made}


def _retell(path: Path, told: Run) -> None:
    """Write another run into the notes of our own in a safetensors header. The weights stay the same bytes."""
    content = path.read_bytes()
    with _damaged(path):
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        notes = json.loads(header.get("__metadata__", {}).get("vdmreason", "{}"))
        if "run" not in notes:
            return
        notes |= {"run": config.to_dict(told), "id": told.id}
        header["__metadata__"]["vdmreason"] = json.dumps(notes, sort_keys=True)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)


def _copy_answers(folder: Path, new: Path) -> None:
    if (folder / "predictions.jsonl").is_file():
        shutil.copyfile(folder / "predictions.jsonl", new / "predictions.jsonl")
        for clip in sorted(folder.glob("clips/*.webp")):
            _copy(clip, new / "clips" / clip.name)


def _refuse_taken(out: Path) -> None:
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise store.taken(out)
    for parent in out.resolve().parents:
        if parent.exists() and not parent.is_dir():
            raise UserError(f"{out}: {parent} is a file, not a folder. Take another --out.")


# ---------------------------------------------------------------------------------------------------------------------
# In


@dataclass(frozen=True)
class Found:
    """What a LoRA's file says of itself."""

    name: str  # DIFFUSERS or PEFT: the layout, and the file's name in it
    rank: int
    alpha: int
    modules: tuple[str, ...]  # the layers that it adapts
    notes: Mapping[str, Any]  # ours, where we made it
    sizes: tuple[tuple[int, int], ...] = ()  # of each layer's weight, (out, in)
    base: str = ""  # the backbone that its settings name; mostly they name none


def import_(
    source: str | Path,
    out: str | Path | None = None,
    given: Mapping[str, Any] | None = None,
    origin: str = "",
) -> Path:
    """Make a run's folder of an exported one, of its zip, or of a bare LoRA in diffusers' or peft's layout, and return it.

    `given` says what a bare one is for, {"family", "flavour", "task", "n"}; of an exported one the flavour may be said anew
    (where its backbone lies on this machine), and the file of a puzzle of its maker's own ("arc:FILE", the same by its
    content; one that came along is kept beside the drawn ones). `out` is a new folder (default: runs/<name>). A backbone whose
    files lie on this disk is compared layer by layer; any other when it is loaded, by `predict`.

    Raises UserError for pickled, damaged or strange files, for what is missing in `given`, and for a folder that is taken.

        import_("maze-lora")
        import_("their-lora", given={"family": "causal_lm", "flavour": "small", "task": "maze/7x7", "n": 30})
    """
    source, wanted = Path(source), {k: v for k, v in (given or {}).items() if v is not None}
    if source.suffix == ".zip" and source.is_file():
        with unzipped(source) as folder:
            return import_(folder, out, wanted, origin)
    weights = _incoming(source)
    parts = parts_of(weights)
    found, *more = map(read_lora, parts)
    folder = source if source.is_dir() else source.parent
    whole = source.is_dir() and (folder / "config.yaml").is_file()
    run, result = _exported(folder, found, wanted) if whole else _bare(weights, found, wanted)
    for said, part in zip([found, *more], parts, strict=True):
        _refuse_misfit(run, said, part)
        if not (whole and "flavour" in wanted):  # who says where a backbone lies here is believed until it is loaded
            _refuse_other_backbone(run, said, part)
    result["provenance"]["imported"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if origin and "origin" not in result["provenance"]:
        result["provenance"]["origin"] = origin

    place = Path(out) if out else store.runs_root() / run.name
    _refuse_taken(place)
    with store.new_folder(place.resolve(), fresh=True) as new:
        _copy(weights, new / "adapter" / found.name)
        for part in parts[1:]:
            _copy(part, new / "adapter" / part.relative_to(weights.parent))
        if found.name == PEFT:
            shutil.copyfile(weights.with_name("adapter_config.json"), new / "adapter" / "adapter_config.json")
        store.write_config(new, run)
        store.write_json(new / "result.json", result)
        store.write_state(new, state="done", step=run.optim.updates, updates=run.optim.updates, eta=None)
        if whole and "flavour" not in wanted:
            _take_answers(folder, run, new)
        store.write_text(new / "README.md", card(new, _typed(place)))
    return place


def missing(source: str | Path) -> tuple[Found, list[str]]:
    """What a LoRA's file says of itself, and what must be said of it to `import_`: some of family, flavour, task, n.

    Raises UserError for what is no adapter.
    """
    source = Path(source)
    if source.suffix == ".zip" and source.is_file():
        with unzipped(source) as folder:
            return missing(folder)
    weights = _incoming(source)
    found = read_lora(weights)
    if source.is_dir() and (source / "config.yaml").is_file():
        return found, []
    ours = found.notes.get("run")
    return found, [key for key in BARE if not (isinstance(ours, dict) and key in ours)]


@contextmanager
def unzipped(path: Path) -> Iterator[Path]:
    """A temporary folder with those files of a zip that are ever taken; a single folder around them is left out.

    Raises UserError for what is no zip, for names that lead out of it, links, a secret one, and one that would unpack to
    far more than it is.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with zipfile.ZipFile(path) as file:
                infos = [i for i in file.infolist() if not i.is_dir() and not i.filename.startswith("__MACOSX/")]
                _refuse_zip(path, infos)
                tops = {i.filename.partition("/")[0] for i in infos}
                inside = len(tops) == 1 and all("/" in i.filename for i in infos) and not tops & {"adapter", "clips"}
                names = {(i.filename.partition("/")[2] if inside else i.filename): i for i in infos}
                for name in _wanted(path.name, [*names]):
                    to = Path(scratch) / name
                    to.parent.mkdir(parents=True, exist_ok=True)
                    with file.open(names[name]) as packed, to.open("wb") as out:
                        shutil.copyfileobj(packed, out)
        except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, zlib.error) as error:
            raise UserError(f"{path}: is no zip that can be read, or cut off. Pack or copy it again.") from error
        yield Path(scratch)


def _refuse_zip(path: Path, infos: Sequence[zipfile.ZipInfo]) -> None:
    """What the table of contents of a zip gives away, before anything is unpacked. Nothing beyond the sizes it says is
    ever unpacked."""
    if len(infos) > ZIP_FILES:
        raise UserError(f"{path}: holds {len(infos)} files; an adapter with its answers has at most {ZIP_FILES}.")
    seen: set[str] = set()
    for info in infos:
        name = _printable(info.filename)[:60]
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(f"{path}: holds a link ({name}); pack the file itself.")
        if info.flag_bits & 1:
            raise UserError(f"{path}: is locked with a password. Pack it without one.")
        if info.filename in seen:
            raise UserError(f"{path}: holds {name} twice.")
        seen.add(info.filename)
    total = sum(info.file_size for info in infos)
    if total > min(ZIP_BYTES, ZIP_RATIO * path.stat().st_size + (1 << 20)):
        raise UserError(f"{path}: would unpack to {total / 1e6:,.0f} MB, which is no adapter's size.")


def _incoming(source: Path) -> Path:
    """The weights file of a folder, or the file itself; never a pickle."""
    refusal = "is pickled, and a pickle can run any code when it is opened. Ask for safetensors."
    if not source.exists():
        raise UserError(f"{source}: no such file or folder.")
    if source.is_file():
        if source.suffix in PICKLES:
            raise UserError(f"{source}: {refusal}")
        if source.suffix != ".safetensors":
            raise UserError(f"{source}: is no adapter. Give a folder, its .zip, or a .safetensors file.")
        return source
    for place in (source / "adapter", source):
        for name in PREFIX:
            if (place / name).is_file():
                return place / name
    for path in sorted(source.iterdir()):
        if path.suffix in PICKLES:
            raise UserError(f"{path}: {refusal}")
    raise UserError(f"{source}: holds no adapter, that is no {DIFFUSERS} and no {PEFT}.")


def read_lora(path: Path) -> Found:
    """Layout, rank, alpha and layers of a LoRA, from its safetensors header and the adapter_config.json beside it.

    Raises UserError for a damaged file, for keys that are no LoRA's, and for kinds of LoRA other than the plain one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is damaged or cut off. Copy it again.") from error
    name = next((n for n, prefix in PREFIX.items() if shapes and all(k.startswith(prefix) for k in shapes)), None)
    if name is None:
        strange = next((k for k in shapes if not k.startswith(tuple(PREFIX.values()))), "nothing")
        raise UserError(f"{path}: is no LoRA as diffusers or peft save it (it holds {strange}).")
    halves: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", key.removeprefix(PREFIX[name]))
        if not match or len(shape) != 2:
            raise UserError(f"{path}: {key} is no part of a plain LoRA of linear layers.")
        halves.setdefault(match[1], {})[match[2]] = shape
    for module, half in halves.items():
        if set(half) != {"A", "B"} or half["A"][0] != half["B"][1]:
            raise UserError(f"{path}: {module} lacks one of its two halves, or they do not fit each other.")
    ranks = {half["A"][0] for half in halves.values()}
    if len(ranks) > 1:
        raise UserError(f"{path}: has layers of rank {min(ranks)} and {max(ranks)}; a run has one rank.")
    with _damaged(path):
        settings = _settings(path, name, header)
        notes = json.loads(header.get("vdmreason", "{}"))
        alpha = settings.get("lora_alpha", *ranks)  # what diffusers takes where a file does not say
        if settings.get("r", *ranks) not in ranks:
            raise UserError(f"{path}: is of rank {min(ranks)}, but its settings say {settings['r']}.")
        if alpha != int(alpha):
            raise UserError(f"{path}: has alpha {alpha}; a run takes whole numbers.")
    modules = tuple(sorted(halves))
    sizes = tuple((halves[m]["B"][0], halves[m]["A"][1]) for m in modules)
    base = str(settings.get("base_model_name_or_path") or "")
    return Found(name, min(ranks), int(alpha), modules, notes if isinstance(notes, dict) else {}, sizes, base)


def _settings(path: Path, name: str, header: Mapping[str, str]) -> dict[str, Any]:
    """peft's settings: beside the weights, or where diffusers keeps them, in the file's own header."""
    if name == DIFFUSERS:
        kept = json.loads(header.get("lora_adapter_metadata", "{}"))
        settings = {k.removeprefix(PREFIX[name]): v for k, v in kept.items()}
    else:
        beside = path.with_name("adapter_config.json")
        settings = store.read_json(beside)
        if settings is None:
            raise UserError(f"{beside}: is missing; without it nobody knows the LoRA's alpha.")
        if settings.get("peft_type") != "LORA":
            raise UserError(f"{beside}: is a {settings.get('peft_type')}, not a LORA.")
    more = (
        "use_dora",
        "use_rslora",
        "use_qalora",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "layer_replication",
    )
    for key in more:
        if settings.get(key):
            raise UserError(f"{path}: is no plain LoRA ({key}), and only those are read.")
    return settings


def _exported(folder: Path, found: Found, wanted: Mapping[str, Any]) -> tuple[Run, dict[str, Any]]:
    """The run and the scores that a folder of ours carries."""
    path = folder / "result.json"
    keys, puzzles = _said(folder)
    own: dict[str, Any] = {key: str(keys.get(key)) for key in ("task", "test_task") if _own_file(str(keys.get(key)))}
    anew = {"flavour"} | ({"task"} & own.keys())
    strange = sorted(set(wanted) - anew)
    if strange:
        only = " and ".join(f"--{key}" for key in sorted(anew))
        raise UserError(f"--{strange[0]}: the folder's config.yaml says it already; only {only} may be said anew.")
    with config.said_of(folder / "config.yaml"):
        here = {key: _keep_puzzle(file) for key, file in puzzles.items() if key not in wanted}
        run = config.resolve(keys | here | {key: wanted[key] for key in own.keys() & wanted.keys()})
    said = dataclasses.replace(run, **own)  # under the name that the file had where it was made
    with _damaged(path):
        result = {k: v for k, v in (store.read_json(path) or {}).items() if k in RESULT}
        result["provenance"] = dict(result.get("provenance") or {})
    if result.get("id", said.id) != said.id:
        raise UserError(
            f"{path}: belongs to another run than config.yaml. Delete it, or import the folder it came from."
        )
    if own:  # the same puzzle by its content, wherever it lies
        now = {"data": store.data_hash(config.train_examples(run))}
        store.refuse_other(folder, {"data": result["provenance"].get("data")}, now)
    if "flavour" in wanted:  # another run by its id; the backbone's fingerprint says whether the weights are the same
        made = result["provenance"] | {"adapter_of": run.id}
        run = config.resolve(config.to_dict(run), [f"flavour={json.dumps(wanted['flavour'])}"])
        return run, {"provenance": made | {"run": run.id}}
    return run, _renamed(result, said, run)


def _keep_puzzle(file: Path) -> str:
    """Keep a puzzle that came along where drawn ones lie, by the hash of its content as they do; the name of its task."""
    tasks.get(f"arc:{file}")  # refused here, before it is anywhere
    kept = store.runs_root() / "drawn" / f"{sha256(file)[:16]}.json"
    if not kept.is_file():
        with store.new_file(kept) as temporary:
            shutil.copyfile(file, temporary)
    return tasks.get(f"arc:{kept}").name


def _bare(weights: Path, found: Found, wanted: Mapping[str, Any]) -> tuple[Run, dict[str, Any]]:
    """The run that a LoRA without a config belongs to: as its own notes say where we made it, and as `wanted` says."""
    ours = found.notes.get("run")
    tree: dict[str, Any] = dict(ours) if isinstance(ours, dict) else {}
    tree |= wanted
    lacking = [f"--{key}" for key in BARE if key not in tree]
    if lacking:
        example = "--family causal_lm --flavour Qwen/Qwen3-4B-Instruct-2507 --task maze/7x7 --n 30"
        raise UserError(f"{weights}: says not what it is for ({', '.join(lacking)}). Say it, such as {example}.")
    layers = _kinds(tree["family"], found, weights)
    tree["lora"] = {**(tree.get("lora") or {}), "rank": found.rank, "alpha": found.alpha}
    if layers:
        tree["lora"]["targets"] = layers
    if tree.get("init") == "random" and "init" not in (ours or {}):
        raise UserError(f"{weights}: nobody knows from which random weights.")
    if not ours:
        tree["note"] = ELSEWHERE
    run = config.resolve(tree)
    if ours:
        made = {"run": run.id, "backbone": found.notes.get("backbone"), "libraries": found.notes.get("versions")}
        return run, {"provenance": made}
    return run, {"provenance": {"run": run.id, "origin": ELSEWHERE}}


def _arm(family: str) -> type[Arm]:
    """A family's arm, read without loading torch."""
    module = adapters.family(family)
    arms = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Arm) and hasattr(c, "layout")]
    return next((c for c in arms if c.__module__ == module.__name__), arms[-1])


def _kinds(family: str, found: Found, weights: Path) -> list[str]:
    """Which kinds of layers a LoRA adapts, by the family's names for them; [] where only the loaded backbone knows them."""
    targets, kinds = getattr(_arm(family), "targets", {}), set()
    for module in found.modules if targets else ():
        kind = next((k for k, names in targets.items() if f".{module}".endswith(tuple(f".{n}" for n in names))), None)
        if kind is None:
            names = ", ".join(n for k in targets.values() for n in k)
            raise UserError(f"{weights}: adapts {module}, and a LoRA of {family} those named {names}.")
        kinds.add(kind)
    return [kind for kind in targets if kind in kinds]


def _refuse_misfit(run: Run, found: Found, weights: Path) -> None:
    layout = DIFFUSERS if _arm(run.family).layout == "diffusers" else PEFT
    if found.name != layout:
        raise UserError(f"{weights}: is laid out as {found.name}, but family {run.family} reads {layout}.")
    kinds = _kinds(run.family, found, weights) or list(run.lora.targets)
    if (found.rank, found.alpha, set(kinds)) != (run.lora.rank, run.lora.alpha, set(run.lora.targets)):
        said = f"rank {run.lora.rank}, alpha {run.lora.alpha} on {' and '.join(run.lora.targets)}"
        raise UserError(
            f"{weights}: is of rank {found.rank}, alpha {found.alpha} on {' and '.join(kinds)}, but its run says {said}."
        )


def _refuse_other_backbone(run: Run, found: Found, weights: Path) -> None:
    """A LoRA that names another backbone, or whose layers are not those of the backbone that lies here."""
    hub = _hub_id(run)
    if hub and "/" in found.base and not Path(found.base).is_absolute():
        if found.base.rpartition("/")[2].lower() != hub.rpartition("/")[2].lower():  # mirrors keep the last part
            raise UserError(
                f"{weights}: was made for {_printable(found.base)[:80]}, not for {hub}. Say its own --flavour."
            )
    here = Path(config.flavour_of(run).base)
    second = weights.parent.name == SECOND
    place = here / (SECOND if second else "transformer") if found.name == DIFFUSERS else here
    if not config.flavour_of(run).base or not place.is_dir():
        return
    layers = _layers(place)
    for module, size in zip(found.modules, found.sizes, strict=True):
        known = layers.get(".".join(module.split(".")[-4:]))
        if known and size not in known:
            out, wide = size
            fits = " or ".join(f"{a} x {b}" for a, b in sorted(known))
            raise UserError(
                f"{weights}: was made for another backbone than {_base(run)}: {module} is {out} x {wide} there, here {fits}."
            )
        if not known and _ships(run):
            raise UserError(f"{weights}: was made for another backbone than {_base(run)}, which has no {module}.")


def _layers(place: Path) -> dict[str, set[tuple[int, int]]]:
    """The sizes of a backbone's linear layers by the last parts of their names, from its safetensors headers. Wrappers put
    parts before a name, never behind it."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, set[tuple[int, int]]] = {}
    for path in sorted(place.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                for key in file.keys():
                    shape = file.get_slice(key).get_shape()
                    if key.endswith(".weight") and len(shape) == 2:
                        name = ".".join(key.removesuffix(".weight").split(".")[-4:])
                        found.setdefault(name, set()).add((shape[0], shape[1]))
        except (SafetensorError, OSError):
            continue  # a backbone that cannot be read is said so when it is loaded
    return found


def names_a_clip_elsewhere(record: Mapping[str, Any]) -> bool:
    """Whether an answer's clip is said to lie outside its run's folder."""
    return str(record["raw"]).endswith(".webp") and not CLIP.fullmatch(record["raw"])


def _take_answers(folder: Path, run: Run, new: Path) -> None:
    """Answers that came along, to the questions of this run and scored again here: nobody has to believe the file."""
    path = folder / "predictions.jsonl"
    records = store.read_lines(path)
    if not records:
        return
    from vdmreason import evaluate

    with _damaged(path):
        asked = [(e.key, e.question.tolist(), e.answer.tolist()) for e in config.test_examples(run)]
        for record in records:
            if names_a_clip_elsewhere(record):
                raise UserError(f"{path}: names a clip outside its folder ({_printable(record['raw'])[:60]}).")
            i, answered = record["i"], (record["key"], record["question"], record["answer"])
            if i not in range(len(asked)) or answered != asked[i] or record.get("views", 1) != run.votes:
                raise UserError(f"{path}: answers other questions than the config.yaml beside it asks. Delete it.")
        _copy_answers(folder, new)
        evaluate.evaluate(new)


# ---------------------------------------------------------------------------------------------------------------------
# The hub


def push(folder: str | Path, repo: str, private: bool = False, answers: bool = False) -> str:
    """Put a run's adapter on the hub as `owner/name`, as `export` writes it; returns its address.

    What an earlier push of this run left there and this one has not, such as answers, goes in the same commit. Raises UserError
    without a login, without a network, without the right to write there, where `private` is wanted of a repository that is
    public already, and where another run's adapter is there.

        push("runs/maze-7x7--cogvideox--n30--s0--ab12cd", "me/maze-lora", private=True)
    """
    from huggingface_hub import get_token

    _refuse_name(repo)
    weights_of(Path(folder))
    if not get_token():
        raise UserError("Nobody is logged in to the hub. Log in first: hf auth login")
    with tempfile.TemporaryDirectory() as scratch, _hub_errors(repo):
        made = export(folder, Path(scratch) / repo.partition("/")[2], answers, hub=repo)
        api = _api()
        url = api.create_repo(repo, private=private, exist_ok=True)
        info = api.model_info(repo)
        if private and not info.private:
            raise UserError(
                f"{repo}: is there already and public. Take another name, or make it private on the hub first."
            )
        there = [sibling.rfilename for sibling in info.siblings or [] if TAKEN.fullmatch(sibling.rfilename)]
        if "config.yaml" in there:
            place = Path(scratch) / "there"
            api.hf_hub_download(repo, "config.yaml", revision=info.sha, local_dir=place)
            _refuse_other_run(repo, place / "config.yaml", made / "config.yaml")
        message = f"Adapter of run {travelling(run_of(made)).id}"
        api.upload_folder(repo_id=repo, folder_path=made, commit_message=message, delete_patterns=there or None)
    return str(url)


def _refuse_other_run(repo: str, there: Path, made: Path) -> None:
    """Refuse a repository whose config says another run than that which is to go there. Both are compared as they are written:
    a puzzle of its own need not be on this machine. What an earlier version did not write is believed to be the same."""
    try:
        theirs, mine = (config.flat(config.read_yaml(path, "", "")[1]) for path in (there, made))
        other = [
            key
            for key, value in theirs.items()
            if value != mine.get(key)
            and key.split(".")[0] not in config.NOT_IDENTITY
            and key != config.CUT
            # Before puzzles and folders were told by their last part, their places were written down.
            and not (key in ("task", "test_task", "flavour") and re.match(r"(arc:)?[/~]", str(value)))
        ]
    except UserError:
        other = ["config.yaml"]
    if other:
        differ = f"{', '.join(other[:3])} {'differs' if len(other) == 1 else 'differ'}"
        raise UserError(
            f"{repo}: holds another run's adapter ({differ}). Take another name, or delete that one on the hub first."
        )


def logged_in() -> bool:
    """Whether there is a token for the hub on this machine."""
    from huggingface_hub import get_token

    return bool(get_token())


def pull(repo: str, out: str | Path | None = None, given: Mapping[str, Any] | None = None) -> Path:
    """Fetch an adapter from the hub and make it a run's folder, as `import_` does; returns that.

    `repo` is "owner/name", or "owner/name@revision" for a branch, a tag or a commit. Only files of known names are fetched,
    never a pickle. Raises UserError as `import_` does, without a network, for a repository that is not there or not open to
    this login, and for one with names that lead out of its folder.

        pull("me/maze-lora")
    """
    repo, _, revision = repo.partition("@")
    _refuse_name(repo)
    if revision and not re.fullmatch(r"[\w./-]{1,200}", revision):
        raise UserError(f"{repo}: {_printable(revision)[:60]} is no name of a revision.")
    if out:
        _refuse_taken(Path(out))
    with tempfile.TemporaryDirectory() as scratch:
        with _hub_errors(repo):
            api = _api()
            info = api.model_info(repo, revision=revision or None)
            wanted = _wanted(repo, [sibling.rfilename for sibling in info.siblings or []])
            api.snapshot_download(repo, revision=info.sha, local_dir=scratch, allow_patterns=wanted)
        return import_(scratch, out, given, origin=f"{repo}@{info.sha}")


def _wanted(repo: str, names: Sequence[str]) -> list[str]:
    """The names to fetch, out of those that a hub offers."""
    for name in names:
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or ":" in name or not name.isprintable():
            raise UserError(f"{repo}: offers a file named {_printable(name)[:60]}, which may lead out of its folder.")
    wanted = [name for name in names if TAKEN.fullmatch(name)]
    if not any(name.endswith(".safetensors") for name in wanted):
        pickled = next((name for name in names if name.endswith(PICKLES)), None)
        why = f"its weights are pickled ({pickled})" if pickled else f"it has no {DIFFUSERS} and no {PEFT}"
        raise UserError(f"{repo}: holds no adapter that can be read: {why}.")
    return wanted


def _api() -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))  # read now, not when the library was imported


def _refuse_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo}: is no name on the hub; it looks like owner/name.") from error
    if repo.count("/") != 1:
        raise UserError(f"{repo}: must look like owner/name.")


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """What the hub refuses or does not hear, as one line that says what to do."""
    from huggingface_hub import errors

    login = "Log in first (hf auth login), with a token that has the right to it."
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"{repo}: wants a login. {login}") from error
    except errors.GatedRepoError as error:
        raise UserError(f"{repo}: wants its licence accepted, on its page on the hub. {login}") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repo}: has no such revision. Give a branch, a tag or a commit of it.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{repo}: is not on the hub, or not open to this login. Check the name; else: hf auth login"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(f"{repo}: the hub refuses ({status}). {login}") from error
        raise UserError(f"{repo}: the hub answers {status}: {' '.join(str(error).split())[:200]}") from error
    except (errors.HTTPError, ConnectionError, errors.LocalEntryNotFoundError) as error:  # of its own HTTP library
        raise UserError(
            f"{repo}: the hub cannot be reached (no network, or HF_HUB_OFFLINE is set). Try again where there is one, or "
            "carry the folder: vdmreason adapters export"
        ) from error


# ---------------------------------------------------------------------------------------------------------------------
# What is here


@dataclass(frozen=True)
class Entry:
    """An adapter that is here."""

    folder: Path
    run: Run
    exact: Mapping[str, float] | None  # {"value", "low", "high"}; None: not scored yet
    bytes: int  # of the weights


def listing(*roots: str | Path) -> tuple[list[Entry], list[str]]:
    """Every adapter under `roots` (default: those that ship, and runs/), and a line for each folder that cannot be read."""
    found, faults = [], []
    for folder in sorted(store.find_runs(*(roots or (zoo(), store.runs_root())))):
        if not store.whole_folder(folder / "adapter") and not any((folder / name).is_file() for name in PREFIX):
            continue  # a run that has not come so far
        try:
            result, weights = store.read_json(folder / "result.json") or {}, weights_of(folder)
            with _damaged(folder / "result.json"):
                scores = result.get("scores")
                exact = {k: float(scores["exact"][k]) for k in ("value", "low", "high")} if scores else None
            found.append(Entry(folder, run_of(folder), exact, sum(p.stat().st_size for p in parts_of(weights))))
        except UserError as error:
            faults.append(str(error))
    return found, faults


def known_families(name: str | None) -> None:
    """Refuse a family that is not here, before anything is read."""
    if name is not None and name.replace("-", "_") not in adapters.families():
        raise UserError(f"--family {name}: unknown.{suggest(name, adapters.families())}")
