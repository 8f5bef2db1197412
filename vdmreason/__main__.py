"""The command line: vdmreason tasks | arc | pretrain | probe | finetune | train | predict | evaluate | sweep | adapters
| compare | app | doctor.

Everything the page does, it does through the functions called here. torch is imported only by the commands that need a
model, so looking at puzzles and scores starts at once.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

import tasks
from tasks.base import UserError, suggest
from vdmreason import backbones, config, jobs, library_cli, report, store, sweep
from vdmreason.progress import print_keys


class OneLine(typer.core.TyperGroup):
    """Commands whose errors are one line, before the library turns an interrupt into its own words."""

    def invoke(self, ctx: Any) -> Any:
        with one_line_errors("VDMREASON_DEBUG" in os.environ):
            return super().invoke(ctx)


app = typer.Typer(
    name="vdmreason",
    cls=OneLine,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Which pretrained model learns a visual-reasoning task from a few examples: video diffusion or language?

    [bold]Start here[/bold]

      vdmreason app                                    serve the page; it prints the address
      vdmreason compare arc1/evaluation/00576224       adapt both on one puzzle, see both answers
      vdmreason tasks list                             every puzzle there is""",
)
tasks_app = typer.Typer(no_args_is_help=True, help="Look at puzzles.")
app.add_typer(tasks_app, name="tasks")
app.add_typer(backbones.app, name="pretrain")
app.command("probe")(backbones.probe)
app.command("finetune")(backbones.finetune)
arc_app = typer.Typer(no_args_is_help=True, help="Score answers to ARC puzzles by the rules in use, and hand them in.")
app.add_typer(arc_app, name="arc")
app.add_typer(library_cli.app, name="adapters")
app.add_typer(sweep.app, name="sweep")
app.command("report")(report.command)

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: optim.lr=1e-3")]
Folder = Annotated[Path | None, typer.Option(help="Where the run is kept; the same folder resumes.")]


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """What the user can fix is one line on stderr and exit code 2; `debug` shows where it came from."""
    if not debug:  # each of the hub's attempts would be two lines before ours
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # read when it is imported
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        yield
    except jobs.Stopped:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(2) from None
    except (UserError, OSError, RuntimeError) as error:
        full_device = type(error).__name__ == "OutOfMemoryError"  # torch's, which need not be loaded here
        if isinstance(error, RuntimeError) and not full_device:
            raise
        if debug:
            traceback.print_exc()
        if full_device:
            error = UserError(
                "the GPU is out of memory. In training set optim.micro_batch: 1, speed.checkpointing: on, then quantise: nf4; "
                "for answers a smaller options.batch. `vdmreason doctor --config` says what fits."
            )
        elif debug:
            pass
        elif isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit flush says nothing either
            raise SystemExit(0) from None
        elif isinstance(error, NotADirectoryError | FileExistsError) and error.filename:
            error = UserError(f"{error.filename}: is a file, or lies in one, where a folder is wanted. Name another.")
        elif isinstance(error, PermissionError) and error.filename:
            error = UserError(f"{error.filename}: may not be read or written by this user. Name another place.")
        elif isinstance(error, OSError) and error.errno != errno.ENOSPC:
            raise
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        if isinstance(error, OSError) and not full:  # only with --debug: its traceback is there
            raise SystemExit(1) from None
        text = "the disk is full; free some space and run the same command again" if full else str(error)
        line = " ".join(text.split())
        print(f"error: {line}", file=sys.stderr)
        jobs.tell(line)
        raise SystemExit(2) from None


# ---------------------------------------------------------------------------------------------------------------------
# tasks


@tasks_app.command("list")
def tasks_list(
    family: Annotated[str | None, typer.Argument(help="maze, life, eca, arc1/evaluation, ...")] = None,
) -> None:
    """List the puzzles, one name a line: [cyan]vdmreason tasks list arc1/evaluation[/cyan]"""
    if family is None:
        for known in tasks.families():
            names = tasks.variants(known) or [f"not installed; see docs/tasks/{known}.md"]
            more = f"  and {len(names) - 8} more: vdmreason tasks list {known}" if len(names) > 8 else ""
            print(f"{known}: {', '.join(names[:8])}{more}")
        return
    for name in tasks.variants(family):
        print(name)


@tasks_app.command("show")
def tasks_show(
    name: Annotated[str, typer.Argument(help="maze/7x7, eca/110, arc1/evaluation/00576224")],
    split: Annotated[str, typer.Option(help="train or test")] = "test",
    n: Annotated[int | None, typer.Option("-n", "--n", min=1, help="How many (default 2; a finite task: all)")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="A PNG to draw them into as well")] = None,
) -> None:
    """Draw puzzles and their answers in colour, and say what the task's values mean and how many puzzles there are.

    vdmreason tasks show maze/7x7 --n 3 --seed 1
    vdmreason tasks show arc1/evaluation/00576224 --split train
    vdmreason tasks show langton/5 --out langton.png
    """
    from tasks.render import ansi
    from vdmreason.compare import side_by_side
    from vdmreason.export import picture

    if split not in ("train", "test"):
        raise UserError(f"--split {split}: must be train or test.")
    task = tasks.get(name)
    number = n or tasks.count(task, split) or 2  # type: ignore[arg-type]
    examples = tasks.examples(task, split, number, seed)  # type: ignore[arg-type]
    print(f"{task.name}: {task.about}")
    for key, value in task.card().items():
        print(f"  {key:<10} {value}")
    for i, example in enumerate(examples):
        grids = [("question", ansi(example.question).splitlines())]
        grids += [("answer", ansi(example.answer).splitlines())] if not example.open else []
        print(f"\n{split} {i}   seed {seed}   {example.key}\n{side_by_side(grids)}")
    if out:
        try:
            picture(task, examples).save(out)
        except (OSError, ValueError) as error:
            raise UserError(f"--out {out}: cannot be written ({error}).") from None
        print(f"\n{out}")


@tasks_app.command("export")
def tasks_export(
    name: Annotated[str, typer.Argument(help="maze/7x7, sudoku/9x9, arc1/evaluation/00576224")],
    out: Annotated[Path, typer.Option(help="A folder; the same command goes on where it was stopped")],
    n: Annotated[int | None, typer.Option("-n", "--n", min=0, help="Training examples (default 300)")] = None,
    test: Annotated[int | None, typer.Option(min=0, help="Test examples (default 100)")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    style: Annotated[
        str, typer.Option(help="How grids are drawn: video-8, video-14, video-16, video-32, paper")
    ] = "video-16",
    mode: Annotated[str, typer.Option(help="The clips' transition: discrete, linear, trajectory")] = "discrete",
    clips: Annotated[bool, typer.Option(help="Write the transition videos too")] = True,
) -> None:
    """Write examples as a folder that `datasets.load_dataset` reads: parquet with pictures, JSON and clips, and a card.

    vdmreason tasks export sudoku/9x9 --out sudoku --n 5000 --test 200
    vdmreason tasks export langton/5 --out langton --mode trajectory
    """
    from tasks.render import STYLES
    from tasks.transition import MODES
    from vdmreason.export import export

    for option, value, known in (("style", style, tuple(STYLES)), ("mode", mode, MODES[:-1])):
        if value not in known:
            raise UserError(f"--{option} {value}: unknown.{suggest(value, known)} One of {', '.join(known)}.")
    train, tests = (
        given if given is not None else tasks.count(name, split) or default  # type: ignore[arg-type]
        for given, split, default in ((n, "train", 300), (test, "test", 100))
    )
    print(export(name, out, train, tests, seed, style, mode, clips))


@tasks_app.command("read")
def tasks_read(
    file: Annotated[Path, typer.Argument(help="A picture of a grid, or a text that holds a JSON array")],
    style: Annotated[
        str, typer.Option(help="How the picture was drawn: video-8, video-14, video-16, video-32, paper")
    ] = "video-8",
) -> None:
    """Read a grid back from a picture or a text, as the scoring does.

    vdmreason tasks read answer.png --style paper
    vdmreason tasks read answer.json
    """
    from tasks.render import STYLES, ansi, read
    from tasks.text import parse, write

    if style not in STYLES:
        raise UserError(f"No style '{style}'.{suggest(style, STYLES)} Known: {', '.join(STYLES)}.")
    if not file.is_file():
        raise UserError(f"{file}: no such file.")
    if file.suffix.lower() in (".png", ".webp", ".jpg", ".jpeg", ".gif", ".bmp"):
        from PIL import Image, UnidentifiedImageError

        try:
            picture = Image.open(file).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"{file}: is not a picture that can be opened. Give a PNG.") from error
        reading = read(picture, STYLES[style])
        grid, certainty = reading.grid, f", least certain cell {reading.certainty.min():.2f}"
    else:
        try:
            grid, certainty = parse(file.read_text(encoding="utf-8")), ""
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: is not text in UTF-8, at byte {error.start}.") from error
    print(f"{grid.shape[0]} x {grid.shape[1]}{certainty}\n{ansi(grid)}\n{write(grid)}")


# ---------------------------------------------------------------------------------------------------------------------
# arc


@arc_app.command("score")
def arc_score(
    answers: Annotated[Path, typer.Argument(help="submission.json, or a folder as arc-agi-benchmarking keeps them")],
    puzzles: Annotated[str, typer.Argument(help="arc1/evaluation, arc2/evaluation, or arc:<folder>")],
    rule: Annotated[
        str | None, typer.Option(help="Only this one: strict@1 to strict@3, fraction@2, output@2, concept@3")
    ] = None,
) -> None:
    """Score answers by every rule in use. A puzzle that is missing is wrong.

    vdmreason arc score submission.json arc1/evaluation
    vdmreason arc score submission.json conceptarc --rule concept@3
    """
    from vdmreason import arc_scores

    read = arc_scores.read_benchmarking if answers.is_dir() else arc_scores.read_submission
    names = tasks.variants(puzzles)
    attempts, truth = read(answers), arc_scores.truth_of(names)
    known = {arc_scores.id_of(name) for name in names}
    if strangers := sorted(set(attempts) - known):
        raise UserError(f"{answers}: {puzzles} has no puzzle {strangers[0]!r}.{suggest(strangers[0], known)}")
    if not truth:
        raise UserError(f"{puzzles}: no puzzle's answer is known, so that nothing can be scored.")
    print(f"{len(attempts.keys() & truth.keys())} of {len(truth)} puzzles answered")
    if unknown := sum(example.open for name in names for example in tasks.get(name).stock("test") or ()):
        print(f"{unknown} test input{'s' * (unknown > 1)} without a known answer left out")
    held = arc_scores.most_of(attempts)
    for name in [rule] if rule else [r for r in arc_scores.RULES if not r.startswith("concept") or "oncept" in puzzles]:
        value = arc_scores.score(attempts, truth, name)
        fewer = f"  (no test input has more than {held} attempts here)" if held < int(name[-1]) else ""
        print(f"{name:<12}{100 * value:6.2f} %{fewer}")


@arc_app.command("submission")
def arc_submission(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs on ARC puzzles; several on one are its attempts")],
    out: Annotated[Path, typer.Option(help="A .json file for Kaggle, or a folder for arc-agi-benchmarking")],
) -> None:
    """Write the recorded answers of runs as others score them.

    vdmreason arc submission runs/compare/arc1-evaluation-*/cogvideox-* --out submission.json
    """
    from vdmreason import arc_scores

    attempts = arc_scores.from_runs(runs)
    most = max(arc_scores.attempts_at(store.read_config(run).tested) for run in runs)
    if out.suffix == ".json":
        arc_scores.write_submission(attempts, out, most)
    else:
        arc_scores.write_benchmarking(attempts, out, store.read_config(runs[0]).flavour, most)
    print(f"{len(attempts)} puzzles: {out}")


# ---------------------------------------------------------------------------------------------------------------------
# models


@app.command()
def train(
    config: Annotated[Path | None, typer.Option(help="A YAML file. Without it, --set names everything.")] = None,
    folder: Folder = None,
    set_: Set = None,
    report_to: Annotated[str | None, typer.Option(help="tensorboard, trackio or wandb, beside metrics.jsonl")] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Only list what may be set, with defaults and meanings")] = False,
) -> None:
    """Adapt one arm to n examples of a task. The same command resumes.

    vdmreason train --set task=maze/7x7 --set n=30 --set family=cogvideox
    vdmreason train --config runs/maze-7x7--cogvideox--n30--s0--ab12cd/config.yaml --set optim.lr=5e-4
    vdmreason train --keys --set family=cogvideox                   (what may be set, and what it is)
    accelerate launch -m vdmreason.train --config run.yaml          (the same, on any number of devices)
    """
    from vdmreason import config as configs

    if keys:
        return _print_keys(set_ or [])

    if config is None and folder is not None and (folder / "config.yaml").is_file():
        config = folder / "config.yaml"
    overrides = set_ or []
    run = configs.load(config, overrides) if config else configs.resolve({}, overrides)
    from vdmreason.train import train as train_run

    place = folder or store.runs_root() / run.name
    train_run(run, place, report_to=report_to)
    if store.read_state(place).get("state") == "stopped":
        raise jobs.Stopped
    print(f"adapted: {place}\nnext: vdmreason predict {place}")


def _print_keys(overrides: list[str]) -> None:
    found = config.keys(overrides)
    print_keys(found)
    if not any(key.startswith("options.") for key, _, _ in found):
        print("options.*: a family's own. Name it to see them: --set family=cogvideox")


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="A run's folder")],
    batch: Annotated[int, typer.Option(min=1, help="Examples at once")] = 16,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Ask the adapter otherwise, in a folder of its own: votes=8")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="That folder (default: runs/<name>)")] = None,
) -> None:
    """Answer a run's test examples and score them. Answers that are there are kept.

    vdmreason predict runs/maze-7x7--cogvideox--n30--s0--ab12cd
    vdmreason predict adapters/zoo/maze-7x7--cogvideox--n300 --set votes=2 --set test_task=maze/9x9
    vdmreason predict adapters/zoo/colour_moves-mirror--cogvideox--n300 --set options.steps=1
    """
    store.read_config(folder)
    from vdmreason.predict import asked_otherwise
    from vdmreason.predict import predict as predict_run

    if out and not set_:
        raise UserError("--out: is for an adapter asked otherwise; say how with --set votes=8.")
    if set_:
        folder = asked_otherwise(folder, set_, out)
    with jobs.working(folder) if jobs.is_this(folder) else nullcontext() as pen:
        predict_run(folder, batch=batch, stop=pen.stop_wanted if pen else None)
    _print_scores([folder])


@app.command()
def evaluate(
    folders: Annotated[list[Path], typer.Argument(help="Runs' folders, or folders that hold some")],
) -> None:
    """Score stored predictions again, without a model. Runs that differ only in the seed are averaged.

    vdmreason evaluate runs/maze-7x7--cogvideox--n30--s0--ab12cd
    vdmreason evaluate runs
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder.")
    runs = [run for run in store.find_runs(*folders) if (run / "predictions.jsonl").exists()]
    if not runs:
        raise UserError(f"{folders[0]}: no predictions there. Make them with: vdmreason predict FOLDER")
    _print_scores(sorted(runs))


def _print_scores(folders: list[Path]) -> None:
    from rich.console import Console
    from rich.table import Table

    from vdmreason import evaluate as scores

    results = {folder: scores.evaluate(folder) for folder in folders}
    table = Table(caption="95 % intervals: Wilson for one seed, over seeds and answers for more")
    for column, width in (("task", 12), ("arm", 12), ("n", 3), ("seeds", 5), ("tests", 5)):
        table.add_column(column, min_width=width, justify="left" if width == 12 else "right")
    for column in ("exact %", "by rules %", "cells %", "unreadable %", "codec %"):
        table.add_column(column, justify="right")
    rows = scores.over_seeds(folders)
    for row, apart in zip(rows, config.told_apart([row["run"] for row in rows]), strict=True):
        run = row["run"]
        arm = f"{run['family']} {run['flavour']}" + (" (random init)" if run["init"] == "random" else "")
        values = [_interval(row[name]) for name in ("exact", "right", "cells", "unreadable")]
        codec = "-" if row["codec"] is None else f"{100 * row['codec']:.0f}"
        arm += "".join(f", {key} {run[key]}" for key in ("augment", "votes", "far_from") if run[key] > 1) + apart
        table.add_row(_asked(run), arm, str(run["n"]), str(len(row["seeds"])), str(row["n_test"]), *values, codec)
    for name in ("copy", "nearest"):
        seen: dict[tuple[Any, ...], dict[str, Any]] = {}
        for result in results.values():
            run = result["run"]
            seen.setdefault((_asked(run), run["n"], run["far_from"]), result)
        for (task, n, _), result in seen.items():
            if not (score := result["baselines"].get(name)):
                continue  # nobody knows the answers
            values = [_interval(score[key]) for key in ("exact", "right", "cells", "unreadable")]
            title = {"copy": "copy the input", "nearest": "nearest training example"}[name]
            table.add_row(task, title, str(n), "1", str(score["n"]), *values, "-")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for folder, result in results.items():
        if not result["baselines"]:
            print(f"{folder}: answered; nobody knows the right answers, so there is nothing to score")


def _asked(run: Mapping[str, Any]) -> str:
    """ "maze/7x7", or "maze/13x13, asked maze/21x21"."""
    return ", asked ".join(filter(None, (run["task"], run["test_task"])))


def _interval(value: dict[str, float]) -> str:
    return f"{100 * value['value']:.1f} [{100 * value['low']:.0f}, {100 * value['high']:.0f}]"


@app.command()
def compare(
    task: Annotated[str, typer.Argument(help="arc1/evaluation/00576224, maze/7x7, or a JSON file in the ARC format")],
    n: Annotated[int | None, typer.Option("-n", "--n", min=1, help="Examples to learn from (ARC: all demos)")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    index: Annotated[int, typer.Option(min=0, help="Which test example (ARC: all are answered)")] = 0,
    updates: Annotated[int | None, typer.Option(min=1, help="Optimiser updates, for both arms")] = None,
    flavour: Annotated[list[str] | None, typer.Option(metavar="FAMILY=FLAVOUR", help="cogvideox=tiny")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Families to compare (default: one of each kind)")] = None,
    set_: Set = None,
    folder: Folder = None,
    again: Annotated[bool, typer.Option("--again", help="Adapt anew where a finished run is there")] = False,
) -> None:
    """Adapt a video and a language model on the same examples and see both answers, side by side.

    vdmreason compare arc1/evaluation/00576224
    vdmreason compare maze/7x7 --n 30 --index 3 --updates 300
    vdmreason compare eca/110 --n 30 --set cogvideox:options.steps=20
    """
    from vdmreason import compare as comparing

    flavours = {}
    for text in flavour or []:
        arm, equals, name = text.partition("=")
        if not equals:
            raise UserError(f"--flavour {text}: must look like cogvideox=tiny.")
        flavours[arm] = name
    overrides = [*(set_ or []), *([f"optim.updates={updates}"] if updates else [])]
    result = comparing.compare(task, n, seed, family, flavours, index, overrides, folder, again)
    print(comparing.report(result, colour=None if sys.stdout.isatty() else False))
    print(f"\nkept in {result['folder']}")


# ---------------------------------------------------------------------------------------------------------------------
# the page, and what is here


@app.command("app")
def page(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in")] = "127.0.0.1",
    mcp: Annotated[bool, typer.Option("--mcp", help="Offer its endpoints to language models as MCP tools too")] = False,
    public: Annotated[
        bool, typer.Option("--public", help="For strangers: no training, no import, a quota of live answers")
    ] = False,
) -> None:
    """Serve the page and print its address: [cyan]vdmreason app --port 7861[/cyan]"""
    refuse_used_port(host, port)
    if public:
        os.environ["VDMREASON_PUBLIC"] = "1"
    from vdmreason.ui import launch

    launch(host=host, port=port, mcp=mcp)


def refuse_used_port(host: str, port: int) -> None:
    """Raise UserError where nothing can listen on `host`:`port`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        raise UserError(f"--host {host}: no such address.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            text = f"port {port} is in use; take another one: vdmreason app --port {port + 1}"
            raise UserError(text) from None
        raise UserError(f"port {port} on {host} cannot be used: {error.strerror}") from None


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Option(help="A YAML file of a run: say what it will need")] = None,
    set_: Set = None,
    device_gib: Annotated[
        float | None, typer.Option(min=0.1, help="Memory of the GPU it will run on (default: this machine's)")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(min=1e-6, help="TFLOP/s of its matrix products (default: measured here)")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="On how many such devices")] = 1,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="With --config: memory and disk in bytes as one line of JSON, measuring nothing"),
    ] = False,
) -> None:
    """Say what is here: Python, libraries, device, memory, disk, backbones, browser. Exit code 1 on a problem.

    With --config or --set, say what a run will need before it runs: device memory, hours, disk. Exit code 2 where it cannot
    fit, with the nearest setting that does. Nothing is downloaded.

    vdmreason doctor
    vdmreason doctor --config runs/maze-7x7--cogvideox--n30--s0--ab12cd/config.yaml --set optim.updates=1000
    vdmreason doctor --config run.yaml --device-gib 24 --tflops 165          (a GPU that is not here)
    vdmreason doctor --config run.yaml --set speed.shard=true --device-gib 24 --processes 2
    """
    from vdmreason import doctor as examining

    if config or set_:
        from vdmreason import config as configs

        run = configs.load(config, set_ or []) if config else configs.resolve({}, set_ or [])
        if not as_json:
            return examining.foretell(run, device_gib, tflops, processes)
        told = examining.needs(run, device_gib, processes)
        print(json.dumps(told))
        if told["problem"] or told["disk_problem"]:
            raise typer.Exit(2)
        return
    if device_gib or tflops or processes > 1 or as_json:
        raise UserError("--device-gib, --tflops, --processes, --json: are for a run; name it with --config run.yaml.")
    findings = examining.examine()
    for finding in findings:
        print(f"{finding.level:<8}{finding.name:<25} {finding.text}")
    if not examining.healthy(findings):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line. `--debug`, anywhere, shows tracebacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of ASCII shows a ? for a bullet, and not a traceback
    os.environ |= jobs.environment()  # for what is started from here: workers, previews, the page's jobs
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ["VDMREASON_DEBUG"] = "1"
    app()


if __name__ == "__main__":
    main()
