"""LoRA training of CogVideoX image-to-video: ours beside diffusers' own example script, on identical weights, in one run.

    git clone https://github.com/huggingface/diffusers /tmp/diffusers
    python benchmarks/training_step.py run --peer /tmp/diffusers                       # reduced size, for a CPU
    python benchmarks/training_step.py run --peer /tmp/diffusers --size 5b --dtype bf16    # on a GPU, at true size
    python benchmarks/training_step.py report                                          # results/training_step.{json,md}

The checkpoint is made here: CogVideoX-5B-I2V's architecture and file layout (1.0, the version that the script can train) with
random weights, at full size or with fewer and narrower layers but the published proportion of text encoder to transformer.
Every way trains it on the same clips of nine frames, with the same tokens, batch, precision, LoRA rank and layers. Each is a
process of its own. On a CPU it is run twice: the difference of a long and a short training is the steps alone, what is left is
loading, latents and text. On a GPU once: every way writes a line an update (the script to tensorboard), and the median of the
later half counts. Memory is the process's own peak (on a GPU the device's), less what the libraries take by themselves.

    script, checkpointing    the published script as its README runs it
    script                   the same with all activations kept
    ours                     `accelerate launch -m vdmreason.train`: latents and text computed once, the text encoder let go,
                             bf16 adapters with fp32 masters where the precision is bf16
    ours, second run         the same run again: latents and text lie in the cache (on a CPU alone)
    ours, compiled           the same with compiled blocks; on a CPU the compiler's cache is warm too
    ours, checkpointing      the one for little memory
    ours, compiled and checkpointing
    ours, nf4                the frozen weights in 4 bits (off unless asked for: it computes something slightly else)

The peer runs from its own checkout; nothing of it is in ours. It wants `decord` and of torchvision two functions that only
compose others: where torchvision is not installed a stand-in of three lines gives them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import effects  # noqa: E402

from vdmreason import config, store  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "training_step.json"
FRAMES, RANK = 9, 64
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"layers": 2, "heads": 2, "text": 64, "text_layers": 1, "vae": (8, 8, 8, 8), "cells": (8, 10), "words": 64},
    "reduced": {
        "layers": 12, "heads": 16, "text": 1024, "text_layers": 12, "vae": (16, 32, 32, 64), "cells": (8, 12), "words": 226,
    },
    "5b": {
        "layers": 42, "heads": 48, "text": 4096, "text_layers": 24, "vae": (128, 256, 256, 512), "cells": (30, 45), "words": 226,
    },
}  # fmt: skip
WAYS = (
    "script, checkpointing",
    "script",
    "ours",
    "ours, second run",
    "ours, compiled",
    "ours, checkpointing",
    "ours, compiled and checkpointing",
    "ours, nf4",
)
STAND_IN = """
import sys, types
import diffusers, transformers, peft, accelerate
from diffusers import CogVideoXImageToVideoPipeline  # these look for the real one
transforms = types.ModuleType("torchvision.transforms")
class Compose:
    def __init__(self, parts): self.parts = parts
    def __call__(self, x):
        for part in self.parts: x = part(x)
        return x
class Lambda:
    def __init__(self, f): self.f = f
    def __call__(self, x): return self.f(x)
transforms.Compose, transforms.Lambda = Compose, Lambda
vision = types.ModuleType("torchvision"); vision.transforms = transforms
sys.modules["torchvision"], sys.modules["torchvision.transforms"] = vision, transforms
"""


def checkpoint(folder: Path, size: str, dtype: str) -> Path:
    """Random weights in the layout of CogVideoX-5B-I2V. Its name ends with 5b: by that the script knows that it is bf16. They are
    drawn where that is quick, in a process of its own, which leaves nothing on the device."""
    if not (folder / "model_index.json").exists():
        subprocess.run([sys.executable, __file__, "weights", str(folder), size, dtype], check=True)
    return folder


def draw_checkpoint(folder: Path, size: str, dtype: str) -> None:
    import torch
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    torch.manual_seed(0)
    s, kind = SIZES[size], {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    rows, cols = s["cells"]
    torch.set_default_dtype(kind)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    AutoencoderKLCogVideoX(
        block_out_channels=s["vae"], layers_per_block=3 if size == "5b" else 1, latent_channels=16,
        norm_num_groups=32 if size == "5b" else 4, temporal_compression_ratio=4, sample_height=rows * 16,
        sample_width=cols * 16, scaling_factor=0.7,
    ).save_pretrained(folder / "vae")  # fmt: skip
    CogVideoXTransformer3DModel(
        num_attention_heads=s["heads"], attention_head_dim=64, in_channels=32, out_channels=16, time_embed_dim=512,
        text_embed_dim=s["text"], num_layers=s["layers"], sample_width=cols * 2, sample_height=rows * 2,
        sample_frames=FRAMES, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=s["words"],
        use_rotary_positional_embeddings=True, use_learned_positional_embeddings=True,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", snr_shift_scale=1.0, clip_sample=False,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    T5EncoderModel(
        T5Config(
            vocab_size=32128 if size == "5b" else 64, d_model=s["text"], d_kv=64, d_ff=s["text"] * 5 // 2,
            num_layers=s["text_layers"], num_heads=s["text"] // 64, feed_forward_proj="gated-gelu",
        )
    ).save_pretrained(folder / "text_encoder")  # fmt: skip
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXImageToVideoPipeline"}))


def run_of(base: Path, size: str, dtype: str, batch: int, updates: int, clips: int) -> config.Run:
    """Ours: attention layers alone, as the script has it; learning rate and schedule as it has them."""
    return config.resolve(
        {
            "task": "life/B3S23", "n": clips, "family": "cogvideox", "flavour": str(base), "test": 1,
            "precision": dtype, "checkpoint_every": 10**6,
            "lora": {"rank": RANK, "alpha": RANK, "targets": ["attention"]},
            "optim": {"updates": updates, "batch": batch, "warmup": 0, "lr": 1e-4, "schedule": "constant"},
            "options": {"style": "video-16", "pixels": 0, "canvas": list(SIZES[size]["cells"]), "frames": FRAMES,
                        "condition": "scaled", "steps": 4},
        }
    )  # fmt: skip


def videos(folder: Path, run: config.Run) -> Path:
    """The clips that our arm is shown, as files for the script."""
    if (folder / "prompts.txt").exists():
        return folder
    import av

    from adapters import cogvideox

    folder.mkdir(parents=True)
    names = []
    for number, example in enumerate(config.train_examples(run)):
        clip = cogvideox.frame(example, run.arm_options()).wanted
        names.append(f"{number}.mp4")
        with av.open(str(folder / names[-1]), "w") as file:
            stream = file.add_stream("libx264", rate=8)
            stream.height, stream.width = clip.shape[1:3]
            stream.pix_fmt, stream.options = "yuv420p", {"crf": "1"}
            for picture in clip:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode())
    (folder / "videos.txt").write_text("\n".join(names))
    (folder / "prompts.txt").write_text("\n".join("a" for _ in names))
    return folder


def script_command(peer: Path, base: Path, data: Path, out: Path, given: argparse.Namespace, updates: int) -> list[str]:
    rows, cols = SIZES[given.size]["cells"]
    path = peer / "examples" / "cogvideo" / "train_cogvideox_image_to_video_lora.py"
    start = f"import sys, runpy; sys.argv = sys.argv[1:]\n{'' if _has_torchvision() else STAND_IN}\n"
    start += f"runpy.run_path({str(path)!r}, run_name='__main__')"
    words = {
        "pretrained_model_name_or_path": base, "instance_data_root": data, "video_column": "videos.txt",
        "caption_column": "prompts.txt", "output_dir": out, "height": rows * 16, "width": cols * 16,
        "max_num_frames": FRAMES, "train_batch_size": given.batch, "max_train_steps": updates, "rank": RANK,
        "lora_alpha": RANK, "learning_rate": 1e-4, "lr_scheduler": "constant", "lr_warmup_steps": 0,
        "mixed_precision": "no" if given.dtype == "fp32" else "bf16", "checkpointing_steps": 10**6, "seed": 0,
        "report_to": "tensorboard", "num_train_epochs": 10**3,
    }  # fmt: skip
    flat = [text for key, value in words.items() for text in (f"--{key}", str(value))]
    return [sys.executable, "-c", start, str(path), *flat]


def _has_torchvision() -> bool:
    return (
        subprocess.run([sys.executable, "-c", "from torchvision import transforms"], capture_output=True).returncode
        == 0
    )


def on_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


class Failed(Exception):
    """A process that ended otherwise than well: the end of what it said."""


def measured(command: list[str], env: dict[str, str], until: Path | None = None) -> dict[str, float]:
    """Seconds, and the peak of memory in GiB, of one process: without a GPU its CPU seconds, on which other work on the machine
    has no part, and its resident memory; on a GPU the clock's seconds and the device's memory, which is all ours while this runs.
    It is ended when the file `until` is there: the script loads everything once more behind its training."""
    log = tempfile.TemporaryFile()
    began = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=ROOT)
    code, used = None, None
    with peak_bytes(process.pid) as peak:
        while code is None and not (until and until.exists()):
            time.sleep(0.02)
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if pid else None
        seconds = time.perf_counter() - began
        if code is None:
            code = 0
            process.kill()
            used = os.wait4(process.pid, 0)[2]
    if not on_gpu():
        assert used is not None
        seconds = used.ru_utime + used.ru_stime
    if code:
        log.seek(0)
        raise Failed(f"{' '.join(command[:3])} ... failed:\n{log.read().decode(errors='replace')[-3000:]}")
    return {"seconds": seconds, "gib": max(peak) / 2**30}


@contextlib.contextmanager
def peak_bytes(pid: int) -> Iterator[list[int]]:
    """What memory a process took, looked at all the while: the device's, or the process's own high-water mark."""
    seen, over = [0], threading.Event()
    ask = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--loop-ms=50"]
    smi = subprocess.Popen(ask, stdout=subprocess.PIPE, text=True) if on_gpu() else None

    def watch() -> None:
        if smi and smi.stdout:
            seen.extend(int(line.split()[0]) * 2**20 for line in smi.stdout)
        while not smi and not over.wait(0.05):
            seen.append(_resident_bytes(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        if smi:
            smi.kill()
        watcher.join()
        if smi:
            smi.wait()


def _resident_bytes(pid: int) -> int:
    """The most that a process had in memory so far. (`ru_maxrss` would begin with what its parent had.)"""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 2**10 for line in lines if line.startswith("VmHWM")), 0)


def step_seconds(folder: Path) -> float:
    """Of the later half of a training's updates, the median: by our metrics, or by the times of the script's lines."""
    lines = list(store.read_lines(folder / "metrics.jsonl"))
    if lines:
        each = [line["seconds"] for line in lines]
    else:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        times: dict[int, float] = {}
        for path in folder.rglob("events.out.*"):
            for event in EventFileLoader(str(path)).Load():
                if event.step and event.summary.value:
                    times.setdefault(event.step, event.wall_time)
        each = [after - before for before, after in itertools.pairwise(times[step] for step in sorted(times))]
    return statistics.median(each[len(each) // 2 :])


def ceiling(dtype: str) -> None:
    """Say the FLOP/s of a large matrix product on this device, of which the MFU is a share, and its name. (In a process of
    its own, so that nothing of it stays on the device.)"""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    n, kind = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    if dtype == "bf16":
        kind = torch.bfloat16
    a, b = (torch.randn(n, n, device=device, dtype=kind) for _ in range(2))
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(3):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 3 * 2 * n**3 / (time.perf_counter() - began))
    print(best, torch.cuda.get_device_name() if device == "cuda" else device, sep="\n")


def flop_a_sample(size: str) -> float:
    """Of a LoRA step with all activations kept: twice the linear layers' forward and 3.5 times attention's (the gradient of the
    frozen weights is not wanted). The way through a block's norms and positions is not counted."""
    s = SIZES[size]
    width, layers, (rows, cols) = s["heads"] * 64, s["layers"], s["cells"]
    tokens = (FRAMES // 4 + 1) * rows * cols + s["words"]
    linear = 2 * 12 * width**2 * layers * tokens
    return 2 * linear + 3.5 * 4 * width * layers * tokens**2


def run(given: argparse.Namespace) -> None:
    if given.work:
        given.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="training-step-", dir=given.work))
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(given.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    env |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
        "TQDM_DISABLE": "1",
    }
    long, short = given.updates
    # With a folder for it the checkpoint stays, for the next run or for benchmarks/sampling.py.
    base = checkpoint((given.work or work) / f"{given.size}-{given.dtype}-cogvideox-5b", given.size, given.dtype)
    data = videos(
        given.videos or work / "videos", run_of(base, given.size, given.dtype, given.batch, short, given.clips)
    )
    idle = measured(
        [sys.executable, "-c", "import torch, diffusers, transformers, peft, accelerate, vdmreason.train"], env
    )
    found = subprocess.run([sys.executable, __file__, "ceiling", given.dtype], env=env, capture_output=True, text=True)
    top, card = found.stdout.splitlines()[-2:]
    ask = ["git", "--git-dir", str(given.peer / ".git"), "rev-parse", "HEAD"]
    git = subprocess.run(ask, capture_output=True, text=True).stdout.strip() or given.peer.name
    said = " ".join(sys.argv)
    for path, name in ((given.peer, "<checkout>"), (given.work, "<folder>"), (given.videos, "<folder>")):
        said = said.replace(str(path), name)
    table = {
        "command": f"python {said}",
        "peer": git, "size": given.size, "dtype": given.dtype, "batch": given.batch, "frames": FRAMES,
        "pixels": [16 * c for c in SIZES[given.size]["cells"]], "rank": RANK, "clips": given.clips,
        "updates": [long] if on_gpu() else [long, short], "commit": effects.commit(),
        "versions": store.versions(), "machine": card if on_gpu() else f"{given.threads} CPU thread(s)",
        "ceiling_flops": float(top), "libraries_gib": idle["gib"], "rows": {},
    }  # fmt: skip
    known = store.read_json(RESULTS) or {}
    table_name = f"{given.size}, {given.dtype}, {'GPU' if on_gpu() else 'CPU'}"
    before = known.get(table_name, {})
    if given.way and all(before.get(key) == table[key] for key in ("machine", "commit", "batch", "versions")):
        table["rows"] = before["rows"]
    for way in given.way or WAYS[:-1]:
        try:
            row = measure(way, given, base, data, work, env)
        except Failed as error:  # out of memory, say: the other ways are measured all the same
            print(way, error, flush=True)
            table.setdefault("failed", {})[way] = str(error).splitlines()[-1]
            continue
        step = row["seconds_a_step"]
        row |= {
            "samples_a_second": given.batch / step,
            "gib_beyond_libraries": row["gib"] - idle["gib"],
            "flops": given.batch * flop_a_sample(given.size) / step,
        }
        table["rows"][way] = row
        store.write_json(RESULTS, known | {table_name: table})
        print(way, {k: round(v, 3) for k, v in row.items()}, flush=True)
    shutil.rmtree(work)
    report()


def measure(
    way: str, given: argparse.Namespace, base: Path, data: Path, work: Path, env: dict[str, str]
) -> dict[str, float]:
    """Seconds a step, seconds until the first and GiB of one way."""
    long, short = given.updates
    found = []
    for updates in (long,) if on_gpu() else (short, long):
        folder = work / f"{way}-{updates}".replace(", ", "-").replace(" ", "-")
        if way.startswith("script"):
            command = script_command(given.peer, base, data, folder, given, updates)
            command += ["--gradient_checkpointing"] if "checkpointing" in way else []
            found.append(measured(command, env, folder / "pytorch_lora_weights.safetensors"))
            continue
        extra = {
            "compile": "on" if "compiled" in way else "off",
            "checkpointing": "on" if "checkpointing" in way else "off",
        }
        mine = config.to_dict(run_of(base, given.size, given.dtype, given.batch, updates, given.clips))
        mine |= {"speed": {**extra, "shard": False}, "quantise": "nf4" if "nf4" in way else "none"}
        file = folder.with_suffix(".yaml")
        file.write_text(config.to_yaml(config.resolve(mine)))
        kept = not on_gpu() and ("second" in way or "compiled" in way)  # there every way starts with nothing
        cache = work / ("cache" if kept else f"cache-{folder.name}")
        command = [sys.executable, "-m", "vdmreason.train", "--config", str(file), "--folder"]
        if kept and not found:  # what is kept on the disk is there for both lengths
            warm = [*command, str(folder) + "-warm", "--set", "optim.updates=1"]
            measured(warm, {**env, "VDMREASON_CACHE": str(cache)})
        found.append(measured([*command, str(folder)], {**env, "VDMREASON_CACHE": str(cache)}))
    few, many = found[0], found[-1]
    if on_gpu():
        step = step_seconds(folder)
        start = many["seconds"] - long * step
    else:
        step = (many["seconds"] - few["seconds"]) / (long - short)
        start = few["seconds"] - short * step
    return {"seconds_a_step": step, "start_seconds": start, "gib": max(few["gib"], many["gib"])}


def report() -> None:
    """A table a run: ratios to the script as its README runs it."""
    lines = [
        "LoRA training of CogVideoX-5B-I2V's architecture with random weights: `vdmreason.train` beside diffusers' example "
        "script, one process each, the same tokens, batch, precision, rank and layers.",
    ]
    for name, table in (store.read_json(RESULTS) or {}).items():
        rows = table["rows"]
        theirs = rows.get("script, checkpointing")
        about = f"{table['pixels'][0]} x {table['pixels'][1]} px, {table['frames']} frames, batch {table['batch']}"
        lines += ["", f"**{name}** ({table['machine']}): {about}, rank {table['rank']}. `{table['command']}`", ""]
        titles = ("steps' samples a second, ratio", "MFU of a matrix product here", "start, ratio of seconds")
        lines += [f"| | {' | '.join(titles)} | memory beyond the libraries, ratio |", "|---" * 5 + "|"]
        for way, row in rows.items():
            ratios = ["", "", ""]
            if theirs:
                ratios = [
                    f"{row['samples_a_second'] / theirs['samples_a_second']:.2f}",
                    f"{row['start_seconds'] / theirs['start_seconds']:.2f}",
                    f"{row['gib_beyond_libraries'] / theirs['gib_beyond_libraries']:.2f}",
                ]
            mfu = f"{100 * row['flops'] / table['ceiling_flops']:.0f} %"
            lines.append(
                f"| {way} | {ratios[0]} | {mfu} | {ratios[1]} | {ratios[2]} ({row['gib_beyond_libraries']:.2f} GiB) |"
            )
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="measure every way, one after the other")
    runs.add_argument("--peer", type=Path, required=True, help="a checkout of diffusers")
    runs.add_argument("--size", choices=SIZES, default="reduced")
    runs.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    runs.add_argument("--batch", type=int, default=2, help="the paper's")
    runs.add_argument("--clips", type=int, default=8)
    runs.add_argument("--updates", type=int, nargs=2, default=(14, 4), metavar=("LONG", "SHORT"))
    runs.add_argument("--threads", type=int, default=1, help="CPU seconds are of one core only with 1")
    runs.add_argument("--way", action="append", choices=WAYS, help="only this; may be repeated (nf4 only when named)")
    runs.add_argument(
        "--work", type=Path, help="where the checkpoint is made and stays (20 GB at 5b); by default it goes"
    )
    runs.add_argument("--videos", type=Path, help="the clips as files, made there where they are not: wants `av`")
    commands.add_parser("report", help="write the table again")
    weights = commands.add_parser("weights", help="the checkpoint alone")
    weights.add_argument("folder", type=Path)
    weights.add_argument("size", choices=SIZES)
    weights.add_argument("dtype", choices=("fp32", "bf16"))
    top = commands.add_parser("ceiling", help="the rate of a large matrix product alone")
    top.add_argument("dtype", choices=("fp32", "bf16"))
    given = parser.parse_args()
    if given.command == "weights":
        draw_checkpoint(given.folder, given.size, given.dtype)
    elif given.command == "ceiling":
        ceiling(given.dtype)
    else:
        report() if given.command == "report" else run(given)


if __name__ == "__main__":
    main()
