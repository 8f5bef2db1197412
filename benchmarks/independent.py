"""Generated puzzles against checks that share no code with the generators: a SAT solver, and the tests' naive rules.

    pip install python-sat
    python benchmarks/independent.py             # results/independent.json

10,000 sudokus 9x9, hitoris 5x5 and mini sudokus, 1,000 of every other sudoku and hitori: how many solutions a SAT solver finds,
counted to two, and whether the one is the stored answer. Every other task: `tests/test_games.py` and `tests/test_tasks.py`
with 1,000 examples each.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tasks  # noqa: E402
from tasks.base import Grid  # noqa: E402
from vdmreason import store  # noqa: E402
from vdmreason.progress import progress  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "independent.json"
FULL = ("sudoku/9x9", "sudoku/4x4", "hitori/5x5")


def sudokus(question: Grid) -> Iterator[Grid]:
    """All solutions, by SAT: a variable for every cell and digit."""
    from pysat.solvers import Cadical153

    side, box = len(question), 3 if len(question) == 9 else 2
    number = {place: k for k, place in enumerate(itertools.product(range(side), repeat=3), 1)}
    cells = list(itertools.product(range(side), repeat=2))
    units = [[(r, c) for c in range(side)] for r in range(side)] + [[(r, c) for r in range(side)] for c in range(side)]
    corners = list(itertools.product(range(0, side, box), repeat=2))
    units += [[(r + y, c + x) for y in range(box) for x in range(box)] for r, c in corners]
    with Cadical153() as solver:
        for cell in cells:
            solver.add_clause([number[*cell, d] for d in range(side)])
            for a, b in itertools.combinations(range(side), 2):
                solver.add_clause([-number[*cell, a], -number[*cell, b]])
        for unit in units:
            for d in range(side):
                for one, two in itertools.combinations(unit, 2):
                    solver.add_clause([-number[*one, d], -number[*two, d]])
        for r, c in np.argwhere(question):
            solver.add_clause([number[r, c, int(question[r, c]) - 1]])
        while solver.solve():
            true = {v for v in solver.get_model() if v > 0}
            digit = {(r, c): d for (r, c, d), k in number.items() if k in true}
            yield np.array([[digit[r, c] + 1 for c in range(side)] for r in range(side)], np.int8)
            solver.add_clause([-number[r, c, d] for (r, c), d in digit.items()])


def hitoris(question: Grid) -> Iterator[Grid]:
    """All solutions, by SAT: a variable a cell, true if shaded. Where a model's unshaded cells fall apart, a clause says that
    a cell of one part, a cell of another, or one of the shaded cells round the first is something else."""
    from pysat.solvers import Cadical153

    rows, cols = question.shape
    number = {cell: k for k, cell in enumerate(np.ndindex(rows, cols), 1)}
    with Cadical153() as solver:
        for (r, c), cell in number.items():
            for near in ((r + 1, c), (r, c + 1)):
                if near in number:
                    solver.add_clause([-cell, -number[near]])
            for other in [(r, k) for k in range(c)] + [(k, c) for k in range(r)]:
                if question[other] == question[r, c]:
                    solver.add_clause([cell, number[other]])
        while solver.solve():
            shaded = {cell for cell, k in number.items() if solver.get_model()[k - 1] > 0}
            part, border = _part(next(cell for cell in number if cell not in shaded), number, shaded)
            outside = next((cell for cell in number if cell not in shaded and cell not in part), None)
            if outside is not None:
                inside = next(iter(part))
                solver.add_clause([number[inside], number[outside], *(-number[cell] for cell in border)])
                continue
            yield np.array([[(r, c) in shaded for c in range(cols)] for r in range(rows)], np.int8)
            solver.add_clause([-k if cell in shaded else k for cell, k in number.items()])


def _part(start: Any, number: Any, shaded: set[Any]) -> tuple[set[Any], set[Any]]:
    """The unshaded cells that hang together with one, and the shaded cells round them."""
    part, border, queue = {start}, set(), [start]
    while queue:
        r, c = queue.pop()
        for near in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
            if near in shaded:
                border.add(near)
            elif near in number and near not in part:
                part.add(near)
                queue.append(near)
    return part, border


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", type=int, default=10_000, help="of " + ", ".join(FULL))
    parser.add_argument("--many", type=int, default=1_000, help="of every other task")
    given = parser.parse_args()
    rows = []
    for name in tasks.variants("sudoku") + tasks.variants("hitori"):
        count = given.full if name in FULL else given.many
        solve = sudokus if name.startswith("sudoku") else hitoris
        unique = 0
        with progress(name, count) as show:
            for k, example in enumerate(tasks.examples(name, "train", count), 1):
                found = list(itertools.islice(solve(example.question), 2))
                unique += len(found) == 1 and np.array_equal(found[0], example.answer)
                show(k, None, f"{unique} with that one solution")
        rows.append({"task": name, "puzzles": count, "with_one_solution_the_stored_one": unique})
        print(f"{name:<18}{unique} of {count}", flush=True)
    tests = [sys.executable, "-m", "pytest", "-q", "tests/test_games.py", "tests/test_tasks.py"]
    done = subprocess.run(
        tests, cwd=ROOT, env={**os.environ, "VDMREASON_MANY": str(given.many)}, capture_output=True, text=True
    )
    said = done.stdout.strip().splitlines()[-1].split(" in ")[0]
    print(said)
    command = f"python benchmarks/independent.py --full {given.full} --many {given.many}"
    result = {"command": command, "versions": store.versions(), "sat": rows}
    result["tests"] = {"many": given.many, "said": said, "passed": done.returncode == 0}
    store.write_json(RESULTS, result)
    if done.returncode or any(row["puzzles"] != row["with_one_solution_the_stored_one"] for row in rows):
        sys.exit("some puzzles failed")


if __name__ == "__main__":
    main()
