"""Backbones of our own from the command line: pretrain one, look at what it does, probe what it has learnt.

A recipe is a module of `pretrain/` that can `load(folder)`; a folder's `config.json` names it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import typer
import typer.core

from adapters.base import load_errors
from tasks.base import UserError, suggest
from vdmreason import config, jobs, store
from vdmreason.progress import print_keys

RECIPES = ("nextvid", "internvideo_next", "lvmae")  # with features to probe and frames to draw
SHOWN = (*RECIPES, "tokenizer")


class Backbones(typer.core.TyperGroup):
    """Commands by backbone; a name that is none of them is one line with the nearest."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0].replace("_", "-") if args else ""
        if name and not name.startswith("-") and name not in self.commands:
            known = [c for c in self.commands if c != "show"]
            raise UserError(f"{args[0]}: no such backbone.{suggest(name, known)} There are {', '.join(known)}.")
        return super().resolve_command(ctx, [name, *args[1:]])


app = typer.Typer(
    cls=Backbones,
    no_args_is_help=True,
    help="""Pretrain a backbone from scratch. The same command resumes after a kill.

    vdmreason pretrain nextvid --budget 2h --out my-nextvid
    vdmreason pretrain show my-nextvid""",
)

Out = Annotated[Path, typer.Option(help="Where the backbone is written; the same folder resumes.")]
Budget = Annotated[str, typer.Option(help="30m, 2h (time) or 2000u (updates)")]
Seed = Annotated[int, typer.Option(min=0)]
Data = Annotated[
    str, typer.Option(help="Real video: a folder, a list.csv (path label), or WebDataset shards; default procedural")
]
Fps = Annotated[float, typer.Option(min=0.1, help="Frames a second taken from real video")]
Side = Annotated[int | None, typer.Option(min=8, help="Pixels of a frame's side")]
Batch = Annotated[int | None, typer.Option(min=1, help="Clips an update, over all processes")]
Micro = Annotated[int, typer.Option(min=1, help="Pieces of a process's share of the batch, where memory is short")]
Precision = Annotated[str, typer.Option(help="no or bf16")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change the recipe; `vdmreason pretrain keys NAME` lists what can be"
    ),
]
MostBad = Annotated[float, typer.Option(min=0, max=1, help="Share of unreadable videos that stops the run")]


def parse_budget(text: str) -> tuple[float | None, int | None]:
    """ "90s", "30m", "2h" -> (minutes, None); "2000u" -> (None, updates)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhu])", text.strip().lower())
    if not match or float(match[1]) <= 0:
        raise UserError(f"--budget {text}: must look like 30m, 2h or 2000u (updates).")
    number, unit = float(match[1]), match[2]
    if unit == "u":
        return None, int(number)
    return number * {"s": 1 / 60, "m": 1, "h": 60}[unit], None


def run(name: str, out: Path, budget: str, **given: Any) -> None:
    """Call a recipe's `pretrain` as a job that the page can see. What the user can mend is one line."""
    minutes, updates = parse_budget(budget)
    module = importlib.import_module(f"pretrain.{name}")
    smaller = "a larger --micro, then a smaller --batch or --side" if "micro" in given else "a smaller --size"
    with training(out, smaller):
        module.pretrain(out, minutes=minutes, updates=updates, **given)
    if first_process():
        print(f"pretrained: {out}")


@contextlib.contextmanager
def training(out: Path, smaller: str) -> Iterator[None]:
    """Train in `out` as a job that the page can see: alone, heeding STOP; what the user can mend is one line. `smaller`: what
    needs less of a GPU's memory. SIGTERM ends it at once, for these trainings go on from their newest checkpoint."""
    first = first_process()
    loop: Any = importlib.import_module("pretrain.loop")
    loop.stop_wanted = lambda: (out / jobs.STOP).exists()
    try:
        with contextlib.ExitStack() as held:
            if first:
                held.enter_context(store.lock(out))
                held.enter_context(jobs.working(out, listens=False))
            try:
                yield
            except (ValueError, FloatingPointError) as error:
                raise UserError(str(error)) from error
            except loop.Stopped as error:
                raise jobs.Stopped(str(error)) from None
            except RuntimeError as error:
                if type(error).__name__ != "OutOfMemoryError":  # torch's
                    raise
                raise UserError(f"the GPU is out of memory. Give {smaller}.") from None
    except jobs.Stopped as stopped:
        if first:
            print(stopped)
            raise  # the others end well: a launcher would end all of them where one of them does not
        raise typer.Exit from None
    finally:
        loop.stop_wanted = loop.never


def first_process() -> bool:
    """Of the processes that a launcher started one tells how the job is doing."""
    return os.environ.get("RANK", "0") == "0"


def as_a_job() -> contextlib.AbstractContextManager[Any]:
    """Where this process is a job's, its folder says how it is doing. SIGTERM ends it at once."""
    folder = os.environ.get(jobs.IN_JOB)
    return jobs.working(folder, listens=False) if folder else contextlib.nullcontext()


def size_of(name: str, size: str) -> str:
    known = importlib.import_module(f"pretrain.{name}")
    sizes = tuple(getattr(known, "SIZES", None) or known.FLAVOURS)
    if size not in sizes:
        raise UserError(f"--size {size}: unknown.{suggest(size, sizes)} One of {', '.join(sizes)}.")
    return size


def overridden(name: str, overrides: list[str] | None) -> dict[str, Any]:
    """What --set says of a recipe's `Config`."""
    recipe = importlib.import_module(f"pretrain.{name}")
    return config.changes(recipe.Config, overrides or [], recipe.KEYS)


def one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{option} {value}: one of {', '.join(known)}.{suggest(value, known)}")


@app.command("cogvideox")
def cogvideox(
    out: Out,
    budget: Budget = "30m",
    size: Annotated[str, typer.Option(help="small, tiny or medium")] = "small",
    seed: Seed = 0,
) -> None:
    """The video arm's small CogVideoX, on procedural video."""
    run("cogvideox", out, budget, size=size_of("cogvideox", size), seed=seed)


@app.command("causal-lm")
def causal_lm(
    out: Out,
    budget: Budget = "30m",
    size: Annotated[str, typer.Option(help="small or tiny")] = "small",
    seed: Seed = 0,
) -> None:
    """The language arm's small Qwen3, on the standard library's text and procedural text."""
    run("causal_lm", out, budget, size=size_of("causal_lm", size), seed=seed)


@app.command("nextvid")
def nextvid(
    out: Out,
    budget: Budget = "30m",
    size: Annotated[str, typer.Option(help="small, tiny, or as published: vit-l, vit-h, vit-g")] = "small",
    seed: Seed = 0,
    data: Data = "",
    fps: Fps = 4.0,
    side: Side = None,
    batch: Batch = None,
    micro: Micro = 1,
    target: Annotated[str, typer.Option(help="pixels, or an image VAE of diffusers by folder or hub id")] = "pixels",
    precision: Precision = "no",
    set_: Set = None,
    most_bad: MostBad = 0.1,
) -> None:
    """NExT-Vid: masked next-frame prediction (arXiv 2512.21004).

    vdmreason pretrain nextvid --budget 2h --out my-nextvid
    vdmreason pretrain nextvid --data videos/ --size vit-l --target THUDM/some-vae --precision bf16 --out big
    accelerate launch -m vdmreason pretrain nextvid --out my-nextvid          (the same, on any number of devices)
    """
    one_of("--precision", precision, ("no", "bf16"))
    given: dict[str, Any] = {"data": data, "fps": fps, "side": side, "batch": batch, "micro": micro, "target": target}
    given |= {"precision": precision, "most_bad": most_bad}
    given["overrides"] = overridden("nextvid", set_)
    run("nextvid", out, budget, size=size_of("nextvid", size), seed=seed, **given)


@app.command("internvideo-next")
def internvideo_next(
    out: Out,
    budget: Budget = "30m",
    size: Annotated[str, typer.Option(help="small, tiny, or as published: base, large")] = "small",
    seed: Seed = 0,
    stages: Annotated[str, typer.Option(help="1+2, 1 or 2; 2 alone goes on from --start")] = "1+2",
    start: Annotated[str, typer.Option(help="A folder that holds a Stage 1")] = "",
    teacher: Annotated[
        str, typer.Option(help="SigLIP, SigLIP2, CLIP or DINOv2 by folder or hub id; 'small' is ours and ships")
    ] = "",
    bert: Annotated[
        str, typer.Option(help="A ModernBERT by folder or hub id, whose last layers begin as the predictor")
    ] = "",
    lr_scale: Annotated[
        str, typer.Option(help="none, or linear256: rates times batch / 256, as the released scripts")
    ] = "none",
    data: Data = "",
    fps: Fps = 4.0,
    side: Side = None,
    batch: Batch = None,
    micro: Micro = 1,
    precision: Precision = "no",
    set_: Set = None,
    most_bad: MostBad = 0.1,
) -> None:
    """InternVideo-Next: a diffusion decoder and an image teacher, then latents of the first stage (arXiv 2512.01342).

    vdmreason pretrain internvideo-next --budget 2h --out my-internvideo
    vdmreason pretrain internvideo-next --stages 2 --start my-stage-1 --out my-stage-2
    vdmreason pretrain internvideo-next --size base --data videos/ --teacher google/siglip2-base-patch16-256
        --bert answerdotai/ModernBERT-large --precision bf16 --out big
    """
    one_of("--precision", precision, ("no", "bf16"))
    one_of("--stages", stages, ("1+2", "1", "2"))
    one_of("--lr-scale", lr_scale, ("none", "linear256"))
    given: dict[str, Any] = {
        "stages": stages,
        "start": start,
        "teacher": teacher,
        "bert": bert,
        "lr_scale": lr_scale,
        "data": data,
    }
    given |= {"fps": fps, "side": side, "batch": batch, "micro": micro, "precision": precision, "most_bad": most_bad}
    given["overrides"] = overridden("internvideo_next", set_)
    run("internvideo_next", out, budget, size=size_of("internvideo_next", size), seed=seed, **given)


@app.command("lvmae")
def lvmae(
    out: Out,
    budget: Budget = "30m",
    size: Annotated[str, typer.Option(help="small, tiny, or as published: vit-b, vit-l")] = "small",
    seed: Seed = 0,
    tokenizer: Annotated[str, typer.Option(help="An adaptive tokenizer's folder; 'small' is ours and ships")] = "",
    mask: Annotated[
        str, typer.Option(help="What is decoded: adaptive, random, uniform, flow, everest, difference or none (all)")
    ] = "adaptive",
    target: Annotated[str, typer.Option(help="codes (as published), levels or pixels; default: the size's own")] = "",
    frames: Annotated[int | None, typer.Option(min=2, help="Frames of a clip; default: the size's own lengths")] = None,
    stored: Annotated[
        int,
        typer.Option(
            min=0, help="Learn from so many clips of one length (give --frames), their codes computed once; 0: no end"
        ),
    ] = 0,
    data: Data = "",
    fps: Fps = 4.0,
    side: Side = None,
    batch: Batch = None,
    micro: Micro = 1,
    precision: Precision = "no",
    set_: Set = None,
    most_bad: MostBad = 0.1,
) -> None:
    """LVMAE: a masked autoencoder of long video that decodes the important tokens alone (arXiv 2411.13683).

    vdmreason pretrain lvmae --budget 2h --out my-lvmae
    vdmreason pretrain lvmae --mask random --frames 64 --out other
    vdmreason pretrain lvmae --size vit-b --data videos/ --tokenizer my-tokenizer --frames 128 --precision bf16 --out big
    """
    one_of("--precision", precision, ("no", "bf16"))
    one_of("--mask", mask, importlib.import_module("pretrain.lvmae").MASKS)
    if target:
        one_of("--target", target, ("codes", "levels", "pixels"))
    given: dict[str, Any] = {"tokens": tokenizer, "mask": mask, "target": target or None, "frames": frames}
    given |= {"stored": stored, "data": data, "fps": fps, "side": side, "batch": batch, "micro": micro}
    given |= {"precision": precision, "most_bad": most_bad}
    given["overrides"] = overridden("lvmae", set_)
    run("lvmae", out, budget, size=size_of("lvmae", size), seed=seed, **given)


@app.command("tokenizer")
def tokenizer(
    out: Out,
    budget: Budget = "30m",
    size: Annotated[str, typer.Option(help="small, tiny, or after MAGVIT's: b, l")] = "small",
    seed: Seed = 0,
    data: Data = "",
    fps: Fps = 4.0,
    side: Side = None,
    batch: Batch = None,
    micro: Micro = 1,
    precision: Precision = "no",
    most_bad: MostBad = 0.1,
) -> None:
    """LVMAE's adaptive tokenizer: patches of video in a few numbers, and which of them matter.

    vdmreason pretrain tokenizer --budget 1h --out my-tokenizer
    vdmreason pretrain show my-tokenizer
    """
    one_of("--precision", precision, ("no", "bf16"))
    given: dict[str, Any] = {"data": data, "fps": fps, "side": side, "batch": batch, "micro": micro}
    given |= {"precision": precision, "most_bad": most_bad}
    run("tokenizer", out, budget, size=size_of("tokenizer", size), seed=seed, **given)


@app.command("image-teacher")
def image_teacher(
    out: Out,
    budget: Budget = "10m",
    size: Annotated[str, typer.Option(help="small or tiny")] = "small",
    seed: Seed = 0,
) -> None:
    """A small SigLIP tower on still procedural pictures, told what they show: InternVideo-Next's teacher without a hub."""
    run("image_teacher", out, budget, size=size_of("image_teacher", size), seed=seed)


@app.command("keys")
def keys(
    name: Annotated[str, typer.Argument(help="nextvid, internvideo-next or lvmae")],
    size: Annotated[str, typer.Option(help="Whose values are told")] = "small",
) -> None:
    """List what --set may say of a recipe: values and what they are.

    vdmreason pretrain keys internvideo-next --size base
    vdmreason pretrain internvideo-next --set momentum=0.999 --set decoded=0.5 --out other
    """
    known = [recipe.replace("_", "-") for recipe in RECIPES]
    one_of("the recipe", name.replace("_", "-"), tuple(known))
    room = name.replace("-", "_")
    recipe = importlib.import_module(f"pretrain.{room}")
    values = recipe.FLAVOURS[size_of(room, size)]
    about = config.described(recipe.Config, recipe.KEYS)
    print_keys(((key, getattr(values, key), what) for key, _, what in about), "value")


@app.command("show")
def show(
    folder: Annotated[Path, typer.Argument(help="A folder that a recipe wrote")],
    clip: Annotated[int, typer.Option(min=0, help="Which procedural clip")] = 0,
    video: Annotated[Path | None, typer.Option(help="A video file instead")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A PNG; beside it a moving WebP, and the frames by themselves (.strips.webp, .json)"),
    ] = None,
    seed: Seed = 0,
    blocks: Annotated[
        str, typer.Option(help="Other masks of blocks, as COUNTxSHARE of a frame: 8x0.15,2x0.7 (NExT-Vid, Stage 2)")
    ] = "",
    hidden: Annotated[
        float | None, typer.Option(min=0.05, max=0.95, help="Hide another share (InternVideo-Next's Stage 1, LVMAE)")
    ] = None,
    mask: Annotated[str, typer.Option(help="Decode by another mask (LVMAE): adaptive, random, uniform, ...")] = "",
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Denoising steps of what is drawn (NExT-Vid, InternVideo-Next); default 20"),
    ] = None,
) -> None:
    """Draw what a backbone sees and makes: masks, what it draws at hidden places, how it goes on with a clip.

    vdmreason pretrain show my-nextvid --clip 3
    vdmreason pretrain show my-nextvid --video holiday.mp4 --blocks 8x0.1,2x0.5
    """
    with as_a_job():
        recipe, model = opened(folder, SHOWN)
        remask(model, blocks, hidden, mask)
        more = {} if steps is None else {"steps": steps}
        if more and "steps" not in inspect.signature(recipe.pictures).parameters:
            raise UserError("--steps: this backbone's recipe does not denoise.")
        shown = recipe.pictures(model, example_clip(model, clip, video), seed, **more)
        films = {name: film.numpy() for name, film in shown.items()}
        place = out or folder / f"show-{video.stem if video else clip}.png"
        sheet(films, place)
        strips(films, place, model.config)
    print(f"{place}\n{place.with_suffix('.webp')}")


def probe(
    folder: Annotated[Path, typer.Argument(help="A folder that a recipe wrote")],
    labels: Annotated[int, typer.Option(min=20, help="Labelled clips that a probe learns from")] = 500,
    seeds: Annotated[int, typer.Option(min=1, help="Probes of other seeds, for the interval")] = 3,
    kind: Annotated[
        str, typer.Option(help="linear, attentive, both, or all: depth order and tracks of objects too")
    ] = "both",
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    task: Annotated[
        str, typer.Option("--long", help="Instead: bounces, order or period, which only long clips tell")
    ] = "",
    frames: Annotated[
        int | None, typer.Option(min=2, max=128, help="With --long: the middle frames that are seen; default all 128")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(min=2, help="With --long: an LVMAE reads so many frames at a time (streaming)")
    ] = None,
    memory: Annotated[
        int, typer.Option(min=0, help="With --chunk: tokens of earlier chunks that it looks back at")
    ] = 256,
    out: Annotated[Path | None, typer.Option(help="Where the scores are kept (default: FOLDER/probe.json)")] = None,
) -> None:
    """What a frozen backbone has learnt: probes on what the largest object is, how it moves and where it ends.

    Beside it the same probes on an encoder that was never trained, and on the pixels: what they read, no one had to learn.
    The learning rate and weight decay are picked on one part of the held-out clips, the accuracy is told of another.

    vdmreason probe my-nextvid --labels 250
    vdmreason probe my-lvmae --long order --frames 64
    """
    one_of("--kind", kind, ("linear", "attentive", "both", "all"))
    from rich.console import Console
    from rich.table import Table

    kinds = {"both": ("linear", "attentive"), "all": ("linear", "attentive", "heads")}.get(kind, (kind,))
    place = out or folder / "probe.json"
    with as_a_job():
        if task:
            one_of("--long", task, tuple(_tasks()))
            if kind == "all":
                raise UserError(
                    "--kind all reads depth and tracks, which long clips have none of: linear, attentive or both."
                )
            frames = frames or 128
            rows = probed_long(folder, labels, seeds, kinds, epochs, task, frames, chunk, memory)
        elif frames or chunk:
            raise UserError("--frames and --chunk are of long clips: say which with --long bounces, order or period.")
        else:
            rows = probed(folder, labels, seeds, kinds, epochs)
        given: dict[str, Any] = {"labels": labels, "seeds": seeds, "kind": kind, "epochs": epochs}
        given |= {"task": task, "frames": frames, "chunk": chunk, "memory": memory if chunk else None} if task else {}
        store.write_json(place, {**given, "rows": rows, **store.versions()})
    read = f"{task} in {frames} frames, " if task else ""
    told = f"{seeds} seeds [95 % interval over them]" if seeds > 1 else "one seed, which has no interval"
    table = Table(title=f"{read}accuracy in %, {labels} labelled clips, {told}", title_justify="left")
    columns = list(rows[0]["accuracy"])
    for column in ("features", *columns):
        table.add_column(column)
    for row in rows:
        scores = [row["accuracy"][c] for c in columns]
        table.add_row(
            row["features"],
            *(
                f"{100 * s['value']:.1f}" + (f" [{100 * s['low']:.0f}, {100 * s['high']:.0f}]" if seeds > 1 else "")
                for s in scores
            ),
        )
    Console(width=140).print(table)
    if kind == "all":
        print(
            f"{' ' * 8}of pairs that overlap a half is chance; boxes that stay where they are: {100 * rows[0]['staying']:.1f}"
        )
    chances = {task: _tasks()[task]} if task else _classes()
    print(f"chance: {', '.join(f'{n} {100 / k:.1f}' for n, k in chances.items())}    kept in {place}")


def finetune(
    folder: Annotated[Path, typer.Argument(help="A folder that a recipe wrote")],
    out: Out,
    task: Annotated[str, typer.Option("--long", help="bounces, order or period: procedural long clips")] = "order",
    data: Annotated[
        str, typer.Option(help="Real videos to train on: a list.csv (path label) or shards with labels")
    ] = "",
    test: Annotated[str, typer.Option(help="With --data: those to test on")] = "",
    frames: Annotated[int, typer.Option(min=2, help="Frames of a clip; of long clips the middle ones")] = 128,
    budget: Budget = "500u",
    labels: Annotated[int, typer.Option(min=10, help="Labelled long clips to learn from")] = 2000,
    batch: Annotated[int, typer.Option(min=1)] = 16,
    lr: Annotated[
        float, typer.Option(min=0, help="Of the head; each block has .65 of the rate of the one above it")
    ] = 1e-3,
    drop: Annotated[
        float | None,
        typer.Option(min=0, max=0.9, help="Share of the places hidden in training; default .2 from 128 frames on"),
    ] = None,
    side: Side = None,
    fps: Fps = 4.0,
    seed: Seed = 0,
    scratch: Annotated[bool, typer.Option(help="Begin from random weights: what pretraining is compared with")] = False,
    micro: Micro = 1,
    precision: Precision = "no",
    checkpointing: Annotated[bool, typer.Option(help="Compute blocks twice and keep less")] = False,
) -> None:
    """Train a backbone's encoder on labels, all of it, and say how it does on clips that it has not seen.

    vdmreason finetune my-lvmae --long bounces --frames 64 --out runs/bounces-64
    vdmreason finetune my-lvmae --data train.csv --test val.csv --frames 32 --out runs/mine
    """
    from pretrain import finetune as finetuning
    from pretrain.recipe import files_of
    from pretrain.stored import sum_of

    recipe, model = opened(folder)
    minutes, updates = parse_budget(budget)
    one_of("--precision", precision, ("no", "bf16"))
    if not data:
        one_of("--long", task, tuple(_tasks()))
    if bool(data) != bool(test):
        raise UserError("--data needs --test, and --test --data: what is learnt from and what is tested on.")
    if frames % model.config.tubelet:
        raise UserError(f"--frames {frames}: give a multiple of the backbone's tubelet, {model.config.tubelet}.")
    patch = model.config.patch
    learnt = (store.read_json(folder / "pretrain.json") or {}).get("recipe", {}).get("side")
    side = side or (learnt or 8 * patch if data else 4 * patch)
    if side % patch:
        raise UserError(f"--side {side}: give a multiple of the backbone's patch, {patch}.")
    if scratch:
        import torch

        torch.manual_seed(seed)
        model = recipe.load(folder, random_weights=True)
    model.encoder.blocks.checkpointing = checkpointing
    drop = (0.2 if frames >= 128 else 0.0) if drop is None else drop
    given: dict[str, Any] = {"folder": str(folder), "task": "" if data else task, "data": data, "test": test}
    given |= {"frames": frames, "labels": labels, "batch": batch, "lr": lr, "drop": drop, "side": side, "fps": fps}
    given |= {"seed": seed, "scratch": scratch, "precision": precision}
    with training(out, "--checkpointing, a larger --micro, then a smaller --batch, --frames or --side"):
        clips: Any = (
            finetuning.ListedVideos(data, test, frames, side, fps, seed)
            if data
            else finetuning.LongClips(task, frames, side, labels, seed=seed)
        )
        # The folder may hold another backbone by now, or the files be others.
        settings = {
            **given,
            "weights of the encoder": sum_of(model.encoder),
            **files_of(clips.learnt if data else None),
        }
        classifier, log = finetuning.finetune(
            model.encoder, {"label": clips}, out / "work", updates=updates, minutes=minutes, batch=batch, micro=micro,
            lr=lr, drop=drop, seed=seed, precision=precision, settings=settings, ahead=bool(data),  # type: ignore[arg-type]
            bad=clips.learnt.bad if data else {}, title=f"finetune {folder.name}",
        )  # fmt: skip
        found: dict[str, Any] = finetuning.tested(classifier, "label", clips)
        found["bad"] = {**log.pop("bad"), **(clips.asked.bad if data else {})}
        if first_process():
            finetuning.save(classifier, out / "classifier.safetensors")
            store.write_json(
                out / "finetune.json", {**given, "budget": budget, **found, "log": log, **store.versions()}
            )
    if first_process():
        accuracy, low, high = (100 * found[name] for name in ("accuracy", "low", "high"))
        print(
            f"accuracy {accuracy:.1f} % [{low:.0f}, {high:.0f}] on {found['clips']:,} clips, chance {100 / clips.classes:.1f}    "
            f"kept in {out / 'finetune.json'}"
        )


# ---------------------------------------------------------------------------------------------------------------------


def opened(folder: Path, known: tuple[str, ...] = RECIPES) -> tuple[ModuleType, Any]:
    """The recipe's module and the model."""
    if not folder.is_dir():
        ships = Path(__file__).resolve().parents[1] / "pretrain" / "zoo" / folder.name
        raise UserError(f"{folder}: no such folder." + (f" Did you mean {ships}?" if ships.is_dir() else ""))
    try:
        name = json.loads((folder / "config.json").read_text())["recipe"]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{folder}: no config.json there names one of {', '.join(known)}, which this reads. "
            "How one is made: vdmreason pretrain --help"
        ) from None
    if name not in known:
        raise UserError(f"{folder}: its recipe {name!r} is none of {', '.join(known)}.{suggest(str(name), known)}")
    recipe = importlib.import_module(f"pretrain.{name}")
    with load_errors(str(folder)):
        return recipe, recipe.load(folder).eval()


def example_clip(model: Any, number: int, file: Path | None) -> Any:
    """A clip uint8 (1, F, H, W, 3) of eight frames and eight patches a side."""
    import torch

    from pretrain import data, video

    side, frames = 8 * model.config.patch, 4 * model.config.tubelet
    if file is None:
        return torch.from_numpy(data.clip(number, 10**6, frames, (side, side)).frames)[None]
    try:
        seconds = video.duration(str(file))
        times = video.sample_times(np.random.default_rng(0), seconds, frames, 4.0, "dense")
        return torch.from_numpy(video.cropped(video.read_clip(str(file), times), side, None))[None]
    except (video.Unreadable, video.BadData) as error:
        raise UserError(f"{file}: {error}") from None


def remask(model: Any, blocks: str, hidden: float | None, mask: str) -> None:
    """Have a model's pictures drawn under other masks than it learnt with. Raises UserError for what its recipe has not."""
    config = model.config
    changes: dict[str, Any] = {}
    has = {field.name for field in dataclasses.fields(config)}
    if blocks:
        name = "blocks" if "blocks" in has else "masks"
        if name not in has or not getattr(config, name):
            raise UserError("--blocks: this backbone's recipe has no masks of blocks.")
        if getattr(config, "stage", 2) == 1:
            raise UserError("--blocks: this one is of Stage 1, which hides what the teacher does not look at.")
        changes[name] = parse_blocks(blocks, len(getattr(config, name)))
    for option, name, value in (("--hidden", "hidden", hidden), ("--mask", "mask", mask)):
        if value and (name not in has or (name == "mask" and "top" not in has)):
            raise UserError(f"{option}: this backbone's recipe has no such setting.")
        changes |= {name: value} if value else {}
    if mask:
        one_of("--mask", mask, importlib.import_module("pretrain.lvmae").MASKS)
    if changes:
        try:
            model.config = dataclasses.replace(config, **changes)
        except ValueError as error:
            raise UserError(str(error)) from None


def parse_blocks(text: str, masks: int) -> tuple[tuple[int, float], ...]:
    """ "8x0.15,2x0.7" -> ((8, 0.15), (2, 0.7)): so many rectangles, each so large a share of a frame."""
    parts = [re.fullmatch(r"(\d{1,2})x(0?\.\d+)", part.strip()) for part in text.split(",")]
    found = tuple((int(part[1]), float(part[2])) for part in parts if part)
    recipe = importlib.import_module("pretrain.recipe")
    if len(found) != masks or len(parts) != masks or not all(recipe.is_mask(mask) for mask in found):
        example = "8x0.15,2x0.7" if masks == 2 else ",".join(["8x0.15"] * masks)
        raise UserError(
            f"--blocks {text}: must name {masks} masks like {example}, of 1 to 16 blocks that each cover 0.02 to 0.8 of a frame."
        )
    return found


def strips(films: Mapping[str, np.ndarray], place: Path, config: Any) -> None:
    """The frames by themselves, for a page: `<place>.strips.webp` (lossless; a row a film, a column a frame) and `<place>.json`.

    The JSON has the frames' size, the patch, and of each film its name, its frames, how far each is from the clip's own (mean
    absolute difference, 0 to 255), and, where patches are hidden, which: a string of 0 and 1 a frame, row by row.
    """
    from PIL import Image

    first = next(iter(films.values()))
    height, width = first.shape[1:3]
    most = max(len(film) for film in films.values())
    picture = np.zeros((len(films) * height, most * width, 3), np.uint8)
    rows = []
    for number, (name, film) in enumerate(films.items()):
        for k, frame in enumerate(film):
            picture[number * height : (number + 1) * height, k * width : (k + 1) * width] = frame
        row: dict[str, Any] = {"name": name, "frames": len(film)}
        if number and film.shape == first.shape:
            row["error"] = np.abs(film.astype(float) - first).mean((1, 2, 3)).round(2)
        empty = (
            (film == 128)
            .reshape(len(film), height // config.patch, config.patch, width // config.patch, -1)
            .all((2, 4))
        )
        if number and empty.mean() > 0.02:  # what is hidden from the model is drawn as an even grey
            row["hidden"] = ["".join("1" if x else "0" for x in frame.ravel()) for frame in empty]
        rows.append(row)
    facts = {"width": width, "height": height, "frames": most, "patch": config.patch, "films": rows}
    try:
        Image.fromarray(picture).save(place.with_suffix(".strips.webp"), lossless=True, method=4)
    except (OSError, ValueError) as error:
        raise UserError(f"--out {place}: cannot be written ({error}).") from None
    store.write_json(place.with_suffix(".json"), facts)


def sheet(films: Mapping[str, np.ndarray], place: Path) -> None:
    """Clips (F, H, W, 3) one below the other, a frame beside the next, with captions: a PNG, and all at once as a WebP."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = next(iter(films.values())).shape[1:3]
    scale = max(1, 96 // height)
    most = max(len(film) for film in films.values())
    font = ImageFont.load_default(14)
    left = 16 + math.ceil(max(font.getlength(name) for name in films))
    tall, wide = height * scale + 8, width * scale + 4

    def page(columns: int, pick: Any) -> Image.Image:
        made = Image.new("RGB", (left + columns * wide + 8, len(films) * tall + 8), "white")
        pen = ImageDraw.Draw(made)
        for row, (name, film) in enumerate(films.items()):
            pen.text((8, 8 + row * tall + height * scale // 2), name, "black", font, anchor="lm")
            for column, frame in enumerate(pick(film)):
                picture = Image.fromarray(frame).resize((width * scale, height * scale), Image.Resampling.NEAREST)
                made.paste(picture, (left + column * wide, 8 + row * tall))
        return made

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        page(most, lambda film: film).save(place)
        moving = [page(1, lambda film, k=k: film[min(k, len(film) - 1)][None]) for k in range(most)]
        moving[0].save(place.with_suffix(".webp"), save_all=True, append_images=moving[1:], duration=300, loop=0)
    except (OSError, ValueError) as error:
        raise UserError(f"--out {place}: cannot be written ({error}).") from None


def _classes() -> dict[str, int]:
    from pretrain.scenes import CLASSES

    return CLASSES


def _tasks() -> dict[str, int]:
    from pretrain.long import TASKS

    return TASKS


def probed_long(
    folder: Path,
    labels: int,
    seeds: int,
    kinds: tuple[str, ...],
    epochs: int,
    task: str,
    frames: int,
    chunk: int | None,
    memory: int,
) -> list[dict[str, Any]]:
    """Rows of accuracies on long clips for the backbone, one never trained, and the pixels."""
    import torch

    from pretrain import long
    from pretrain import probe as probes

    recipe, model = opened(folder)
    patch, tubelet = model.config.patch, model.config.tubelet
    if frames % tubelet or (chunk or 0) % tubelet:
        raise UserError(f"--frames and --chunk: give multiples of the backbone's tubelet, {tubelet}.")
    if chunk and not hasattr(model, "stream"):
        raise UserError(f"--chunk: only an LVMAE reads a video in chunks, {folder} holds another recipe.")
    torch.manual_seed(0)  # of the one that was never trained
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fresh = recipe.load(folder, random_weights=True).eval().to(device)
    model = model.to(device)

    def reader(some: Any) -> Any:
        if not chunk:
            return lambda video: recipe.encode(some, video.to(device))
        return lambda video: some.stream(recipe.to_pixels(video.to(device)), chunk, memory)

    ways = {str(folder): reader(model), "never trained": reader(fresh)}
    ways["pixels"] = lambda video: probes.raw_patches(video, tubelet, patch)
    parts, total = shares(labels)

    def clips(seed: int) -> Iterator[tuple[Any, dict[str, Any]]]:
        for start in range(0, total, AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, total))
            video, label = long.clips(numbers, 10**7 + seed, frames, 4 * patch, task, long.middle(frames))
            yield video, {task: label}

    return readings(ways, clips, parts, total, [task], seeds, kinds, epochs)


AT_ONCE = 50  # clips


def shares(labels: int) -> tuple[list[slice], int]:
    """Which clips a probe learns from, is picked by and is tested on, and how many there are."""
    pick, test = max(100, labels // 4), 1000
    return [slice(labels), slice(labels, labels + pick), slice(labels + pick, None)], labels + pick + test


def readings(
    ways: Mapping[str, Any],
    clips: Callable[[int], Iterator[tuple[Any, dict[str, Any]]]],
    parts: Sequence[slice],
    total: int,
    asked: Sequence[str],
    seeds: int,
    kinds: tuple[str, ...],
    epochs: int,
    dense: Callable[[Any, int], Iterator[tuple[str, float]]] | None = None,
) -> list[dict[str, Any]]:
    """A row of accuracies for each of the features in `ways`: probes of each kind for each label `asked`, and what `dense` reads
    of all tokens."""
    from pretrain import probe as probes

    rows: list[dict[str, Any]] = []
    for name, encode in ways.items():
        found: dict[str, list[float]] = {}
        for seed in range(seeds):
            features = probes.features(encode, clips(seed), -(-total // AT_ONCE))
            for kind in kinds:
                if kind == "heads" and dense:
                    for column, value in dense(features.tokens, seed):
                        found.setdefault(column, []).append(value)
                    continue
                read = features.pooled() if kind == "linear" else features
                for label in asked:
                    learn, choose, told = (read.part(part) for part in parts)
                    score = probes.probe(kind, learn, choose, told, label, epochs=epochs, seed=seed)  # type: ignore[arg-type]
                    found.setdefault(f"{label}, {kind}", []).append(score.accuracy)
        rows.append({"features": name, "accuracy": {c: probes.interval(values) for c, values in found.items()}})
    return rows


def probed(folder: Path, labels: int, seeds: int, kinds: tuple[str, ...], epochs: int) -> list[dict[str, Any]]:
    """Rows of accuracies for the backbone, one never trained, and the pixels."""
    import torch

    from pretrain import heads
    from pretrain import probe as probes
    from pretrain.scenes import scene

    recipe, model = opened(folder)
    torch.manual_seed(0)  # of the one that was never trained
    fresh = recipe.load(folder, random_weights=True).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, fresh = model.to(device), fresh.to(device)
    patch, tubelet = model.config.patch, model.config.tubelet
    side, frames = 8 * patch, 4 * tubelet
    parts, total = shares(labels)

    def made(seed: int, numbers: range) -> list[Any]:
        return [scene(i, 10**7 + seed, frames, side) for i in numbers]

    def clips(seed: int) -> Iterator[tuple[Any, dict[str, Any]]]:
        for start in range(0, total, AT_ONCE):
            scenes = made(seed, range(start, min(start + AT_ONCE, total)))
            told = {name: torch.tensor([s.labels[name] for s in scenes]) for name in _classes()}
            yield torch.from_numpy(np.stack([s.frames for s in scenes])), told

    def dense(tokens: Any, seed: int) -> Iterator[tuple[str, float]]:
        told = heads.truth(made(seed, range(total)), tubelet)
        learn, choose, test = ((tokens[part], told.part(part)) for part in parts)
        grid = (frames // tubelet, 8, 8)
        depth = heads.depth(learn, choose, test, grid, epochs=epochs, seed=seed)
        track = heads.track(learn, choose, test, grid, epochs=epochs, seed=seed)
        yield from {"depth pairs": depth["pairs"], "depth ranks": depth["ranks"], "track IoU": track["iou"]}.items()
        staying.append(heads.staying(test[1])["iou"])
        one_rank.append(heads.one_rank(test[1]))

    ways = {
        str(folder): lambda video: recipe.encode(model, video.to(device)),
        "never trained": lambda video: recipe.encode(fresh, video.to(device)),
        "pixels": lambda video: probes.raw_patches(video, tubelet, patch),
    }
    staying: list[float] = []
    one_rank: list[float] = []
    rows = readings(ways, clips, parts, total, list(_classes()), seeds, kinds, epochs, dense)
    if staying:
        rows[0] |= {"staying": float(np.mean(staying)), "one rank": float(np.mean(one_rank))}
    return rows
