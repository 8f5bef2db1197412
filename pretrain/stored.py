"""Tensors that are computed once and kept: what a frozen model says of clip 0, 1, 2, ...

A folder is named by the hash of what the values depend on, so values of another model, other clips or another size are never
found. Shards are written to a temporary name and renamed: a kill leaves none that is half, and processes that write the same
shard write the same bytes. Each carries the sum of its bytes; one that does not match, or that was the last of fewer values, is
made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from pretrain.loop import processes

SHARD = 64  # values in a file

Values = dict[str, Tensor]


def sum_of(model: nn.Module) -> str:
    """A hash of a model's weights."""
    return _sum(model.state_dict())


def _sum(values: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(values):
        value = values[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Stored:
    """`make(numbers)` gives the values of some clips, by name, each (len(numbers), ...). `key` is all that they depend on."""

    def __init__(self, folder: Path, key: Mapping[str, Any], total: int, make: Callable[[range], Values]) -> None:
        text = json.dumps(key, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.total, self.make = total, make
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"key.{os.getpid()}.tmp"
        temporary.write_text(text)
        temporary.replace(self.folder / "key.json")
        self.values: Values = {}

    def fill(self, title: str = "stored") -> Stored:
        """Make what is not there and hold all of it. Many processes share the work: those of one start part it among them, others
        that are at it at the same time go through it in another order and find what these have made."""
        state, numbers = processes(), range(0, self.total, SHARD)
        mine = list(numbers[state.process_index :: state.num_processes])
        random.Random(os.getpid()).shuffle(mine)
        for start in tqdm(mine, desc=title, disable=not state.is_main_process, mininterval=2.0):
            if not self._place(start).exists():  # whether it is whole is seen when it is read
                self._shard(start)
        state.wait_for_everyone()
        for start in numbers:
            for name, value in self._shard(start).items():
                if name not in self.values:
                    self.values[name] = torch.empty((self.total, *value.shape[1:]), dtype=value.dtype)
                self.values[name][start : start + len(value)] = value
        return self

    def span(self, numbers: range) -> Values:
        """The values of consecutive clips, made where they are not there. Nothing is held."""
        first = numbers.start - numbers.start % SHARD
        shards = [self._shard(start) for start in range(first, numbers.stop, SHARD)]
        part = slice(numbers.start - first, numbers.stop - first)
        return {name: torch.cat([shard[name] for shard in shards])[part] for name in shards[0]}

    def __call__(self, numbers: list[int]) -> Values:
        return {name: value[numbers] for name, value in self.values.items()}

    def _place(self, start: int) -> Path:
        return self.folder / f"{start // SHARD:06d}.safetensors"

    def _shard(self, start: int) -> Values:
        path, numbers = self._place(start), range(start, min(start + SHARD, self.total))
        kept = read(path)
        if kept is not None and all(len(value) >= len(numbers) for value in kept.values()):
            return {name: value[: len(numbers)] for name, value in kept.items()}
        made = {n: v.cpu().contiguous() for n, v in self.make(numbers).items()}
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(made, temporary, {"sum": _sum(made)})
        temporary.replace(path)
        return made


def read(path: Path) -> Values | None:
    """A shard, or None where there is none that is whole."""
    try:
        with safe_open(path, "pt") as file:
            values = {name: file.get_tensor(name) for name in file.keys()}
            return values if (file.metadata() or {}).get("sum") == _sum(values) else None
    except (OSError, SafetensorError):
        return None
