"""How fast examples and whole data sets are made, beside the paper's published generators, in the same run.

    git clone https://github.com/PabloAcuaviva/visual-intelligence /tmp/peer
    python benchmarks/generators.py --peer /tmp/peer       # results/generators.{json,md}

Three things are timed, for ours and for theirs:

    examples   new ones drawn one after the other. Ours are all different, training and test are apart with their symmetric
               twins, and sudoku and hitori are proven to have one solution; theirs are drawn with replacement, unproven
    filter     one candidate for the test set against 5,000 training examples, by the distance that was published
    data set   5,000 training examples and 200 for the test as far from all of them as was published: what generate.py of the
               published code makes. Ours is made and timed. Theirs is worked out from the first two and from the share of
               candidates that are far enough, as ours finds it (at most the published 20 or 1000 tries an example)

Seconds are CPU seconds of one core (time.process_time), so other work on the machine does not count; what a reader should
look at is the ratio. Compilation is counted apart: it happens once. The published repository runs from its own checkout;
nothing of it is in ours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tasks  # noqa: E402
from tasks import split  # noqa: E402
from tasks.base import UserError  # noqa: E402
from tasks.split import Nearest  # noqa: E402
from vdmreason import store  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "generators.json"
TRAIN, TEST = 5000, 200
FEW = {"hanoi/5-step": (400, 40)}  # towers have 726 puzzles in all
LIFE = {
    "birth_rule": [3],
    "survival_rule": [2, 3],
    "gol_variant_name": "Gol_Life",
    "steps": 1,
    "distance_threshold": 0.25,
}
# Ours -> the published data set's name and arguments, as the published generate.py gives them.
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "sudoku/9x9": ("sudoku", {}),
    "sudoku/4x4": ("sudoku", {"variant": "mini"}),
    "hitori/5x5": ("hitori", {}),
    "connect4/win-in-1": ("connect4", {}),
    "maze/13x13": ("maze_small", {}),
    "maze/21x21": ("maze", {}),
    "shortest_path/15x15": ("navigation2d_any_to_any", {}),
    "eca/110": ("cellular_automata_1d", {"rule": 110}),
    "life/B3S23": ("gol", LIFE),
    "langton/5": ("langton_ant", {"steps": 5}),
    "hanoi/5-step": ("general_hanoi", {"steps": 1}),
}

# Runs in the peer's checkout. Its own function for a data set hands over the task and the distance; then each is timed.
THEIRS = """
import json, sys, time, types
sys.modules.setdefault("cairosvg", types.ModuleType("cairosvg"))  # only its chess pictures need it
from visual_intelligence.dataset_generation.registry import DATASET_GENERATORS
import visual_intelligence.dataset_generation

name, arguments, seconds, n_train = json.loads(sys.argv[1])

class Handed(Exception):
    pass

class Spy:
    def __init__(self, task, dist_fn, extend_dataset=None):
        self.task, self.distance = task, dist_fn
    def generate(self, **given):
        raise Handed(self, given)

make = DATASET_GENERATORS[name]
make.__globals__["TaskDatasetGenerator"] = Spy
try:
    make(n_train=n_train, n_test=200, out_dir="unused", subset_sizes=[], **arguments)
except Handed as handed:
    spy, given = handed.args

problems, began = [], time.process_time()
while len(problems) < 2 or time.process_time() - began < seconds:
    problems.append(spy.task.generate())
drawing = (time.process_time() - began) / len(problems)
train, candidates, began = (problems * n_train)[:n_train], 0, time.process_time()
while candidates == 0 or time.process_time() - began < seconds:
    min(spy.distance(problems[candidates % len(problems)], other) for other in train)
    candidates += 1
filtering = (time.process_time() - began) / candidates
print(json.dumps([len(problems), drawing, candidates, filtering, given.get("attempts_multiplier", 20)]))
"""


def ours(name: str, seconds: float) -> dict[str, Any]:
    task, (n_train, n_test) = tasks.get(name), FEW.get(name, (TRAIN, TEST))
    began = time.process_time()
    tasks.examples(name, "train", 1, seed=10**6)  # compiles, or reads what was compiled before
    compiling = time.process_time() - began
    count, used, seed = 0, 0.0, 1
    while used < seconds:
        began = time.process_time()
        count += len(tasks.examples(name, "train", min(n_train, 500), seed))
        used += time.process_time() - began
        seed += 1
        split._stream.cache_clear()  # lists are kept for who asks again; keeping many would time the garbage collector

    began = time.process_time()
    train = tasks.examples(name, "train", n_train)
    try:
        test = len(tasks.examples(name, "test", n_test, far_from=train))
    except UserError as error:  # fewer are far enough; it says how many
        test = int(str(error).partition(": ")[2].split()[0])
    whole = time.process_time() - began

    assert task.apart is not None
    plain = tasks.examples(name, "test", n_test)
    nearest = Nearest(train, task.apart.of)
    began = time.process_time()
    far = sum(nearest.distance(example) >= task.apart.least for example in plain)
    filtering = (time.process_time() - began) / len(plain)
    return {"examples": count, "seconds": used, "a_second": count / used, "first_seconds": compiling,
            "filter_seconds": filtering, "far_share": far / len(plain), "test_found": test,
            "data_set_seconds": whole}  # fmt: skip


def theirs(name: str, peer: Path, seconds: float, mine: dict[str, Any]) -> dict[str, Any]:
    n_train, n_test = FEW.get(name, (TRAIN, TEST))
    command = [sys.executable, "-c", THEIRS, json.dumps([*PAIRS[name], seconds, n_train])]
    done = subprocess.run(command, cwd=peer, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    drawn, drawing, candidates, filtering, tries = json.loads(done.stdout.splitlines()[-1])
    # candidates until the test set is full or given up
    wanted = min(n_test / max(mine["far_share"], 1e-9), n_test * tries)
    whole = n_train * drawing + wanted * (drawing + filtering)
    return {"examples": drawn, "a_second": 1 / drawing, "candidates": candidates, "filter_seconds": filtering,
            "data_set_seconds_worked_out": whole}  # fmt: skip


def markdown(table: dict[str, Any]) -> str:
    lines = [
        "| task | examples/s, ours | theirs | ratio | filter ratio | data set, ours | theirs, worked out | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table["rows"]:
        mine, peer, ratio = row["ours"], row["theirs"], row["ratio"]
        whole = f"{mine['data_set_seconds']:.1f} s | {_time(peer['data_set_seconds_worked_out'])} | {ratio['data_set']:,.0f}"
        rates = f"{mine['a_second']:,.0f} | {peer['a_second']:,.1f} | {ratio['examples']:,.0f}"
        lines.append(f"| `{row['task']}` | {rates} | {ratio['filter']:,.0f} | {whole} |")
    return "\n".join(lines) + "\n"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a checkout of the published repository; without it ours alone")
    parser.add_argument("--seconds", type=float, default=5, help="CPU seconds a generator and a filter (default 5)")
    parser.add_argument("--task", choices=tuple(PAIRS), action="append", help="only these; the results are not written")
    given = parser.parse_args()
    rows = []
    for name in given.task or PAIRS:
        row: dict[str, Any] = {"task": name, "ours": ours(name, given.seconds)}
        said = f"{name:<22}{row['ours']['a_second']:10,.0f}/s"
        if given.peer:
            row["theirs"] = theirs(name, given.peer, given.seconds, row["ours"])
            if "failed" in row["theirs"]:
                sys.exit(f"{name}: the published generator failed: {row['theirs']['failed']}")
            row["ratio"] = {
                "examples": row["ours"]["a_second"] / row["theirs"]["a_second"],
                "filter": row["theirs"]["filter_seconds"] / row["ours"]["filter_seconds"],
                "data_set": row["theirs"]["data_set_seconds_worked_out"] / row["ours"]["data_set_seconds"],
            }
            said += "".join(f"   {key} {value:,.0f} x" for key, value in row["ratio"].items())
        rows.append(row)
        print(said, flush=True)
    if given.task is None and given.peer:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=given.peer, capture_output=True, text=True)
        command = f"python benchmarks/generators.py --peer <checkout> --seconds {given.seconds:g}"
        table = {"command": command, "peer": git.stdout.strip(), "versions": store.versions(), "rows": rows}
        store.write_json(RESULTS, table)
        RESULTS.with_suffix(".md").write_text(markdown(table))


if __name__ == "__main__":
    main()
