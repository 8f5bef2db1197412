"""How fast examples are made, beside the paper's published generators, on the same machine in the same run.

    git clone https://github.com/PabloAcuaviva/visual-intelligence /tmp/peer
    python benchmarks/generators.py --peer /tmp/peer

Seconds are CPU seconds of one core (time.process_time), so other work on the machine does not count; what a reader should
look at is the ratio. Ours includes what the published ones leave out: no two examples alike, training and test apart
with their symmetric twins, one solution proven for sudoku and hitori. Compilation is counted apart: it happens once.
The published repository runs from its own checkout; nothing of it is in ours.
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
from vdmreason import store  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "generators.json"
WAYS = {"width": 15, "height": 15, "obstacle_density": 0.05, "seed": 42, "add_border": True, "n_barriers": 3,
        "barrier_holes_range": [8, 14], "n_blocks": [3, 8], "block_size_range": [2, 3],
        "generate_intermediate_states": True, "max_attempts": 4000, "min_manhattan_distance": 15}  # fmt: skip
MAZE = {"seed": 1, "generate_intermediate_states": True}
# Ours -> module, class and arguments of the published generator, as its own scripts call it.
PAIRS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sudoku/9x9": ("sudoku", "Sudoku", {"difficulty": "easy", "variant": "standard", "seed": 123}),
    "sudoku/4x4": ("sudoku", "Sudoku", {"difficulty": "easy", "variant": "mini", "seed": 123}),
    "hitori/5x5": ("hitori", "Hitori", {"size": 5, "difficulty": "easy", "seed": 123}),
    "connect4/win-in-1": ("connect4", "Connect4", {"seed": 420}),
    "maze/13x13": ("maze", "Maze", {"width": 13, "height": 13, "valid_starts": [1, 1], "valid_ends": [11, 11], **MAZE}),
    "maze/21x21": ("maze", "Maze", {"width": 21, "height": 21, "valid_starts": [1, 1], "valid_ends": [19, 19], **MAZE}),
    "shortest_path/15x15": ("navigation2d", "Navigation2D", WAYS),
    "eca/110": ("cellular_automata_1d", "CellularAutomata1D",
                {"rule": 110, "width": 16, "steps": 7, "initialization": "random", "seed": 42}),
    "life/B3S23": ("game_of_life", "GameOfLife",
                   {"width": 8, "height": 8, "steps": 1, "initialization": "random", "density": 0.4, "seed": 42}),
    "langton/5": ("langton_ant", "LangtonAnt",
                  {"width": 8, "height": 8, "steps": 5, "initialization": "random", "seed": 123, "init_grid_as": 0,
                   "ant_initial_dir": "N"}),
    "hanoi/5-step": ("general_hanoi", "GeneralHanoi", {"num_disks": 5, "step": 1}),
}  # fmt: skip

# Runs in the peer's checkout. Draws until the time is up, at least once.
THEIRS = """
import importlib, json, sys, time
module, name, arguments, seconds = json.loads(sys.argv[1])
arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
task = getattr(importlib.import_module("visual_intelligence.tasks." + module), name)(**arguments)
began, count = time.process_time(), 0
while count == 0 or time.process_time() - began < seconds:
    task.generate()
    count += 1
print(json.dumps([count, time.process_time() - began]))
"""


def ours(name: str, seconds: float) -> dict[str, float]:
    began = time.process_time()
    tasks.examples(name, "train", 1, seed=10**6)  # compiles, or reads what was compiled before
    compiling = time.process_time() - began
    most = 100 if name.startswith("hanoi") else 10**6  # a tower has a few hundred puzzles in all
    count, used, seed = 0, 0.0, 0
    while used < seconds:
        began = time.process_time()
        count += len(tasks.examples(name, "train", min(most, 500), seed))
        used += time.process_time() - began
        seed += 1
    return {"examples": count, "seconds": used, "a_second": count / used, "first_seconds": compiling}


def theirs(name: str, peer: Path, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-c", THEIRS, json.dumps([*PAIRS[name], seconds])]
    done = subprocess.run(command, cwd=peer, capture_output=True, text=True, timeout=60 + 40 * seconds)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    count, used = json.loads(done.stdout.splitlines()[-1])
    return {"examples": count, "seconds": used, "a_second": count / used}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a checkout of the published repository; without it ours alone")
    parser.add_argument("--seconds", type=float, default=5, help="CPU seconds a generator (default 5)")
    parser.add_argument("--task", choices=tuple(PAIRS), action="append", help="only these")
    given = parser.parse_args()
    rows = []
    for name in given.task or PAIRS:
        row: dict[str, Any] = {"task": name, "ours": ours(name, given.seconds)}
        if given.peer:
            row["theirs"] = theirs(name, given.peer, given.seconds)
            if "a_second" in row["theirs"]:
                row["ratio"] = row["ours"]["a_second"] / row["theirs"]["a_second"]
        rows.append(row)
        peer = row.get("theirs", {})
        said = peer.get("failed") or (f"{peer['a_second']:10.2f}/s   {row['ratio']:8.0f} x" if peer else "")
        print(f"{name:<22}{row['ours']['a_second']:10.0f}/s   {said}", flush=True)
    if given.task is None and given.peer:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=given.peer, capture_output=True, text=True
        ).stdout.strip()
        command = f"python benchmarks/generators.py --peer <checkout> --seconds {given.seconds:g}"
        store.write_json(RESULTS, {"command": command, "peer": commit, "versions": store.versions(), "rows": rows})


if __name__ == "__main__":
    main()
