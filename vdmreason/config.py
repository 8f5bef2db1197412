"""A run: a frozen, typed, validated and hashed description of one trial, with YAML both ways.

A config names only what differs from the defaults. `resolve` fills in the rest, in this order of strength:
the dataclass defaults below, then the flavour's own defaults (a published protocol, a learning rate that suits a
small backbone), then the file, then `--set` overrides. What was filled in is visible in the resolved YAML.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

import adapters.base
import tasks
from adapters.base import Flavour, Lora
from tasks import augment
from tasks.base import Example, Split, Task, UserError, suggest

#: Keys that say how a run is watched or kept, not what it computes. Two runs that differ only here have one id.
NOT_IDENTITY = ("note", "checkpoint_every", "preview_every", "previews", "speed")
CUT = "optim.micro_batch"  # nor is how a batch is cut, which changes nothing beyond rounding
#: Keys that came later. At their defaults they leave a run what it was before they came, and so its id. A family's options
#: say so of themselves: `field(metadata={"later": True})`.
LATER = ("augment", "votes", "far_from", "test_task", "quantise")


#: What two arms must share to be compared ("What keeps it fair" in docs/architecture.md). Rates are each family's own.
BUDGET = (
    "n", "seed", "augment", "votes", "test_task", "far_from", "quantise", "optim.updates", "optim.batch",
    "lora.rank", "lora.targets",
)  # fmt: skip


@dataclass(frozen=True)
class Optim:
    """AdamW and its schedule. The same for both arms."""

    lr: float = 1e-3  # peak learning rate
    updates: int = 300  # optimiser updates
    batch: int = 16  # effective batch: examples an update, over all processes and micro-batches
    micro_batch: int | None = None  # examples a forward pass on one process; none: the whole share of the process
    warmup: int = 10  # updates of linear warm-up
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up; the last two end at 0
    weight_decay: float = 0.01  # AdamW's, decoupled
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's
    clip: float = 1.0  # largest gradient norm; 0: no clipping

    def __post_init__(self) -> None:
        _require(self.lr > 0, "optim.lr", "must be larger than 0", self.lr)
        _require(self.updates >= 1, "optim.updates", "must be at least 1", self.updates)
        _require(self.batch >= 1, "optim.batch", "must be at least 1", self.batch)
        if self.micro_batch is not None:
            _require(self.micro_batch >= 1, "optim.micro_batch", "must be at least 1", self.micro_batch)
            fits = self.micro_batch <= self.batch and self.batch % self.micro_batch == 0
            _require(fits, "optim.micro_batch", f"must divide optim.batch ({self.batch})", self.micro_batch)
        _require(self.warmup >= 0, "optim.warmup", "must be 0 or more", self.warmup)
        _require(self.weight_decay >= 0, "optim.weight_decay", "must be 0 or more", self.weight_decay)
        _require(all(0 <= b < 1 for b in self.betas), "optim.betas", "must lie in 0..1, without 1", self.betas)
        _require(self.clip >= 0, "optim.clip", "must be 0 (off) or more", self.clip)


@dataclass(frozen=True)
class Speed:
    """How fast, and in how little memory. No part of a run's identity: it changes nothing beyond rounding."""

    compile: Literal["auto", "on", "off"] = "auto"  # the blocks, each by itself; auto: on a GPU, from 100 updates on
    checkpointing: Literal["auto", "on", "off"] = "auto"  # compute activations twice; auto: where nothing else fits
    shard: bool = False  # FSDP2: the frozen weights lie in parts over the processes, for what one device cannot hold


@dataclass(frozen=True)
class Run:
    """One trial: one task, n examples, one arm, one seed."""

    task: str  # "maze/7x7", "arc1/evaluation/00d62c1b"; `vdmreason tasks list` shows them
    n: int  # training examples; left out, all of them where a task is finite (an ARC puzzle's demos)
    family: str  # a file in adapters/: "cogvideox", "causal_lm"
    seed: int = 0  # names the examples, their order, the LoRA initialisation and the noise
    flavour: str = "small"  # the backbone: small (ships), a hub id, or a folder in the same layout
    init: Literal["pretrained", "random"] = "pretrained"  # "random": the control with the same, untrained backbone
    lora: Lora = field(default_factory=Lora)
    optim: Optim = field(default_factory=Optim)
    options: Mapping[str, Any] = field(default_factory=dict)  # the family's own `Options`, as plain values
    test: int = 100  # test examples; left out, all of them where a task is finite
    augment: int = 1  # views of each training example to learn from, the plain one first: turns, renamed colours
    votes: int = 1  # views under which each test question is answered; the answers are turned back and vote
    test_task: str = ""  # another task to be tested on: maze/21x21 where task is maze/13x13; "": the same
    far_from: int = 0  # test examples lie as far as published from each of so many training examples; 0: no matter
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where a GPU has it; the optimiser keeps fp32
    quantise: Literal["none", "nf4", "int8"] = "none"  # the frozen weights of the blocks in 4 or 8 bits (bitsandbytes)
    speed: Speed = field(default_factory=Speed)
    checkpoint_every: int = 100  # updates between checkpoints
    preview_every: int = 0  # updates between previews on a few fixed test examples; 0: none
    previews: int = 4  # how many of them
    note: str = ""  # for people

    def __post_init__(self) -> None:
        _require(self.n >= 1, "n", "must be at least 1", self.n)
        _require(self.seed >= 0, "seed", "must be 0 or more", self.seed)
        _require(self.test >= 1, "test", "must be at least 1", self.test)
        _require(self.augment >= 1, "augment", "must be at least 1", self.augment)
        _require(self.votes >= 1, "votes", "must be at least 1", self.votes)
        far = self.far_from == 0 or self.far_from >= self.n
        _require(far, "far_from", f"must be 0 (off) or at least n ({self.n})", self.far_from)
        _require(self.checkpoint_every >= 1, "checkpoint_every", "must be at least 1", self.checkpoint_every)
        _require(self.preview_every >= 0, "preview_every", "must be 0 (off) or more", self.preview_every)
        _require(self.previews >= 1, "previews", "must be at least 1", self.previews)
        lora = self.lora
        _require(lora.rank >= 1, "lora.rank", "must be at least 1", lora.rank)
        _require(lora.alpha > 0, "lora.alpha", "must be larger than 0", lora.alpha)
        _require(0 <= lora.dropout < 1, "lora.dropout", "must lie in 0..1, without 1", lora.dropout)
        _require(bool(lora.targets), "lora.targets", "must name at least one of attention, mlp", list(lora.targets))
        for target in lora.targets:
            known = target in ("attention", "mlp")
            _require(known, "lora.targets", f"knows attention and mlp.{suggest(target, ('attention', 'mlp'))}", target)

    @cached_property
    def id(self) -> str:
        """12 hex digits over everything that changes the outcome; equal ids are the same experiment."""
        content = {key: value for key, value in to_dict(self).items() if key not in NOT_IDENTITY}
        content["optim"]["micro_batch"] = None
        content = {k: v for k, v in content.items() if k not in LATER or v != Run.__dataclass_fields__[k].default}
        kinds = dataclasses.fields(adapters.family(self.family).Options)
        later = {f.name: _plain(f.default) for f in kinds if f.metadata.get("later")}
        content["options"] = {k: v for k, v in content["options"].items() if k not in later or v != later[k]}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @cached_property
    def training_id(self) -> str:
        """12 hex digits over what a training is made of: runs with equal ones end in the same adapter and ask it otherwise."""
        plain: dict[str, Any] = {"votes": 1, "test": 1, "test_task": "", "far_from": 0}
        options = {key: value for key, value in self.options.items() if f"options.{key}" not in self.asked}
        fixed = {key: value for key, value in plain.items() if key in self.asked}
        return dataclasses.replace(self, options=options, **fixed).id

    @property
    def asked(self) -> tuple[str, ...]:
        """The keys that may change after training: how and what an adapter is asked. A family's `Options.asked` names its own."""
        own = (f"options.{name}" for name in getattr(adapters.family(self.family).Options, "asked", ()))
        # Of several views a training leaves out those that are tests, so that what is tested is part of it.
        return ("votes", *(() if self.augment > 1 else ("test", "test_task", "far_from")), *own)

    @property
    def tested(self) -> str:
        """The task that test examples come from and are scored by."""
        return self.test_task or self.task

    @property
    def name(self) -> str:
        """A folder name a person can read: "maze-7x7--cogvideox--n30--s0--ab12cd"."""
        arm = self.family + ("-random" if self.init == "random" else "")
        return "--".join([slug(self.task), arm, f"n{self.n}", f"s{self.seed}", self.id[:6]])

    def arm_options(self) -> Any:
        """`options` as the family's own frozen `Options`."""
        return _build(adapters.family(self.family).Options, self.options, "options")


def train_examples(run: Run) -> list[Example]:
    """What a run learns from, before any views: its n examples."""
    return _room_to_turn(run, tasks.examples(run.task, "train", run.n, run.seed))


def learned_examples(run: Run) -> list[Example]:
    """Those under each of the run's views: what the loop draws from. The plain ones come first; a view that is a test pair, or
    that a view of a test pair is, is left out (a turned demonstration of arc1/training/4522001f is its test). A plain one that is
    so stays: it is one of the n."""
    examples, task = train_examples(run), tasks.get(run.task)
    views = augment.views(task, run.augment, run.seed)
    if len(views) == 1:
        return examples
    tested = {augment.twin_of_any(task, example) for example in test_examples(run)}
    turned = [example for example in examples if augment.twin_of_any(task, example) not in tested]
    return examples + [view.example(example) for view in views[1:] for example in turned]


def test_examples(run: Run, n: int | None = None) -> list[Example]:
    """The first n of what a run is tested on; all of `run.test` if left out."""
    others = tasks.examples(run.task, "train", run.far_from, run.seed) if run.far_from else []
    return _room_to_turn(run, tasks.examples(run.tested, "test", run.test if n is None else n, run.seed, others))


def _room_to_turn(run: Run, examples: list[Example]) -> list[Example]:
    """On a square canvas where learned views turn by a quarter: pictures of one batch are of one size. (What is asked is answered
    canvas by canvas, so that `votes` has no part in a training.)"""
    if not any(view.across for view in augment.views(tasks.get(run.task), run.augment, run.seed)):
        return examples
    return [dataclasses.replace(e, canvas=(max(e.canvas), max(e.canvas))) for e in examples]


def slug(text: str) -> str:
    """`text` with what a file name cannot hold replaced by "-": "maze/7x7" -> "maze-7x7"."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text).strip("-.")


def named_seed(*names: object) -> int:
    """A 63-bit seed from its name: independent streams with random access, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


# ---------------------------------------------------------------------------------------------------------------------
# Mappings and YAML


def resolve(given: Mapping[str, Any], overrides: Sequence[str] = ()) -> Run:
    """The full run that `given` (nested plain values) and `overrides` ("optim.lr=1e-3") describe.

    Raises UserError for an unknown key (with a suggestion), a wrong type, a value out of range, an unknown task,
    family or flavour, and an n larger than the task can give. Needs no torch.
    """
    tree = _tree(given)
    for text in overrides:
        _set(tree, text)
    _refuse_unknown(Run, tree, "")
    for key in ("task", "family"):
        if not isinstance(tree.get(key), str):
            raise UserError(
                f"{key}: is missing. A run names its task and its family, by --set {key}=... or in a file. What may be said: "
                "vdmreason train --keys"
            )

    # It was resolved before, and says every key.
    whole = {"lora", "optim", "options", "precision", "note"} <= given.keys()
    module = adapters.family(tree["family"])
    tree["family"] = tree["family"].replace("-", "_")  # causal-lm and causal_lm are one family
    flavour = adapters.base.flavour(module, str(tree.setdefault("flavour", "small")))
    tree = merge(nested(flavour.defaults), tree)
    # A name with a slash that was resolved before is read as it stands, for its id is known by now.
    stands = whole and "/" in flavour.name and given.get("flavour") == flavour.name
    if flavour.name not in module.FLAVOURS and not stands and _looks_elsewhere_like_a_hub_id(flavour.name):
        tree["flavour"] = f"./{flavour.name}"  # a folder here, which a reader elsewhere has to know for one
    task = tasks.get(tree["task"])
    tree["task"] = task.name  # a file's path and a rule's nickname become the name that everyone else uses
    tree["n"] = _examples_wanted(task, "train", "n", tree.get("n"), default=None)
    if tree.get("test_task"):
        with _at("test_task"):
            tree["test_task"] = tasks.get(str(tree["test_task"])).name
        if tree["test_task"] == task.name:
            tree["test_task"] = ""
    tested = tasks.get(tree.get("test_task") or task.name)
    tree["test"] = _examples_wanted(tested, "test", "test", tree.get("test"), default=Run.test)
    for key in ("augment", "votes"):
        if isinstance(count := tree.get(key, 1), int):
            with _at(key):
                augment.views(task if key == "augment" else tested, count)
    if tree.get("far_from"):
        if tested.apart is None:
            raise UserError(f"far_from: for {tested.name} no distance between training and test was published.")
        _examples_wanted(task, "train", "far_from", tree["far_from"], default=None)
        if task.space is not None and tree["far_from"] > task.space:
            raise UserError(f"far_from: {task.name} has {task.space} puzzles in all, not {tree['far_from']}.")

    run = _build(Run, tree, "")
    # The family's options with their defaults filled in, as plain values, so that the resolved file shows all of them.
    options = _plain(dataclasses.asdict(run.arm_options()))
    if (canvas := options.get("canvas")) and not whole:
        _refuse_canvas(canvas, "augment", task, run)
        _refuse_canvas(canvas, "votes", tested, run)
    return dataclasses.replace(run, options=options)


def _refuse_canvas(canvas: Sequence[int], key: str, task: Task, run: Run) -> None:
    """A picture of one size has to hold a puzzle that lies on its side, too: else the answers fail when the training is over."""
    if any(view.across for view in augment.views(task, getattr(run, key), run.seed)):
        side = max(tasks.examples(task, "train", 1)[0].canvas)
        if side > min(canvas):
            raise UserError(
                f"options.canvas: {canvas[0]}x{canvas[1]} cells do not hold {task.name} turned by a quarter, as {key} does; "
                f"make both sides {side} or more, or leave {key} out."
            )


def _looks_elsewhere_like_a_hub_id(name: str) -> bool:
    """Whether a backbone that is a folder here is written as hub ids are."""
    return "/" not in name or (not name.startswith((".", "/", "~")) and Path(name).is_dir())


MOST = 100_000  # values that a YAML file may say, those that its aliases repeat counted each time
DEEPEST = 50  # lists in lists: the reader in C ends the process some thousands down

if typing.TYPE_CHECKING:
    _Safe = yaml.SafeLoader
else:  # the one in C, where it is built: a report reads hundreds of configs
    _Safe = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Loader(_Safe):
    """Safe YAML in which no key stands twice, of which the first would be lost, and which repeats itself only so much.

    Both are asked of the text as it was written, before a merge (`<<`) puts its keys beside those that overrule them.
    """

    depth = 0

    def descend_resolver(self, current_node: Any, current_index: Any) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise UserError(f"lists or keys are nested more than {DEEPEST} deep.")
        super().descend_resolver(current_node, current_index)

    def ascend_resolver(self) -> None:
        self.depth -= 1
        super().ascend_resolver()

    def construct_document(self, node: yaml.Node) -> Any:
        if _values(node, {}) > MOST:
            raise UserError("repeats itself into more than a run or a sweep could say. Write fewer aliases (*name).")
        return super().construct_document(node)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """010 is ten, as everywhere but in YAML 1.1, which reads it as eight."""
        plain = re.fullmatch(r"([-+]?)0+([0-9_]+)", node.value)
        return (
            int(plain[1] + digits)
            if plain and (digits := plain[2].replace("_", ""))
            else super().construct_yaml_int(node)
        )


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node says, by the number of each that is counted: of what an alias names, again. Raises UserError for a
    key that stands twice."""
    if id(node) not in known:
        known[id(node)] = MOST + 1  # while it is counted: what holds itself never ends
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(node)
            inner = [part for pair in node.value for part in pair]
        else:
            inner = node.value if isinstance(node, yaml.SequenceNode) else []
        known[id(node)] = 1 + sum(_values(part, known) for part in inner)
    return known[id(node)]


def _refuse_twice(mapping: yaml.MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        if (key.tag, key.value) in seen:
            line = key.start_mark.line + 1
            raise UserError(f"{key.value}: stands twice in the same place, here in line {line}. Take one of them out.")
        seen.add((key.tag, key.value))


def read_yaml(path: Path, where: str, least: str) -> tuple[str, dict[str, Any]]:
    """A YAML file's text and its keys. Raises UserError when it is missing (`where` says what to give), and as `keys_of` does."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. {where}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not YAML: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return text, keys_of(text, str(path), least)


# What reading raises: also for a date or a number that is none.
NO_YAML = (yaml.YAMLError, ValueError, RecursionError)


def keys_of(text: str, name: str, least: str) -> dict[str, Any]:
    """The keys of a YAML text. Raises UserError, which begins with `name`, where it is no YAML, or holds no keys (`least` says
    which it needs)."""
    given = value_of(text, name)
    if not isinstance(given, dict):
        raise UserError(f"{name}: holds no keys. {least}")
    return given


def value_of(text: str, name: str) -> Any:
    """What a YAML text says. Raises UserError, which begins with `name`, where it is no YAML."""
    try:
        return yaml.load(text, Loader)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except NO_YAML as error:
        raise UserError(f"{name}: is not YAML: {' '.join(str(error).split())}") from None


def flavour_of(run: Run) -> Flavour:
    """A run's backbone: one of its family's by name, or any other in the same layout."""
    return adapters.base.flavour(adapters.family(run.family), run.flavour)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """The run in a YAML file. Raises UserError when the file is missing, is no YAML, or describes no valid run."""
    path = Path(path)
    _, given = read_yaml(
        path, "Give --config a YAML file, such as a run's config.yaml.", "A run needs at least task, n and family."
    )
    try:
        return resolve(given, overrides)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def to_dict(run: Run) -> dict[str, Any]:
    """The run as plain nested values (tuples become lists), in the order of the fields."""
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(run)))


def to_yaml(run: Run) -> str:
    """The resolved run as YAML; `resolve(yaml.safe_load(to_yaml(run))) == run`."""
    # ASCII only: YAML reads some bare characters, such as NEL, as line breaks
    return yaml.safe_dump(to_dict(run), sort_keys=False, default_flow_style=None, allow_unicode=False, width=120)


def differences(old: Run, new: Run) -> list[str]:
    """What makes two runs different experiments, one line a key: "optim.lr: 0.001 -> 0.01"."""
    before, after = flat(to_dict(old)), flat(to_dict(new))
    keys = [k for k in dict.fromkeys([*before, *after]) if k.split(".")[0] not in NOT_IDENTITY and k != CUT]
    return [f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k)]


def keys(overrides: Sequence[str] = ()) -> list[tuple[str, Any, str]]:
    """(dotted key, default, what it is) of all that a run may say, from the comments beside the fields. With a family
    ("family=wan") its options are among them, and the defaults are those of its flavour. Raises UserError for unknown ones."""
    given: dict[str, Any] = {}
    for text in overrides:
        _set(given, text)
    found = _described(Run, "")
    if family := given.get("family"):
        module = adapters.family(str(family))
        found = [row for row in found if row[0] != "options"] + _described(module.Options, "options")
        own = flat(nested(adapters.base.flavour(module, str(given.get("flavour", "small"))).defaults))
        found = [(key, own.get(key, default), about) for key, default, about in found]
    return found


def _described(cls: Any, path: str) -> list[tuple[str, Any, str]]:
    """The fields of a dataclass, and of those that it holds."""
    comments: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        above: list[str] = []
        for line in inspect.getsource(base).splitlines():
            if match := re.match(r" {4}(\w+): .*?(?:  # (.*))?$", line):
                comments[match[1]] = match[2] or " ".join(above)
            above = [*above, line.strip("# ")] if line.strip().startswith("#") else []
    rows: list[tuple[str, Any, str]] = []
    for one in dataclasses.fields(cls):
        default = one.default if one.default is not dataclasses.MISSING else None
        if one.default_factory is not dataclasses.MISSING:
            default = one.default_factory()
        where = _join(path, one.name)
        if dataclasses.is_dataclass(default):
            rows += _described(type(default), where)
        else:
            rows.append((where, _plain(default), comments.get(one.name, "")))
    return rows


def changes(cls: Any, overrides: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """What overrides such as "momentum=0.999" say of the fields `known` of a dataclass, as these fields' types.

    Raises UserError for another key (with a suggestion) and a wrong type.
    """
    tree: dict[str, Any] = {}
    for text in overrides:
        _set(tree, text)
    for key in tree:
        if key not in known:
            raise UserError(f"{key}: cannot be set.{suggest(key, known)} What can: {', '.join(known)}.")
    hints = typing.get_type_hints(cls)
    return {key: _convert(value, hints[key], key) for key, value in tree.items()}


def described(cls: Any, known: Sequence[str]) -> list[tuple[str, Any, str]]:
    """(key, default, what it is) of the fields `known` of a dataclass."""
    return [row for row in _described(cls, "") if row[0] in known]


def budget(run: Run) -> dict[str, Any]:
    """What the run says of each key of BUDGET."""
    values = flat(to_dict(run))
    return {key: values[key] for key in BUDGET}


def told_apart(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each of these runs, as plain values, in what it differs from others that a table would call the same: ", steps 1"."""
    named = ("task", "n", "family", "flavour", "init", "test_task")
    hidden = (*named, "seed", "augment", "votes", "far_from", *NOT_IDENTITY)
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    trees = [flat(run) for run in runs]
    for tree in trees:
        groups.setdefault(tuple(tree.get(key) for key in named), []).append(tree)
    said = []
    for tree in trees:
        peers = groups[tuple(tree.get(key) for key in named)]
        apart = [key for key in tree if any(peer.get(key) != tree[key] for peer in peers)]
        keys = [key for key in apart if key != CUT and key.split(".")[0] not in hidden]
        said.append("".join(f", {key.rpartition('.')[2]} {tree[key]}" for key in keys))
    return said


# ---------------------------------------------------------------------------------------------------------------------
# From plain values to dataclasses


def _require(holds: bool, path: str, rule: str, value: object) -> None:
    if not holds:
        raise UserError(f"{path}: {rule}, but it is {value!r}.")


@contextmanager
def said_of(name: str | Path) -> Iterator[None]:
    """Begin whatever a person can fix with the name of the file or the key that it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


@contextmanager
def _at(path: str) -> Iterator[None]:
    """Name the key in whatever a person can fix."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}.") from None


def _examples_wanted(task: Task, split: Split, key: str, given: object, default: int | None) -> int:
    """A number of examples checked against the task: left out or "all", a finite task gives all it has."""
    finite = tasks.count(task, split)
    if given is None or given == "all":
        number = default if finite is None else finite
        if number is None:
            raise UserError(f"{key}: is missing. {task.name} makes any number of examples; say how many, as {key}: 30.")
        return number
    wanted: int = _convert(given, int, key)
    if finite is not None and wanted > finite:
        raise UserError(f"{key}: {task.name} has {finite} {split} examples, not {wanted}. Leave {key} out to take all.")
    return wanted


def _build(cls: Any, given: object, path: str) -> Any:
    """An instance of dataclass `cls` from a mapping; every complaint starts with the dotted path."""
    if not isinstance(given, Mapping):
        raise UserError(f"{path or 'config'}: must hold keys, not {given!r}.")
    _refuse_unknown(cls, given, path)
    hints = typing.get_type_hints(cls)
    values = {key: _convert(value, hints[key], _join(path, key)) for key, value in given.items()}
    for f in dataclasses.fields(cls):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            raise UserError(f"{_join(path, f.name)}: is missing.")
    try:
        return cls(**values)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{path or 'config'}: {error}") from None


def _refuse_unknown(cls: Any, given: Mapping[Any, Any], path: str) -> None:
    known = [f.name for f in dataclasses.fields(cls)]
    for key in given:
        if key not in known:
            hint = suggest(str(key), known)
            raise UserError(f"{_join(path, key)}: unknown key.{hint} Known here: {', '.join(known) or 'none'}.")


def _convert(value: Any, hint: Any, path: str) -> Any:
    """`value` as the annotated type, or a UserError. Only lossless readings: 3 is a float, "1e-3" is, 3.5 is no int."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for choice in [a for a in arguments if a is not type(None)]:
            try:
                return _convert(value, choice, path)
            except UserError as error:
                complaint = error
        raise complaint
    if origin is Literal:
        if isinstance(value, bool) and {"on", "off"} <= set(arguments):  # what YAML 1.1 makes of a bare on or off
            value = "on" if value else "off"
        if value not in arguments:
            names = ", ".join(map(str, arguments))
            raise UserError(f"{path}: must be one of {names}, not {value!r}.{suggest(str(value), arguments)}")
        return value
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    if origin in (tuple, list):
        return _sequence(value, origin, arguments, path)
    if hint in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise UserError(f"{path}: must hold keys, not {value!r}.")
        return dict(value)
    if hint is float:
        return _number(value, path)
    kinds = {int: "a whole number", str: "text", bool: "true or false"}
    if hint not in kinds:
        raise UserError(f"{path}: has a type this file cannot read ({hint}).")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{path}: must be {kinds[hint]}, not {value!r}.")
    return value


def _number(value: Any, path: str) -> float:
    if isinstance(value, str):  # YAML 1.1 reads 1e-3, without a dot, as text
        try:
            value = float(value)
        except ValueError:
            pass
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{path}: must be a finite number, not {value!r}.")
    return float(value)


def _sequence(value: Any, kind: type, arguments: tuple[Any, ...], path: str) -> Any:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UserError(f"{path}: must be a list, not {value!r}.")
    any_length = kind is list or (len(arguments) == 2 and arguments[1] is Ellipsis)
    if not any_length and len(value) != len(arguments):
        raise UserError(f"{path}: must have {len(arguments)} entries, not {len(value)}.")
    hints = [arguments[0]] * len(value) if any_length else arguments
    return kind(_convert(v, h, f"{path}[{i}]") for i, (v, h) in enumerate(zip(value, hints, strict=True)))


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _plain(value: Any) -> Any:
    """Only what JSON and YAML know: dict, list, str, int, float, bool, None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _tree(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _tree(value) if isinstance(value, Mapping) else copy.copy(value) for key, value in given.items()}


def merge(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """The later over the earlier, key by key."""
    merged: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = merge(merged[key], value) if both else value
    return merged


def nested(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as a tree: {"lora.rank": 8} -> {"lora": {"rank": 8}}. The nested way of writing it stays as it is."""
    tree: dict[str, Any] = {}
    for path, value in keys.items():
        for key in reversed(str(path).split(".")):
            value = {key: nested(value) if isinstance(value, Mapping) else value}
        tree = merge(tree, value)
    return tree


def _set(tree: dict[str, Any], text: str) -> None:
    """Apply one `--set` override, such as "optim.lr=1e-3", to the tree."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {text}: must look like optim.lr=1e-3.")
    node = tree
    for depth, key in enumerate(keys[:-1], start=1):
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise UserError(f"{path}: {'.'.join(keys[:depth])} holds no keys.")
    node[keys[-1]] = value_of(value, path)


def flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, _join(path, key)) if isinstance(value, Mapping) else {_join(path, key): value}
    return leaves
