"""Why a job failed, in words: the last lines of its log, and what helps against the causes that are known."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from vdmreason import jobs, store
from vdmreason.ui import public

LINES = 30
# What a log or an error says -> what happened and what helps. The first that fits is told.
HINTS: Sequence[tuple[str, str, str]] = (
    (
        r"out of memory|OutOfMemory|MemoryError|can't allocate memory|Cannot allocate memory|CUBLAS_STATUS_ALLOC_FAILED"
        r"|not even one example fits|exitcode: -9|Signal 9",
        "Memory ran out",
        "In YAML set optim.micro_batch: 1 and speed.checkpointing: on; if that is not enough quantise: nf4, a lower lora.rank, "
        "or smaller options.pixels or options.frames. <code>vdmreason doctor --config {config}</code> names the nearest "
        "setting that fits.",
    ),
    (
        r"the loss is (nan|inf|-inf)|gradient norm is|no finite gradient|is not finite",
        "The loss was no number",
        "Halve optim.lr, lengthen optim.warmup, or set precision: fp32. Then start it as a new run.",
    ),
    (
        r"No space left on device|disk is full|disk quota|Disk quota exceeded",
        "The disk is full",
        "Free some space, then resume: what was saved before is intact.",
    ),
    (
        r"GatedRepo|401 Client|403 Client|is not a valid model identifier|RepositoryNotFound|Repository Not Found",
        "The hub refused",
        "Check the name of the backbone; a gated one needs its terms accepted and a login: <code>hf auth login</code>.",
    ),
    (
        r"LocalEntryNotFound|OfflineMode|HF_HUB_OFFLINE|couldn't connect|could not be reached|cannot be reached|Max retries"
        r"|ConnectionError|ConnectTimeout|Name or service not known|Temporary failure in name resolution",
        "The hub could not be reached",
        "Check the network and HF_HUB_OFFLINE, then resume; or choose a backbone that ships with the project.",
    ),
)
LOST = (
    "The process ended without a word",
    "It was killed from outside, or the machine went down; where memory was short, the system does that. "
    "Resume goes on from the last checkpoint.",
)


def hint(text: str) -> tuple[str, str] | None:
    """(what happened, what helps, as HTML) for a log's or an error's text; None where the cause is not known."""
    for pattern, what, remedy in HINTS:
        if re.search(pattern, text, re.IGNORECASE):
            return what, remedy
    return None


def card(folder: Path, name: str) -> str:
    """A failed or lost job's card as HTML; "" for any other."""
    status = jobs.status(folder)
    if status.state not in ("failed", "lost"):
        return ""
    found = hint(f"{status.error}\n{jobs.log_tail(folder, LINES)}") or (LOST if status.state == "lost" else None)
    what, remedy = found or ("It failed", "The cause is none of the known ones; the last lines of its log say more.")
    config = public.clean(shell_place(folder))
    error = f'<p class="failure-error">{html.escape(public.clean(status.error))}</p>' if status.error else ""
    lines = html.escape(public.log_of(folder, LINES))
    step = f" at update {status.step} of {status.updates}" if status.updates else ""
    return (
        f'<section class="failure" aria-label="{html.escape(name)} failed"><h3>{html.escape(name)}: '
        f"{html.escape(what[:1].lower() + what[1:])}{step}</h3>{error}"
        f'<p class="failure-hint"><b>What helps:</b> {remedy.replace("{config}", html.escape(config))}</p>'
        f'<details><summary>Last lines of the log</summary><pre tabindex="0">{lines}</pre></details></section>'
    )


def shell_place(folder: Path) -> str:
    """A run's config.yaml as one would type it: relative to where the runs are named from."""
    root = store.runs_root()
    inside = folder.resolve().is_relative_to(root.resolve())
    place = root / folder.resolve().relative_to(root.resolve()) if inside else folder
    return str(place / "config.yaml")
