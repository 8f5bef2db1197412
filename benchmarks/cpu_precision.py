"""What bf16 brings on a CPU that has it (avx512_bf16, AMX): seconds of an update and of an answer, for the backbones that ship.

    python benchmarks/cpu_precision.py                    # results/cpu_precision.{json,md}
    python benchmarks/cpu_precision.py --family lvmae     # one anew, among what is there; on a machine that does nothing else

One thread, Life and an elementary automaton at n = 30, batch 16, rank 32. The ways take turns, so that what else the machine
does meets all of them; told is each one's median as a share of fp32's. "bf16, attention too" leaves attention in bf16, whose way
back is slow on a CPU: why `speed.best_attention` has it in fp32 there. Attention by itself, there and back: the fastest of eight.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from effects import commit  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from vdmreason import config, speed, store  # noqa: E402
from vdmreason.predict import predict  # noqa: E402
from vdmreason.train import Resident, train  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "cpu_precision.json"
FAMILIES = ("cogvideox", "causal_lm", "nextvid", "internvideo_next", "lvmae")
TASKS = ("life/B3S23", "eca/110")  # sequences of some 100 tokens, and some 280
WAYS = {"fp32": "fp32", "bf16": "bf16", "bf16, attention too": "bf16"}
WARM = 2  # updates that are not counted


def measured(family: str, task: str, way: str, updates: int, resident: Resident) -> tuple[list[float], list[float]]:
    """(seconds of each update, seconds of each answer)."""
    keys: dict[str, Any] = {"task": task, "n": 30, "test": 16, "family": family, "flavour": "small"}
    keys |= {"precision": WAYS[way], "optim": {"updates": updates, "batch": 16}, "lora": {"rank": 32, "alpha": 32}}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if way.endswith("too"):
            stack.enter_context(mock.patch.object(speed, "best_attention", lambda *given: contextlib.nullcontext()))
        arm = train(config.resolve(keys), folder, resident=resident)
        records = predict(folder, arm, codec=False)
        updates_ = [line["seconds"] for line in store.read_lines(Path(folder) / "metrics.jsonl")]
        return updates_[WARM:], [record["seconds"] for record in records]


def attention(tokens: int, way: str, tries: int = 8) -> float:
    """Seconds of torch's attention, there and back, for 16 samples and 6 heads of 32, in bf16 as it comes and goes."""
    given = [torch.randn(16, 6, tokens, 32, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    device, best = torch.device("cpu"), math.inf
    for _ in range(tries):
        with sdpa_kernel(SDPBackend.MATH if way == "plain" else SDPBackend.FLASH_ATTENTION):
            with speed.best_attention(device, torch.bfloat16 if way == "fused, in fp32" else None):
                began = time.perf_counter()
                torch.nn.functional.scaled_dot_product_attention(*given).sum().backward()
                best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--family", choices=FAMILIES, action="append")
    given = parser.parse_args()
    families = given.family or FAMILIES
    known = (store.read_json(RESULTS) or {}).get("rows", []) if given.family else []
    torch.set_num_threads(1)
    rows = []
    for family, task in itertools.product(families, TASKS):
        seen: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in WAYS}
        residents = {way: Resident() for way in WAYS}
        for _ in range(given.rounds):
            for way in WAYS:
                found = measured(family, task, way, given.updates, residents[way])
                for kept, new in zip(seen[way], found, strict=True):
                    kept.extend(new)
        base = [statistics.median(values) for values in seen["fp32"]]
        for way, values in seen.items():
            shares = [statistics.median(v) / b for v, b in zip(values, base, strict=True)]
            scores = {"update": shares[0], "answer": shares[1], "commit": commit()}
            rows.append({"family": family, "task": task, "way": way, **scores})
            print(f"{family:<18} {task:<12} {way:<20} update {shares[0]:.2f}  answer {shares[1]:.2f}", flush=True)
    alone = []
    for tokens in (68, 136, 260, 520):
        times = {way: attention(tokens, way) for way in ("fused, in fp32", "fused, in bf16", "plain")}
        alone.append({"tokens": tokens, **{way: seconds / times["fused, in fp32"] for way, seconds in times.items()}})
        print(alone[-1], flush=True)
    others = [row for row in known if row["family"] not in families]
    rows = sorted([*others, *rows], key=lambda row: FAMILIES.index(row["family"]))
    native = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    store.write_json(
        RESULTS,
        {
            "command": " ".join(["python benchmarks/cpu_precision.py", *sys.argv[1:]]),
            "commit": commit(), "machine": f"{platform.system()} {platform.machine()}, 1 thread", "native bf16": native,
            "torch": torch.__version__, "rows": rows, "attention": alone,
        },
    )  # fmt: skip
    lines = ["Seconds of an update and of an answer, as shares of fp32's (`cpu_precision.json`).", ""]
    lines += ["| backbone | task | way | update | answer |", "|---|---|---|---|---|"]
    lines += [f"| {r['family']} | {r['task']} | {r['way']} | {r['update']:.2f} | {r['answer']:.2f} |" for r in rows]
    lines += [
        "",
        "Attention alone, there and back, by torch's kernels, beside the fused one in fp32 with its casts:",
        "",
    ]
    lines += ["| tokens | fused, in bf16 | plain, in bf16 |", "|---|---|---|"]
    lines += [f"| {a['tokens']} | {a['fused, in bf16']:.1f} | {a['plain']:.1f} |" for a in alone]
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
