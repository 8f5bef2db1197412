"""A run says what it is, refuses what it is not, and survives the way through a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import fake_family
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import adapters
import adapters.base
import tasks
from tasks import augment, split
from tasks.base import UserError
from vdmreason import config


@pytest.fixture(autouse=True, scope="module")
def _families():
    with fake_family.installed():
        yield


LEAST = {"task": "life/B3S23", "n": 30, "family": "fake"}


def refused(given: object, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        config.resolve(given, overrides)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text and text
    return text


def test_defaults_of_flavour_are_filled_in_and_visible() -> None:
    run = config.resolve(LEAST)
    assert run.optim.lr == 0.02 and run.lora.rank == 4  # the flavour's
    assert run.optim.batch == config.Optim().batch  # the dataclass's
    tree = yaml.safe_load(config.to_yaml(run))
    assert tree["optim"]["lr"] == 0.02 and tree["options"]["width"] == 24 and tree["test"] == 100


def test_file_beats_flavour_and_set_beats_file() -> None:
    assert config.resolve({**LEAST, "optim": {"lr": 0.5}}).optim.lr == 0.5
    assert config.resolve({**LEAST, "optim": {"lr": 0.5}}, ["optim.lr=1e-3"]).optim.lr == 1e-3
    run = config.resolve(LEAST, ["lora.targets=[mlp]", "options.mode=fancy", "options.canvas=[3, 4]", "note=a: b"][:3])
    assert run.lora.targets == ("mlp",) and run.arm_options().mode == "fancy" and run.arm_options().canvas == (3, 4)


@given(
    lr=st.floats(1e-8, 1, allow_subnormal=False),
    updates=st.integers(1, 10**6),
    seed=st.integers(0, 2**40),
    note=st.text(max_size=40),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
)
def test_yaml_there_and_back(lr: float, updates: int, seed: int, note: str, betas: tuple[float, float]) -> None:
    optim = {"lr": lr, "updates": updates, "betas": list(betas)}
    run = config.resolve({**LEAST, "seed": seed, "note": note, "optim": optim})
    back = config.resolve(yaml.safe_load(config.to_yaml(run)))
    assert back == run and back.id == run.id and not config.differences(run, back)


def test_id_names_the_experiment_and_nothing_else() -> None:
    run = config.resolve(LEAST)
    assert len(run.id) == 12 and run.id == config.resolve(dict(reversed(LEAST.items()))).id
    assert config.resolve({**LEAST, "note": "x", "checkpoint_every": 3, "preview_every": 2}).id == run.id
    for change in ({"seed": 1}, {"n": 29}, {"optim": {"lr": 0.021}}, {"options": {"width": 25}}, {"init": "random"}):
        other = config.resolve({**LEAST, **change})
        assert other.id != run.id and config.differences(run, other)
    assert run.name.startswith("life-B3S23--fake--n30--s0--") and run.name.endswith(run.id[:6])
    assert "fake-random" in config.resolve({**LEAST, "init": "random"}).name


def test_differences_names_the_keys() -> None:
    run = config.resolve(LEAST)
    other = dataclasses.replace(run, optim=dataclasses.replace(run.optim, lr=0.5), note="not this")
    assert config.differences(run, other) == ["optim.lr: 0.02 -> 0.5"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optim": {"leraning_rate": 1}}, ["optim.leraning_rate", "unknown"]),
        ({"optim": {"udpates": 1}}, ["optim.udpates", "Did you mean 'updates'"]),
        ({"sed": 1}, ["sed", "Did you mean 'seed'"]),
        ({"options": {"witdh": 3}}, ["options.witdh", "Did you mean 'width'"]),
        ({"options": {"mode": "plian"}}, ["options.mode", "plain"]),
        ({"options": {"canvas": [1, 2, 3]}}, ["options.canvas", "2 entries"]),
        ({"task": "maze/banana"}, ["banana"]),
        ({"task": "lfe/B3S23"}, ["Did you mean"]),
        ({"family": "fakk"}, ["fakk", "Did you mean"]),
        ({"flavour": "smal"}, ["smal", "Did you mean 'small'"]),
        ({"init": "randon"}, ["init", "Did you mean 'random'"]),
        ({"n": 0}, ["n:", "at least 1"]),
        ({"n": True}, ["n:", "whole number"]),
        ({"n": 2.5}, ["n:", "whole number"]),
        ({"n": None}, ["n:", "missing"]),
        ({"seed": -1}, ["seed", "0 or more"]),
        ({"optim": {"lr": 0}}, ["optim.lr", "larger than 0"]),
        ({"optim": {"lr": "fast"}}, ["optim.lr", "number"]),
        ({"optim": {"lr": float("nan")}}, ["optim.lr", "finite"]),
        ({"optim": {"betas": [0.9]}}, ["optim.betas", "2 entries"]),
        ({"optim": {"betas": [0.9, 1.0]}}, ["optim.betas"]),
        ({"optim": {"micro_batch": 5}}, ["optim.micro_batch", "divide"]),
        ({"optim": 3}, ["optim", "must hold keys"]),
        ({"lora": {"rank": 0}}, ["lora.rank"]),
        ({"lora": {"dropout": 1.0}}, ["lora.dropout"]),
        ({"lora": {"targets": ["atention"]}}, ["lora.targets", "Did you mean 'attention'"]),
        ({"lora": {"targets": []}}, ["lora.targets"]),
        ({"precision": "fp8"}, ["precision", "bf16"]),
        ({"task": 3}, ["task"]),
    ],
)
def test_bad_values_are_one_line_with_the_path(change: dict, words: list[str]) -> None:
    text = refused({**LEAST, **change})
    for word in words:
        assert word in text


def test_finite_task_gives_all_it_has_and_no_more() -> None:
    arc = {"task": "arc1/evaluation/00576224", "family": "fake"}
    run = config.resolve(arc)
    assert run.n == 2 and run.test == 1
    assert "has 2 train examples, not 300" in refused({**arc, "n": 300})
    assert "has 1 test examples, not 100" in refused({**arc, "test": 100})


def test_set_must_look_like_an_assignment() -> None:
    assert "optim.lr=1e-3" in refused(LEAST, "optim.lr")
    assert "unknown key" in refused(LEAST, "optim.lrr=1")
    assert "holds no keys" in refused(LEAST, "n.x=1")
    assert "not YAML" in refused(LEAST, "note=[1")


def test_files(tmp_path) -> None:
    path = tmp_path / "run.yaml"
    with pytest.raises(UserError, match="no such file"):
        config.load(path)
    for text, words in (("a: [", "is not YAML"), ("", "holds no keys"), ("- 1", "holds no keys"), ("n: 3", "task")):
        path.write_text(text)
        with pytest.raises(UserError, match=words) as caught:
            config.load(path)
        assert "\n" not in str(caught.value) and "run.yaml" in str(caught.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not YAML"):
        config.load(path)
    path.write_text(config.to_yaml(config.resolve(LEAST)))
    assert config.load(path) == config.resolve(LEAST)


def test_a_python_tag_in_yaml_runs_nothing(tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"task: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]\n")
    with pytest.raises(UserError, match="is not YAML"):
        config.load(path)
    assert not (tmp_path / "made").exists()


def test_every_real_family_resolves_and_comes_back() -> None:
    import adapters

    for name in adapters.families():
        for flavour in adapters.family(name).FLAVOURS:
            run = config.resolve({**LEAST, "family": name, "flavour": flavour})
            assert config.resolve(yaml.safe_load(config.to_yaml(run))) == run


def test_a_run_keeps_its_id_when_keys_come_later():
    """The adapters that ship were made before these keys; their folders must still be theirs."""
    shipped = sorted((Path(config.__file__).parents[1] / "adapters" / "zoo").glob("*/config.yaml"))
    assert len(shipped) >= 6
    for path in shipped:
        stored = json.loads(path.with_name("result.json").read_text())["id"]
        run = config.load(path)
        assert run.id == stored
        for key, value in (("augment", 2), ("votes", 2), ("far_from", 300), ("test_task", "maze/9x9")):
            try:
                assert dataclasses.replace(run, **{key: value}).id != stored
            except UserError:
                assert key == "far_from"


def test_views_and_distances_that_a_task_does_not_have_are_refused():
    for change, says in (
        ({"votes": 9}, "votes: life/B3S23 has 8 views, 9 were asked for"),
        ({"augment": 0}, "augment: must be at least 1"),
        ({"far_from": 5}, r"far_from: must be 0 \(off\) or at least n \(30\)"),
        ({"test_task": "colour_moves/fall", "far_from": 30}, "far_from: for colour_moves/fall no distance"),
        ({"task": "hanoi/4-step", "far_from": 5000}, "far_from: hanoi/4-step has 240 puzzles in all, not 5000"),
        ({"task": "colour_moves/fall", "far_from": 30}, "far_from: for colour_moves/fall no distance"),
    ):
        with pytest.raises(UserError, match=says):
            config.resolve({**LEAST, **change})


def test_a_run_may_be_tested_on_another_task():
    run = config.resolve({**LEAST, "task": "maze/7x7", "test_task": "maze/9x9", "test": 5})
    assert run.tested == "maze/9x9" and {e.question.shape for e in config.test_examples(run)} == {(9, 9)}
    assert {e.question.shape for e in config.train_examples(run)} == {(7, 7)}
    same = config.resolve({**LEAST, "task": "maze/7x7", "test_task": "maze/7x7", "test": 5})
    assert (
        same.tested == "maze/7x7" and same.id == config.resolve({**LEAST, "task": "maze/7x7", "test": 5}).id != run.id
    )
    with pytest.raises(UserError, match=r"test_task: .*Did you mean"):
        config.resolve({**LEAST, "test_task": "maz/9x9"})


def test_far_test_examples_of_a_run():
    plain, far = (config.resolve({**LEAST, "test": 20, "far_from": count}) for count in (0, 200))
    train = config.train_examples(far)
    nearest = split.Nearest(train, "answer")
    assert config.train_examples(plain)[3].key == train[3].key
    assert min(nearest.distance(e) for e in config.test_examples(far)) >= 0.25
    assert [e.key for e in config.test_examples(far, 5)] == [e.key for e in config.test_examples(far)[:5]]


@pytest.mark.parametrize("family", ["cogvideox", "causal_lm", "nextvid", "internvideo_next", "lvmae"])
def test_a_backbone_is_asked_alike_wherever_it_lies(family: str, tmp_path: Path) -> None:
    """The folder that ships, named by its path, and a published model, downloaded into a folder of its name."""

    def settings(flavour: str) -> dict:
        run = config.resolve({"task": "maze/7x7", "n": 3, "family": family, "flavour": flavour})
        return {**config.to_dict(run), "flavour": ""}

    module = adapters.family(family)
    folder = Path(module.FLAVOURS["small"].base)
    assert settings(str(folder)) == settings("small")
    assert not adapters.base.flavour(module, str(folder)).published
    for like in [f for f in module.FLAVOURS.values() if f.published]:
        copy = tmp_path / Path(like.base).name
        copy.mkdir(exist_ok=True)
        assert settings(str(copy)) == settings(like.name) and adapters.base.flavour(module, str(copy)).published


def test_a_family_that_ships_no_small_backbone_says_what_to_name() -> None:
    with pytest.raises(UserError, match=r"no small backbone of this family ships\. Known: tiny, Wan-AI"):
        config.resolve({"task": "maze/7x7", "n": 3, "family": "wan"})


@pytest.mark.parametrize("family", adapters.families())
def test_every_key_is_told_with_its_default_and_meaning(family: str) -> None:
    """What `train --keys` lists is what a file may say: each key is taken at its default, and none is left out."""
    flavour = next(iter(adapters.family(family).FLAVOURS))
    told = config.keys([f"family={family}", f"flavour={flavour}"])
    run = config.resolve({"task": "maze/7x7", "n": 3, "family": family, "flavour": flavour})
    assert {key for key, _, _ in told} == set(config.flat(config.to_dict(run)))
    same = {
        key: default
        for key, default, _ in told
        if default is not None and key not in ("family", "flavour", "task", "n")
    }
    again = config.resolve({**config.nested(same), "task": "maze/7x7", "n": 3, "family": family, "flavour": flavour})
    assert again == run
    silent = {key for key, _, about in told if not about}
    assert not {key for key in silent if not key.startswith("options.")}, silent


@pytest.mark.parametrize("name", ["arc1/training/4522001f", "arc1/training/dc433765", "arc1/evaluation/992798f6"])
def test_no_view_that_is_learned_is_asked(name: str) -> None:
    """Of puzzles whose test is a turned demonstration, asked under eight views, each of which is another test."""
    run = config.resolve({"task": name, "family": "causal_lm", "augment": 8, "votes": 8})
    plain = {example.key for example in config.train_examples(run)}
    learned = {example.key for example in config.learned_examples(run)} - plain
    views = augment.views(tasks.get(name), run.votes, run.seed)
    asked = {view.example(example).key for view in views for example in config.test_examples(run)}
    assert not learned & asked and plain & asked  # one of the n stays, whatever it gives away


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n: 3\nseed: 1\nn: 4", "n: stands twice in the same place, here in line 3"),
        ("optim: {lr: 1, lr: 2}", "lr: stands twice"),
        ("a: &a {x: 1, x: 2}\nb: {<<: *a}", "x: stands twice"),
        ("x: &x [*x]", "repeats itself"),
        ("note: 2024-13-01", "is not YAML: month must be in"),
    ],
)
def test_yaml_that_says_two_things_or_nothing(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        config.keys_of(text, "run.yaml", "")
    assert str(error.value).startswith("run.yaml: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["[{}]", "{{<<: [{}]}}"], ids=["aliases", "merges"])
def test_yaml_that_never_ends_is_refused_at_once(how: str, tmp_path) -> None:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {how.format(', '.join([f'*a{i - 1}'] * 9))}" for i in range(1, 12)]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"run\.yaml: repeats itself into more"):
        config.load(tmp_path / "run.yaml")


@pytest.mark.parametrize("depth", [60, 3000, 100_000])
@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_yaml_that_is_nested_deep_ends_no_process(depth: int, opening: str) -> None:
    """The reader in C has no limit of its own but the stack."""
    with pytest.raises(UserError, match="nested more than 50 deep"):
        config.keys_of("x: " + "\n" * (opening == "- ") + opening * depth, "a", "")


def test_a_merge_is_overruled_by_the_keys_beside_it() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}\nd: {<<: [*a, *b]}"
    given = config.keys_of(text, "", "")
    assert given == yaml.safe_load(text) and given["c"] == {"x": 3, "y": 1}


def test_a_picture_holds_a_puzzle_that_lies_on_its_side_too():
    given = {"task": "life/B3S23-4x8", "family": "cogvideox", "n": 4, "options": {"canvas": [6, 10]}}
    for key in ("votes", "augment"):
        with pytest.raises(UserError, match=f"options.canvas: 6x10 cells do not hold life/B3S23-4x8 .* as {key} does"):
            config.resolve(given | {key: 8})
        assert config.resolve(given | {key: 8, "options": {"canvas": [8, 10]}}).options["canvas"] == [8, 10]
    assert config.resolve(given).options["canvas"] == [6, 10]


@pytest.mark.parametrize("text", ["n=010", "n=+0010", "n=1_0", "n=0xA", "n=10", "n=0_10", "n=01_0"])
def test_a_number_is_read_as_people_do(text: str) -> None:
    assert config.resolve(LEAST, [text]).n == 10


@pytest.mark.parametrize("text", ["note=2024-13-01", "seed=0x_", "optim={lr: 1, lr: 2}", "note=&x [*x]"])
def test_a_set_that_cannot_be_read_is_one_line(text: str) -> None:
    assert refused(LEAST, text).startswith(text.partition("=")[0])


def test_a_folder_s_backbone_with_a_slash_is_read_where_that_folder_is_not(tmp_path, monkeypatch) -> None:
    """And what was resolved before keeps the id that it had."""
    (tmp_path / "here" / "models" / "mine").mkdir(parents=True)
    least = {"task": "maze/7x7", "n": 3, "family": "cogvideox", "flavour": "models/mine", "note": "mine"}
    monkeypatch.chdir(tmp_path)
    hub = config.resolve(least)
    assert hub.flavour == "models/mine"
    monkeypatch.chdir(tmp_path / "here")
    run = config.resolve(least)
    assert run.flavour == "./models/mine" and config.resolve(config.to_dict(hub)) == hub
    for name in ("../here/models/mine", str(tmp_path / "here" / "models" / "mine")):
        assert config.resolve({**least, "flavour": name}).flavour == name
    monkeypatch.chdir(tmp_path)
    assert config.resolve(config.to_dict(run)) == run


def test_how_a_batch_is_cut_is_no_part_of_a_run() -> None:
    """An out-of-memory run goes on with smaller parts; ids made before say the same."""
    plain, cut = ({"task": "maze/7x7", "n": 30, "family": "causal_lm",
                   "optim": {"lr": 0.005, "micro_batch": m}} for m in (None, 4))  # fmt: skip
    one, other = config.resolve(plain), config.resolve(cut)
    assert one.id == other.id == "d084678afe31" and one.training_id == other.training_id
    assert config.differences(one, other) == []
    assert config.told_apart([config.to_dict(run) for run in (one, other)]) == ["", ""]


def test_a_run_on_a_folder_s_backbone_is_read_where_that_folder_is_not(tmp_path, monkeypatch) -> None:
    (tmp_path / "here" / "mine").mkdir(parents=True)
    (tmp_path / "here" / "mine" / "pretrain.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "here")
    run = config.resolve({"task": "maze/7x7", "n": 3, "family": "cogvideox", "flavour": "mine"})
    assert run.flavour == "./mine" and run.id == config.resolve({**config.to_dict(run), "flavour": "mine"}).id
    monkeypatch.chdir(tmp_path)
    assert config.resolve(config.to_dict(run)) == run
    with pytest.raises(UserError, match="No backbone 'mine'"):
        config.resolve({**config.to_dict(run), "flavour": "mine"})
