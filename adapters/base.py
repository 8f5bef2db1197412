"""The boundary between a puzzle and a model: `Sample` and `Answer`, and the arm that turns one into the other.

LoRA is attached, saved and restored here and nowhere else, so that no arm gets another LoRA than its rival.
Nothing here imports torch until an arm is loaded: the page lists families and shows what each arm sees without it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.base import Example, Grid, Missing, Unreachable, UserError, suggest


class Lazy:
    """Stands in for a library and imports it when its first attribute is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        try:
            return getattr(importlib.import_module(self._name), attribute)
        except ModuleNotFoundError as error:
            raise Missing(f"{error.name} is not installed. Install it with: pip install {error.name}") from error


if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = Lazy("torch")


@dataclass(frozen=True)
class Sample:
    """One example as one arm meets it. `predict` is handed `given` only, so the answer cannot leak, nor its size."""

    given: Any  # what is asked: a first picture, or a prompt
    wanted: Any  # what is hoped for: a clip, or a completion
    key: str  # hash of the example, for caches


@dataclass(frozen=True)
class Answer:
    """What an arm answered.

    `grid` is None where nothing could be read, and `problem` says why in one line. `certainty` float (rows, cols) in
    0..1. `raw` is the text, or the clip uint8 (F, H, W, 3). `trace` holds the answer as it formed, when asked for.
    """

    grid: Grid | None
    raw: Any
    certainty: np.ndarray | None = None
    problem: str = ""
    seconds: float = 0.0
    trace: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Lora:
    """The budget every arm gets. `targets` names kinds of layers; each family knows its own names for them."""

    rank: int = 16  # of the two matrices beside each layer
    alpha: int = 16  # what they add is scaled by alpha / rank
    dropout: float = 0.0  # of what they are given, while training
    targets: tuple[str, ...] = ("attention", "mlp")  # kinds of layers that have them


@dataclass(frozen=True)
class Flavour:
    """A backbone by name. `base`: hub id, folder, or "" for random weights built in memory.

    `defaults` are dotted keys of a run's configuration, such as "optim.lr", filled in where the user said nothing.
    """

    name: str
    base: str
    about: str
    parameters: int = 0
    published: bool = False  # True: large, by hub id, wants a GPU
    defaults: Mapping[str, Any] = field(default_factory=dict)


def flavour(module: Any, name: str) -> Flavour:
    """The named flavour of a family, or any other hub id or local folder in the same layout.

    What `vdmreason pretrain` made has the settings of what it made to ship, and what was downloaded into a folder of the model's
    own name those of the hub id: the same weights are asked alike, wherever they lie. Raises UserError for an unknown name.
    """
    known: Mapping[str, Flavour] = module.FLAVOURS
    if name in known:
        return known[name]
    if (Path(name) / PRETRAINED).exists():
        like = known.get("small") or known["tiny"]
        return replace(like, name=name, base=name, about="made with `vdmreason pretrain`", parameters=0)
    if "/" in name or Path(name).exists():
        for like in known.values():
            if like.published and Path(name).name == Path(like.base).name:
                return replace(like, name=name, base=name)
        return Flavour(name, name, "a checkpoint of your own in the published layout", published=True)
    if name == "small":  # what is asked where nobody named one
        ours = "" if any(f.published for f in known.values()) else " Make one: vdmreason pretrain --help."
        raise UserError(
            f"flavour: no small backbone of this family ships. Known: {', '.join(known)}; or a hub id or folder.{ours}"
        )
    raise UserError(
        f"No backbone '{name}' here.{suggest(name, known)} Known: {', '.join(known)}; or give a hub id or a folder."
    )


PRETRAINED = "pretrain.json"  # lies in the folder of a backbone that this project made


Watch = Callable[[int, int, Callable[[], Any]], bool | None]
"""Called as `watch(step, steps, partial)` while an answer forms; `partial()` decodes it so far. False cancels."""


class Cancelled(UserError):
    """The watcher asked to stop."""


class Arm:
    """A loaded backbone with its LoRA. Families subclass this with their five verbs; the rest is common.

    A plain class, not an `nn.Module`, so that a family file can be read without torch; `module()` makes the module.
    """

    model: nn.Module  # what LoRA is attached to
    layout: str  # "diffusers" or "peft": whose published format the adapter is saved in
    targets: Mapping[str, Sequence[str]]  # kind of layer -> the names of its linear layers
    lora: Lora | None = None
    backbone: str = ""  # fingerprint of the frozen weights
    caveats: Sequence[str] = ()  # of a sketch: what it had to guess, a line each
    # samples that experts which have nothing to do compute beside every micro-batch when the run is sharded (FSDP wants every
    # process in every block)
    idle_samples: int = 0
    unsaid: Mapping[str, Any] = {}  # what a convention was when adapters did not say it yet

    # The verbs of a family.

    def frame(self, example: Example) -> Sample:
        """The example as this arm meets it, under the arm's own options."""
        raise NotImplementedError

    def collate(self, samples: Sequence[Sample], seeds: Sequence[int]) -> dict[str, Tensor]:
        """A batch. All randomness of the loss is drawn here, sample by sample, from `seeds`."""
        raise NotImplementedError

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Scalar: the mean over the samples of each sample's own mean, so that equal shards average exactly."""
        raise NotImplementedError

    def predict(self, givens: Sequence[Any], seeds: Sequence[int], watch: Watch | None = None) -> list[Answer]:
        raise NotImplementedError

    def codec(self, samples: Sequence[Sample]) -> list[Answer]:
        """The true answers, written and read back by this arm: what it could score at best."""
        raise NotImplementedError

    def conventions(self) -> dict[str, Any]:
        """What a later loader has to know about how this arm asked its model. Stored with the adapter."""
        return {}

    def prepare(self, samples: Sequence[Sample], show: Callable[[int], None] | None = None) -> None:
        """Compute ahead what is computed once a sample, such as latents; `show(done)` is told. Nothing by itself."""

    def rest(self) -> None:
        """Let what only answers need, such as an autoencoder, leave the GPU: it comes back when asked. Nothing by itself."""

    # What a plan (vdmreason.plan) asks of a sketch: an arm on the meta device, which has shapes and no values.

    passes: int = 1  # how often an answer takes the work of a loss without its gradient
    answer_pace: float = 1.0  # at which share of the speed of training

    def rehearsal(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The batch of these samples, for `rehearse`."""
        return self.collate(samples, [0] * len(samples))

    def rehearse(self, batch: Mapping[str, Tensor]) -> Tensor:
        """A scalar that takes the work and the memory of `loss`, and looks at no value on the way."""
        return self.loss(batch)

    def kept_bytes(self, sample: Sample) -> int:
        """What `prepare` keeps of a sample on the disk."""
        return 0

    # What every arm shares.

    def attach(self, lora: Lora, seed: int = 0) -> None:
        """Freeze the backbone and add LoRA to the named kinds of layers; A is drawn from `seed`, B is zero."""
        from peft import LoraConfig, inject_adapter_in_model

        unknown = [t for t in lora.targets if t not in self.targets]
        if unknown:
            raise UserError(
                f"No layers of kind '{unknown[0]}'.{suggest(unknown[0], self.targets)} Known: {', '.join(self.targets)}."
            )
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=[name for kind in lora.targets for name in self.targets[kind]],
            bias="none",
        )
        self.model.requires_grad_(False)
        self.backbone = fingerprint(self.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, self.model, "default")
        self.lora = lora

    def detach(self) -> None:
        """Take the LoRA away again: the backbone is what it was, and ready for another."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, layer in reversed(list(self.model.named_modules())):  # fused experts have one around the other
            if isinstance(layer, BaseTunerLayer):
                parent, _, last = name.rpartition(".")
                setattr(self.model.get_submodule(parent), last, layer.get_base_layer())
        for left in ("peft_config", "_hf_peft_config_loaded"):
            if left in vars(self.model):
                delattr(self.model, left)
        self.lora = None

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def module(self) -> nn.Module:
        """An `nn.Module` whose forward is the loss: DDP and FSDP act through `__call__`, and `loss` would slip past them."""
        arm = self

        class Loss(torch.nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.model = arm.model

            def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
                return arm.loss(batch)

        return Loss()

    def weights(self) -> dict[str, Tensor]:
        """The LoRA's tensors by peft's names, whole and on the CPU, also where the model is sharded (all processes ask)."""
        from peft import get_peft_model_state_dict

        found = get_peft_model_state_dict(self.model).items()
        return {k: (v.full_tensor() if hasattr(v, "full_tensor") else v).detach().cpu().contiguous() for k, v in found}

    def save(
        self, folder: Path, metadata: Mapping[str, Any] | None = None, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write the LoRA (`weights()`) in the published layout, with alpha and our conventions in the file's own header."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        weights = dict(weights or self.weights())
        config = self.model.peft_config["default"]  # type: ignore[union-attr, index, operator]
        notes = json.dumps({"backbone": self.backbone, **self.conventions(), **(metadata or {})}, sort_keys=True)
        if self.layout == "diffusers":
            # `load_lora_weights` of diffusers reads rank and alpha from here; without it alpha silently becomes the rank
            settings = {f"transformer.{k}": sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
            header = {"format": "pt", "lora_adapter_metadata": json.dumps(settings, sort_keys=True), "vdmreason": notes}
            weights = {f"transformer.{k}": v for k, v in weights.items()}
            save_file(weights, folder / "pytorch_lora_weights.safetensors", header)
        else:
            config.save_pretrained(str(folder))
            weights = {f"base_model.model.{k}": v for k, v in weights.items()}
            save_file(weights, folder / "adapter_model.safetensors", {"format": "pt", "vdmreason": notes})

    def restore(self, folder: Path) -> None:
        """Load a LoRA saved by `save` into the attached one. Refuses one that does not fit."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        path, prefix = adapter_file(folder)
        weights = {k.removeprefix(prefix): v for k, v in read_safetensors(path).items()}
        own = get_peft_model_state_dict(self.model)
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
            raise UserError(f"The adapter in {folder} was made for another backbone, rank or set of layers.")
        notes = json.loads(safetensors_header(path).get("vdmreason", "{}"))
        if notes.get("backbone", self.backbone) != self.backbone:
            raise UserError(
                f"The adapter in {folder} was trained on other weights of the same backbone. Train it again."
            )
        for key, value in self.conventions().items():
            before = self.unsaid.get(key, value) if notes else value  # another's adapter has no notes at all
            made = notes.get(key, before)
            if made != value:
                raise UserError(f"The adapter in {folder} was trained with {key} = {made}, this run has {value}.")
        set_peft_model_state_dict(self.model, weights)


def fingerprint(model: nn.Module) -> str:
    """Which weights these are: a hash of each tensor's name, shape and first values in bf16, the same on every device
    and in every precision. 64 values a tensor tell two trainings apart and cost nothing at five billion."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if value.is_meta:  # a sketch has no weights to tell apart
            return ""
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().flatten()[:64].to(torch.bfloat16).float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def adapter_file(folder: Path) -> tuple[Path, str]:
    """The adapter's safetensors file and the prefix of its keys."""
    for name, prefix in (("pytorch_lora_weights", "transformer."), ("adapter_model", "base_model.model.")):
        if (path := folder / f"{name}.safetensors").exists():
            return path, prefix
    raise UserError(f"There is no adapter in {folder}. Train one first: vdmreason train --help")


def safetensors_header(path: Path) -> dict[str, str]:
    """The metadata in a safetensors header, read without torch. A damaged file is a one-line error."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (struct.error, ValueError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is damaged or cut off. Copy or train it again.") from error
    metadata: dict[str, str] = header.get("__metadata__", {})
    return metadata


def read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or cut off. Copy or train it again.") from error
    return weights


@contextmanager
def load_errors(base: str) -> Iterator[None]:
    """Turn what can go wrong while a checkpoint loads into one line that says what to do."""
    from safetensors import SafetensorError

    damaged = f"A weights file of '{base}' is damaged or cut off. Delete it and download it again."
    try:
        yield
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(incomplete(base) or damaged) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if fault := incomplete(base):
            raise UserError(fault) from error
        text = " ".join(str(error).split())
        said = text.lower()
        if "incomplete metadata" in said or "unable to load weights from checkpoint" in said or "header" in said:
            raise UserError(damaged) from error
        if "gated" in said or "401" in said or "403" in said:
            raise UserError(f"'{base}' wants a licence accepted and a login: run `hf auth login` first.") from error
        if not Path(base).exists() and (base.startswith((".", "/", "~")) or base.count("/") != 1):
            raise UserError(f"{base}: no such folder. A hub id looks like owner/name.") from error
        away = any(sign in said for sign in ("connect", "offline", "resolve", "network", "max retries"))
        if not Path(base).exists() and (away or any(s in said for s in ("cannot find", "locate", "does not appear"))):
            raise (Unreachable if away else UserError)(
                f"'{base}' is not on this machine and the model hub did not give it (no network, or no such model). "
                "Download it where there is a network (`hf download`), or use a backbone that ships, such as cogvideox/small."
            ) from error
        raise UserError(f"'{base}' could not be loaded: {text[:300]}") from error


def incomplete(base: str) -> str:
    """What is missing of a checkpoint that lies on this machine, in one line that names the file; "" if nothing is."""
    folder = Path(base) if Path(base).exists() else downloaded(base)
    for index in sorted(folder.rglob("*.safetensors.index.json")):
        try:
            parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, OSError):
            return f"{index} is damaged or cut off. Delete it and download it again."
        for part in sorted(parts):
            if not (index.parent / part).is_file():
                return f"{index.parent / part} is missing, though {index.name} names it. Download '{base}' again."
    for file in sorted(folder.rglob("*.safetensors")):
        if not whole(file):
            return f"{file} is damaged or cut off. Delete it and download it again."
    for file in sorted(folder.rglob("*.json")):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            return f"{file} is no JSON. Delete it and download it again."
    return ""


def hub_cache(hub_id: str = "") -> Path:
    """Where the hub's client keeps what it downloads, or the downloads of one model."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / (f"models--{hub_id.replace('/', '--')}" if hub_id else "")


def downloaded(hub_id: str) -> Path:
    """The newest download of a model; a folder that is not there where it was never downloaded."""
    snapshots = hub_cache(hub_id) / "snapshots"
    return max(snapshots.glob("*"), key=lambda p: p.stat().st_mtime, default=snapshots / "none")


def whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says. Reads the header only."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return path.stat().st_size == 8 + length + max(ends, default=0)
    except (OSError, struct.error, ValueError, KeyError, OverflowError, MemoryError):
        return False


def sampled_answers(
    arm: Any, givens: Sequence[Any], seeds: Sequence[int], batch: int, watch: Watch | None = None
) -> list[Answer]:
    """`predict` of an arm that draws clips: `arm.sample` for `batch` pictures at a time, `arm.answer` for each clip, and the
    seconds that one took."""
    answers: list[Answer] = []
    arm.model.eval()
    for start in range(0, len(givens), batch):
        began = time.monotonic()
        part = slice(start, start + batch)
        clips = arm.sample(np.stack([g.picture for g in givens[part]]), seeds[part], watch)
        seconds = (time.monotonic() - began) / len(clips)
        answers += [replace(arm.answer(c, g), seconds=seconds) for c, g in zip(clips, givens[part], strict=True)]
    return answers


def sample_generator(seed: int) -> torch.Generator:
    """A CPU generator for one sample: the same noise on every device, batch size and process count."""
    generator: torch.Generator = torch.Generator().manual_seed(seed % 2**63)
    return generator
