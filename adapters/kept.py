"""Tensors that are computed once and kept between runs, by the hash of what they were computed from.

A shard is a file that is named by its own content: it appears whole under that name or not at all, two processes that write the
same write one file, and a byte that was changed since is noticed when the shard is opened. Such a shard is thrown away and
what it held is computed again.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.base import Lazy
from tasks.base import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Lazy("torch")

Values = dict[str, "Tensor"]  # what is kept of one thing, by name
FORGOTTEN = 24 * 3600  # seconds after which a file that was never finished is nobody's any more


def cache_folder() -> Path:
    """Where latents and text embeddings are kept between runs: $VDMREASON_CACHE, else ~/.cache/vdmreason."""
    return Path(os.environ.get("VDMREASON_CACHE", Path.home() / ".cache" / "vdmreason"))


class Kept:
    """A folder of shards, each safetensors with tensors named `key/name`. Keys are hex digests of content.

    A folder that cannot be written (full disk, read-only home) costs time, never the run: values stay in memory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values: dict[str, Values] = {}  # what was asked for or put so far
        self._where: dict[str, Path] = {}  # key -> shard, of the shards whose names were read
        self._read: set[Path] = set()
        self._asked: set[str] = set()

    @contextmanager
    def only_what_is_asked(self) -> Iterator[None]:
        """Afterwards only what was asked for meanwhile stays in memory: over a sweep all runs' examples would. What is asked for
        again is read again."""
        self._asked = set()
        yield
        self.values = {key: values for key, values in self.values.items() if key in self._asked}

    def get(self, keys: Iterable[str]) -> dict[str, Values]:
        """What there is of `keys`; what is missing or damaged is left out."""
        keys = list(dict.fromkeys(keys))
        self._asked.update(keys)
        if any(key not in self.values for key in keys):
            self._look()
        for shard in {self._where[k] for k in keys if k not in self.values and k in self._where}:
            self._open(shard)
        return {key: self.values[key] for key in keys if key in self.values}

    def put(self, made: Mapping[str, Values]) -> None:
        """Keep values, one shard for all of them. float32 stays float32: a cache must not change a result."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        flat = {f"{key}/{name}": v.detach().cpu().contiguous() for key, vs in made.items() for name, v in vs.items()}
        for name, value in flat.items():
            key, _, part = name.partition("/")
            self.values.setdefault(key, {})[part] = value
        path = self.folder / f"{content_of(flat)}.safetensors"
        temporary = self.folder / f"{path.stem}.{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(flat, temporary)
            os.replace(temporary, path)
        except (OSError, SafetensorError):  # the library's own word for a full disk
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _look(self) -> None:
        """Read the names in shards that are new, and take away what was never finished."""
        from safetensors import SafetensorError, safe_open

        for path in sorted(self.folder.glob("*.tmp")):
            with suppress(OSError):  # another process may be faster
                if time.time() - path.stat().st_mtime > FORGOTTEN:
                    path.unlink(missing_ok=True)
        for path in sorted(set(self.folder.glob("*.safetensors")) - self._read):
            try:
                with safe_open(path, "pt") as file:
                    self._where |= {name.partition("/")[0]: path for name in file.keys()}
            except (OSError, SafetensorError):
                self._drop(path)
            self._read.add(path)

    def _open(self, shard: Path) -> None:
        """Take all of a shard into memory, if its content is what its name says."""
        from adapters.base import read_safetensors

        try:
            flat = read_safetensors(shard)
        except (OSError, UserError):
            flat = {}
        if not flat or content_of(flat) != shard.stem:
            self._drop(shard)
            return
        for name, value in flat.items():
            key, _, part = name.partition("/")
            self.values.setdefault(key, {})[part] = value

    def _drop(self, shard: Path) -> None:
        """Take a damaged shard away, so that what it held is made again."""
        self._where = {key: path for key, path in self._where.items() if path != shard}
        with suppress(OSError):  # in a read-only cache it is only never used
            shard.unlink(missing_ok=True)


def content_of(values: Mapping[str, Tensor]) -> str:
    """A hash of tensors: names, kinds, shapes and every byte."""
    digest = hashlib.sha256()
    for name in sorted(values):
        value = values[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def key_of(*parts: object) -> str:
    """A key from arrays and plain values: the same on every machine."""
    digest = hashlib.sha256()
    for part in parts:
        shape, data = getattr(part, "shape", ()), getattr(part, "tobytes", None)
        digest.update(f"{type(part).__name__} {shape} ".encode() + (data() if data else repr(part).encode()))
    return digest.hexdigest()[:32]
