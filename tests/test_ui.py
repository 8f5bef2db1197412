"""What the page shows, asked without a browser: choices, scenes, tables, plans. And that the page needs no torch."""

from __future__ import annotations

import base64
import copy
import io
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from fixture_runs import adapted, make_run, make_runs

import tasks
from tasks.base import UserError
from vdmreason import config, drawn, jobs, library, store
from vdmreason.ui import compare, inputs, pictures, public, scenes, sweeps_tab, training
from vdmreason.ui.scenes import Choice, Shown
from vdmreason.worker import Worker, _asked


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path))
    monkeypatch.setattr(scenes, "ZOO", tmp_path / "no-zoo")
    return make_runs(tmp_path)


@pytest.fixture
def maze() -> Choice:
    return Choice().with_task("maze/7x7")


def test_what_the_page_offers_is_in_a_wheel() -> None:
    """The protocols of the Sweeps tab and the adapters of the Library lie where an installed page looks for them."""
    root = Path(__file__).resolve().parents[1]
    told = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    for place in (sweeps_tab.PROTOCOLS, library.zoo()):
        assert place.is_dir() and place.relative_to(root).parts[0] in told


def test_the_page_is_built_without_torch() -> None:
    code = (
        "import sys, time; began = time.time(); from vdmreason.ui import build; build(); "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'diffusers', 'transformers', 'peft'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_opening_shows_recorded_answers_of_both_arms_that_differ() -> None:
    choice = scenes.opening()
    scene = scenes.scene(choice, Shown())
    assert scene["video"]["badge"] == scene["language"]["badge"] == "recorded"
    assert scene["video"]["right"] and not scene["language"]["right"]


def test_the_shipped_adapters_open_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh clone, nothing trained yet: both arms answer the first example, and its clip is at hand."""
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path / "none"))
    monkeypatch.setattr(scenes, "ZOO", Path(scenes.adapters.__file__).parent / "zoo")
    scene = scenes.scene(scenes.opening(), Shown())
    assert scene["video"]["badge"] == scene["language"]["badge"] == "recorded"
    assert scene["video"]["right"] != scene["language"]["right"]


@pytest.mark.parametrize(
    "name, places",
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("video only right", [0, 4]),
        ("language only right", [2]),
        ("both", [1]),
        ("none", [3, 5]),
    ],
)
def test_the_filter(maze: Choice, name: str, places: list[int]) -> None:
    assert scenes.recorded(replace(maze, filter=name)) == places


def test_walking_stays_within_the_filter_and_wraps(maze: Choice) -> None:
    choice = replace(maze, filter="none", index=3)
    assert scenes.step(choice, 1).index == 5
    assert scenes.step(scenes.step(choice, 1), 1).index == 3
    assert scenes.step(choice, -1).index == 5
    assert scenes.step(choice, "random").index == 5
    assert scenes.step(Choice().with_task("maze/13x13"), 1).index == 1  # nothing recorded: by number
    arc = Choice().with_task("arc1/evaluation/00576224")
    assert scenes.step(arc, 1).index == 0  # it has one test
    for task, last in (("maze/13x13", 999), ("chess/mate-in-1", 29)):
        far = replace(Choice().with_task(task), index=last)
        assert scenes.step(far, 1).index == last and scenes.step(far, "random").index < last
        with pytest.raises(UserError, match=f"has test examples 0 to {last} here, not 2000000000"):
            scenes.example(replace(far, index=2_000_000_000))  # or the page would draw so many


def test_a_scene_is_json_and_scores_are_the_tasks_own(maze: Choice) -> None:
    scene = scenes.scene(replace(maze, index=2), Shown())
    json.dumps(scene)
    task, example = tasks.get("maze/7x7"), tasks.examples("maze/7x7", "test", 3, 0)[2]
    verdict = task.check(np.asarray(scene["video"]["grid"], np.int8), example)
    assert scene["video"]["cells"] == verdict.cells < 1
    assert not scene["video"]["right"] and scene["video"]["reason"]
    assert scene["question"] == example.question.tolist() and scene["answer"] == example.answer.tolist()
    assert scene["video"]["film"]["frames"] == 9
    assert np.asarray(scene["video"]["certainty"]).shape == example.answer.shape
    assert scene["demos_label"] == "Both learnt from the same 30 examples, such as"


def test_a_run_is_shown_with_the_task_it_was_asked(tmp_path: Path) -> None:
    """Learned on small mazes, asked large ones: it belongs to the large ones, and nobody mixes up their examples."""
    make_run(tmp_path, "maze/7x7", "cogvideox", [True] * 3, test_task="maze/9x9")
    make_run(tmp_path, "maze/7x7", "causal_lm", [False] * 3, far_from=8, n=8)
    small, large = (Choice().with_task(f"maze/{size}") for size in ("7x7", "9x9"))
    assert [choice.adapter("video").run.tested for choice in (small, large)] == ["maze/7x7", "maze/9x9"]
    assert small.adapter("language").run.far_from == 0  # tested on the same examples as the video arm beside it
    for choice, side in ((small, 7), (large, 9)):
        scene = scenes.scene(choice, Shown())
        assert np.shape(scene["question"]) == (side, side) and scene["video"]["badge"] == "recorded"
    assert "asked maze/9x9" in large.adapter("video").label
    far = next(a for a in scenes.catalogue() if a.run.far_from)
    mixed = replace(small, language=str(far.folder))
    assert mixed.answered() == [small.adapter("video")]  # the other's examples are others


def test_a_live_answer_is_to_the_runs_own_examples() -> None:
    run = config.resolve({"task": "maze/7x7", "n": 30, "family": "causal_lm", "far_from": 300, "votes": 2})
    assert _asked(run, "maze/7x7", 0) is run
    for task, seed in (("maze/9x9", 0), ("maze/7x7", 1)):
        other = _asked(run, task, seed)
        assert [e.key for e in config.test_examples(other, 2)] == [e.key for e in tasks.examples(task, "test", 2, seed)]


def test_a_parse_error_is_shown_in_its_place(maze: Choice) -> None:
    views = [scenes.scene(replace(maze, index=i), Shown()) for i in (0, 3, 4, 5)]
    broken = [s["language"] for s in views if s["language"]["grid"] is None]
    assert broken
    error = broken[0]["error"]
    with pytest.raises(tasks.text.ParseError) as caught:
        tasks.text.parse(broken[0]["text"])
    assert error["position"] == caught.value.position and broken[0]["problem"]


def test_a_live_answer_takes_the_place_of_the_recorded_one(maze: Choice) -> None:
    task, example = tasks.get(maze.task), scenes.example(maze)
    adapter = maze.adapter("language")
    assert adapter
    live = scenes.as_shown(adapter, task, example, "[[0]]", [[0]], None, "", 0.5)
    shown = Shown({(str(adapter.folder), example.key): {**live, "device": "cpu"}})
    scene = scenes.scene(maze, shown)
    assert scene["language"]["badge"] == "live" and scene["video"]["badge"] == "recorded"
    assert not scene["language"]["right"] and "size" in scene["language"]["reason"]
    assert "live" in scenes.scores(maze, scene)


def test_both_arms_are_matched_by_n_and_seed(tmp_path: Path) -> None:
    make_run(tmp_path, "maze/7x7", "causal_lm", [True], n=300, seed=1)
    make_run(tmp_path, "maze/7x7", "cogvideox", [True], n=300, seed=1)
    make_run(tmp_path, "maze/7x7", "causal_lm", [True], n=300, seed=2)
    choice = Choice().with_task("maze/7x7")
    runs = [choice.adapter(arm).run for arm in scenes.ARMS]  # type: ignore[union-attr]
    assert [(run.n, run.seed) for run in runs] == [(300, 1), (300, 1)] and choice.seed == 1
    assert scenes.example(choice).key == tasks.examples("maze/7x7", "test", 1, 1)[0].key


def test_recorded_answers_to_another_seed_are_not_shown_as_this_ones(maze: Choice) -> None:
    other = scenes.scene(replace(maze, seed=7), Shown())
    assert other["question"] == tasks.examples("maze/7x7", "test", 1, 7)[0].question.tolist()
    assert other["video"]["state"] == "none" and "No recorded answer" in other["video"]["note"]


def test_a_damaged_run_is_passed_over(runs: dict[str, Path]) -> None:
    before = len(scenes.catalogue())
    (runs["maze-cogvideox"] / "config.yaml").write_text("task: [", encoding="utf-8")
    assert len(scenes.catalogue()) == before - 1


def test_a_puzzle_nobody_learnt_offers_to_learn_it() -> None:
    choice = Choice().with_task("arc1/evaluation/00576224")
    scene = scenes.scene(choice, Shown())
    assert scene["video"]["state"] == scene["language"]["state"] == "none"
    assert scene["demos_label"] == "The puzzle's 2 demonstrations"
    assert compare.adapting(choice.task) is None


def test_adapting_is_the_same_command_as_a_persons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = []
    monkeypatch.setattr(jobs, "start", lambda kind, argv, folder, after=None: started.append((kind, argv, folder)))
    compare.adapt("arc1/evaluation/00576224", "tiny", 7)
    ((kind, argv, folder),) = started
    assert kind == "compare" and argv[1:5] == ["-m", "vdmreason", "compare", "arc1/evaluation/00576224"]
    assert "cogvideox=tiny" in argv and "causal_lm=tiny" in argv and argv[argv.index("--updates") + 1] == "7"
    assert folder == compare.adapt_folder("arc1/evaluation/00576224") and folder.is_relative_to(tmp_path)
    with pytest.raises(UserError, match="updates"):
        compare.adapt("arc1/evaluation/00576224", "tiny", 0)


def test_an_answer_is_drawn_however_long_after_its_adapter_it_lands(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter is seen first, its answers a few ticks later: each is drawn once, and an idle page sends nothing."""
    monkeypatch.setattr(scenes, "FRESH", 0.0)
    task, made, elsewhere = "arc1/evaluation/00576224", {}, tmp_path_factory.mktemp("elsewhere")
    for family in ("cogvideox", "causal_lm"):
        folder = make_run(elsewhere, task, family, [True], n=2)
        (folder / "adapter").mkdir()
        name = "pytorch_lora_weights" if family == "cogvideox" else "adapter_model"
        (folder / "adapter" / f"{name}.safetensors").touch()
        made[family] = folder
    with gr.Blocks():
        tab = compare.Tab(Worker())
    choice, seen, stages = Choice().with_task(task), (), []

    def tick() -> None:
        nonlocal choice, seen
        update = tab.tick(choice, Shown(), seen)
        choice, seen = update.get(tab.choice, choice), update[tab.seen]
        stage = update.get(tab.stage)
        stages.append(stage and tuple(stage[arm]["state"] for arm in scenes.ARMS))

    tick()
    for family in made:
        answers = (made[family] / "predictions.jsonl").read_text(encoding="utf-8")
        (made[family] / "predictions.jsonl").unlink()
        made[family] = made[family].rename(tmp_path / made[family].name)
        tick()
        tick()
        (made[family] / "predictions.jsonl").write_text(answers, encoding="utf-8")
        tick()
        tick()
    none, answer = "none", "answer"
    assert stages == [
        None,
        *[(none, none), None, (answer, none), None],
        *[(answer, none), None, (answer, answer), None],
    ]


def test_of_two_quick_clicks_the_second_knows_of_the_first() -> None:
    """gradio hands both the choice as it was before either; a field's blur with an old value changes nothing."""
    with gr.Blocks() as page:
        tab = compare.Tab(Worker())
    listeners = {target: f.fn for f in page.fns.values() for target in f.targets}
    click = listeners[tab.next._id, "click"]
    choice, shown = Choice().with_task("maze/7x7"), Shown()
    first, second = (click(choice, shown, {}) for _ in range(2))
    places = [choice.index, first[tab.choice].index, second[tab.choice].index]
    assert places == scenes.recorded(choice)[:3] and second[tab.choice] == shown.newest
    assert set(second[tab.examples]) > {"current"}  # the row that the first sent was not known to the second
    again = click(second[tab.choice], shown, second[tab.shelf])
    assert set(again[tab.examples]) == {"current"}
    tick = tab.tick(choice, shown, ())
    assert tick[tab.seen][0] == again[tab.choice]
    copied = copy.deepcopy(shown)
    with shown.turn, copied.turn:  # each browser tab waits for itself alone
        assert copied.newest == shown.newest


def test_text_from_a_model_is_never_markup(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "eca/110", "causal_lm", [True])
    records = store.read_lines(folder / "predictions.jsonl")
    store.write_lines(
        folder / "predictions.jsonl", [{**records[0], "raw": "<img src=x onerror=alert(1)>", "proposed": None}]
    )
    choice = Choice().with_task("eca/110")
    scene = scenes.scene(choice, Shown())
    assert scene["language"]["error"]["position"] == 0  # it travels as data, and the page writes it with textContent
    assert "<img" not in scenes.scores(choice, scene)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def test_a_film_can_be_cut_back_into_its_frames() -> None:
    from PIL import Image

    clip = np.random.default_rng(0).integers(0, 256, (7, 8, 16, 3)).astype(np.uint8)
    film = pictures.film(clip, clip[-1])
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(film["sprite"].partition(",")[2]))).convert("RGB"))
    for i, frame in enumerate(clip):
        y, x = i // film["columns"] * film["height"], i % film["columns"] * film["width"]
        assert np.array_equal(sheet[y : y + film["height"], x : x + film["width"]], frame)
    assert film["truth"] and pictures.film(clip, clip[-1][:4])["truth"] is None


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_a_film_is_kept_as_others_play_it(kind: str) -> None:
    """What a player decodes is the clip, up to the codec's loss; an mp4 is H.264 in yuv420p with its index in front."""
    import av

    colours = np.array([[0, 0, 0], [0, 93, 255], [255, 45, 70], [255, 255, 0]], np.uint8)
    clip = colours[np.random.default_rng(0).integers(0, 4, (5, 7, 9))].repeat(8, 1).repeat(8, 2)
    assert np.array_equal(pictures.clip_of(pictures.film(clip)), clip)
    data = base64.b64decode(pictures.encoded(clip, kind).partition(",")[2])
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert kind != "mp4" or (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    if kind == "mp4":
        assert data.index(b"moov") < data.index(b"mdat")
    factor = frames[0].shape[0] // clip.shape[1]
    assert factor * clip.shape[1] >= 224 and len(frames) in (5, 6)  # the last one rests
    for frame, true in zip(frames, clip, strict=False):
        middle = frame[4 * factor :: 8 * factor, 4 * factor :: 8 * factor].astype(int)
        assert np.abs(middle - true[4::8, 4::8]).max() < 40  # in the middle of a cell, where 4:2:0 blurs nothing


def test_what_is_no_film_is_not_decoded() -> None:
    good = pictures.film(np.zeros((4, 8, 8, 3), np.uint8))
    for changes in (
        {"frames": 0}, {"frames": True}, {"width": 9}, {"height": 4096, "width": 4096, "columns": 4096}, {"sprite": 3},
        {"sprite": "data:image/png;base64,AAAA"}, {"sprite": good["sprite"][:-20]}, {"sprite": "file:///etc/passwd"},
    ):  # fmt: skip
        with pytest.raises(UserError, match="no film"):
            pictures.clip_of({**good, **changes})
    with pytest.raises(UserError, match="no film"):
        pictures.clip_of(None)
    with pytest.raises(UserError, match="mp4 or gif"):
        pictures.encoded(np.zeros((4, 8, 8, 3), np.uint8), "exe")


def test_four_arms_side_by_side(tmp_path: Path, maze: Choice) -> None:
    other = make_run(tmp_path, "maze/7x7", "causal_lm", [True] * 4, n=300)
    third = make_run(tmp_path, "maze/7x7", "cogvideox", [False] * 4, n=300)
    choice = replace(maze, more=(str(other), str(third)), index=3)
    scene = scenes.scene(choice, Shown())
    assert [part["arm"] for part in scene["more"]] == ["language", "video"]
    assert scene["more"][0]["right"] and not scene["more"][1]["right"] and "film" in scene["more"][1]
    assert scenes.scores(choice, scene).count('scope="col"') == 4
    assert scenes.recorded(replace(choice, filter="both")) == [1]  # the filter asks the two main arms
    back, missing = compare.asked_for({k: str(v) for k, v in scene["address"].items()})
    assert not missing and (back.slots(), back.index) == (choice.slots(), 3)


@pytest.mark.parametrize(
    "changes, words",
    [({"index": "-1"}, "whole number"), ({"seed": "1e9"}, "whole number"), ({"task": "maze/7x8x"}, "7x8x")],
)
def test_a_bad_address_says_what_is_wrong(changes: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        compare.asked_for({"task": "maze/7x7", **changes})


def test_an_address_names_what_is_not_here(maze: Choice) -> None:
    choice, missing = compare.asked_for({"task": "maze/7x7", "video": "../../etc", "more": "gone--1,gone--2,gone--3"})
    assert missing == ["../../etc", "gone--1", "gone--2"]
    assert choice == replace(maze, video="")  # an empty place, and no other adapter in it


def test_a_sweeps_run_is_opened_beside_its_partner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one from the same examples, not the best there is."""
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path))
    make_run(tmp_path, "maze/7x7", "causal_lm", [True] * 4, n=300)
    trials = {
        (family, seed): make_run(tmp_path / "sweeps" / "one" / "trials", "maze/7x7", family, [True] * 4, n=3, seed=seed)
        for family in ("cogvideox", "causal_lm")
        for seed in (0, 1)
    }
    with gr.Blocks():
        tab = compare.Tab(Worker())
    for seed in (0, 1):
        view = tab.open_run(trials["cogvideox", seed], 0, Shown())
        assert view[tab.choice].language == str(trials["causal_lm", seed])
        assert scenes.twin(scenes.by_folder(str(trials["causal_lm", seed]))).folder == trials["cogvideox", seed]


@pytest.mark.parametrize("folder", ["/etc", "..", "\0", "x" * 5000, "maze--7x7/../.."])
def test_no_folder_outside_is_read(folder: str, maze: Choice) -> None:
    assert scenes.by_folder(folder) is None
    assert scenes.scene(replace(maze, video=folder), Shown())["video"]["state"] == "none"


def test_a_public_page_counts_live_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    quota = public.Quota(most=2)
    for _ in range(5):
        quota.take("a")  # on one's own machine nobody counts
    monkeypatch.setenv("VDMREASON_PUBLIC", "1")
    for visitor in ("a", "b"):
        quota.take(visitor)
        quota.take(visitor)
        with pytest.raises(UserError, match="last of 2 live answers"):
            quota.take(visitor)
    with pytest.raises(UserError, match="off on this public page"):
        public.refuse("Training")
    assert public.place(Path("/a/b/c")) == "c"


def test_all_adapters_of_a_press_count_and_a_space_tells_strangers_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDMREASON_PUBLIC", "1")
    quota = public.Quota(most=4)
    quota.take("a", 3)
    quota.take("a", 3)
    with pytest.raises(UserError, match="last of 4"):
        quota.take("a")
    proxy = type("Request", (), {"client": type("C", (), {"host": "10.0.0.1"}), "session_hash": "s"})
    asked = [type("R", (proxy,), {"headers": {"x-forwarded-for": f"6.6.6.6, {who}"}}) for who in ("1.1.1.1", "2.2.2.2")]
    assert [compare.visitor(one) for one in asked] == ["10.0.0.1", "10.0.0.1"]  # a header that anybody can write
    monkeypatch.setenv("SPACE_ID", "a/b")
    assert [compare.visitor(one) for one in asked] == ["1.1.1.1", "2.2.2.2"]


def test_a_puzzle_whose_file_is_gone_leaves_the_page_whole(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    grid = {"input": [[1]], "output": [[2]]}
    file.write_text(
        json.dumps({"train": [grid, {"input": [[3]], "output": [[4]]}], "test": [{"input": [[5]], "output": [[6]]}]})
    )
    make_run(tmp_path, f"arc:{file}", "causal_lm", [True], 2)
    make_run(tmp_path, f"arc:{file}", "cogvideox", [False], 2)
    choice = Choice().with_task(f"arc:{file}")
    with gr.Blocks():
        tab = compare.Tab(Worker())
    shown = Shown()
    tab.draw(choice, shown)
    file.unlink()
    assert not scenes.opening().task.startswith("arc:")
    assert tab.tick(choice, shown, ()) == {tab.seen: ()}


def test_who_goes_on_while_an_answer_forms_is_not_thrown_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = adapted(tmp_path, "causal_lm")
    choice = replace(Choice().with_task("maze/7x7"), language=str(folder), video=scenes.NONE)
    with gr.Blocks():
        tab = compare.Tab(Worker())
    shown = Shown()
    tab.draw(choice, shown)
    request = type("R", (), {"session_hash": "s", "client": None, "headers": {}})

    def answers(*_: object) -> Iterator[dict[str, object]]:
        shown.newest = replace(choice, index=1)  # the visitor presses Next
        yield {"step": 1, "steps": 2, "text": "[[0"}
        yield {
            "done": True,
            "text": "[[0]]",
            "grid": [[0]],
            "certainty": None,
            "problem": "",
            "seconds": 1.0,
            "device": "cpu",
        }

    monkeypatch.setattr(tab.worker, "predict", answers)
    views = list(tab.answer_live(choice, shown, request))
    first, before, *during, last = views
    assert first[tab.stage] and before[tab.stage]["language"]["note"] == "The worker loads the model."
    assert [view[tab.stage] for view in during] == [gr.skip()] * len(during)
    assert last[tab.stage] == scenes.scene(shown.newest, shown)
    assert (str(folder), scenes.example(choice).key) in shown.live  # it is there when the visitor comes back


@pytest.mark.parametrize("name", ["~nosuch/x", "x" * 300 + ".json", "/\ud800.json", "arc:~nosuch"])
def test_a_name_that_no_file_can_have_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError):
        compare.asked_for({"task": name})
    monkeypatch.setenv("VDMREASON_PUBLIC", "1")
    with pytest.raises(UserError, match="off on this public page"):
        compare.asked_for({"task": name})


def test_a_public_page_looks_into_no_folder_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "drawn").mkdir()
    monkeypatch.setenv("VDMREASON_PUBLIC", "1")
    for name in (
        f"arc:{tmp_path}",
        "arc:runs",
        "chess/mate-in-1:/etc/passwd",
        str(tmp_path / "drawn"),
        "reasoning_gym/x:y=1",
    ):
        with pytest.raises(UserError, match="off on this public page"):
            inputs.task(name)
    drawn_here = tmp_path / "drawn" / "a.json"
    drawn_here.write_text("{}")
    for name in ("maze/7x7", f"arc:{drawn_here}", str(drawn_here), "conceptarc/Center1"):
        assert inputs.task(name) == name
    for name in (
        "chess/mate-in-1:/etc/passwd",
        "reasoning_gym/x:y=1",
    ):  # nor by way of the Draw tab, or a link's family
        with pytest.raises(UserError, match="name of a file"):
            drawn.begin(name)
        pair = {"input": [[1]], "output": [[1]]}
        assert drawn.checked({"train": [pair], "test": [pair], "family": name}).family == ""


def test_a_film_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(UserError, match="too long"):
        pictures.encoded(np.zeros((4096, 1, 1, 3), np.uint8), "gif")


# ---------------------------------------------------------------------------------------------------------------------
# Training

KEYS = {"video": "cogvideox/tiny", "language": "causal_lm/tiny"}


def test_a_plan_differs_in_the_arm_alone() -> None:
    video, language = training.plan("maze/7x7", 10, 3, scenes.ARMS, KEYS, 12, 4)
    assert training.sample_hash(video) == training.sample_hash(language)
    assert video.optim.updates == language.optim.updates == 12
    shared = ("task", "n", "seed", "init", "test")
    assert [getattr(video, key) for key in shared] == [getattr(language, key) for key in shared]
    assert video.lora == language.lora


def test_what_this_machine_cannot_train_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "gpu_memory", lambda: 0.0)
    large = next(key for key, flavour in training.backbones("video").items() if flavour.published)
    assert large not in [key for _, key in training.choices("video")]
    assert "needs a GPU" in training.unable("video")
    with pytest.raises(UserError, match="this machine has none"):
        training.plan("maze/7x7", 3, 0, ["video"], {**KEYS, "video": large}, 10, 4)
    monkeypatch.setattr(training, "gpu_memory", lambda: 80.0)
    assert large in [key for _, key in training.choices("video")]


@pytest.mark.parametrize(
    "changes, words", [({"n": 0}, "n: must"), ({"updates": 0}, "optim.updates"), ({"arms": []}, "at least one arm")]
)
def test_bad_forms_say_what_is_wrong(changes: dict[str, object], words: str) -> None:
    form = {
        "task": "maze/7x7",
        "n": 3,
        "seed": 0,
        "arms": scenes.ARMS,
        "keys": KEYS,
        "updates": 5,
        "test": 4,
        **changes,
    }
    with pytest.raises(UserError, match=words):
        training.plan(**form)  # type: ignore[arg-type]


def test_start_snapshots_the_config_and_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.Path, "glob", lambda self, kind: iter(()))
    started = []
    monkeypatch.setattr(jobs, "start", lambda kind, argv, folder, after=None: started.append((folder, after, argv)))
    runs = training.plan("maze/7x7", 3, 0, scenes.ARMS, KEYS, 5, 4)
    training.start(runs, together=False)
    (first, none, argv), (_, after, _) = started
    assert none is None and after == first
    assert store.read_config(first) == runs[0]
    assert "-m vdmreason.train --answer --config" in argv[-1] and "accelerate.commands.launch" not in argv[-1]
    monkeypatch.setattr(training.Path, "glob", lambda self, kind: iter([self / "nvidia0"] * kind.startswith("nvidia")))
    assert training.launcher()[1:] == ["-m", "accelerate.commands.launch"]
    assert training.command(runs[0]).startswith("accelerate launch -m vdmreason.train --config ")


def test_the_forecast_learns_from_earlier_runs(runs: dict[str, Path]) -> None:
    planned = training.plan("maze/7x7", 3, 0, ["language"], KEYS, 100, 4)
    assert "a guess" in training.forecast(planned)
    store.write_lines(
        runs["maze-causal_lm"] / "metrics.jsonl", [{"step": i, "loss": 1.0, "seconds": 0.05} for i in range(1, 9)]
    )
    assert "0.05 s an update here before" in training.forecast(planned)
    assert "about 5 s" in training.forecast(planned)
    result = runs["maze-causal_lm"] / "result.json"
    store.write_json(result, {**(store.read_json(result) or {}), "seconds_per_answer": 2.5})
    assert training.forecast(planned).endswith("and 10 s for its 4 answers.")


def test_previews_of_the_video_arm_move(runs: dict[str, Path]) -> None:
    for folder in (runs["maze-cogvideox"], runs["maze-causal_lm"]):
        step = folder / "previews" / "step-000010"
        records = store.read_lines(folder / "predictions.jsonl")[:2]
        for record in records:
            if folder == runs["maze-cogvideox"]:
                store.write_clip(step / record["raw"], store.read_clip(folder / record["raw"]))
        store.write_lines(step / "predictions.jsonl", records)
    video, language = (training.previews([runs[f"maze-{f}"]]) for f in ("cogvideox", "causal_lm"))
    moving = pictures.moving(store.read_clip(runs["maze-cogvideox"] / "clips" / "0000.webp"))
    assert video.count("<img") == language.count("<img") == 6  # two examples: input, truth, one stage
    assert moving in video and "✓ 10" in video and "✗ 10" in language


def test_samples_show_both_arms_the_same_examples() -> None:
    shown = training.samples(training.plan("maze/7x7", 3, 0, scenes.ARMS, KEYS, 5, 4))
    assert shown.count("<figure>") == shown.count("data:image/webp") == shown.count('<pre tabindex="0"') == 3
    assert tasks.text.write(tasks.examples("maze/7x7", "train", 1, 0)[0].question) in shown


def test_smoothing_keeps_a_constant_and_thinning_keeps_the_ends() -> None:
    assert training.smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    xs = list(range(1, 1002))
    kept = training.thin(xs, xs)
    assert kept[0] == (1, 1) and kept[-1] == (1001, 1001) and len(kept) < 400


def test_buttons_reach_no_folder_outside(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        training.act(tmp_path / ".." / "elsewhere", "stop")


def test_the_strip_knows_a_lost_job(runs: dict[str, Path]) -> None:
    from vdmreason.ui import strip

    folder = runs["maze-causal_lm"]
    store.write_json(
        folder / jobs.JOB, {"kind": "train", "argv": ["true"], "after": None, "pid": 2**22 + 1, "created": 1.0}
    )
    store.write_state(folder, state="running", step=3, updates=10, pid=2**22 + 1, created=1.0)
    (row,) = strip.strip()
    assert row["state"] == "lost" and row["name"] == folder.name and "3 of 10" in row["numbers"]
    assert config.load(folder / "config.yaml").task in row["title"]
