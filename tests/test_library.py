"""Cards, and adapters that travel: there and back is the same adapter, and what comes in is not trusted."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from fixture_runs import draw
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import adapters
from tasks.base import UserError
from vdmreason import __main__ as cli
from vdmreason import config, library, store
from vdmreason.predict import load_adapted, predict
from vdmreason.train import load_arm, train

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("causal_lm", "cogvideox")  # one of each layout
ALL = adapters.families()
SHIPPED = sorted(p.parent for p in (ROOT / "adapters" / "zoo").glob("*/config.yaml"))


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny run of each family: two updates, weights that are drawn (so short a training changes no answer), three answers."""
    folders = {}
    for family in ALL:
        tree: dict[str, Any] = {"task": "life/B3S23", "n": 4, "family": family, "flavour": "tiny", "test": 3}
        tree |= {"optim": {"updates": 2, "batch": 4, "lr": 0.01}, "lora": {"rank": 4, "alpha": 2}}
        known = adapters.family(family).Options.__dataclass_fields__
        few = {key: value for key, value in {"steps": 2, "max_new_tokens": 12}.items() if key in known}
        run = config.resolve({**tree, "options": few})
        folders[family] = tmp_path_factory.mktemp("made") / family
        arm = train(run, folders[family])
        assert "Not scored yet" in (folders[family] / "README.md").read_text()  # training leaves the card
        draw(arm, 0)
        with store.new_folder(folders[family] / "adapter") as new:
            arm.save(new, {"run": config.to_dict(run), "id": run.id, "versions": store.versions()})
        predict(folders[family], arm)
    return folders


def answers(folder: Path) -> list[dict[str, Any]]:
    """All of what was answered: a tiny backbone's is no grid, and a clip is told by its name."""
    found = []
    for line in store.read_lines(folder / "predictions.jsonl"):
        clip = folder / str(line["raw"])
        shown = store.read_clip(clip).tobytes() if clip.suffix == ".webp" else line["raw"]
        found.append({k: v for k, v in line.items() if k != "seconds"} | {"shown": shown})
    return found


@pytest.mark.parametrize(
    "family", [family for family in ALL if family != "vlm"]
)  # whose tiny one writes one token, come what may
def test_these_adapters_change_what_is_answered(made: dict[str, Path], tmp_path: Path, family: str) -> None:
    """Else all that follows would hold of an adapter that is lost on the way."""
    run = store.read_config(made[family])
    folder = tmp_path / "without"
    store.write_config(folder, run)
    shutil.copytree(made[family] / "adapter", folder / "adapter")
    predict(folder, load_arm(run, "cpu"))
    assert [a["shown"] for a in answers(folder)] != [a["shown"] for a in answers(made[family])]


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def weights_in(folder: Path) -> Path:
    return library.weights_of(folder)


def call(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, ["adapters", *words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def refused(*words: str) -> str:
    """The one line on stderr of a command that must fail."""
    lines = call(*words, code=2).stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return str(lines[0])


# ---------------------------------------------------------------------------------------------------------------------
# The card


@pytest.mark.parametrize("family", FAMILIES)
def test_scoring_leaves_a_card_that_says_what_the_folder_holds(made: dict[str, Path], family: str) -> None:
    folder = made[family]
    text, run = (folder / "README.md").read_text(), store.read_config(folder)
    assert text == library.card(folder)
    found = ModelCard(text)
    assert found.data.library_name == {"causal_lm": "peft", "cogvideox": "diffusers"}[family]
    assert found.data.license == "apache-2.0" and "vdmreason" in found.data.tags
    assert found.data.to_dict()["vdmreason"]["run"] == run.id
    result = store.read_json(folder / "result.json")
    exact = next(e for e in found.data.eval_results if e.metric_type == "exact_match")
    assert exact.metric_value == pytest.approx(result["scores"]["exact"]["value"], abs=1e-6)
    assert f"{result['scores']['exact']['high']:.4f}" in exact.metric_name and "3 tests" in exact.metric_name
    facts = ("rank 4, alpha 2", "attention and mlp", "n = 4", "seed 0", "2 updates of 4", "init: pretrained")
    for fact in (*facts, result["provenance"]["data"], "torch 2", "codec ceiling"):
        assert fact in text, fact


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: p.name)
def test_shipped_cards_are_of_today(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert text == library.card(folder), "write it anew: vdmreason adapters card adapters/zoo/* --write"
    assert "small" in text and "pretrained by us" in text and "procedural video and plain text" in text


def run_code_of(text: str) -> dict[str, Any]:
    """What the card's Python leaves behind when it is run as it stands."""
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    space: dict[str, Any] = {}
    exec(code, space)
    return space


@pytest.mark.parametrize("exported", [False, True], ids=["run", "exported"])
@pytest.mark.parametrize("which", [*ALL, "small causal_lm", "small cogvideox"])
def test_the_cards_code_loads_this_adapter(made: dict[str, Path], which: str, exported: bool, tmp_path: Path) -> None:
    """As a stranger would run it: the same LoRA reaches the same layers."""
    size, _, family = which.rpartition(" ")
    source = ROOT / "adapters" / "zoo" / f"maze-7x7--{family}--n300" if size else made[family]
    if size and not (ROOT / "pretrain" / "zoo" / family).is_dir():
        pytest.skip("the shipped backbone is not built yet")
    (tmp_path / "pretrain").symlink_to(ROOT / "pretrain")
    folder = tmp_path / source.name
    library.export(source, folder) if exported else shutil.copytree(source, folder)
    space = run_code_of(library.card(folder))
    model = space["model"] if "model" in space else space["pipeline"].transformer if size else space["arm"].model
    theirs = {k: v for k, v in model.state_dict().items() if "lora_" in k}
    ours = load_file(weights_in(folder))
    prefix = library.PREFIX[weights_in(folder).name]
    assert len(theirs) == len(ours)
    for key, value in ours.items():
        layer, half = key.removeprefix(prefix).rsplit(".lora_", 1)
        (same,) = [v for k, v in theirs.items() if f"{layer}.lora_{half[0]}." in k]
        assert torch.equal(same, value)
    scaling = {m.scaling[a] for m in model.modules() if isinstance(getattr(m, "scaling", 0), dict) for a in m.scaling}
    assert scaling == {1.0 if size else 0.5}


def test_a_hub_backbone_is_the_cards_base_model(made: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "big"
    shutil.copytree(made["causal_lm"], folder)
    run = store.read_config(folder)
    big = config.resolve(config.to_dict(run) | {"flavour": "Qwen/Qwen3-4B-Instruct-2507"})
    store.write_config(folder, big)
    data = ModelCard(library.card(folder)).data
    assert data.base_model == "Qwen/Qwen3-4B-Instruct-2507" and data.license == "other"
    assert "AutoModelForCausalLM.from_pretrained('Qwen/Qwen3-4B-Instruct-2507')" in library.card(folder)
    shutil.rmtree(folder)
    shutil.copytree(made["vlm"], folder)
    seeing = config.to_dict(store.read_config(folder)) | {"flavour": "google/gemma-3-4b-it"}
    store.write_config(folder, config.resolve(seeing))
    assert "AutoModelForImageTextToText.from_pretrained('google/gemma-3-4b-it')" in library.card(folder)
    # a folder on this disk is nobody's business but its last part
    (tmp_path / "secret" / "mine").mkdir(parents=True)
    own = config.resolve(config.to_dict(run) | {"flavour": str(tmp_path / "secret" / "mine")})
    store.write_config(folder, own)
    assert "secret" not in library.card(folder) and "causal_lm mine" in library.card(folder)


def test_a_family_reads_the_layout_that_its_arm_has() -> None:
    for family in adapters.families():
        arm = library._arm(family)
        assert arm.__module__ in (f"adapters.{family}", "adapters.next_frame")
        assert arm.layout == ("peft" if family in ("causal_lm", "vlm") or "next" in arm.__module__ else "diffusers")


# ---------------------------------------------------------------------------------------------------------------------
# There and back


@pytest.mark.parametrize("family", ALL)
def test_export_then_import_answers_the_same(made: dict[str, Path], family: str, tmp_path: Path) -> None:
    source = made[family]
    out = library.export(source, tmp_path / "out")
    layouts = {"peft": {library.PEFT, "adapter_config.json"}, "diffusers": {library.DIFFUSERS}}
    layout = layouts[library._arm(family).layout]
    assert names(out) == layout | {"README.md", "config.yaml", "result.json"}
    back = library.import_(out)
    assert back == tmp_path / "runs" / store.read_config(source).name
    assert store.read_config(back) == store.read_config(source) and store.read_state(back)["state"] == "done"
    predict(back)
    assert answers(back) == answers(source)
    again = library.export(back, tmp_path / "again")
    assert weights_in(again).read_bytes() == weights_in(source).read_bytes()
    assert library.card(back).split("## Use")[0] == library.card(source).split("## Use")[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_travel_too(made: dict[str, Path], family: str, tmp_path: Path) -> None:
    source = made[family]
    back = library.import_(library.export(source, tmp_path / "out", answers=True), tmp_path / "back")
    assert answers(back) == answers(source) and names(back / "clips") == names(source / "clips")
    assert store.read_json(back / "result.json")["scores"] == store.read_json(source / "result.json")["scores"]


def test_scores_are_counted_from_the_answers_that_came(made: dict[str, Path], tmp_path: Path) -> None:
    out = library.export(made["causal_lm"], tmp_path / "out", answers=True)
    result = store.read_json(out / "result.json")
    honest = result["scores"]["exact"]["value"]
    result["scores"]["exact"]["value"] = 0.99
    store.write_json(out / "result.json", result)
    back = library.import_(out, tmp_path / "back")
    assert store.read_json(back / "result.json")["scores"]["exact"]["value"] == honest
    assert "99.0 %" not in (back / "README.md").read_text()


def test_answers_to_other_questions_do_not_come_in(made: dict[str, Path], tmp_path: Path) -> None:
    """Such as another adapter's, or these questions with easier answers."""
    out = library.export(made["causal_lm"], tmp_path / "out", answers=True)
    lines = store.read_lines(out / "predictions.jsonl")
    easier = [[0] * len(row) for row in lines[0]["answer"]]
    for wrong in ({"key": lines[1]["key"]}, {"answer": easier}, {"i": 77}, {"i": "0"}, {"views": 4}):
        store.write_lines(out / "predictions.jsonl", [lines[0] | wrong, *lines[1:]])
        assert "answers other questions" in refused("import", "out")
    assert not store.find_runs(tmp_path / "runs")


PUZZLE = {
    "train": [{"input": [[0, 1], [2, 3]], "output": [[1, 0], [3, 2]]}, {"input": [[4, 0]], "output": [[0, 4]]}],
    "test": [{"input": [[5, 6], [0, 7]], "output": [[6, 5], [7, 0]]}, {"input": [[1, 2, 3]]}],
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a puzzle and on a backbone of one's own, both told by their places on this disk."""
    place = tmp_path_factory.mktemp("secret")
    (place / "p.json").write_text(json.dumps(PUZZLE))
    arm = adapters.family("causal_lm").load(
        adapters.family("causal_lm").FLAVOURS["tiny"], adapters.family("causal_lm").Options()
    )
    arm.model.save_pretrained(place / "mine")
    arm.tokenizer.save_pretrained(place / "mine")
    tree = {"task": f"arc:{place / 'p.json'}", "family": "causal_lm", "flavour": str(place / "mine")}
    tree |= {"optim": {"updates": 1, "batch": 2}, "options": {"max_new_tokens": 8}}
    run = config.resolve(tree)
    predict(place / "run", train(run, place / "run"))
    return place


def test_a_puzzle_of_ones_own_travels_with_its_adapter(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = library.export(own / "run", tmp_path / "out", answers=True)
    (puzzle,) = out.glob("puzzle-*.json")
    assert json.loads(puzzle.read_text()) == PUZZLE
    for path in (p for p in out.rglob("*") if p.is_file()):  # nowhere where it was on its maker's disk
        assert str(own).encode() not in path.read_bytes() and own.name.encode() not in path.read_bytes(), path
    assert call("show", "out").stdout and str(puzzle.name) in (out / "README.md").read_text()
    (entry,), faults = library.listing(out)
    assert entry.run.n == 2 and not faults

    back = library.import_(out)  # on a machine that has neither
    run = store.read_config(back)
    assert run.task.startswith(f"arc:{tmp_path / 'runs' / 'drawn'}") and run.flavour == "./mine"
    assert answers(back) == answers(own / "run") and store.read_json(back / "result.json")["id"] == run.id
    told = store.read_json(back / "result.json")["provenance"]
    assert told["adapter_of"] == store.read_config(own / "run").id and told["run"] == run.id
    here = library.import_(out, tmp_path / "here", {"flavour": str(own / "mine")})
    predict(here)
    assert answers(here) == answers(own / "run")
    again = library.export(back, tmp_path / "again", answers=True)
    assert library.travelling(store.read_config(back)) == library.travelling(store.read_config(own / "run"))
    assert names(again) == names(out) and weights_in(again).read_bytes() == weights_in(out).read_bytes()
    theirs, ours = load_file(weights_in(out)), load_file(weights_in(own / "run"))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)

    # an exported one of before this had no puzzle beside it: say where it lies here; another one is refused
    puzzle.unlink()
    assert "no such file" in refused("import", "out", "--out", "b")
    other = {**PUZZLE, "train": PUZZLE["train"][:1] * 2}
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert "learned from other examples" in refused("import", "out", "--out", "b", "--task", "arc:other.json")
    call("import", "out", "--out", "b", "--task", f"arc:{own / 'p.json'}")
    assert answers(tmp_path / "b") == answers(own / "run")
    assert "only --flavour and --task may" in refused("import", "out", "--out", "c", "--n", "3")


def test_two_puzzles_of_ones_own_are_two_runs_on_the_hub(own: Path, hub: type[Hub], tmp_path: Path) -> None:
    call("push", str(own / "run"), "me/p")
    call("push", str(own / "run"), "me/p")
    pulled = library.pull("me/p", tmp_path / "pulled")
    assert store.read_config(pulled).n == 2
    other = tmp_path / "other"
    shutil.copytree(own / "run", other)
    (tmp_path / "q.json").write_text(json.dumps({**PUZZLE, "test": PUZZLE["test"][1:]}))
    tree = config.to_dict(store.read_config(other)) | {"task": f"arc:{tmp_path / 'q.json'}", "test": 1}
    store.write_config(other, config.resolve(tree))
    assert "another run's adapter (task, test differ)" in refused("push", str(other), "me/p")


def test_the_card_of_what_came_says_where_it_lies(made: dict[str, Path], tmp_path: Path) -> None:
    back = library.import_(library.export(made["causal_lm"], tmp_path / "out"))
    assert f"vdmreason predict runs/{back.name}\n" in (back / "README.md").read_text()


def test_the_second_of_two_transformers_travels(made: dict[str, Path], hub: type[Hub], tmp_path: Path) -> None:
    two = tmp_path / "two"
    shutil.copytree(made["wan"], two)
    part = f"{library.SECOND}/{library.DIFFUSERS}"
    (two / "adapter" / library.SECOND).mkdir()
    shutil.copyfile(two / "adapter" / library.DIFFUSERS, two / "adapter" / part)
    assert "subfolder='transformer_2'" in library.card(two)
    out = library.export(two, tmp_path / "out")
    back = library.import_(out)
    call("push", str(two), "me/two")
    pulled = library.pull("me/two", tmp_path / "pulled")
    for place in (out, back / "adapter", pulled / "adapter"):
        assert (place / part).read_bytes() == (two / "adapter" / part).read_bytes()
    (out / part).write_bytes(b"")
    assert "damaged or cut off" in refused("import", "out", "--out", "again")


@pytest.mark.parametrize("answered", [False, True], ids=["bare", "answered"])
def test_the_page_shows_what_came(made: dict[str, Path], answered: bool, tmp_path: Path) -> None:
    from vdmreason.ui import scenes

    back = library.import_(library.export(made["cogvideox"], tmp_path / "out", answers=answered))
    (shown,) = [adapter for adapter in scenes.catalogue() if adapter.folder.resolve() == back.resolve()]
    assert shown.live and len(shown.records) == (3 if answered else 0)


def test_a_lora_of_pefts_own_becomes_a_run(made: dict[str, Path], tmp_path: Path) -> None:
    """Made by peft alone, without a word from us: alpha and rank are read, and the logits are peft's."""
    from peft import LoraConfig, get_peft_model

    module = adapters.family("causal_lm")
    base = module.load(module.FLAVOURS["tiny"], module.Options()).model
    names_ = [n for kind in module.TARGETS.values() for n in kind]
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=12, target_modules=names_))
    for name, p in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.2)
    model.save_pretrained(tmp_path / "theirs")
    assert "Say it, such as --family" in refused("import", "theirs")
    given = {"family": "causal_lm", "flavour": "tiny", "task": "life/B3S23", "n": 4}
    back = library.import_(tmp_path / "theirs", given=given)
    run = store.read_config(back)
    assert (run.lora.rank, run.lora.alpha, run.lora.targets) == (3, 12, ("attention", "mlp"))
    arm = load_adapted(run, back)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        ours, theirs = arm.model.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert "trained elsewhere" in (back / "README.md").read_text()
    assert ModelCard((back / "README.md").read_text()).data.license == "unknown"


def test_a_lora_of_diffusers_own_becomes_a_run(made: dict[str, Path], tmp_path: Path) -> None:
    """Saved by diffusers' pipeline. It writes alpha into the header; without that, alpha is the rank."""
    from diffusers import CogVideoXImageToVideoPipeline
    from peft.utils import get_peft_model_state_dict

    arm = load_adapted(store.read_config(made["cogvideox"]), made["cogvideox"])
    layers = get_peft_model_state_dict(arm.model)
    given = {"family": "cogvideox", "flavour": "tiny", "task": "life/B3S23", "n": 4}
    for name, more, alpha in (
        ("with", {"transformer_lora_adapter_metadata": arm.model.peft_config["default"].to_dict()}, 2),
        ("without", {}, 4),
    ):
        CogVideoXImageToVideoPipeline.save_lora_weights(tmp_path / name, transformer_lora_layers=layers, **more)
        back = library.import_(tmp_path / name, tmp_path / f"{name}-run", given)
        run = store.read_config(back)
        assert (run.lora.rank, run.lora.alpha) == (4, alpha)
        theirs = get_peft_model_state_dict(load_adapted(run, back).model)
        assert all(torch.equal(theirs[k], v) for k, v in layers.items())


@pytest.mark.parametrize("family", ALL)
def test_our_own_weights_know_what_they_are_for(made: dict[str, Path], family: str, tmp_path: Path) -> None:
    """The adapter/ folder alone, as copied out of a run."""
    back = library.import_(made[family] / "adapter", tmp_path / "back")
    assert store.read_config(back) == store.read_config(made[family])


def test_a_command_with_paths_stays_at_home(made: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(made["causal_lm"], folder)
    result = store.read_json(folder / "result.json")
    for command, told in (
        ("vdmreason train --set flavour=/home/me/secret", False),
        ("vdmreason train --set n=4", True),
    ):
        result["provenance"]["command"] = command
        store.write_json(folder / "result.json", result)
        out = library.export(folder, tmp_path / f"out-{told}")
        assert [(command in (out / name).read_text()) for name in ("README.md", "result.json")] == [told, told]


def test_a_lora_in_half_precision_is_read(made: dict[str, Path], tmp_path: Path) -> None:
    out = library.export(made["causal_lm"], tmp_path / "out")
    halves = {k: v.bfloat16() for k, v in load_file(weights_in(out)).items()}
    save_file(halves, out / "half.safetensors", {"format": "pt"})
    os.replace(out / "half.safetensors", weights_in(out))
    back = library.import_(out)
    assert len(predict(back)) == 3


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize("ending", library.PICKLES)
def test_pickles_are_refused(tmp_path: Path, ending: str) -> None:
    bad = tmp_path / "theirs" / f"adapter_model{ending}"
    bad.parent.mkdir()
    bad.write_bytes(b"\x80\x04.")
    for source in (bad, bad.parent):
        assert "pickle" in refused("import", str(source))
    assert not (tmp_path / "runs").exists()


def test_damaged_and_strange_weights_are_one_line(made: dict[str, Path], tmp_path: Path) -> None:
    out = library.export(made["cogvideox"], tmp_path / "out")
    path = weights_in(out)
    content = path.read_bytes()
    tensors = {k: v.clone() for k, v in load_file(path).items()}  # the file is written over below
    for cut in (len(content) - 1, len(content) // 2, 60, 8, 0):
        path.write_bytes(content[:cut])
        assert "damaged or cut off" in refused("import", "out")
    first = next(iter(tensors))
    for changed, words in (
        ({**tensors, "text_encoder.q.lora_A.weight": torch.zeros(4, 4)}, "no LoRA as diffusers or peft save it"),
        ({**tensors, "transformer.x.alpha": torch.zeros(1)}, "no part of a plain LoRA"),
        ({k: v for k, v in tensors.items() if k != first}, "lacks one of its two halves"),
        ({}, "no LoRA as diffusers or peft save it"),
        ({"transformer.patch_embed.lora_A.weight": torch.zeros(4, 8),
          "transformer.patch_embed.lora_B.weight": torch.zeros(8, 4)}, "adapts patch_embed"),
        ({k: v[:2] if ".lora_A." in k else v[:, :2] for k, v in tensors.items()}, "but its run says rank 4"),
    ):  # fmt: skip
        save_file({k: v.contiguous() for k, v in changed.items()}, path)
        assert words in refused("import", "out")
    assert not (tmp_path / "runs").exists()


def test_other_kinds_of_lora_are_one_line(made: dict[str, Path], tmp_path: Path) -> None:
    out = library.export(made["causal_lm"], tmp_path / "out")
    settings = out / "adapter_config.json"
    plain = json.loads(settings.read_text())
    for changes, words in (
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"peft_type": "IA3"}, "is a IA3"),
        ({"r": 5}, "of rank 4, but its settings say 5"),
        ({"lora_alpha": 2.5}, "whole numbers"),
        ({"lora_alpha": "x"}, "does not hold what it should"),
        ({"lora_alpha": 3}, "but its run says rank 4, alpha 2"),
    ):
        settings.write_text(json.dumps(plain | changes))
        assert words in refused("import", "out")
    settings.write_text("{")
    assert "is damaged" in refused("import", "out")
    settings.unlink()
    assert "adapter_config.json: is missing" in refused("import", "out")


def test_what_does_not_belong_together_is_one_line(made: dict[str, Path], tmp_path: Path) -> None:
    out = library.export(made["causal_lm"], tmp_path / "out", answers=True)
    assert "only --flavour" in refused("import", "out", "--task", "maze/7x7")
    assert "Did you mean 'causal_lm'" in refused("import", "out", "--family", "causal_lmm")
    assert "no such file" in refused("import", "nothing")
    (tmp_path / "empty").mkdir()
    assert "holds no adapter" in refused("import", "empty")
    (tmp_path / "note.txt").write_text("")
    assert "is no adapter" in refused("import", "note.txt")
    bare = ["import", str(made["causal_lm"] / "adapter"), "--family", "cogvideox", "--flavour", "tiny"]
    assert "adapts model.layers.0" in refused(*bare)

    lines = store.read_lines(out / "predictions.jsonl")
    store.write_lines(out / "predictions.jsonl", [lines[0] | {"raw": "../../secret.webp"}])
    assert "outside its folder" in refused("import", "out")
    store.write_lines(out / "predictions.jsonl", [{"i": 0, "raw": "x"}])
    assert "does not hold what it should" in refused("import", "out")
    (out / "predictions.jsonl").unlink()
    good = store.read_json(out / "result.json")
    for damage in ([1], good | {"scores": {"n": 3}}, good | {"provenance": 3}, good | {"scores": 5}):
        store.write_json(out / "result.json", damage)
        assert "does not hold what it should" in refused("import", "out")
    store.write_json(out / "result.json", good | {"id": "0" * 12})
    assert "another run" in refused("import", "out")
    assert not store.find_runs(tmp_path / "runs")


def test_nothing_is_overwritten(made: dict[str, Path], tmp_path: Path) -> None:
    source = str(made["causal_lm"])
    call("export", source, "--out", "out")
    assert "Take another --out" in refused("export", source, "--out", "out")
    call("import", "out")
    assert "Take another --out" in refused("import", "out")
    call("import", "out", "--out", "other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "Take another --out" in refused("import", "out", "--out", "mine")
    assert names(tmp_path / "mine") == {"notes.txt"}
    assert "is a file, not a folder" in refused("import", "out", "--out", "mine/notes.txt/run")
    assert "no adapter" in refused("card", str(config_only(tmp_path)))


def config_only(root: Path) -> Path:
    """A run that has not come so far."""
    run = config.resolve({"task": "life/B3S23", "n": 4, "family": "causal_lm", "flavour": "tiny"})
    store.write_config(root / "young", run)
    return root / "young"


def test_another_backbone_is_another_run_and_the_fingerprint_tells(made: dict[str, Path], tmp_path: Path) -> None:
    """--flavour names where the backbone lies here; the wrong one is refused when it is loaded."""
    out = library.export(made["causal_lm"], tmp_path / "out", answers=True)
    back = library.import_(out, given={"flavour": "small"})
    assert store.read_config(back).flavour == "small" and not (back / "predictions.jsonl").exists()
    assert "scores" not in store.read_json(back / "result.json")
    with pytest.raises(UserError, match=r"made for another backbone|other weights"):
        load_adapted(store.read_config(back), back)


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def test_list_show_card(made: dict[str, Path], tmp_path: Path) -> None:
    call("import", str(made["causal_lm"]))
    young = config_only(tmp_path / "runs")
    broken = tmp_path / "runs" / "broken"
    shutil.copytree(made["cogvideox"], broken)
    (broken / "result.json").write_text("{")
    result = call("list")
    (name,) = [p.name for p in store.find_runs(tmp_path / "runs") if p not in (broken, young)]
    row = next(line for line in result.stdout.splitlines() if name in line)
    assert "causal_lm tiny" in row and "life/B3S23" in row and ("[" in row or "not scored yet" in row)
    assert all(folder.name in result.stdout for folder in SHIPPED) and "young" not in result.stdout
    assert "passed over" in result.stderr and "broken" in result.stderr
    assert "no adapter here yet" in call("list", str(tmp_path / "runs" / "young")).stdout
    assert "no such folder" in refused("list", "nowhere")

    shown = call("show", str(made["cogvideox"])).stdout
    assert "rank 4, alpha 2" in shown and "license:" not in shown and "```" not in shown
    assert call("card", str(made["cogvideox"])).stdout.strip() == library.card(made["cogvideox"]).strip()
    (made["cogvideox"] / "README.md").unlink()
    call("card", str(made["cogvideox"]), "--write")
    assert (made["cogvideox"] / "README.md").read_text() == library.card(made["cogvideox"])


def test_a_terminal_of_ascii_shows_the_card_too() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    words = [sys.executable, "-m", "vdmreason", "adapters", "show", str(SHIPPED[0])]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "? base:" in done.stdout, done.stderr


def test_help_teaches() -> None:
    for command in ("list", "show", "card", "export", "import", "push", "pull"):
        assert f"vdmreason adapters {command}" in call(command, "--help").output


def test_cards_and_lists_load_no_torch() -> None:
    code = """
import sys
from typer.testing import CliRunner
from vdmreason.__main__ import app
for words in (["list"], ["show", "adapters/zoo/maze-7x7--causal_lm--n300"], ["import", "nothing"]):
    CliRunner().invoke(app, ["adapters", *words])
    heavy = {"torch", "diffusers", "transformers", "peft", "accelerate", "gradio"} & set(sys.modules)
    assert not heavy, (words, heavy)
print("light")
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout == "light\n", done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# The hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as huggingface_hub 2.4 asks of it to make a repository, commit small files and fetch them. Every
    file counts as small, so that nothing goes by LFS or xet, whose servers are others."""

    repos: dict[str, dict[str, Any]]
    asked: list[str]
    status: int

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.split("?")[0]
        self.asked.append(f"POST {path}")
        if self.status != 200:
            return self.reply({"error": "no"}, self.status)
        if path == "/api/repos/create":
            wanted = json.loads(content)
            name = f"{wanted['organization']}/{wanted['name']}"
            known = name in self.repos
            private = wanted.get("private") or wanted.get("visibility") == "private"
            self.repos.setdefault(name, {"private": bool(private), "files": {}})
            return self.reply({"url": f"http://{self.headers['Host']}/{name}"}, 409 if known else 200)
        if path == "/api/validate-yaml":
            return self.reply({"warnings": [], "errors": []})
        files = self.repos["/".join(path.split("/")[3:5])]["files"]
        if "/preupload/" in path:
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(content)["files"]
            ]
            return self.reply({"files": modes})
        assert "/commit/" in path
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            if line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        self.reply(
            {
                "commitUrl": f"http://{self.headers['Host']}/me/x/commit/{'a' * 40}",
                "commitOid": "a" * 40,
                "success": True,
            }
        )

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(f"{self.command} {path}")
        if self.status != 200:
            return self.reply({"error": "no"}, self.status)
        if path.startswith("/api/models/"):
            name = "/".join(path.split("/")[3:5])
            if name not in self.repos:
                return self.reply({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            repo = self.repos[name]
            if "/tree/" in path:
                return self.reply(
                    [{"type": "file", "path": k, "size": len(v), "oid": "b" * 40} for k, v in repo["files"].items()]
                )
            siblings = [{"rfilename": name} for name in repo["files"]]
            return self.reply(
                {"id": name, "sha": "a" * 40, "private": repo["private"], "siblings": siblings, "tags": []}
            )
        owner, name, _, _, *rest = path.strip("/").split("/")
        content = self.repos[f"{owner}/{name}"]["files"]["/".join(rest)]
        self.reply(content, headers={"ETag": f'"{abs(hash(content))}"', "X-Repo-Commit": "a" * 40})

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    kind = type("Fresh", (Hub,), {"repos": {}, "asked": [], "status": 200})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    yield kind
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("family", FAMILIES)
def test_push_then_pull_answers_the_same(made: dict[str, Path], family: str, hub: type[Hub], tmp_path: Path) -> None:
    text = call("push", str(made[family]), "me/life-lora", "--private", "--with-answers").stdout
    assert "vdmreason adapters pull me/life-lora" in text
    repo = hub.repos["me/life-lora"]
    assert repo["private"] and names(library.export(made[family], tmp_path / "x", answers=True)) == set(repo["files"])
    card = repo["files"]["README.md"].decode()
    assert "'me/life-lora'" in card and "vdmreason adapters pull me/life-lora --out runs/" in card

    repo["files"] |= {
        "optimizer.pt": b"\x80",
        "src/train.py": b"import os",
        "checkpoints/step-1/lora.safetensors": b"x",
    }
    back = Path(call("pull", "me/life-lora").stdout.splitlines()[0])
    assert not [ask for ask in hub.asked if "optimizer" in ask or "train.py" in ask or "checkpoints" in ask]
    assert answers(back) == answers(made[family])
    assert "me/life-lora@aaaa" in (back / "README.md").read_text()
    (back / "predictions.jsonl").unlink()
    predict(back)
    assert answers(back) == answers(made[family])
    assert "Take another --out" in refused("pull", "me/life-lora")
    hub.asked.clear()
    assert "Take another --out" in refused("pull", "me/life-lora", "--out", str(back)) and not hub.asked


def test_a_push_leaves_nothing_of_an_earlier_one(made: dict[str, Path], hub: type[Hub], tmp_path: Path) -> None:
    """Answers stay only where they are pushed again, what is no part of an adapter stays, and another run's place is refused."""
    call("push", str(made["causal_lm"]), "me/x", "--with-answers")
    files = hub.repos["me/x"]["files"]
    files["notes.txt"] = b"mine"
    assert "predictions.jsonl" in files
    call("push", str(made["causal_lm"]), "me/x")
    bare = names(library.export(made["causal_lm"], tmp_path / "bare"))
    assert set(files) == bare | {"notes.txt"}
    assert not (library.pull("me/x", tmp_path / "pulled") / "predictions.jsonl").exists()
    before = dict(files)
    said = refused("push", str(made["cogvideox"]), "me/x")
    assert said.startswith("error: me/x: holds another run's adapter (family") and files == before
    files["config.yaml"] = b"theirs: [1"
    assert "another run's adapter (config.yaml differs)" in refused("push", str(made["causal_lm"]), "me/x")


def test_a_private_push_never_ends_in_a_public_place(made: dict[str, Path], hub: type[Hub]) -> None:
    hub.repos["me/seen"] = {"private": False, "files": {}}
    assert "is there already and public" in refused("push", str(made["causal_lm"]), "me/seen", "--private")
    assert not hub.repos["me/seen"]["files"]


@pytest.mark.parametrize(
    "name", ["../up.safetensors", "clips/../../0000.webp", "/etc/x", "a\\..\\b", "c:x", "a\x1b[2Jb"]
)
def test_names_that_lead_out_are_refused(made: dict[str, Path], hub: type[Hub], name: str, tmp_path: Path) -> None:
    call("push", str(made["causal_lm"]), "me/x")
    hub.repos["me/x"]["files"][name] = b"x"
    assert "may lead out of its folder" in refused("pull", "me/x")
    assert not (tmp_path / "runs").exists()


def test_what_a_hub_refuses_is_one_line(made: dict[str, Path], hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    run = str(made["causal_lm"])
    assert "is not on the hub" in refused("pull", "me/nothing")
    hub.repos["me/pickled"] = {"private": False, "files": {"adapter_model.bin": b"\x80"}}
    assert "pickled (adapter_model.bin)" in refused("pull", "me/pickled")
    hub.repos["me/none"] = {"private": False, "files": {"README.md": b""}}
    assert "no pytorch_lora_weights.safetensors and no adapter_model" in refused("pull", "me/none")
    for repo in ("noslash", "a/b/c", "me/..", "me/a b", "/x"):
        assert "owner/name" in refused("pull", repo) and "owner/name" in refused("push", run, repo)
    for status in (401, 403):
        hub.status = status
        assert "hf auth login" in refused("push", run, "me/x") and "hf auth login" in refused("pull", "me/x")
    hub.status = 418
    assert "the hub answers 418" in refused("pull", "me/x")
    hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert refused("push", run, "me/x").endswith("hf auth login") and not hub.asked


def test_without_a_network_the_way_out_is_one_line(
    made: dict[str, Path], hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert "cannot be reached" in refused("pull", "me/x")
    assert "vdmreason adapters export" in refused("push", str(made["causal_lm"]), "me/x")
    words = [sys.executable, "-m", "vdmreason", "adapters", "pull", "me/x"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "HF_HUB_OFFLINE" in done.stderr
