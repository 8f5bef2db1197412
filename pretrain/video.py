"""Real video: files, lists of files and tar shards, read through PyAV.

`Videos(where, ...)` is a list of clips without end: clip number `i` is a pure function of `(seed, i)`, so a training run that
was killed goes on with the very clips it would have seen. `where` is

    a folder            every video file in it and below
    list.csv            a line a video, "path label" or "path,label"; a label is optional, paths start at the list's folder
    shards.tar, *.tar, a folder of them, or addresses with "://"
                        WebDataset shards: a sample is the members that share a name, 000123.mp4 beside 000123.cls or .json

Shards may lie far away (https://, s3://, hf://: whatever fsspec knows). Clips are drawn from a few shards at a time, and only
so many are kept on disk, so a set may be larger than the disk.

A file that cannot be read is named, with the reason, counted, and replaced by another; above a share of bad ones the run
stops, for then something else is wrong.
"""

from __future__ import annotations

import csv
import functools
import glob
import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from pretrain.data import named_rng

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".gif")
ATTEMPTS = 50  # at one clip
Frames = npt.NDArray[np.uint8]  # (F, H, W, 3)


class BadData(ValueError):
    """Data that the user has to look at. Its message is one line."""


class Unreadable(Exception):
    """One video cannot be read; the message says why."""


@dataclass(frozen=True)
class Source:
    """Where a video is: a file, or a part of a shard."""

    name: str  # for people
    path: str
    start: int = 0  # bytes, of a shard's member
    length: int | None = None  # None: the whole file
    label: int | None = None


# Finding


def sources(where: str | Path) -> list[Source]:
    """All videos of a folder, a list or shards, in a fixed order. Raises BadData where there is none."""
    text = str(where)
    shards = shard_paths(text)
    if shards:
        found = [source for shard in shards for source in members(shard)]
    elif text.endswith((".csv", ".txt")):
        found = listed(Path(text))
    elif Path(text).is_dir():
        paths = sorted(p for p in Path(text).rglob("*") if p.suffix.lower() in SUFFIXES)
        found = [Source(str(p.relative_to(text)), str(p)) for p in paths]
    elif Path(text).is_file():
        found = [Source(Path(text).name, text)]
    else:
        raise BadData(f"{text}: no such file or folder")
    if not found:
        raise BadData(f"{text}: no videos here; files ending in {' '.join(SUFFIXES)} are videos, .tar are shards")
    return found


def listed(path: Path) -> list[Source]:
    """The videos of a list: "path label", "path,label", or "path" a line; "#" starts a comment."""
    if not path.is_file():
        raise BadData(f"{path}: no such list")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        cells = next(csv.reader([line])) if "," in line else _split(line.strip())
        label = cells[1].strip() if len(cells) > 1 else ""
        if label and not label.lstrip("-").isdigit():
            raise BadData(f"{path}, line {number}: the label {label!r} is not a whole number")
        place = Path(cells[0].strip())
        place = place if place.is_absolute() else path.parent / place
        found.append(Source(cells[0].strip(), str(place), label=int(label) if label else None))
    return found


def _split(line: str) -> list[str]:
    """A path, which may hold spaces, and a number behind the last one."""
    head, _, tail = line.rpartition(" ")
    return [head, tail] if head and tail.lstrip("-").isdigit() else [line]


def shard_paths(where: str) -> list[str]:
    """The tar files that `where` names, or none."""
    if "://" in where:
        return braces(where) if where.endswith(".tar") else []
    if Path(where).is_dir():
        return sorted(glob.glob(os.path.join(glob.escape(where), "*.tar")))
    return [path for pattern in braces(where) for path in sorted(glob.glob(pattern))] if where.endswith(".tar") else []


def braces(text: str) -> list[str]:
    """ "a-{000..002}.tar" -> a-000.tar, a-001.tar, a-002.tar."""
    head, opened, rest = text.partition("{")
    inside, closed, tail = rest.partition("}")
    first, dots, last = inside.partition("..")
    if not (opened and closed and dots and first.isdigit() and last.isdigit()):
        return [text]
    return [f"{head}{n:0{len(first)}d}{end}" for n in range(int(first), int(last) + 1) for end in braces(tail)]


def members(shard: str) -> list[Source]:
    """The videos of a tar shard and their places in it, with the labels beside them. Headers are read and labels, no video,
    and of what lies elsewhere only once: the list is kept."""
    kept = _cached(shard, ".json")
    if kept is not None and kept.exists():
        return [Source(**found) for found in json.loads(kept.read_text())]
    label: dict[str, int] = {}
    videos: list[tuple[str, tarfile.TarInfo]] = []
    try:
        with _far(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                stem, suffix = os.path.splitext(member.name)
                if suffix.lower() in SUFFIXES:
                    videos.append((stem, member))
                elif suffix == ".cls":
                    label[stem] = int(tar.extractfile(member).read())  # type: ignore[union-attr]
                elif suffix == ".json":
                    read = json.loads(tar.extractfile(member).read())  # type: ignore[union-attr]
                    if isinstance(read, dict) and isinstance(read.get("label"), int):
                        label[stem] = read["label"]
    except (tarfile.TarError, OSError, ValueError) as error:
        raise BadData(f"{shard}: not a readable tar shard ({error})") from None
    found = [Source(f"{shard}:{m.name}", shard, m.offset_data, m.size, label.get(stem)) for stem, m in videos]
    if kept is not None:
        fresh = kept.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps([asdict(source) for source in found]))
        os.replace(fresh, kept)
    return found


def _far(path: str) -> Any:
    """A seekable file, on this disk or at an address, of which only what is asked for is fetched."""
    if "://" not in path:
        return open(path, "rb")
    import fsspec

    return fsspec.open(path, "rb", block_size=1 << 16).open()


def _cached(path: str, suffix: str) -> Path | None:
    """Where something about an address is kept; None for what lies on this disk."""
    if "://" not in path:
        return None
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vdmreason" / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{hashlib.sha256(path.encode()).hexdigest()[:16]}{suffix}"


def local(path: str, keep: int = 8) -> str:
    """The path itself, or that of a copy on this disk of what lies at an address; the `keep` newest copies stay."""
    copy = _cached(path, ".tar")
    if copy is None:
        return path
    with _FETCHING:
        return _fetched(path, copy, keep)


_FETCHING = threading.Lock()  # two threads that want a shard fetch it once


def _fetched(path: str, copy: Path, keep: int) -> str:
    if not copy.exists():
        for old in sorted(copy.parent.glob("*.tar"), key=lambda p: p.stat().st_mtime)[: -keep + 1]:
            old.unlink(missing_ok=True)
        fresh = copy.with_suffix(f".{os.getpid()}")
        try:
            with _far(path) as far, fresh.open("wb") as near:
                while chunk := far.read(1 << 22):
                    near.write(chunk)
        except Exception as error:  # every protocol has errors of its own
            fresh.unlink(missing_ok=True)
            raise Unreadable(f"it cannot be fetched ({type(error).__name__}: {error})") from None
        os.replace(fresh, copy)
    os.utime(copy)
    return str(copy)


# Reading


def _pyav() -> Any:
    try:
        import av
    except ModuleNotFoundError:
        raise BadData("real video is read through PyAV, which is not installed: pip install -e '.[video]'") from None
    return av


def read_clip(file: str | IO[bytes], times: Sequence[float]) -> Frames:
    """The frames shown at `times`, in seconds from the video's start, ascending: uint8 (len(times), H, W, 3).

    Frames are told by their time stamps, so a varying frame rate is no matter. Raises Unreadable where the video ends
    before the last of the times, as a truncated one does.
    """
    av = _pyav()
    try:
        with av.open(file, "r") as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            base, start = stream.time_base or Fraction(1, 1000), stream.start_time or 0
            if times[0] > 0:  # to the key frame before the first
                container.seek(start + int(times[0] / base), stream=stream, backward=True, any_frame=False)
            found: list[Any] = []
            shown, at = None, 0.0
            for frame in container.decode(stream):
                time = float((frame.pts - start) * base) if frame.pts is not None else at
                while shown is not None and len(found) < len(times) and times[len(found)] < time - 1e-4:
                    found.append(shown)
                if len(found) == len(times):
                    break
                shown, at = frame, time
            rate = float(stream.average_rate or 25)
            while shown is not None and len(found) < len(times) and times[len(found)] <= at + 1.5 / rate:
                found.append(shown)
            if len(found) < len(times):
                raise Unreadable(f"it ends after {at:.2f} s, a frame at {times[len(found)]:.2f} s was asked for")
            pictures = {id(frame): frame.to_ndarray(format="rgb24") for frame in found}
            return np.stack([pictures[id(frame)] for frame in found])
    except Unreadable:
        raise
    except IndexError:
        raise Unreadable("there is no picture in it") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise Unreadable(str(getattr(error, "strerror", None) or error)) from None


def duration(file: str | IO[bytes]) -> float:
    """Seconds, by the header; by decoding where the header is silent."""
    av = _pyav()
    try:
        with av.open(file, "r") as container:
            stream = container.streams.video[0]
            if stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            if container.duration:
                return container.duration / 1e6
            last = 0.0
            for frame in container.decode(stream):
                last = float(frame.time or last)
            return last + 1 / float(stream.average_rate or 25)
    except IndexError:
        raise Unreadable("there is no picture in it") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise Unreadable(str(getattr(error, "strerror", None) or error)) from None


def sample_times(
    rng: np.random.Generator | None, seconds: float, frames: int, fps: float, sampling: Literal["dense", "sparse"]
) -> list[float]:
    """When the frames of a clip are taken.

    dense   `fps` a second from a random start (V-JEPA, NExT-Vid: 4); faster where the video is too short
    sparse  one at random from each of `frames` equal parts of the video (TSN: InternVideo-Next)

    Without `rng` from the middle.
    """
    if sampling == "sparse":
        offsets = 0.5 if rng is None else rng.random(frames)
        return [float(t) for t in (np.arange(frames) + offsets) * seconds / frames]
    step = min(1 / fps, seconds * 0.999 / frames)
    room = max(0.0, seconds - step * frames)
    start = room / 2 if rng is None else rng.uniform(0, room)
    return [float(start + step * k) for k in range(frames)]


def cropped(frames: Frames, side: int, rng: np.random.Generator | None) -> Frames:
    """A square of `side` pixels: a random part of .3 to 1 of the area, .75 to 1.35 wide by high (V-JEPA 2), or the middle
    where `rng` is None."""
    _, height, width, _ = frames.shape
    if rng is None:
        h = w = min(height, width)
        top, left = (height - h) // 2, (width - w) // 2
    else:
        area = height * width * rng.uniform(0.3, 1.0)
        shape = np.exp(rng.uniform(np.log(0.75), np.log(1.35)))
        h, w = min(height, max(1, round((area / shape) ** 0.5))), min(width, max(1, round((area * shape) ** 0.5)))
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    part = torch.from_numpy(frames[:, top : top + h, left : left + w].copy()).permute(0, 3, 1, 2).float()
    scaled = F.interpolate(part, (side, side), mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


class Videos:
    """Clips without end from real videos: `clip(i)` is uint8 (frames, side, side, 3), a function of `(seed, i)`."""

    GROUP = 4  # shards that clips are drawn from at a time

    def __init__(
        self,
        where: str | Path,
        frames: int,
        side: int,
        *,
        fps: float = 4.0,
        sampling: Literal["dense", "sparse"] = "dense",
        augment: bool = True,
        seed: int = 0,
        most_bad: float = 0.1,
    ) -> None:
        self.where, self.frames, self.side, self.fps, self.sampling = str(where), frames, side, fps, sampling
        self.augment, self.seed, self.most_bad = augment, seed, most_bad
        self.sources = sources(where)
        self.bad: dict[str, str] = {}  # name -> why
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def fingerprint(self) -> str:
        """A hash of which files these are: names, sizes and times of change."""
        digest = hashlib.sha256()
        for source in self.sources:
            facts = os.stat(source.path) if os.path.exists(source.path) else None
            digest.update(f"{source} {facts and (facts.st_size, facts.st_mtime_ns)}\n".encode())
        return digest.hexdigest()

    def clips(self, numbers: Sequence[int], frames: int | None = None) -> Frames:
        """uint8 (len(numbers), frames, side, side, 3): `clip` of each, decoded side by side, since PyAV lets go of Python while
        it decodes."""
        return np.stack([frames for frames, _ in self._side_by_side(numbers, frames)])

    def labelled(self, numbers: Sequence[int]) -> tuple[Frames, npt.NDArray[np.int64]]:
        """Clips and their labels (len(numbers),): of the videos that were read, where one took the place of a bad one."""
        found = self._side_by_side(numbers, None)
        return np.stack([frames for frames, _ in found]), np.array([source.label for _, source in found], np.int64)

    def middle(self, number: int) -> tuple[Frames, int] | None:
        """The middle of video `number` and its label; None where it cannot be read."""
        source = self.sources[number]
        try:
            return self._read(source, None, self.frames), int(source.label or 0)
        except Unreadable as error:
            self._count(source, str(error))
            return None

    def _side_by_side(self, numbers: Sequence[int], frames: int | None) -> list[tuple[Frames, Source]]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        return list(self._pool.map(lambda i: self._clip(i, frames), numbers))

    def clip(self, i: int, frames: int | None = None) -> Frames:
        return self._clip(i, frames)[0]

    def _clip(self, i: int, frames: int | None) -> tuple[Frames, Source]:
        """What is met before has no part in it: a bad file is tried again whenever its turn comes, and another takes its
        place, the same one each time."""
        epoch = i - i % len(self.sources)
        for attempt in range(ATTEMPTS):
            rng = named_rng("real video", self.seed, i, attempt)
            place = i if attempt == 0 else epoch + int(rng.integers(len(self.sources)))
            source = self.sources[self.order(place)]
            try:
                return self._read(source, rng, frames or self.frames), source
            except Unreadable as error:
                self._count(source, str(error))
        raise BadData(f"{self.where}: {ATTEMPTS} videos in a row cannot be read")

    def order(self, i: int) -> int:
        """Which source clip `i` is of: every one once an epoch, in an order of the epoch's own.

        Sources of a shard lie together: shards are shuffled, and sources within groups of GROUP shards.
        """
        epoch, place = divmod(i, len(self.sources))
        return int(self._shuffled(epoch % 2**31)[place])

    @functools.lru_cache(maxsize=4)  # noqa: B019 (lives as long as the run)
    def _shuffled(self, epoch: int) -> npt.NDArray[np.int64]:
        rng = named_rng("epoch", self.seed, epoch)
        by_shard: dict[str, list[int]] = {}
        for number, source in enumerate(self.sources):
            by_shard.setdefault(source.path if source.length is not None else "", []).append(number)
        shards = list(by_shard.values())
        shards = [shards[k] for k in rng.permutation(len(shards))]
        groups = [list(chain(*shards[k : k + self.GROUP])) for k in range(0, len(shards), self.GROUP)]
        return np.concatenate([rng.permutation(group) for group in groups])

    def _read(self, source: Source, rng: np.random.Generator | None, frames: int) -> Frames:
        if source.length == 0 or (
            source.length is None and os.path.exists(source.path) and not os.path.getsize(source.path)
        ):
            raise Unreadable("it is empty")
        seconds = duration(_opened(source))
        if seconds <= 0:
            raise Unreadable("it lasts no time")
        times = sample_times(rng, seconds, frames, self.fps, self.sampling)
        return cropped(read_clip(_opened(source), times), self.side, rng if self.augment else None)

    def _count(self, source: Source, why: str) -> None:
        with self._lock:
            if source.name in self.bad:
                return
            self.bad[source.name] = why
        print(f"skipped {source.name}: {why}", flush=True)
        allowed = max(3, self.most_bad * len(self.sources)) if self.most_bad else 0  # a few never stop a small set
        if len(self.bad) > allowed or len(self.bad) == len(self.sources):
            named = "; ".join(f"{name} ({reason})" for name, reason in list(self.bad.items())[:3])
            raise BadData(
                f"{self.where}: {len(self.bad)} of {len(self.sources)} videos cannot be read: {named}. "
                "Mend or remove them, or allow a larger share with --most-bad."
            )


def _opened(source: Source) -> str | IO[bytes]:
    if source.length is None:
        return source.path
    with open(local(source.path), "rb") as file:
        file.seek(source.start)
        return io.BytesIO(file.read(source.length))
