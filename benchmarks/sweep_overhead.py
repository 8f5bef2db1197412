"""What a trial of a sweep costs beside its training and its answers, and what keeping the backbone loaded is worth.

    python benchmarks/sweep_overhead.py      # results/sweep_overhead.{json,md}; some minutes of a core

A warm worker (`sweep.work`, one process, the backbone that ships, n = 3) does trials one after the other. Its overhead is a
trial's CPU seconds without those of the updates and the answers: claiming, examples, LoRA, codec ceiling, scoring, files, hashes.
Beside it, the same trials with a process each (config, train, predict, as a shell loop would do it). CPU seconds of one thread,
because the machine is shared; wall seconds stand beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FAMILIES = ("cogvideox", "causal_lm", "nextvid")
SIZES = {"3 updates, 2 tests": (3, 2), "30 updates, 10 tests": (30, 10)}
WARM, COLD = 6, 2  # trials measured; one more warms up
TASKS = ("maze/7x7", "life/B3S23")

WORKER = """
import sys, time
time.perf_counter = time.process_time  # the loop tells its seconds by it
import torch
torch.set_num_threads(1)
from pathlib import Path
from vdmreason import store, sweep, train
from vdmreason.sweep import worker
folder = Path(sys.argv[1])
real, give, answering = worker._attempt, train.Resident.arm, [0.0]

def arm_with_a_clock(self, *given):
    arm = give(self, *given)
    answer = type(arm).predict

    def predict(*given):
        began = time.process_time()
        answers = answer(arm, *given)
        answering[0] += time.process_time() - began
        return answers

    arm.predict = predict
    return arm

train.Resident.arm = arm_with_a_clock

def timed(folder, entry, mine, *rest):
    cpu, wall, answering[0] = time.process_time(), time.time(), 0.0
    failed = real(folder, entry, mine, *rest)
    assert failed is None, failed
    line = {"cpu": time.process_time() - cpu, "wall": time.time() - wall, "folder": entry["folder"]}
    line["answering"] = answering[0]
    print(store.json.dumps(line), flush=True)
    return failed

worker._attempt = timed
sweep.work(folder)
"""

ALONE = """
import sys, torch
torch.set_num_threads(1)
from vdmreason import config, predict, train
run = config.load(sys.argv[1])
arm = train.train(run, sys.argv[2])
predict.predict(sys.argv[2], arm)
"""


def sheet(family: str, size: str) -> dict[str, Any]:
    updates, test = SIZES[size]
    return {
        "name": "overhead",
        "tasks": list(TASKS),
        "n": [3],
        "seeds": list(range((WARM + 2) // len(TASKS))),
        "arms": {family: {"family": family, "flavour": "small"}},
        "set": {"test": test, "optim": {"updates": updates, "batch": 3}},
    }


def python(code: str, *words: str) -> tuple[str, float, float]:
    """Output, CPU seconds and wall seconds of a process."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    done = subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.time() - began


def measure(family: str, size: str) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT))
    import yaml

    from vdmreason import config, store, sweep

    with tempfile.TemporaryDirectory() as place:
        file, folder = Path(place) / "sheet.yaml", Path(place) / "sweep"
        file.write_text(yaml.safe_dump(sheet(family, size)))
        found = sweep.read(file)
        sweep.write_plan(folder, found)
        out, _, _ = python(WORKER, str(folder))
        warm = []
        for line in map(json.loads, out.splitlines()[1:]):  # the first one loads
            done = store.read_json(folder / line["folder"] / "done.json")
            warm.append({**line, "overhead": line["cpu"] - done["training"] - line["answering"]})
        cold = []
        for trial in found.trials[:COLD]:
            (Path(place) / "run.yaml").write_text(config.to_yaml(trial.run))
            cold.append(python(ALONE, str(Path(place) / "run.yaml"), str(Path(place) / trial.run.name))[1:])
    cpu, alone = (statistics.mean(x) for x in ([t["cpu"] for t in warm], [c for c, _ in cold]))
    return {
        "family": family,
        "size": size,
        "warm_trials": len(warm),
        "overhead_cpu_s": statistics.median(t["overhead"] for t in warm),
        "overhead_cpu_s_worst": max(t["overhead"] for t in warm),
        "warm_cpu_s": cpu,
        "warm_wall_s": statistics.mean(t["wall"] for t in warm),
        "alone_cpu_s": alone,
        "alone_wall_s": statistics.mean(w for _, w in cold),
        "warm_trials_an_hour": 3600 / cpu,
        "alone_trials_an_hour": 3600 / alone,
        "times": alone / cpu,
    }


def markdown(table: dict[str, Any]) -> str:
    lines = [
        "A sweep's warm worker against one process a trial, n = 3, batch 3, the small backbones that ship; CPU seconds of one "
        f"thread ({table['machine']}, shared: wall seconds would be others'). Overhead: what is neither update nor answer.",
        "",
        "| backbone | trial | overhead, median (worst) | warm trial | process of its own | trials per hour | times |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table["rows"]:
        lines.append(
            f"| {row['family']} | {row['size']} | {row['overhead_cpu_s']:.2f} s ({row['overhead_cpu_s_worst']:.2f}) "
            f"| {row['warm_cpu_s']:.2f} s | {row['alone_cpu_s']:.2f} s "
            f"| {row['warm_trials_an_hour']:.0f} against {row['alone_trials_an_hour']:.0f} | {row['times']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    table: dict[str, Any] = {
        "command": "python benchmarks/sweep_overhead.py",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "rows": [],
    }
    for size in SIZES:
        for family in FAMILIES:
            table["rows"].append(measure(family, size))
            print(table["rows"][-1], flush=True)
    (RESULTS / "sweep_overhead.json").write_text(json.dumps(table, indent=1) + "\n")
    (RESULTS / "sweep_overhead.md").write_text(markdown(table))
    print(markdown(table))


if __name__ == "__main__":
    main()
