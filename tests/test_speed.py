"""Faster and smaller, and still the same training: every trick of `vdmreason.speed` against the plain way."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import types
import weakref
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import begun
import fake_family
import forked
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from test_train import CODE, ENV, ROOT, metrics, run_of, same, weights
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import adapters
import tasks
from adapters.base import Lora
from tasks.base import UserError
from vdmreason import config, predict, speed, store, train, worker
from vdmreason.config import Run
from vdmreason.sweep import worker as trials

FAMILIES = ["cogvideox", "causal_lm"]
LAUNCH = ROOT / "configs" / "accelerate"


@pytest.fixture(autouse=True, scope="module")
def _fakes(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with fake_family.installed(), pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("cache"))
        patch.setenv("VDMREASON_CACHE", cache)
        patch.setitem(ENV, "VDMREASON_CACHE", cache)
        yield
    torch.set_num_threads(threads)


def real(family: str, updates: int = 4, **changes: object) -> Run:
    plain = {"schedule": "constant", "lr": 1e-3, "batch": 4}
    lora = {"dropout": 0.0, **changes.pop("lora", {})}  # type: ignore[dict-item]
    return run_of(family, updates=updates, lora=lora, optim=plain, **changes)


def step(arm, examples) -> tuple[float, dict[str, torch.Tensor]]:  # type: ignore[no-untyped-def]
    """Loss and gradients of one batch."""
    samples = [arm.frame(e) for e in examples]
    arm.model.train()
    loss = arm.loss(arm.collate(samples, range(len(samples))))
    loss.backward()
    grads = {name: p.grad.clone() for name, p in arm.trainable().items()}
    arm.model.zero_grad()
    return loss.item(), grads


def arm_of(run: Run):  # type: ignore[no-untyped-def]
    arm = train.load_arm(run, "cpu")
    generator = torch.Generator().manual_seed(1)
    for p in arm.trainable().values():  # B is zero at first, and then A has no gradient
        nn.init.normal_(p, std=0.05, generator=generator)
    return arm


EXAMPLES = tasks.examples("life/B3S23", "train", 3, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Precision


def test_masters_keep_what_bf16_would_lose() -> None:
    """A thousand steps of a thousandth of what bf16 can tell apart at 1 move a master by one; the weight follows."""
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    masters = speed.Masters({"w": weight})
    optimizer = torch.optim.SGD(masters.copies.values(), lr=1.0)
    for _ in range(1000):
        weight.grad = torch.full_like(weight, 1e-3)
        masters.take_gradients()
        optimizer.step()
        masters.give()
    assert weight.dtype == torch.bfloat16 and weight.abs().max() < 0.01
    assert masters.copies["w"].dtype == torch.float32


def test_fp32_weights_are_their_own_masters() -> None:
    weight = nn.Parameter(torch.ones(3))
    assert speed.Masters({"w": weight}).copies["w"] is weight


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_adapters_learn_through_fp32_masters_and_resume_to_the_bit(tmp_path: Path, family: str) -> None:
    run = real(family, 6, precision="bf16", checkpoint_every=3)
    arm = train.train(run, tmp_path / "whole")
    assert {p.dtype for p in arm.trainable().values()} == {torch.bfloat16}
    kept = weights_of(tmp_path / "whole")
    assert {v.dtype for v in kept.values()} == {torch.float32}
    assert any(not torch.equal(v, v.bfloat16().float()) for v in kept.values())
    train.train(run, tmp_path / "parts", stop=lambda: len(metrics(tmp_path / "parts")) == 2)
    begun.mark(tmp_path / "parts")
    train.train(run, tmp_path / "parts")
    assert begun.went_on(tmp_path / "parts")
    assert same(weights_of(tmp_path / "parts"), kept) and same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Those of the last checkpoint, as the optimiser has them."""
    from safetensors.torch import load_file

    from vdmreason import store

    return load_file(store.checkpoints(folder)[-1] / "lora.safetensors")


# ---------------------------------------------------------------------------------------------------------------------
# Blocks


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_is_found_once(family: str) -> None:
    arm = train.load_arm(real(family), "cpu")
    names = [type(block).__name__ for block in speed.blocks(arm.model)]
    assert names.count(max(set(names), key=names.count)) == 2  # tiny ones have two layers


@pytest.mark.parametrize("family", FAMILIES)
def test_computing_twice_changes_nothing_and_keeps_less(family: str) -> None:
    run = real(family)
    plain, checkpointed = arm_of(run), arm_of(run)
    speed.checkpoint_blocks(checkpointed.model)
    bytes_kept = []
    found = []
    for arm in (plain, checkpointed):
        kept = [0]

        def pack(x: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept[0] += x.numel() * x.element_size()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            found.append(step(arm, EXAMPLES))
        bytes_kept.append(kept[0])
    (loss, grads), (other, others) = found
    assert loss == pytest.approx(other, rel=1e-6) and bytes_kept[1] < 0.8 * bytes_kept[0]
    assert all(torch.allclose(grads[n], others[n], rtol=1e-4, atol=1e-7) for n in grads)


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_blocks_compute_the_same(family: str) -> None:
    """Through the compiler's capture and its backward; not to machine code, which takes a CPU a minute."""
    run = real(family)
    plain, compiled = arm_of(run), arm_of(run)
    assert speed.compile_blocks(compiled.model, "aot_eager") >= 2
    (loss, grads), (other, others) = step(plain, EXAMPLES), step(compiled, EXAMPLES)
    assert loss == pytest.approx(other, rel=1e-6)
    assert all(torch.allclose(grads[n], others[n], rtol=1e-4, atol=1e-7) for n in grads)


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def test_the_largest_micro_batch_that_fits_divides_the_share() -> None:
    for share, room, expected in ((16, 16, 16), (16, 5, 4), (12, 7, 6), (7, 6, 1), (8, 0, None)):
        tried = []

        def attempt(micro: int, room: int = room, tried: list[int] = tried) -> None:
            tried.append(micro)
            if micro > room:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        assert speed.fitting(attempt, share) == expected
        assert tried == sorted(tried, reverse=True)
    with pytest.raises(RuntimeError, match="another"):
        speed.fitting(lambda micro: (_ for _ in ()).throw(RuntimeError("another matter")), 4)


def test_what_is_out_of_memory() -> None:
    """By torch's own error, and by the words of the driver and of cuBLAS; another fault of the device is none."""
    words = ("CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    errors = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), *map(RuntimeError, words)]
    assert all(map(speed.out_of_memory, errors))
    for other in (RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError("out of memory")):
        assert not speed.out_of_memory(other)

    lacked: list[str] = []

    def attempt(micro: int) -> None:
        raise errors[micro % 3]

    assert speed.fitting(attempt, 2, None, lacked) is None and lacked == [str(errors[2]), str(errors[1])]


def test_a_micro_batch_that_is_asked_for_is_the_most() -> None:
    tried: list[int] = []
    assert speed.fitting(tried.append, 16, 4) == 4 and tried == [4]


def test_less_memory_is_the_same_run_in_smaller_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with room for two: micro-batches of two, the batch of the run, and the losses of a device with room."""
    run = real("causal_lm")
    train.train(run, tmp_path / "roomy")
    kind = type(train.load_arm(run, "cpu"))
    loss = kind.loss

    def scarce(self, batch):  # type: ignore[no-untyped-def]
        if len(batch["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss(self, batch)

    monkeypatch.setattr(kind, "loss", scarce)
    monkeypatch.setattr(speed, "worth_fitting", lambda device: True)
    train.train(run, tmp_path / "scarce")
    for a, b in zip(metrics(tmp_path / "roomy"), metrics(tmp_path / "scarce"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)

    def none(self, batch):  # type: ignore[no-untyped-def]
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(kind, "loss", none)
    with pytest.raises(UserError, match="Not even one example fits") as caught:
        train.train(run, tmp_path / "none")
    assert "CUDA out of memory" in str(caught.value.__cause__) and trials._is_the_machines(caught.value)


def test_what_is_to_have_fewer_bits_is_never_whole_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded on the CPU; its layers go to the device one by one. "meta" stands for a device."""
    run, places, quantised = real("causal_lm", quantise="nf4"), [], []
    load = adapters.family("causal_lm").load
    monkeypatch.setattr(
        adapters.family("causal_lm"), "load", lambda *a, **k: places.append(k["device"]) or load(*a, **k)
    )
    as_it_is = speed.quantise
    monkeypatch.setattr(speed, "quantise", lambda model, kind, device: quantised.append((kind, str(device))))
    train.load_arm(run, "meta")
    assert places == ["cpu"] and quantised == [("nf4", "meta")]
    layer = torch.nn.Linear(4, 3, dtype=torch.bfloat16)
    model = torch.nn.Sequential(torch.nn.Sequential(layer), torch.nn.Linear(2, 2))
    model._no_split_modules = ["Sequential"]
    met: list[str] = []

    class Bits(torch.nn.Linear):
        def __init__(self, ins, outs, bias, **how):  # type: ignore[no-untyped-def]
            super().__init__(ins, outs, bias)

        def to(self, device):  # type: ignore[no-untyped-def]
            met.append(f"{self.weight.device.type} to {device.type}")
            return super().to(device)

    kinds = types.SimpleNamespace(Linear4bit=Bits, Params4bit=lambda weight, **how: torch.nn.Parameter(weight.float()))
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.SimpleNamespace(nn=kinds))
    as_it_is(model, "nf4", torch.device("meta"))
    assert met == ["cpu to meta"] * len(met) and met and {p.device.type for p in model.parameters()} == {"meta"}


def test_adapters_of_an_int8_base_are_as_precise_as_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """peft goes by the weight, which is int8 and tells nothing, unless the layer says what it computes in."""
    how: list[dict[str, Any]] = []

    class Int8(nn.Linear):
        def __init__(self, ins, outs, bias, **given):  # type: ignore[no-untyped-def]
            super().__init__(ins, outs, bias)
            how.append(given)

    kinds = types.SimpleNamespace(
        Linear8bitLt=Int8, Int8Params=lambda weight, **given: nn.Parameter(weight.to(torch.int8), requires_grad=False)
    )
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 3, dtype=torch.bfloat16)))
    model._no_split_modules = ["Sequential"]  # type: ignore[assignment]
    with monkeypatch.context() as patch:  # peft is not to take the stand-in for the library
        patch.setitem(sys.modules, "bitsandbytes", types.SimpleNamespace(nn=kinds))
        speed.quantise(model, "int8", torch.device("cpu"))
    assert how == [{"has_fp16_weights": False, "threshold": 6.0}] and model[0][0].weight.dtype == torch.int8
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0.0"]), model)
    learned = {p.dtype for name, p in model.named_parameters() if "lora_" in name}
    assert learned == {torch.bfloat16}


def test_a_look_ahead_holds_what_the_optimiser_will_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight bytes a trained weight, twelve where its master is a copy; gradients are made in the look itself."""
    run = real("causal_lm", precision="bf16")
    arm = train.load_arm(run, "cpu")
    count = sum(p.numel() for p in arm.trainable().values())
    sizes, empty = [], torch.empty

    def watched(*size, **how):  # type: ignore[no-untyped-def]
        if how.get("dtype") is torch.uint8 and len(size) == 1:
            sizes.append(size[0])
        return empty(*size, **how)

    monkeypatch.setattr(speed, "worth_fitting", lambda device: True)
    monkeypatch.setattr(torch, "empty", watched)
    train.train(run, tmp_path)
    assert sizes == [12 * count]
    assert (
        speed.optimiser_bytes([torch.zeros(5)]) == 60 == 20 + speed.optimiser_bytes([torch.zeros(5)], gradients=False)
    )


def test_bf16_by_itself_only_where_a_gpu_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says yes to what it can imitate, such as on a T4."""
    asked: list[bool] = []
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: asked.append(including_emulation)
    )
    assert not train.use_bf16(real("causal_lm"), torch.device("cuda")) and asked == [False]


def test_answers_attend_as_the_training_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded ones and the page's, whose process is another."""
    run = real("cogvideox", precision="bf16", test=1)
    train.train(run, tmp_path)
    through, in_fp32 = [], speed._in_fp32
    monkeypatch.setattr(speed, "_in_fp32", lambda *a, **k: through.append(1) or in_fp32(*a, **k))
    predict.predict(tmp_path)
    recorded = len(through)
    assert recorded
    said: list[dict[str, Any]] = []
    here = worker.Answering.__new__(worker.Answering)
    here.arms, here.cancelled, here.say = OrderedDict(), set(), lambda **line: said.append(line)
    here.predict(1, str(tmp_path), run.task, 0, run.seed)
    assert said[-1]["done"] and len(through) > recorded
    (line,) = store.read_lines(tmp_path / "predictions.jsonl")
    assert said[-1]["grid"] == line["proposed"]


def test_answers_attend_where_the_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a model that is several, or no library's, and does not say where it is."""
    asked: list[torch.device] = []
    monkeypatch.setattr(speed, "best_attention", lambda device, kind: asked.append(device) or nullcontext())
    for model in (torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1, device="meta")}), torch.nn.ModuleDict()):
        with predict.attending(real("causal_lm"), types.SimpleNamespace(model=model)):  # type: ignore[arg-type]
            pass
    assert [device.type for device in asked] == ["meta", "cpu"]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantised_base_is_close_smaller_and_frozen(tmp_path: Path, family: str, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    plain, run = real(family), real(family, quantise=kind)
    assert plain.id != run.id
    whole, small = train.load_arm(plain, "cpu"), train.load_arm(run, "cpu")

    def size(arm) -> int:  # type: ignore[no-untyped-def]
        inside = [p for block in speed.blocks(arm.model) for n, p in block.named_parameters() if "lora_" not in n]
        return sum(p.numel() * p.element_size() for p in inside)

    assert size(small) < (0.5 if kind == "nf4" else 0.6) * size(whole)
    samples = [whole.frame(e) for e in EXAMPLES]
    losses = [arm.loss(arm.collate(samples, [0, 1, 2])).item() for arm in (whole, small)]
    assert losses[1] == pytest.approx(losses[0], rel=0.15) and losses[0] != losses[1]
    assert small.trainable().keys() == whole.trainable().keys()
    train.train(run, tmp_path)
    assert metrics(tmp_path)[-1]["loss"] < metrics(tmp_path)[0]["loss"] * 1.5
    again = train.load_arm(run, "cpu")
    again.restore(tmp_path / "adapter")
    with pytest.raises(UserError, match="other weights"):
        whole.restore(tmp_path / "adapter")


# ---------------------------------------------------------------------------------------------------------------------
# One backbone for many runs


@pytest.mark.parametrize("family", adapters.families())
def test_a_resident_backbone_gives_what_a_fresh_one_gives(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (real(family, 3, n=n, lora={"rank": rank}) for n, rank in ((4, 2), (6, 3)))
    for run in (one, other):
        train.train(run, tmp_path / f"fresh-{run.id}")

    module, loads = adapters.family(family), []
    load = module.load
    monkeypatch.setattr(module, "load", lambda *a, **k: loads.append(1) or load(*a, **k))
    resident = train.Resident()
    for i, run in enumerate((one, other, one)):
        train.train(run, tmp_path / f"resident{i}", resident=resident)
        assert same(weights(tmp_path / f"fresh-{run.id}"), weights(tmp_path / f"resident{i}"))
    assert len(loads) == 1


def test_a_resident_worker_holds_one_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one is gone before the new one is loaded, though its module and its accelerator held it in circles."""
    one, other = real("causal_lm", 2), real("causal_lm", 2, precision="bf16")
    resident, alive, module = train.Resident(), [], adapters.family("causal_lm")
    load = module.load
    gc.collect()
    gc.disable()
    try:
        old = weakref.ref(train.train(one, tmp_path / "one", resident=resident).model)
        assert old() is not None
        monkeypatch.setattr(module, "load", lambda *a, **k: alive.append(old() is not None) or load(*a, **k))
        train.train(other, tmp_path / "other", resident=resident)
    finally:
        gc.enable()
    assert alive == [False]


@pytest.mark.parametrize("family", FAMILIES)
def test_detach_leaves_the_backbone_as_it_was(family: str) -> None:
    run = real(family)
    arm = train.load_arm(run, "cpu")
    before = {k.replace(".base_layer", ""): v.clone() for k, v in arm.model.state_dict().items() if "lora_" not in k}
    step(arm, EXAMPLES)
    arm.detach()
    after = arm.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], v) for k, v in before.items())
    arm.attach(Lora(rank=5), 3)
    assert len(arm.trainable()) > 0


# ---------------------------------------------------------------------------------------------------------------------
# Sharded over processes


def launch(run: Run, folder: Path, *extra: str) -> str:
    """Two processes, as the docs start them; what they say."""
    config_file = folder.with_suffix(".yaml")
    config_file.write_text(config.to_yaml(run))
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words += ["--master-port", str(forked.free_port()), "-m", "vdmreason.train", "--config", str(config_file)]
    words += ["--folder", str(folder), *extra]
    done = subprocess.run(words, env=ENV, cwd=ROOT, capture_output=True, text=True, timeout=280)
    # Once in some seventy starts torch aborted one of them, and what it said is not known yet.
    if "SIGABRT" in done.stderr:
        print(done.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        done = subprocess.run(words, env=ENV, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_launch_files_say_what_accelerate_understands(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}
    assert found.distributed_type == kinds[name] and found.mixed_precision == "no"
    assert found.fsdp_config.get("fsdp_version", 2) == 2


def test_the_launch_file_for_sharding_has_every_process_load_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what accelerate's launcher exports. By itself it says true: zeros in all processes of a machine but one."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    words = ["--config_file", str(LAUNCH / "fsdp2.yaml"), "train.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    exported = prepare_multi_gpu_env(arguments)
    assert (exported["ACCELERATE_USE_FSDP"], exported["FSDP_VERSION"]) == ("true", "2")
    assert exported["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def test_the_slurm_script_is_a_script() -> None:
    subprocess.run(["bash", "-n", str(ROOT / "configs" / "slurm" / "train.sbatch")], check=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_over_two_processes_is_the_run_of_one(tmp_path: Path, family: str) -> None:
    """FSDP2: the same losses; saved under two processes it goes on under one, and the other way round."""
    run = real(family, 6, checkpoint_every=3, speed={"shard": True})
    train.train(run, tmp_path / "one")
    assert "weights in parts" in launch(run, tmp_path / "two")
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [r["step"] for r in two] == list(range(1, 7))
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-4), a["step"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=2e-3), a["step"]
    for name in weights(tmp_path / "one"):
        assert torch.allclose(weights(tmp_path / "one")[name], weights(tmp_path / "two")[name], atol=2e-4)

    for source, processes in (("two", 1), ("one", 2)):
        folder = tmp_path / f"{source}-on-{processes}"
        shutil.copytree(tmp_path / source, folder)
        for done in ("adapter", "checkpoints/step-000006"):
            shutil.rmtree(folder / done)
        begun.mark(folder)
        if processes == 1:
            train.train(run, folder)
        else:
            forked.run(CODE, str(tmp_path / "two.yaml"), str(folder), "0", env=ENV, processes=2)
        assert begun.went_on(folder)
        for a, b in zip(one, metrics(folder), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=3e-4), (source, a["step"])


def test_what_cannot_be_sharded_is_one_line() -> None:
    for changes, said in (({"preview_every": 2}, "preview_every: 0"), ({"quantise": "nf4"}, "quantise: none")):
        with pytest.raises(UserError, match=said):
            train.refuse_impossible(real("causal_lm", speed={"shard": True}, **changes), sharded=True)


def test_attention_in_bf16_on_a_cpu_is_attention() -> None:
    """The kernel that is taken there has the gradients of fp32, as near as bf16 comes."""
    exact = torch.randn(3, 2, 4, 17, 8, generator=torch.Generator().manual_seed(0))
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        given = exact.to(dtype).detach().requires_grad_()
        with speed.best_attention(torch.device("cpu"), dtype):
            nn.functional.scaled_dot_product_attention(*given, is_causal=True).float().square().sum().backward()
        assert given.grad is not None
        grads.append(given.grad.float())
    assert torch.allclose(*grads, atol=0.05 * grads[0].abs().max().item())


def test_cudnn_attends_where_it_is_right_and_allowed() -> None:
    """Up to Hopper, and not against the user's own switch; the other kernels stay in their order."""
    rest = ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"]
    assert speed.kernels_of((9, 0)) == ["CUDNN_ATTENTION", *rest] == [*speed.ATTENTION]
    assert speed.kernels_of((10, 0)) == speed.kernels_of((12, 0)) == rest
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        assert speed.kernels_of((9, 0)) == rest
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
    assert speed.kernels(torch.device("cpu")) == []


class Attended(TorchDispatchMode):
    """Notes by which kernels attention is computed, there and back, and what floats they see."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, set[torch.dtype]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in str(func):
            self.seen.append(
                (str(func), {a.dtype for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()})
            )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_on_a_cpu_is_fused_and_in_fp32_where_the_rest_is_bf16(autocast: bool) -> None:
    """By what torch runs: there and back through the fused kernel, which sees fp32 alone, by position and by name."""
    given = torch.randn(3, 1, 2, 9, 8, dtype=torch.bfloat16, requires_grad=True)
    mask = torch.zeros(1, 1, 9, 9, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Attended() as attended:
        with speed.best_attention(torch.device("cpu"), torch.bfloat16):
            attend = nn.functional.scaled_dot_product_attention
            found = attend(*given, attn_mask=mask) + attend(query=given[0], key=given[1], value=given[2])
        found.float().sum().backward()
    assert found.dtype == torch.bfloat16
    ways = [("flash" in name, "backward" in name) for name, _ in attended.seen]
    assert ways == [(True, False)] * 2 + [(True, True)] * 2
    assert all(dtypes == {torch.float32} for _, dtypes in attended.seen)


def test_attention_is_torch_s_again_when_the_last_is_done() -> None:
    """Two at once, as threads have it, that do not end in the order in which they began."""
    plain = nn.functional.scaled_dot_product_attention
    first, second = (speed.best_attention(torch.device("cpu"), torch.bfloat16) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert nn.functional.scaled_dot_product_attention is not plain
    exact = torch.randn(3, 1, 2, 9, 8, dtype=torch.float64)
    assert torch.equal(nn.functional.scaled_dot_product_attention(*exact), plain(*exact))
    second.__exit__(None, None, None)
    assert nn.functional.scaled_dot_product_attention is plain


@pytest.mark.parametrize("family", ["causal_lm", "cogvideox"])
def test_blocks_are_computed_again_as_they_were_in_bf16(tmp_path: Path, family: str) -> None:
    """With checkpointing or without, where attention is in fp32 and the rest is not: the same losses."""
    for checkpointing in ("off", "on"):
        run = real(family, precision="bf16", speed={"checkpointing": checkpointing, "compile": "off"})
        with Attended() as attended:
            train.train(run, tmp_path / checkpointing)
        back = [dtypes for name, dtypes in attended.seen if "backward" in name]
        assert back and all(dtypes == {torch.float32} for dtypes in back)
    one, two = (metrics(tmp_path / checkpointing) for checkpointing in ("off", "on"))
    assert [m["loss"] for m in one] == pytest.approx([m["loss"] for m in two], rel=1e-3)
    assert [m["grad_norm"] for m in one] == pytest.approx([m["grad_norm"] for m in two], rel=2e-2)


@pytest.mark.parametrize("family", sorted(set(adapters.families()) - {"fake", "fake_video"}))
def test_every_family_learns_in_bf16_without_autocast(tmp_path: Path, family: str) -> None:
    """As its library runs it. Autocast would keep the norms' outputs in fp32 for the way back."""
    run = real(family, 3, precision="bf16")
    arm = train.train(run, tmp_path)
    assert speed.in_bf16(arm.model) and {p.dtype for p in arm.trainable().values()} == {torch.bfloat16}
    exact = real(family, 3, precision="fp32")
    train.train(exact, tmp_path / "exact")
    losses = [[line["loss"] for line in metrics(folder)] for folder in (tmp_path, tmp_path / "exact")]
    assert losses[0] == pytest.approx(losses[1], rel=0.1) and losses[0] != losses[1]
