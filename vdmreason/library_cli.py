"""vdmreason adapters: what `vdmreason.library` does, as commands."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tasks.base import UserError
from vdmreason import config, jobs, library, store, trash

app = typer.Typer(no_args_is_help=True, help="What adapters are here, what they are, and how they travel.")

FolderArgument = Annotated[Path, typer.Argument(help="A run's folder, one of adapters/zoo, or an exported one")]
Out = Annotated[Path | None, typer.Option(help="A new folder (default: runs/<name>)")]
Answers = Annotated[bool, typer.Option("--with-answers", help="Its recorded answers and their clips too")]
Family = Annotated[str | None, typer.Option(help="Of a LoRA made elsewhere: causal_lm, cogvideox, wan, ltx, vlm")]
Flavour = Annotated[str | None, typer.Option(help="Its backbone: small, a hub id, or a folder on this machine")]
TaskName = Annotated[str | None, typer.Option("--task", help="What it was trained on: maze/7x7, arc:puzzle.json")]
N = Annotated[int | None, typer.Option("-n", "--n", min=1, help="On how many examples")]


@contextlib.contextmanager
def _as_a_job() -> Iterator[None]:
    """Where this command was started as a job, its folder says how it goes. A wish to stop ends it at once: nothing is half
    there, since what is fetched comes into place in one step."""
    folder = os.environ.get(jobs.IN_JOB)
    if not folder:
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise jobs.Stopped

    with jobs.working(Path(folder), listens=False):
        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


@app.command("list")
def list_(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Where to look (default: those that ship, and runs/)")
    ] = None,
) -> None:
    """List the adapters that are here, with their exact match and its 95 % interval.

    vdmreason adapters list
    vdmreason adapters list runs/first_table
    """
    from rich.console import Console
    from rich.table import Table

    for folder in folders or []:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder.")
    found, faults = library.listing(*(folders or []))
    table = Table(caption="ask one of them: vdmreason predict FOLDER; what it is: vdmreason adapters show FOLDER")
    for column in ("folder", "family", "task", "n", "exact % [95 %]", "MB"):
        table.add_column(column, overflow="fold", justify="right" if column in ("n", "MB") else "left")
    for entry, apart in zip(found, config.told_apart([config.to_dict(entry.run) for entry in found]), strict=True):
        run, exact = entry.run, entry.exact
        score = (
            f"{100 * exact['value']:.1f} [{100 * exact['low']:.0f}, {100 * exact['high']:.0f}]"
            if exact
            else "not scored yet"
        )
        family = f"{run.family} {Path(run.flavour).name}" + (" (random init)" if run.init == "random" else "") + apart
        task = run.task + (f", asked {run.test_task}" if run.test_task else "")
        table.add_row(_short(entry.folder), family, task, str(run.n), score, f"{entry.bytes / 1e6:.1f}")
    if found:
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    else:
        print("no adapter here yet. Make one: vdmreason train --help")
    for fault in faults:
        print(f"passed over: {' '.join(fault.split())}", file=sys.stderr)


def _short(folder: Path) -> str:
    """As one types it here."""
    whole = folder.resolve()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(folder)


@app.command("show")
def show(folder: FolderArgument) -> None:
    """Show an adapter's card in the terminal.

    vdmreason adapters show adapters/zoo/maze-7x7--causal_lm--n300
    """
    from huggingface_hub import ModelCard
    from rich.console import Console
    from rich.markdown import Markdown

    text = ModelCard(library.card(folder)).text
    Console(width=None if sys.stdout.isatty() else 120).print(Markdown(text))


@app.command("card")
def card(
    folders: Annotated[list[Path], typer.Argument(help="Runs' folders")],
    write: Annotated[bool, typer.Option("--write", help="Into each folder's README.md, not to the terminal")] = False,
) -> None:
    """Print the model card with the hub's metadata, or write it. Training and scoring write it by themselves.

    vdmreason adapters card adapters/zoo/maze-7x7--causal_lm--n300
    vdmreason adapters card adapters/zoo/* --write
    """
    for folder in folders:
        text = library.card(folder)
        if write:
            store.write_text(folder / "README.md", text)
            print(folder / "README.md")
        else:
            print(text)


@app.command("export")
def export(
    folder: FolderArgument,
    out: Annotated[Path, typer.Option(help="A new folder, or a new file that ends in .zip")],
    with_answers: Answers = False,
) -> None:
    """Write what a stranger needs into a new folder that diffusers and peft read directly.

    vdmreason adapters export adapters/zoo/maze-7x7--cogvideox--n300 --out maze-lora
    vdmreason adapters export runs/maze-7x7--causal_lm--n30--s0--ab12cd --out maze-lora.zip --with-answers
    """
    print(library.export(folder, out, with_answers))
    run = library.run_of(folder)
    more = f" --flavour {run.flavour}" if library.travelling(run).flavour != run.flavour else ""
    print(f"back again: vdmreason adapters import {out}{more}")


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(help="An exported folder, its zip, or a LoRA in diffusers' or peft's layout")
    ],
    out: Out = None,
    family: Family = None,
    flavour: Flavour = None,
    task: TaskName = None,
    n: N = None,
) -> None:
    """Make a run's folder of an adapter that came from elsewhere. Safetensors only.

    vdmreason adapters import maze-lora
    vdmreason adapters import maze-lora --flavour ./my-video-backbone
    vdmreason adapters import their-lora --family causal_lm --flavour Qwen/Qwen3-4B-Instruct-2507 --task maze/7x7 --n 30
    """
    library.known_families(family)
    place = library.import_(source, out, {"family": family, "flavour": flavour, "task": task, "n": n})
    print(f"{place}\nnext: vdmreason predict {place}")


@app.command("push")
def push(
    folder: FolderArgument,
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME")],
    private: Annotated[bool, typer.Option("--private", help="For you alone")] = False,
    with_answers: Answers = False,
) -> None:
    """Put an adapter on the Hugging Face hub, with its card. Log in before: hf auth login

    vdmreason adapters push runs/maze-7x7--cogvideox--n30--s0--ab12cd me/maze-lora --private
    """
    with _as_a_job():
        print(f"{library.push(folder, repo, private, with_answers)}\nanywhere: vdmreason adapters pull {repo}")


@app.command("pull")
def pull(
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME[@REVISION]")],
    out: Out = None,
    family: Family = None,
    flavour: Flavour = None,
    task: TaskName = None,
    n: N = None,
) -> None:
    """Fetch an adapter from the Hugging Face hub and make it a run's folder. Safetensors only.

    vdmreason adapters pull me/maze-lora
    vdmreason adapters pull them/their-lora --family causal_lm --flavour Qwen/Qwen3-4B-Instruct-2507 --task maze/7x7 --n 30
    """
    with _as_a_job():
        library.known_families(family)
        place = library.pull(repo, out, {"family": family, "flavour": flavour, "task": task, "n": n})
        print(f"{place}\nnext: vdmreason predict {place}")


@app.command("remove")
def remove(folders: Annotated[list[Path], typer.Argument(help="Runs' folders")]) -> None:
    """Move runs to the trash, with everything in their folders. They can be put back for seven days.

    vdmreason adapters remove runs/maze-7x7--causal_lm--n30--s0--ab12cd
    """
    for folder in folders:
        removed = trash.remove(folder)
        print(f"{folder}: removed\nback again: vdmreason adapters restore {removed.name}")


@app.command("restore")
def restore(
    name: Annotated[str | None, typer.Argument(help="What to put back; without it, what could be is listed")] = None,
) -> None:
    """Put a removed run back where it was, or list the removed ones.

    vdmreason adapters restore
    vdmreason adapters restore 20260101-120000-maze-7x7--causal_lm--n30--s0--ab12cd
    """
    if name:
        print(trash.restore(name))
        return
    for removed in trash.listing():
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(removed.until))
        print(f"{removed.name}  was {removed.was}, kept until {until}")
    if not trash.listing():
        print("nothing was removed in the last seven days.")
