"""The Train tab: runs as a form and as YAML, what they will need, checkpoints to go on from, failures in words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from fixture_runs import make_run
from visit import Visit, chromium, expect, needs_browser, served

from adapters import cogvideox
from tasks.base import UserError
from vdmreason import config, jobs, store
from vdmreason.ui import failures, needs, public, run_yaml, scenes, training

KEYS = {"video": "cogvideox/tiny", "language": "causal_lm/tiny"}


@pytest.fixture(autouse=True, scope="module")
def _patience() -> Iterator[None]:
    """A busy machine may be slow: what is expected of the page is awaited longer than the usual 5 s."""
    expect.set_options(timeout=30_000)
    yield
    expect.set_options(timeout=5_000)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path))
    return tmp_path


def planned(**changes: Any) -> list[config.Run]:
    return training.plan("maze/7x7", 10, 3, scenes.ARMS, KEYS, 12, 4, **changes)


# ---------------------------------------------------------------------------------------------------------------------
# YAML


def test_yaml_and_the_form_are_the_same_runs_both_ways() -> None:
    runs = planned()
    text = run_yaml.to_text(runs)
    assert run_yaml.from_text(text) == runs
    form = training.as_form(runs)
    assert (form.n, form.updates, form.keys, form.beyond) == (10, 12, KEYS, {})

    edited = run_yaml.from_text(text.replace("rank: 16", "rank: 4", 1).replace("augment: 1", "augment: 2"))
    form = training.as_form(edited)
    assert form.beyond == {"video": {"lora": {"rank": 4}, "augment": 2}, "language": {"augment": 2}}
    assert planned(beyond=form.beyond) == edited
    assert run_yaml.in_words(form.beyond["video"]) == ["lora.rank: 4", "augment: 2"]


@pytest.mark.parametrize(
    "change, words",
    [
        (("updates: 12", "updats: 12"), r"^Run 1: optim\.updats: unknown key\. Did you mean 'updates'\?"),
        (("n: 10", "n: many"), r"^Run 1: n: must be a whole number"),
        (("n: 10", "n: 10000000"), r"n: at most 20,000"),
        (("n: 10", "n: [3"), r"^That is not YAML"),
        (("n: 10", "n: " + "[" * 60), r"^That YAML cannot be read: .*nested"),
        (
            ("n: 10", "n: &a0 [x, x]\n" + "".join(f"k{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 20))),
            r"repeats itself",
        ),
        (("n: 10", "n: !!python/object/apply:os.getcwd []"), r"^That is not YAML"),
        (("family: causal_lm", "family: causal_lmm"), r"^Run 2: .*causal_lm"),
    ],
)
def test_what_is_wrong_with_yaml_is_one_line_that_names_it(change: tuple[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        run_yaml.from_text(run_yaml.to_text(planned()).replace(*change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "# nothing", "just words", "- a\n- b", "[" * 5000, "- " * 5000, "a: " + "x" * 30_000, None, 3]
)
def test_anything_may_be_sent_as_yaml(text: Any) -> None:
    with pytest.raises(UserError):
        run_yaml.from_text(text)


def test_runs_that_are_the_same_or_too_many_are_refused() -> None:
    one = run_yaml.to_text(planned()[:1])
    with pytest.raises(UserError, match="the same"):
        run_yaml.from_text(f"{one}---\n{one}")
    with pytest.raises(UserError, match="at most 4"):
        run_yaml.from_text("---\n".join([one] * 5))


def test_a_form_says_what_it_has_no_room_for() -> None:
    video, language = planned()
    with pytest.raises(UserError, match="n: the form holds one for all arms, the YAML has 10 and 3"):
        training.as_form([video, dataclasses.replace(language, n=3)])
    with pytest.raises(UserError, match="one run an arm"):
        training.as_form([video, dataclasses.replace(video, seed=4)])


def test_other_examples_are_not_shown_as_the_same() -> None:
    video, language = planned()
    assert "the same for every arm" in training.samples([video, language])
    shown = training.samples([video, dataclasses.replace(language, seed=4)])
    assert "1 of the runs learn from <b>others</b>" in shown and "<pre" not in shown


def test_more_examples_than_there_are_is_a_line_and_starts_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "start", lambda *_, **__: pytest.fail("started"))
    with gr.Blocks():
        tab = training.Tab()
    form = ["hanoi/4-step", 1000, 0, 0, 10, [*scenes.ARMS], *KEYS.values(), 4, training.SIMPLE, "", {}]
    view = tab.foresee(*form)
    assert "hanoi/4-step has 240 puzzles in all" in view[tab.problem] and not view[tab.start]["interactive"]
    assert "240 puzzles" in tab._start(*form, training.SEPARATE)[tab.problem] and not list(root.iterdir())


def test_of_two_runs_of_which_one_is_at_work_neither_starts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = planned()
    busy = training.folder_of(runs[1]).resolve()
    monkeypatch.setattr(jobs, "start", lambda *_, **__: pytest.fail("started"))
    real = jobs.status
    monkeypatch.setattr(
        jobs, "status", lambda f: dataclasses.replace(real(f), state="running" if Path(f).resolve() == busy else "")
    )
    with pytest.raises(UserError, match="already running"):
        training.start(runs, together=True)
    assert not list(root.iterdir())


def test_a_public_page_draws_no_more_than_it_waits_for_and_names_no_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped(root, "failed", f"{root}/x: is broken", f"Traceback in {root}/secret.py\n")
    with gr.Blocks():
        tab = training.Tab()
    form = ["sudoku/9x9-22", training.CUSTOM, 10_000, 0, 10, [*scenes.ARMS], *KEYS.values(), 4, training.SIMPLE, "", {}]
    monkeypatch.setenv("VDMREASON_PUBLIC", "1")
    assert "Drawing more than 30 examples of sudoku/9x9-22 is off" in tab.foresee(*form)[tab.problem]
    form[:2] = ["maze/7x7", 10]
    told = tab.foresee(*form)[tab.command]
    assert str(root) not in told and "mkdir -p runs/" in told
    key = next(iter(training.trained()))
    view = tab.follow(key)
    for text in (view[tab.log], view[tab.failures], view[tab.progress], failures.card(folder, "a")):
        assert str(root) not in text and "secret" not in text


def test_yaml_reaches_no_large_backbone_and_no_public_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "gpu_memory", lambda: 0.0)
    large = next(key for key, flavour in training.backbones("video").items() if flavour.published)
    family, _, flavour = large.partition("/")
    run = config.resolve({"task": "maze/7x7", "n": 3, "family": family, "flavour": flavour})
    with pytest.raises(UserError, match="needs a GPU"):
        training.refuse_what_cannot_run([run])
    monkeypatch.setenv("VDMREASON_PUBLIC", "1")
    assert public.on()
    with pytest.raises(UserError, match="public"):
        training.go_on([], "a/1")


# ---------------------------------------------------------------------------------------------------------------------
# What a run needs


def test_needs_are_found_once_for_all_runs_that_need_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, language = planned()
    longer = dataclasses.replace(video, optim=dataclasses.replace(video.optim, updates=500), seed=9)
    larger = dataclasses.replace(video, lora=dataclasses.replace(video.lora, rank=64))
    assert needs.key(video) == needs.key(longer) and len({needs.key(r) for r in (video, language, larger)}) == 3

    asked = []
    monkeypatch.setattr(needs, "ask", lambda run: asked.append(run) or {"error": "not today"})
    lookout = needs.Lookout()
    lookout.waiting[needs.key(video)] = video
    lookout._work()
    lookout.look(longer)
    assert asked == [video] and needs.known(needs.key(longer)) == {"error": "not today"}
    assert "not today" in training.foretold([("video", video)])
    assert "being looked at" in training.foretold([("video", larger)])


def test_needs_in_words() -> None:
    found = {
        "device": "GPU", "memory": 2 << 30, "room": 1 << 30, "disk": {"checkpoints": 30 << 20}, "disk_free": 1 << 40,
        "problem": "this run does not fit: --set quantise=nf4",
    }  # fmt: skip
    assert needs.words(found) == (
        "2 GiB of 1 GiB GPU memory, 30 MiB on the disk (checkpoints 30 MiB). this run does not fit: --set quantise=nf4"
    )
    # of the disk as it is now, whatever it was when the run was looked at
    assert ". It needs 1073741824 GiB of disk (adapter) and" in needs.words(
        {**found, "problem": "", "disk": {"adapter": 2**60}}
    )


def test_needs_are_of_this_device_and_of_what_is_fetched(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    least = {"task": "maze/7x7", "n": 3, "family": "causal_lm"}
    run = config.resolve({**least, "flavour": "Qwen/Qwen3-4B-Instruct-2507"})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    keys = [needs.key(run)]
    (tmp_path / "models--Qwen--Qwen3-4B-Instruct-2507" / "snapshots" / "abc").mkdir(parents=True)
    keys.append(needs.key(run))
    monkeypatch.setattr(training, "gpu_memory", lambda: 80.0)
    assert len({*keys, needs.key(run)}) == 3


def test_what_could_not_be_told_is_asked_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = config.resolve({"task": "maze/7x7", "n": 4, "family": "causal_lm"})
    asked = []
    monkeypatch.setattr(needs, "ask", lambda run: asked.append(run) or {"error": "no memory"})
    lookout = needs.Lookout()
    for again, times in ((60.0, 1), (60.0, 1), (0.0, 2)):
        monkeypatch.setattr(needs, "AGAIN", again)
        lookout.waiting[needs.key(run)] = run
        lookout._work()
        assert len(asked) == times and needs.known(needs.key(run)) == ({"error": "no memory"} if again else None)
    assert not list((root / needs.FOLDER).glob(f"{needs.key(run)}*"))


def test_doctor_tells_programs_what_it_tells_people(root: Path) -> None:
    found = needs.ask(config.resolve({"task": "maze/7x7", "n": 3, "family": "causal_lm", "flavour": "tiny"}))
    assert found["fits"] and 0 < found["memory"] < found["room"] and found["disk"]["adapter"] > 0


# ---------------------------------------------------------------------------------------------------------------------
# Going on, and failing


def stopped(root: Path, state: str = "stopped", error: str = "", log: str = "") -> Path:
    folder = make_run(root, "maze/7x7", "cogvideox", [True, False], optim={"updates": 60})
    lines: list[dict[str, Any]] = [{"step": i, "loss": 1 / i, "seconds": 0.1} for i in range(1, 46)]
    lines[19]["preview_exact"], lines[39]["preview_exact"] = 0.25, 0.5
    store.write_lines(folder / "metrics.jsonl", lines)
    for step in (20, 40, 45):
        (folder / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    job = {"kind": "train", "argv": ["true"], "after": None, "pid": 2**22 + 1, "created": 1.0}
    store.write_json(folder / jobs.JOB, job)
    store.write_state(folder, state=state, step=45, updates=60, error=error)
    (folder / jobs.LOG).write_text(log)
    return folder


def test_a_run_goes_on_from_the_checkpoint_that_is_chosen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped(root)
    labels = dict((value, label) for label, value in training.checkpoint_choices([folder]))
    assert list(labels) == ["", *(f"{folder.name}/{step}" for step in (45, 40, 20))]
    assert "update 40 · loss 0.025 · previews 50 %, the best" in labels[f"{folder.name}/40"]
    assert "previews 50 %, the best at 40" in labels[f"{folder.name}/45"]

    resumed: list[Path] = []
    monkeypatch.setattr(jobs, "resume", resumed.append)
    for wrong in ("../x/20", f"{folder.name}/20x", f"{folder.name}/21", "elsewhere/20"):
        with pytest.raises(UserError):
            training.go_on([folder], wrong)
    assert len(store.checkpoints(folder)) == 3 and not resumed
    training.go_on([folder], f"{folder.name}/20")
    assert [path.name for path in store.checkpoints(folder)] == ["step-000020"] and resumed == [folder]
    assert (folder / "checkpoints" / ".set-aside" / "step-000045").is_dir()


def test_who_stopped_while_it_answered_goes_on_from_no_checkpoint(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped(root)
    assert len(training.checkpoint_choices([folder])) > 1
    with store.new_folder(folder / "adapter") as new:
        (new / "adapter_model.safetensors").write_bytes(b"x")
    assert training.resumable(folder) and len(training.checkpoint_choices([folder])) == 1
    before = [path.name for path in store.checkpoints(folder)]
    with pytest.raises(UserError, match="no run that can be resumed"):
        training.go_on([folder], f"{folder.name}/{int(before[0].removeprefix('step-'))}")
    assert [path.name for path in store.checkpoints(folder)] == before


@pytest.mark.parametrize(
    "text, what",
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "Memory ran out"),
        ("the GPU is out of memory. In training set optim.micro_batch: 1, speed.checkpointing: on", "Memory ran out"),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", "Memory ran out"),
        ("the loss is nan at step 9; step-000005 is kept.", "The loss was no number"),
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("huggingface_hub.errors.GatedRepoError: 401 Client Error", "The hub refused"),
        ("Max retries exceeded with url: /api/models", "The hub could not be reached"),
    ],
)
def test_known_causes_have_a_hint(text: str, what: str) -> None:
    found = failures.hint(text)
    assert found and found[0] == what


def test_a_failure_has_a_card_that_escapes_its_log(root: Path) -> None:
    folder = stopped(root, "failed", "OutOfMemoryError: CUDA out of memory", "<script>alert(1)</script>\nlast")
    card = failures.card(folder, "video tiny")
    assert "memory ran out at update 45 of 60" in card and f"{folder.name}/config.yaml" in card
    assert "<script>" not in card and "&lt;script&gt;" in card
    store.write_state(folder, state="running", pid=2**22 + 1, created=1.0, error="")
    (folder / jobs.LOG).write_text("update 44")
    assert "the process ended without a word" in failures.card(folder, "video tiny")
    assert "What helps:" not in failures.card(root, "nobody")


def test_runs_of_one_arm_are_told_apart(root: Path) -> None:
    first = make_run(root, "maze/7x7", "cogvideox", [True])
    second = make_run(root, "maze/7x7", "cogvideox", [True], lora={"rank": 4})
    names = training.names_of([first, second])
    assert len(set(names)) == 2 and all(name.startswith("video tiny ") for name in names)
    assert len(set(training.colour_map([first, second]).values())) == 4


def test_asking_needs_a_job_that_hears(root: Path) -> None:
    folder = stopped(root)
    for how in ("save", "preview"):
        with pytest.raises(UserError, match="is not running"):
            training.act(folder, how)


# ---------------------------------------------------------------------------------------------------------------------
# In the browser


@needs_browser
def test_yaml_in_the_browser_and_a_failure_on_the_page(tmp_path: Path) -> None:
    stopped(tmp_path, "failed", "OutOfMemoryError: CUDA out of memory", "the last words")
    with served(tmp_path) as (url, _), chromium() as browser:
        visit = Visit(browser, url, width=390)
        page = visit.page
        page.goto(url)
        visit.shown()
        visit.tab("Train")
        command = page.locator("#train-command textarea")
        expect(command).to_have_value(re.compile("n30"))
        card = page.locator("#failures .failure")
        expect(card).to_contain_text("memory ran out at update 45 of 60")
        card.locator("summary").click()
        expect(card.locator("pre")).to_contain_text("the last words")
        expect(page.locator("#checkpoint")).to_be_visible()

        page.get_by_label("YAML: every setting").check()
        code = page.locator("#train-yaml .cm-content")
        expect(code).to_contain_text("family: cogvideox")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        code.fill("task: maze/7x7\nn: 7\nfamily: causal_lm\nflavour: tiny\nlora: {rnk: 4}")
        expect(page.locator("#train-problem")).to_contain_text("lora.rnk: unknown key. Did you mean 'rank'?")
        expect(page.locator("#start-training")).to_be_disabled()
        code.fill("task: maze/7x7\nn: 7\nfamily: causal_lm\nflavour: tiny\nlora: {rank: 4}")
        expect(command).to_have_value(re.compile("causal_lm--n7"))
        expect(page.locator("#start-training")).to_be_enabled()

        page.get_by_label("Form", exact=True).check()
        expect(page.locator("#train-custom-n input")).to_have_value("7")
        expect(page.get_by_label("Video", exact=True)).not_to_be_checked()
        expect(page.locator("#beyond")).to_contain_text("lora.rank: 4")
        named = command.input_value()
        page.locator("#drop-beyond").click()
        expect(page.locator("#beyond-row")).to_be_hidden()
        expect(command).not_to_have_value(named)
        visit.close()


@needs_browser
@pytest.mark.timeout(600)
@pytest.mark.skipif(not cogvideox.ZOO.exists(), reason="no small backbone ships here")
def test_a_training_is_asked_for_a_checkpoint_and_previews(tmp_path: Path) -> None:
    with served(tmp_path) as (url, _), chromium() as browser:
        visit = Visit(browser, url)
        page = visit.page
        page.goto(url)
        visit.shown()
        visit.tab("Train")
        page.get_by_label("YAML: every setting").check()
        code = page.locator("#train-yaml .cm-content")
        expect(code).to_contain_text("family: cogvideox")
        code.fill("task: maze/7x7\nn: 3\nfamily: causal_lm\nflavour: tiny\ntest: 2\noptim: {updates: 100000}")
        expect(page.locator("#train-command textarea")).to_have_value(re.compile("causal_lm--n3"))
        page.locator("#start-training").click()
        expect(page.locator("#progress")).to_contain_text(re.compile(r"running · update [1-9]"), timeout=240_000)
        (folder,) = store.find_runs(tmp_path)
        page.locator("#save-now").click()
        page.locator("#preview-now").click()
        expect(page.locator("#previews .preview-row").first).to_be_visible()
        visit.until("() => !document.querySelector('#progress').textContent.includes('asked for')")
        page.locator("#stop-save").click()
        expect(page.locator("#progress")).to_contain_text("stopped", timeout=120_000)
        kept = store.checkpoints(folder)
        assert len(kept) >= 2 and list((folder / "previews").glob("step-*"))
        expect(page.locator("#checkpoint")).to_be_visible()
        visit.close()
