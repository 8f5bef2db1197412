"""Who does a trial: claim.json, made with O_EXCL, so that one worker gets it whatever the disk. Its time of change is the
heartbeat."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vdmreason import jobs, store
from vdmreason.jobs import identity

CLAIM = "claim.json"
BEAT = 15.0  # seconds between heartbeats
STALE = 300.0  # seconds without one after which an owner on another machine is taken for dead


class Claim:
    """A trial that is this process's alone. Its file is touched every few seconds; `lost` says that another one took it over."""

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self.path, self.record, self.lost = path, dict(record), False
        self._ended = threading.Event()

    def mine(self) -> bool:
        """Whether it still is. Raises OSError where the disk gives no answer now, which says neither."""
        try:
            return bool(json.loads(self.path.read_text(encoding="utf-8")).get("token") == self.record["token"])
        except (FileNotFoundError, ValueError, AttributeError):
            return False

    def release(self) -> None:
        with contextlib.suppress(OSError):  # a heartbeat that ends says as much
            if self.mine():
                self.path.unlink(missing_ok=True)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Touch the claim while the block runs, from a thread of its own: an update may take minutes."""

        def beat() -> None:
            while not self._ended.wait(BEAT):
                with contextlib.suppress(OSError):
                    self.lost = not self.mine()
                    if self.lost:
                        return
                    os.utime(self.path)

        thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()


def claim(place: Path, driver: str = "") -> Claim | None:
    """Claim the trial in `place` for this process; None where another one has it. A dead owner's claim is taken over."""
    path = place / CLAIM
    record = {**identity(), "token": secrets.token_hex(8), "driver": driver, "vanished": 0, "since": time.time()}
    with store.disk_errors(path):
        place.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return _take_over(path, record)
        try:
            os.write(descriptor, json.dumps(record).encode())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
    return Claim(path, record)


def _take_over(path: Path, record: dict[str, Any]) -> Claim | None:
    """Put this process's claim in a dead one's place. Those who want to do so take turns, and look again when it is theirs."""
    old = read_claim(path)
    if old is None or not is_stale(path, old):
        return None
    with open(path.with_name(".claim.lock"), "w") as turn:
        # where there are no locks, as on Windows, the last one to write has it, and the other one hears so (`lost`)
        store.hold(turn, wait=True)
        old = read_claim(path)
        if old is None or not is_stale(path, old):
            return None
        # A driver that is started anew gives every trial its tries again.
        same = old.get("driver") == record["driver"]
        record["vanished"] = 1 + (int(old.get("vanished", 0)) if same else 0)
        store.write_json(path, record)
    return Claim(path, record)


def read_claim(path: Path) -> dict[str, Any] | None:
    """Who holds a claim; {} where its first words are not written yet; None where there is no claim."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def is_stale(path: Path, owner: Mapping[str, Any]) -> bool:
    """Whether the owner of a claim is dead: here, by its process; elsewhere, by a heartbeat that is long ago."""
    me = identity()
    if owner and (owner.get("host"), owner.get("space")) == (me["host"], me["space"]):
        return not jobs.is_alive(owner.get("pid"), owner.get("created"))
    try:
        beat = path.stat().st_mtime
        # A shared disk has its own clock: ask it what time it is before judging by this machine's.
        if time.time() - beat < STALE / 5:
            return False
        clock = path.with_name(f".clock.{os.getpid()}")
        clock.touch()
        now = clock.stat().st_mtime
        clock.unlink(missing_ok=True)
    except OSError:
        return False
    return now - beat > STALE
