"""The plan of a run: what is told on the meta device is what a real step takes, and what is advised does fit."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import adapters
from adapters.base import flavour
from tasks.base import UserError
from vdmreason import __main__ as cli
from vdmreason import config, doctor, plan, speed
from vdmreason.plan import Sketch

COG = "flavour=THUDM/CogVideoX1.5-5B-I2V"
BIG = [COG, "options.canvas=[30,30]", "lora.targets=[attention]"]  # 480 x 480 pixels
QWEN = "flavour=Qwen/Qwen3-4B-Instruct-2507"
SMALL = [("cogvideox", "tiny"), ("cogvideox", "small"), ("causal_lm", "tiny"), ("causal_lm", "small")]
SMALL += [("wan", "tiny"), ("ltx", "tiny"), ("vlm", "tiny")]


@pytest.fixture(autouse=True)
def _own(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VDMREASON_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)


def run_of(family: str, *overrides: str) -> config.Run:
    return config.resolve({"task": "maze/7x7", "n": 8, "family": family}, overrides)


@functools.cache
def sketch(family: str, name: str) -> Sketch:
    return Sketch(run_of(family, f"flavour={name}"), "float32")


def real(family: str, name: str):
    """The arm with its weights and its LoRA."""
    run, module = run_of(family, f"flavour={name}"), adapters.family(family)
    arm = module.load(flavour(module, name), run.arm_options())
    arm.attach(run.lora, run.seed)
    arm.model.train()
    return arm


def step(arm, samples) -> tuple[int, int, int]:
    """Bytes that autograd keeps of a real training step, each storage once and no weights; its FLOPs, forward and in all."""
    batch = arm.collate(samples, range(len(samples)))
    weights = {w.untyped_storage().data_ptr() for w in [*arm.model.parameters(), *arm.model.buffers()]}
    kept = {}

    def pack(x):
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with plan.counter() as counting:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = arm.loss(batch)
        forward = counting.get_total_flops()
        loss.backward()
    return sum(kept.values()), forward, counting.get_total_flops()


@pytest.mark.parametrize(("family", "name"), SMALL)
def test_a_sketch_takes_what_a_real_step_takes(family: str, name: str) -> None:
    drawn, arm = sketch(family, name), real(family, name)
    for number in (1, 3):
        told = drawn.plain if number == 1 else drawn.work([drawn.sample] * 3)
        kept, forward, whole = step(arm, [drawn.sample] * number)
        assert told.kept == pytest.approx(kept, rel=0.15)
        assert told.kept == pytest.approx(number * drawn.plain.kept, rel=0.05)
        assert (told.forward, told.step) == (pytest.approx(forward, rel=0.15), pytest.approx(whole, rel=0.15))
    speed.checkpoint_blocks(arm.model)
    for number in (1, 3):
        told = drawn.checkpointed if number == 1 else drawn.work([drawn.sample] * 3)
        kept, forward, whole = step(arm, [drawn.sample] * number)
        assert told.kept == pytest.approx(kept, rel=0.15)
        assert (told.forward, told.step) == (pytest.approx(forward, rel=0.15), pytest.approx(whole, rel=0.15))
    assert drawn.checkpointed.kept < drawn.plain.kept / 2 and drawn.checkpointed.step > drawn.plain.step


@pytest.mark.parametrize(("family", "name"), SMALL)
def test_a_sketch_has_the_weights_of_the_loaded_arm(family: str, name: str) -> None:
    drawn, arm = sketch(family, name).arm, real(family, name)
    shapes = [
        {key: (tuple(p.shape), p.dtype, p.requires_grad) for key, p in a.model.named_parameters()} for a in (drawn, arm)
    ]
    assert shapes[0] == shapes[1]
    assert all(p.is_meta for p in drawn.model.parameters())


def test_a_lora_has_the_precision_of_its_layer() -> None:
    drawn = Sketch(run_of("cogvideox"), "bfloat16")
    assert {p.dtype for p in drawn.trained} == {torch.bfloat16}
    count = sum(p.numel() for p in drawn.trained)
    assert drawn.lora_bytes() == count * (2 + 4 + 8 + 4)  # itself, master, two moments, gradient


# The specification's figures (its section 3)


def test_cogvideox_5b_takes_what_was_measured() -> None:
    """480 x 480 pixels, nine frames, LoRA on attention, bf16."""
    run = run_of("cogvideox", *BIG)
    drawn = plan.sketch_of(run, "bfloat16")
    assert drawn.sample.wanted.shape == (9, 480, 480, 3)
    found = plan.plan(run, 120)
    assert found.parameters == pytest.approx(5.57e9, rel=0.01)
    assert found.frozen == pytest.approx(11.14e9, rel=0.01)
    assert found.work.forward == pytest.approx(21.4e12, rel=0.02)
    assert found.work.step == pytest.approx(46.0e12, rel=0.02)
    assert found.work.kept == pytest.approx(7.4e9, rel=0.05)
    assert drawn.checkpointed.step == pytest.approx(67.4e12, rel=0.02)
    assert not found.checkpointing and found.fits


def test_qwen3_4b_takes_what_was_measured() -> None:
    run = run_of("causal_lm", QWEN)
    drawn = plan.sketch_of(run, "bfloat16")
    tokens = drawn.arm.rehearsal([drawn.sample])["input_ids"].numel()
    assert drawn.plain.kept / tokens == pytest.approx(5.4e6, rel=0.15)
    assert drawn.plain.forward / tokens == pytest.approx(8.5e12 / 1024, rel=0.15)
    found = plan.plan(run, 80, 1e14)
    assert found.parameters == 4_022_468_096 and found.lora_parameters == pytest.approx(66.0e6, rel=0.01)
    assert any("tokenizer" in note for note in found.notes)


# The plan


def test_hours_scale_with_updates_and_devices() -> None:
    runs = [run_of("cogvideox", f"optim.updates={n}", "optim.batch=16") for n in (150, 300)]
    short, long = (plan.plan(run, 24, 1e12) for run in runs)
    assert long.training == pytest.approx(2 * short.training) and long.answers == short.answers
    half = plan.plan(runs[1], 24, 1e12, processes=2)
    assert half.training == pytest.approx(long.training / 2)
    assert plan.plan(runs[1], 24, 2e12).training == pytest.approx(long.training / 2)
    assert plan.plan(runs[1], 24).training is None


def test_the_micro_batch_is_the_largest_that_fits_and_divides() -> None:
    run = run_of("cogvideox", *BIG, "optim.batch=12")
    sizes = []
    for gib in (20, 24, 32, 40, 60, 141):
        found = plan.plan(run, gib)
        one = found.work.kept + found.work.passing
        assert 12 % found.micro_batch == 0 and found.fits == (found.need <= found.room)
        larger = [size for size in (1, 2, 3, 4, 6, 12) if size > found.micro_batch]
        if larger and found.fits and not found.checkpointing:
            assert found.frozen + found.lora + larger[0] * one > found.room
        sizes.append((not found.checkpointing, found.micro_batch))
    assert sizes[-1] == (True, 12) and len(set(sizes)) > 3


def test_what_fits_only_when_computed_twice_is_so_by_itself() -> None:
    found = plan.plan(run_of("causal_lm", QWEN), 11.3)
    assert found.fits and found.checkpointing
    never = plan.plan(run_of("causal_lm", QWEN, "speed.checkpointing=off"), 11.3)
    assert not never.fits


def test_on_a_cpu_nothing_is_looked_for() -> None:
    """As the training has it: the whole batch at once, nothing computed twice, fp32."""
    found = plan.plan(run_of("cogvideox"), 0.5 + 1.2, gpu=False)
    assert found.micro_batch == 16 and not found.checkpointing and found.lora == 16 * found.lora_parameters


def test_fewer_bits_and_shards_take_less() -> None:
    run = run_of("causal_lm", QWEN)
    whole, eight, four = (
        plan.plan(config.resolve(config.to_dict(run), [f"quantise={kind}"]), 80).frozen
        for kind in ("none", "int8", "nf4")
    )
    assert whole == 2 * 4_022_468_096 + 0 and whole > eight > four
    linear = 36 * (2560 * 128 * (32 + 8 + 8) + 32 * 128 * 2560 + 3 * 2560 * 9728)
    assert four == pytest.approx(whole - linear * (16 - 4.5) / 8, rel=1e-6)
    shards = plan.plan(config.resolve(config.to_dict(run), ["speed.shard=true"]), 80, processes=4)
    root, block = 2 * 2560 * (151_936 + 1), 2 * linear // 36 + 2 * (2 * 2560 + 2 * 128)
    assert shards.frozen == whole // 4 + 2 * block + root  # the embedding and the last norm, in no block, stay whole
    assert not [note for note in shards.notes if "answers are not in this" in note]
    small = plan.plan(config.resolve(config.to_dict(run), ["speed.shard=true"]), 8, processes=4)
    assert [note for note in small.notes if f"the whole backbone, {whole / plan.GIB:.1f} GiB" in note]


def test_an_expert_that_waits_does_a_sample_for_nothing_where_it_is_sharded(monkeypatch) -> None:
    """And what is computed twice is a block of the one that learns, not of both."""
    wan, name = adapters.family("wan"), "Wan-AI/Wan2.2-I2V-A14B-Diffusers"
    tiny = {"transformer": wan._TINY, "transformer_2": wan._TINY, "vae": wan._TINY_VAE}
    monkeypatch.setitem(wan.PUBLISHED, name, wan.PUBLISHED[name] | tiny)
    plan._sketch_of.cache_clear()
    run = run_of("wan", f"flavour={name}", "optim.batch=8", "optim.updates=10", "options.frames=5")
    parted = config.resolve(config.to_dict(run), ["speed.shard=true"])
    whole, shards = plan.plan(run, 80, 1e12, processes=2), plan.plan(parted, 80, 1e12, processes=2)
    assert whole.flops == 10 * 8 * whole.work.step and whole.idle == 0
    assert whole.activations == whole.micro_batch * (whole.work.kept + whole.work.passing)
    assert shards.micro_batch == 1 and shards.flops == 2 * whole.flops and shards.training > whole.training
    assert shards.activations == 2 * whole.work.kept + whole.work.passing
    drawn = plan.sketch_of(run, "bfloat16")
    assert drawn.named == 4 and drawn.checkpointed.passing == drawn.plain.passing + drawn.plain.kept // 2
    plan._sketch_of.cache_clear()


def test_processes_that_each_load_the_whole_backbone_fit_their_machine() -> None:
    """Sharded and quantised weights are made of it on the CPU."""
    run = run_of("causal_lm", "flavour=tiny")
    (shards, bits, plain) = (
        plan.plan(config.resolve(config.to_dict(run), [setting]), 80, processes=4)
        for setting in ("speed.shard=true", "quantise=nf4", "quantise=none")
    )
    whole = plain.frozen
    assert shards.host == bits.host == 4 * whole and plain.host == 0
    assert doctor._memory_problem(shards, 80, True, 4 * whole) == ""
    told = doctor._memory_problem(shards, 80, True, 2.5 * whole)
    assert "4 x " in told and told.endswith("It does on 2 devices (accelerate launch --num_processes 2).")
    assert doctor._memory_problem(shards, 80, True, 1.5 * whole).endswith("It does in one process.")
    assert "No setting helps: start the processes on more machines" in doctor._memory_problem(bits, 80, True, whole / 2)
    assert doctor._host(None) < doctor._host(80.0) == float("inf")  # a machine that is not here is not known
    words = [*WORDS, "--set", "family=causal_lm", "--set", "flavour=tiny", "--set", "quantise=nf4"]
    assert "host memory" in call(*words, "--device-gib", "80", code=0).output


def call(*words: str, code: int):
    result = CliRunner().invoke(cli.app, ["doctor", *words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture
def shallow(monkeypatch) -> Iterator[None]:
    """The published backbones in all their width and four or six blocks deep, which is drawn in a second."""
    languages = adapters.family("causal_lm").PUBLISHED
    for name, shape in languages.items():
        # and one that shards help more than few bits: of many blocks two are fetched, and few words are whole on every device
        llama = {"num_hidden_layers": 20, "vocab_size": 4096, "eos_token_id": 9}
        monkeypatch.setitem(languages, name, {**shape, **(llama if "llama" in name else {"num_hidden_layers": 4})})
    for parts in adapters.family("cogvideox").PUBLISHED.values():
        monkeypatch.setitem(parts, "transformer", {**parts["transformer"], "num_layers": 6})
    plan._sketch_of.cache_clear()
    yield
    plan._sketch_of.cache_clear()


WORDS = ["--set", "task=maze/7x7", "--set", "n=8"]


@pytest.mark.parametrize(
    ("family", "name", "gib", "wanted"),
    [
        ("causal_lm", "Qwen/Qwen3-4B-Instruct-2507", 2.8, "quantise=int8"),
        ("causal_lm", "Qwen/Qwen3-4B-Instruct-2507", 2.6, "quantise=nf4"),
        ("cogvideox", "THUDM/CogVideoX1.5-5B-I2V", 2.2, "quantise=nf4"),
        ("cogvideox", "THUDM/CogVideoX1.5-5B-I2V", 2.0, "options.pixels"),
        ("causal_lm", "meta-llama/Llama-3.1-8B-Instruct", 3.9, "speed.shard=true"),
    ],
)
def test_what_is_advised_fits(family: str, name: str, gib: float, wanted: str, shallow: None) -> None:
    words = [*WORDS, "--set", f"family={family}", "--set", f"flavour={name}", "--device-gib", str(gib)]
    (line,) = call(*words, code=2).stderr.strip().splitlines()
    assert line.startswith("error: this run does not fit") and re.search(wanted, line), line
    settings = re.findall(r"--set (\S+?)[.,]?(?= |$)", line)
    more = [word for setting in settings for word in ("--set", setting)]
    if devices := re.search(r"--num_processes (\d+)", line):
        more += ["--processes", devices[1]]
    assert "fits" in call(*words, *more, code=0).output


def test_on_a_cpu_what_is_advised_can_be_done(shallow: None) -> None:
    """The weights in half their bits before they are quantised, and no launcher, which starts one process there."""
    run = run_of("causal_lm", QWEN)
    assert plan.plan(run, 80, gpu=False).frozen == 2 * plan.plan(run, 80).frozen
    small = {gib: plan.plan(run, gib, gpu=False) for gib in (1.5, 2.5, 3.6)}
    advised = {gib: plan.nearest(found, gib, gpu=False) for gib, found in small.items()}
    assert advised == {1.5: None, 2.5: (["precision=bf16", "quantise=nf4"], 1), 3.6: (["precision=bf16"], 1)}
    assert plan.nearest(small[2.5], 2.5, gpu=False, host=1e9) is None  # fewer bits of what cannot be loaded
    for gib, settings in ((gib, advice[0]) for gib, advice in advised.items() if advice):
        assert plan.plan(config.resolve(config.to_dict(run), settings), gib, gpu=False).fits


def test_a_device_that_is_too_small_for_anything_has_no_room(shallow: None) -> None:
    words = [*WORDS, "--set", "family=causal_lm", "--set", QWEN, "--device-gib", "1.0"]
    assert "of 0 KiB that can be used of 1.0 GiB" in call(*words, code=2).stderr


def test_programs_are_told_by_the_exit_code_too(shallow: None) -> None:
    words = [*WORDS, "--set", "family=causal_lm", "--set", QWEN, "--json"]
    told = json.loads(call(*words, "--device-gib", "1.5", code=2).stdout)
    assert "does not fit" in told["problem"] and not told["fits"]
    assert json.loads(call(*words, "--device-gib", "80", code=0).stdout)["problem"] == ""


def test_each_disk_is_asked_for_what_goes_there(tmp_path, monkeypatch) -> None:
    """Latents, downloads and runs have places of their own: what lies on one disk is added up, what lies on two is not."""
    from huggingface_hub import constants

    places = {name: tmp_path / name for name in ("runs", "cache", "hub")}
    for place in places.values():
        place.mkdir()
    monkeypatch.setenv("VDMREASON_RUNS", str(places["runs"] / "not" / "yet"))
    monkeypatch.setenv("VDMREASON_CACHE", str(places["cache"]))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(places["hub"]))
    free = dict.fromkeys(places.values(), 100 << 20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(0, 0, free[Path(place)]))
    disk = {"latents": 60 << 20, "checkpoints": 50 << 20, "adapter": 1 << 20, "download, at least": 70 << 20}
    together = doctor.disk_problem(disk)  # all of it on one disk
    assert (
        "0.177 GiB" in together
        and "adapter, download)" in together
        and "VDMREASON_CACHE or VDMREASON_RUNS or HF_HOME" in together
    )

    real, disks = Path.stat, {place: number for number, place in enumerate(places.values())}
    monkeypatch.setattr(
        Path, "stat", lambda path, **how: SimpleNamespace(st_dev=disks[path]) if path in disks else real(path, **how)
    )
    monkeypatch.setattr(Path, "exists", lambda path: os.path.exists(path))
    assert doctor.disk_problem(disk) == ""
    for place, variable in (("runs", "VDMREASON_RUNS"), ("cache", "VDMREASON_CACHE"), ("hub", "HF_HOME")):
        full = {**free, places[place]: 10 << 20}
        monkeypatch.setattr(
            doctor.shutil, "disk_usage", lambda p, full=full: shutil._ntuple_diskusage(0, 0, full[Path(p)])
        )
        assert doctor.disk_problem(disk).endswith(f"10 MiB are free; free some, or set {variable}.")


def test_what_can_never_fit_says_so(shallow: None) -> None:
    words = [*WORDS, "--set", "family=causal_lm", "--set", f"{QWEN}", "--device-gib", "1.5"]
    assert "larger device" in call(*words, code=2).stderr


def test_doctor_tells_of_a_run() -> None:
    text = call(
        *WORDS, "--set", "family=cogvideox", "--set", COG, "--device-gib", "80", "--tflops", "700", code=0
    ).output
    for words in ("5,571,594,880", "TFLOP forward and back", "download, at", "latents", "updates", "micro-batch"):
        assert words in text
    assert "--tflops" in call(*WORDS, "--set", "family=cogvideox", "--set", COG, "--device-gib", "80", code=0).output
    assert "measured" in call(*WORDS, "--set", "family=causal_lm", code=0).output
    assert "vdmreason doctor --config" in call("--help", code=0).output
    assert "--config" in call("--tflops", "3", code=2).stderr


def test_a_backbone_that_nobody_knows_is_one_line() -> None:
    for family in ("cogvideox", "causal_lm", "wan", "ltx", "vlm"):
        with pytest.raises(UserError, match="hf download nobody/nothing") as error:
            plan.plan(run_of(family, "flavour=nobody/nothing"), 80)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="is not planned ahead"):
        plan.plan(run_of("nextvid"), 80)


def test_a_checkpoint_in_a_folder_is_read_from_it(tmp_path) -> None:
    """And not from the table: a folder's config is what will be loaded."""
    arm = real("causal_lm", "tiny")
    arm.detach()
    arm.model.save_pretrained(tmp_path)
    arm.tokenizer.save_pretrained(tmp_path)
    found = plan.plan(run_of("causal_lm", f"flavour={tmp_path}"), 80)
    assert found.parameters == 127_360 and "download, at least" not in found.disk


def test_on_and_off_may_be_bare() -> None:
    """YAML reads them as true and false, on the command line too."""
    assert run_of("cogvideox", "speed.checkpointing=on", "speed.compile=off").speed == config.Speed("off", "on")
