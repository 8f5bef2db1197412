"""Writes requirements.lock (what `make app` installs) and requirements-dev.lock (what `make test` installs beside it).

The versions are those that .venv holds; pyproject.toml says what is wanted. Two files, so that nobody gets the tests' tools, nor
python-chess (GPL-3), who only wants the product. torch's build tag and CUDA's packages are left out: torch names those itself.
"""

import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("export", "report", "video")  # what the product can do on any machine
NOT_OURS = ("nvidia", "triton", "cuda", "setuptools", "pip")  # torch brings the first three; a new .venv the others


def closure(wanted: list[str]) -> dict[str, str]:
    """name -> version of all that `wanted` (requirement lines) asks for, and what that asks for in turn, as installed here."""
    found: dict[str, str] = {}
    seen, left = set(), [Requirement(line) for line in wanted]
    while left:
        one = left.pop()
        name = canonicalize_name(one.name)
        if name.startswith(NOT_OURS) or (name, *sorted(one.extras)) in seen:
            continue
        seen.add((name, *sorted(one.extras)))
        installed = distribution(name)
        found[name] = installed.version.partition("+")[0]
        for requirement in map(Requirement, installed.requires or []):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *one.extras)):
                left.append(requirement)
    return found


def write(path: Path, head: str, found: dict[str, str]) -> None:
    path.write_text(head + "\n" + "".join(f"{name}=={found[name]}\n" for name in sorted(found)))


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    product = closure(project["dependencies"] + [line for extra in EXTRAS for line in extras[extra]])
    tools = closure(extras["dev"])
    for name in product.keys() & tools.keys():
        del tools[name]
    head = "# Made by `make lock`. What `make {}` installs{}; the ranges are in pyproject.toml."
    write(ROOT / "requirements.lock", head.format("app", ""), product)
    write(ROOT / "requirements-dev.lock", head.format("test", " beside requirements.lock"), tools)


if __name__ == "__main__":
    main()
