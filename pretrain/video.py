"""Real video: files, lists of files and tar shards, read through PyAV.

`Videos(where, ...)` is a list of clips without end: clip number `i` is a pure function of `(seed, i)`, so a training run that
was killed goes on with the very clips it would have seen. `where` is

    a folder            every video file in it and below
    list.csv            a line a video: "path label", "path,label" or with a tab between them; a label is optional, paths start
                        at the list's folder
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
import math
import os
import tarfile
import threading
import time
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
from filelock import FileLock

from pretrain.data import named_rng

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".gif")
ATTEMPTS = 50  # at one clip
EARLIER = (0.0, 1.0, 10.0, math.inf)  # seconds before the first time that is asked for, where a key frame is sought
STALE = 3600.0  # seconds after which half a file in the cache is of a process that was killed
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
    """The videos of a list: "path label", "path,label", path and label with a tab between, or "path" a line; "#" starts a
    comment."""
    if not path.is_file():
        raise BadData(f"{path}: no such list")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        cells = _cells(line.strip())
        label = cells[1].strip() if len(cells) > 1 else ""
        if label and not label.lstrip("-").isdigit():
            raise BadData(f"{path}, line {number}: the label {label!r} is not a whole number")
        place = Path(cells[0].strip())
        place = place if place.is_absolute() else path.parent / place
        found.append(Source(cells[0].strip(), str(place), label=int(label) if label else None))
    return found


def _cells(line: str) -> list[str]:
    """A path and, where there is one, its label. A path may hold spaces: a number behind the last is the label."""
    if "\t" in line:
        return line.split("\t")
    if "," in line:
        return next(csv.reader([line]))
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
    if kept is None:
        return _members(shard)
    if not kept.exists():
        with _alone(kept):
            if not kept.exists():  # else another made it in the meantime
                fresh = kept.with_suffix(".list.part")
                fresh.write_text(json.dumps([asdict(source) for source in _members(shard)]))
                os.replace(fresh, kept)
    return [Source(**found) for found in json.loads(kept.read_text())]


def _members(shard: str) -> list[Source]:
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
    return [Source(f"{shard}:{m.name}", shard, m.offset_data, m.size, label.get(stem)) for stem, m in videos]


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
    """The path itself, or that of a copy on this disk of what lies at an address; the `keep` newest copies stay. Another process
    may take a copy away before it is opened: ask again."""
    copy = _cached(path, ".tar")
    if copy is None:
        return path
    try:
        os.utime(copy)
    except FileNotFoundError:
        with _alone(copy):
            if not copy.exists():  # else another fetched it in the meantime
                _fetch(path, copy, keep)
    return str(copy)


def _alone(copy: Path) -> FileLock:
    """Of all threads and processes that share the cache, one fetches a shard, or its list, at a time."""
    return FileLock(copy.with_suffix(".lock"))


def _fetch(path: str, copy: Path, keep: int) -> None:
    for old in sorted(copy.parent.glob("*.tar"), key=_age)[: -keep + 1]:
        old.unlink(missing_ok=True)
    for part in copy.parent.glob("*.part"):  # what a killed process left; what is being fetched grows
        if time.time() - _age(part) > STALE:
            part.unlink(missing_ok=True)
    fresh = copy.with_suffix(".part")
    try:
        with _far(path) as far, fresh.open("wb") as near:
            while chunk := far.read(1 << 22):
                near.write(chunk)
    except Exception as error:  # every protocol has errors of its own
        fresh.unlink(missing_ok=True)
        raise Unreadable(f"it cannot be fetched ({type(error).__name__}: {error})") from None
    os.replace(fresh, copy)


def _age(path: Path) -> float:
    """When it was used last; 0 where it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


# Reading


def _pyav() -> Any:
    try:
        import av
    except ModuleNotFoundError:
        raise BadData("real video is read through PyAV, which is not installed: pip install -e '.[video]'") from None
    return av


def read_clip(file: str | IO[bytes], times: Sequence[float]) -> Frames:
    """The frames shown at `times`, in seconds from the video's start, ascending: uint8 (len(times), H, W, 3), the right way up.

    Frames are told by their time stamps, so a varying frame rate is no matter. Raises Unreadable where the video ends
    before the last of the times, as a truncated one does.
    """
    av = _pyav()
    try:
        # A key frame may be shown after frames that lie behind it in the file, so a seek can land past the time.
        for back in EARLIER:
            if (found := _sought(file, times, times[0] - back)) is not None:
                return found
        raise AssertionError("from the start nothing is too late")
    except IndexError:
        raise Unreadable("there is no picture in it") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise Unreadable(str(getattr(error, "strerror", None) or error)) from None


def _sought(file: str | IO[bytes], times: Sequence[float], place: float) -> Frames | None:
    """The frames at `times`, decoded from the key frame before `place` seconds on, or from the start; None where the first of
    these is shown after the first of the times."""
    if not isinstance(file, str):
        file.seek(0)
    with _pyav().open(file, "r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        base, begin = stream.time_base or Fraction(1, 1000), stream.start_time or 0
        rate = float(stream.average_rate or 25)
        start = begin + (_late(container, stream) if container.format.name == "avi" else 0)
        frames = container.decode(stream)
        if place > 0:
            container.seek(begin + int(place / base), stream=stream, backward=True, any_frame=False)
            frames = container.decode(stream)

        found: list[Any] = []
        shown, at = None, 0.0
        for frame in frames:
            now = float((frame.pts - start) * base) if frame.pts is not None else at
            if shown is None and place > 0 and now > times[0] + 1e-4:
                return None
            while shown is not None and len(found) < len(times) and times[len(found)] < now - 1e-4:
                found.append(shown)
            if len(found) == len(times):
                break
            shown, at = frame, now
        if shown is None and place > 0:
            return None
        lasts = max(float((shown.duration or 0) * base), 1.5 / rate) if shown is not None else 0.0
        while shown is not None and len(found) < len(times) and times[len(found)] <= at + lasts:
            found.append(shown)
        if len(found) < len(times):
            raise Unreadable(f"it ends after {at:.2f} s, a frame at {times[len(found)]:.2f} s was asked for")
        pictures = {id(frame): _upright(frame) for frame in found}
        return np.stack([pictures[id(frame)] for frame in found])


def _late(container: Any, stream: Any) -> int:
    """How many ticks after what its header says an AVI begins: one with B-frames by a frame. 0 where that cannot be told."""
    try:
        first = next(container.decode(stream), None)
    except _pyav().FFmpegError:
        first = None
    container.seek(stream.start_time or 0, stream=stream, backward=True, any_frame=False)
    late = 0 if first is None or first.pts is None else first.pts - (stream.start_time or 0)
    return late if 0 <= late * stream.time_base * (stream.average_rate or 25) < 2 else 0  # else its start is cut off


def _upright(frame: Any) -> Frames:
    """uint8 (H, W, 3), turned as the file says: a phone held upright writes its pictures lying."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def duration(file: str | IO[bytes]) -> float:
    """Seconds, by the header; by reading to the end where the header is silent. What else is in the file, such as sound that goes
    on, is no matter."""
    av = _pyav()
    try:
        with av.open(file, "r") as container:
            stream = container.streams.video[0]
            base = stream.time_base or Fraction(1, 1000)
            if stream.duration:
                return float(stream.duration * base)
            start = stream.start_time or 0
            if (end := _tagged_end(stream.metadata.get("DURATION", ""))) is not None:
                return end - float(start * base)
            if len(container.streams) == 1 and container.duration:  # else of whatever is longest
                return container.duration / 1e6 - float(start * base)
            step = int(1 / (stream.average_rate or 25) / base)
            ends = (p.pts + (p.duration or step) - start for p in container.demux(stream) if p.pts is not None)
            return float(max(ends, default=0) * base)
    except IndexError:
        raise Unreadable("there is no picture in it") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise Unreadable(str(getattr(error, "strerror", None) or error)) from None


def _tagged_end(text: str) -> float | None:
    """Matroska's tag: "00:00:03.000000000", in seconds; None where there is none."""
    parts = text.split(":")
    try:
        return int(parts[0]) * 3600 + int(parts[1]) * 60 + float(parts[2])
    except (IndexError, ValueError):
        return None


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

    def listing(self) -> str:
        """A hash of which videos there are, in their order: on it depends which of them clip `i` is of."""
        return hashlib.sha256(json.dumps([(s.name, s.label) for s in self.sources]).encode()).hexdigest()

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
    for again in (*[True] * 4, False):  # another process may take a copy away after it was found
        try:
            with open(local(source.path), "rb") as file:
                file.seek(source.start)
                return io.BytesIO(file.read(source.length))
        except OSError as error:
            if not (again and "://" in source.path and isinstance(error, FileNotFoundError)):
                raise Unreadable(f"its shard cannot be read ({error.strerror})") from None
    raise AssertionError
