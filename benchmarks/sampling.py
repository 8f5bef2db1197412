"""How few steps keep the answer, and how fast answers are drawn, beside the stock pipeline and with the caches it offers.

    python benchmarks/sampling.py run        # the shipped adapters, 100 tests each; about an hour of a core
    python benchmarks/sampling.py report     # results/sampling.{json,md,png}
    python benchmarks/sampling.py speed --size 5b --dtype bf16 --work FOLDER    # on a GPU, at true size: results/sampling_speed.*

Every way answers the same test examples of the same adapted small backbones (adapters/zoo), so speed never stands without
exact match. Seconds are CPU seconds of one core, or a GPU's; what a reader should look at is the ratio to the stock pipeline.

    pipeline, 50 steps       diffusers' CogVideoXImageToVideoPipeline with the adapter loaded by `load_lora_weights`, one answer
                             at a time, no guidance: its own default of steps
    N steps                  ours, 16 answers at once, deterministic DDIM
    N steps, end             the last latents decoded alone (`options.decode: end`)
    N steps, first block     with the pipeline's FirstBlockCache: later blocks are skipped where the first changed little
    N steps, Taylor          with TaylorSeer: features extrapolated between steps
    one at a time, 16        the language arm, by how many answers are written at once

`speed` times the same ways on CogVideoX-5B-I2V's architecture with random weights (training_step.py makes the checkpoint),
where an answer says nothing: how few steps keep it, the adapted small ones tell.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import effects
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tasks  # noqa: E402
from adapters import family  # noqa: E402
from adapters.base import Answer, flavour  # noqa: E402
from vdmreason import config, evaluate, store  # noqa: E402
from vdmreason.config import named_seed  # noqa: E402
from vdmreason.predict import load_adapted  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "sampling.json"
ZOO = ROOT / "adapters" / "zoo"
TESTS, STEPS = 100, (1, 2, 4, 8, 10, 20, 50)
PIPELINE = "pipeline, 50 steps"
VIDEO = (
    PIPELINE,
    *(f"{n} steps" for n in STEPS),
    *(f"{n} steps, end" for n in (1, 4)),
    *(f"20 steps, {cache}" for cache in ("first block .05", "first block .2", "Taylor")),
)
LANGUAGE = ("one at a time", "16 at once")
Ways = dict[str, Callable[[list[Any], list[int]], list[Answer]]]


def ways_of(folder: Path) -> Ways:
    """How the adapter in a run's folder can be asked."""
    arm: Any = load_adapted(store.read_config(folder), folder)
    if hasattr(arm, "scheduler"):
        return {way: functools.partial(asked, arm, folder, way) for way in VIDEO}
    return {way: functools.partial(written, arm, size) for way, size in zip(LANGUAGE, (1, 16), strict=True)}


def written(arm: Any, size: int, givens: list[Any], seeds: list[int]) -> list[Answer]:
    arm.options = replace(arm.options, batch=size)
    return arm.predict(givens, seeds)


def asked(arm: Any, folder: Path, way: str, givens: list[Any], seeds: list[int]) -> list[Answer]:
    if way == PIPELINE:
        return by_pipeline(folder, givens, seeds)
    number, _, how = way.partition(" steps")
    arm.options = replace(arm.options, steps=int(number), decode="end" if how == ", end" else "whole")
    cache = cache_of(how.removeprefix(", "))
    if cache is None:
        return arm.predict(givens, seeds)
    answers = []
    for start in range(0, len(givens), arm.options.batch):  # a cache holds what one batch said
        part = slice(start, start + arm.options.batch)
        arm.model.enable_cache(cache)
        try:
            with arm.model.cache_context("cond"):
                answers += arm.predict(givens[part], seeds[part])
        finally:
            arm.model.disable_cache()
    return answers


def cache_of(how: str) -> Any:
    from diffusers.hooks import FirstBlockCacheConfig, TaylorSeerCacheConfig

    if how.startswith("first block"):
        return FirstBlockCacheConfig(threshold=float(how.removeprefix("first block ")))
    if how == "Taylor":
        return TaylorSeerCacheConfig(cache_interval=3, max_order=1, taylor_factors_dtype=torch.float32)
    return None


@functools.cache
def pipeline_of(folder: Path) -> tuple[Any, Any]:
    """A stock pipeline on the backbone that ships, with the adapter loaded by its own loader; and an arm to read with."""
    from diffusers import CogVideoXImageToVideoPipeline

    from adapters import cogvideox

    run = store.read_config(folder)
    arm = cogvideox.load(flavour(cogvideox, run.flavour), run.arm_options())
    pipeline = CogVideoXImageToVideoPipeline(None, None, arm.vae, arm.model, arm.scheduler)
    pipeline.load_lora_weights(str(folder / "adapter"), use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, arm


def by_pipeline(folder: Path, givens: list[Any], seeds: list[int]) -> list[Answer]:
    pipeline, arm = pipeline_of(folder)
    answers = []
    for given, seed in zip(givens, seeds, strict=True):
        height, width = given.picture.shape[:2]
        clip = pipeline(
            image=torch.from_numpy(given.picture).permute(2, 0, 1)[None].float() / 255, prompt_embeds=arm.prompt,
            height=height, width=width, num_frames=arm.options.frames, num_inference_steps=50, guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed), output_type="np",
        ).frames[0]  # fmt: skip
        answers.append(arm.answer((clip * 255).round().astype(np.uint8), given))
    return answers


def run(given: argparse.Namespace) -> None:
    torch.set_num_threads(given.threads)
    table = store.read_json(RESULTS) or {"rows": {}}
    for folder in sorted(ZOO.glob("*--n300")):
        settings = store.read_config(folder)
        examples = config.test_examples(settings, given.tests)
        task = tasks.get(settings.tested)
        ways = ways_of(folder)
        known = table["rows"].setdefault(folder.name, {})
        for way, answer in ways.items():
            if known.get(way, {}).get("tests", 0) >= given.tests or (given.way and way not in given.way):
                continue
            givens = [family(settings.family).frame(e, settings.arm_options()).given for e in examples]
            seeds = [named_seed("answer", settings.seed, i) for i in range(len(examples))]
            answer(givens[:1], seeds[:1])  # what is made once is not counted
            began = clock()
            answers = answer(givens, seeds)
            seconds = clock() - began
            verdicts = [task.check(a.grid, e) for a, e in zip(answers, examples, strict=True)]
            score = evaluate.score(verdicts, sum(a.grid is None for a in answers))
            known[way] = {"tests": given.tests, "seconds_an_answer": seconds / len(examples),
                          "exact": score["exact"], "cells": score["cells"]}  # fmt: skip
            table |= {"command": "python benchmarks/sampling.py run", "commit": effects.commit(),
                      "machine": device(given.threads), "versions": store.versions()}  # fmt: skip
            store.write_json(RESULTS, table)
            print(folder.name, way, f"{1000 * seconds / len(examples):.0f} ms", score["exact"], flush=True)
    report()


# What `speed` times: ours as (steps, what is decoded).
DRAWN = {"4 steps": (4, "whole"), "4 steps, end": (4, "end"), "1 step, end": (1, "end")}


def time_large(given: argparse.Namespace) -> None:
    """Answers a second and the peak of memory, at a published size."""
    import training_step
    from diffusers import CogVideoXImageToVideoPipeline

    from vdmreason import speed
    from vdmreason.train import load_arm

    base = training_step.checkpoint(given.work / f"{given.size}-{given.dtype}-cogvideox-5b", given.size, given.dtype)
    settings = training_step.run_of(base, given.size, given.dtype, 2, 1, given.answers)
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arm: Any = load_arm(settings, str(where))
    arm.model.eval()
    pipeline = CogVideoXImageToVideoPipeline(None, None, arm.vae.to(where), arm.model, arm.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    asked = [arm.frame(example).given for example in config.train_examples(settings)]

    def by_pipeline(guidance: float) -> int:
        height, width = asked[0].picture.shape[:2]
        pipeline(
            image=torch.from_numpy(asked[0].picture).permute(2, 0, 1)[None].float() / 255, prompt_embeds=arm.prompt,
            negative_prompt_embeds=arm.prompt if guidance > 1 else None, height=height, width=width,
            num_frames=arm.options.frames, num_inference_steps=50, guidance_scale=guidance,
            generator=torch.Generator().manual_seed(0), output_type="np",
        )  # fmt: skip
        return 1

    def by_us(steps: int, decode: str) -> int:
        arm.options = replace(arm.options, steps=steps, decode=decode, batch=len(asked))
        with speed.best_attention(where):
            arm.predict(asked, list(range(len(asked))))
        return len(asked)

    ways: dict[str, Callable[[], int]] = {
        f"{PIPELINE}, guidance 6": functools.partial(by_pipeline, 6.0),
        PIPELINE: functools.partial(by_pipeline, 1.0),
        **{way: functools.partial(by_us, *how) for way, how in DRAWN.items()},
    }
    rows: dict[str, Any] = {}
    for way, draw in ways.items():
        if not rows or way == next(iter(DRAWN)):  # kernels are chosen, and what is made once is made
            by_us(1, "end") if rows else by_pipeline(1.0)
        if where.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = clock()
        drawn = draw()
        rows[way] = {"seconds_an_answer": (clock() - began) / drawn, "at_once": drawn}
        if where.type == "cuda":
            rows[way]["gib"] = torch.cuda.max_memory_allocated() / 2**30
        print(way, rows[way], flush=True)
    height, width = asked[0].picture.shape[:2]
    table = {
        "command": f"python {' '.join(sys.argv)}".replace(str(given.work), "<folder>"), "commit": effects.commit(),
        "machine": device(torch.get_num_threads()), "versions": store.versions(), "size": given.size, "dtype": given.dtype,
        "pixels": [height, width], "frames": arm.options.frames, "rows": rows,
    }  # fmt: skip
    file = RESULTS.with_name("sampling_speed.json")
    store.write_json(file, (store.read_json(file) or {}) | {f"{given.size}, {given.dtype}, {where.type}": table})
    report_large()


def report_large() -> None:
    lines = [
        "CogVideoX-5B-I2V's architecture with random weights and a LoRA on it: answers a second, ratio to diffusers' pipeline "
        "as it is called by itself (50 steps, guidance 6, one answer at a time).",
    ]
    for name, table in (store.read_json(RESULTS.with_name("sampling_speed.json")) or {}).items():
        rows = table["rows"]
        theirs = next(iter(rows.values()))
        about = f"{table['pixels'][0]} x {table['pixels'][1]} px, {table['frames']} frames"
        lines += ["", f"**{name}** ({table['machine']}, commit {table['commit']}): {about}. `{table['command']}`", ""]
        lines += ["| | answers at once | ratio of answers a second | peak, GiB |", "|---|---|---|---|"]
        for way, row in rows.items():
            ratio = theirs["seconds_an_answer"] / row["seconds_an_answer"]
            gib = f"{row['gib']:.1f}" if "gib" in row else ""
            lines.append(f"| {way} | {row['at_once']} | {ratio:.1f} | {gib} |")
    RESULTS.with_name("sampling_speed.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def device(threads: int) -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{threads} CPU thread(s)"


def report() -> None:
    table = store.read_json(RESULTS) or {"rows": {}}
    lines = [
        f"`{table.get('command')}`, {table.get('machine')}, commit {table.get('commit')}. The backbones are small and were "
        "pretrained by us. Exact match in % [95 % interval] on the same tests for every way; speed as answers a second, ratio "
        "to the stock pipeline (the language arm: to one at a time).",
        "",
    ]
    names = list(table["rows"])
    for kind, ways in (("cogvideox", VIDEO), ("causal_lm", LANGUAGE)):
        mine = [n for n in names if kind in n]
        lines += [f"| {kind} | {' | '.join(n.split('--')[0] for n in mine)} |", "|---" * (len(mine) + 1) + "|"]
        for way in ways:
            cells = []
            for name in mine:
                row, base = table["rows"][name].get(way), table["rows"][name].get(ways[0])
                if not row or not base:
                    cells.append("")
                    continue
                exact = row["exact"]
                speed = base["seconds_an_answer"] / row["seconds_an_answer"]
                cells.append(
                    f"{100 * exact['value']:.0f} [{100 * exact['low']:.0f}, {100 * exact['high']:.0f}], {speed:.1f} x"
                )
            lines.append(f"| {way} | {' | '.join(cells)} |")
        lines.append("")
    RESULTS.with_suffix(".md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))
    plot(table)


def plot(table: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, rows in table["rows"].items():
        found = [(n, rows[f"{n} steps"]["exact"]) for n in STEPS if f"{n} steps" in rows]
        if not found:
            continue
        steps, scores = zip(*found, strict=True)
        middle = [100 * s["value"] for s in scores]
        axis.plot(steps, middle, "o-", label=name.split("--")[0])
        axis.fill_between(steps, [100 * s["low"] for s in scores], [100 * s["high"] for s in scores], alpha=0.15)
    axis.set(xscale="log", xlabel="denoising steps", ylabel="exact match, %", ylim=(0, 100))
    axis.set_xticks(STEPS, [str(n) for n in STEPS])
    axis.minorticks_off()
    axis.legend(frameon=False)
    figure.savefig(RESULTS.with_suffix(".png"), dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="every way that is not measured yet")
    runs.add_argument("--tests", type=int, default=TESTS)
    runs.add_argument("--way", action="append", choices=(*VIDEO, *LANGUAGE), help="only this; may be repeated")
    runs.add_argument("--threads", type=int, default=1)
    large = commands.add_parser("speed", help="seconds an answer at a published size, with random weights")
    large.add_argument("--size", choices=("tiny", "reduced", "5b"), default="5b")
    large.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16")
    large.add_argument("--answers", type=int, default=8, help="drawn at once by us")
    large.add_argument("--work", type=Path, required=True, help="where the checkpoint is made, or lies")
    commands.add_parser("report", help="write the tables and the plot again")
    given = parser.parse_args()
    if given.command == "report":
        report()
        report_large()
    else:
        time_large(given) if given.command == "speed" else run(given)


if __name__ == "__main__":
    main()
