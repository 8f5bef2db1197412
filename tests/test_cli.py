"""The command line: what it prints, what it refuses in one line, and what it does not load."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import fake_family
import pytest
import torch
from typer.testing import CliRunner

from tasks.base import UserError
from vdmreason import __main__ as cli
from vdmreason import backbones, doctor, jobs, store

ROOT = Path(__file__).resolve().parent.parent
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
LEAST = [
    "--set",
    "task=life/B3S23",
    "--set",
    "n=4",
    "--set",
    "family=fake",
    "--set",
    "optim.updates=3",
    "--set",
    "test=3",
]


@pytest.fixture(autouse=True, scope="module")
def _families():
    with fake_family.installed():
        yield


@pytest.fixture(autouse=True)
def _runs(tmp_path, monkeypatch):
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")


def call(*words: str, code: int = 0):
    result = CliRunner().invoke(cli.app, list(words))
    assert result.exit_code == code, (result.output, result.exception)
    if code == 2:
        assert "Traceback" not in result.output
    return result


def shell(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vdmreason", *words], cwd=ROOT, env=ENV, capture_output=True, text=True
    )


def refused(*words: str) -> str:
    """The one line on stderr of a command that must fail."""
    result = call(*words, code=2)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


def test_the_hub_s_attempts_are_not_told() -> None:
    """Each would be two lines before the one that says what to do."""
    logging.getLogger("huggingface_hub").setLevel(logging.WARNING)
    call("tasks", "list", "life")
    with cli.one_line_errors():
        assert logging.getLogger("huggingface_hub").level == logging.ERROR and os.environ["HF_HUB_VERBOSITY"] == "error"


def test_help_teaches() -> None:
    assert "vdmreason compare arc1/" in call("--help").output
    for command in ("tasks", "pretrain", "train", "predict", "evaluate", "compare", "app", "doctor"):
        assert command in call("--help").output
        text = call(command, "--help").output
        assert "vdmreason" in text or command in ("tasks", "doctor")


def test_tasks() -> None:
    text = call("tasks", "list").output
    assert "maze:" in text and "eca:" in text and "more" in text
    assert "arc1/evaluation/00576224" in call("tasks", "list", "arc1/evaluation").output.splitlines()
    text = call("tasks", "show", "arc1/evaluation/00576224", "--split", "train").output
    assert "train 0" in text and "train 1" in text and "question" in text and "\x1b[48;2" in text
    assert call("tasks", "show", "maze/7x7", "--n", "3", "--seed", "1").output.count("question") == 3
    assert "Did you mean" in refused("tasks", "show", "maez/7x7")
    assert "train or test" in refused("tasks", "show", "maze/7x7", "--split", "val")


def test_train_predict_evaluate(tmp_path) -> None:
    text = call("train", *LEAST).output
    (folder,) = store.find_runs(tmp_path / "runs")
    assert f"next: vdmreason predict {folder}" in text
    text = call("predict", str(folder)).output
    assert "life/B3S23" in text and "copy the input" in text and "nearest training example" in text
    before = store.read_json(folder / "result.json")["scores"]
    assert "life/B3S23" in call("evaluate", str(tmp_path / "runs")).output
    assert store.read_json(folder / "result.json")["scores"] == before
    call("train", "--folder", str(folder))  # the folder's own config: done already


def test_answers_that_nobody_knows_are_no_error(tmp_path) -> None:
    file, folder = tmp_path / "mine.json", tmp_path / "open"
    pair = {"input": [[1]], "output": [[2]]}
    file.write_text(json.dumps({"train": [pair, {"input": [[3]], "output": [[4]]}], "test": [{"input": [[5]]}]}))
    words = [
        "--set",
        f"task=arc:{file}",
        "--set",
        "n=2",
        "--set",
        "family=fake",
        "--set",
        "test=1",
        "--set",
        "optim.updates=1",
    ]
    call("train", *words, "--folder", str(folder))
    said = call("predict", str(folder)).output
    assert "nobody knows the right answers" in said
    assert "nobody knows" in call("evaluate", str(folder)).output


def test_a_stopped_training_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(jobs.Working, "stop_wanted", lambda self: True)
    result = call("train", *LEAST, "--folder", str(tmp_path / "run"), code=2)
    assert "goes on from here" in result.stderr
    monkeypatch.undo()
    call("train", *LEAST, "--folder", str(tmp_path / "run"))


def test_bad_input_is_one_line(tmp_path) -> None:
    assert "Did you mean 'updates'" in refused("train", *LEAST, "--set", "optim.udpates=3")
    assert "Did you mean" in refused("train", *LEAST, "--set", "task=life/B3S24x")
    assert "no such file" in refused("train", "--config", str(tmp_path / "no.yaml"))
    assert "task: is missing" in refused("train")
    assert "has 2 train examples, not 300" in refused("compare", "arc1/evaluation/00576224", "--n", "300")
    assert "not a run's folder" in refused("predict", str(tmp_path))
    assert "no such folder" in refused("evaluate", str(tmp_path / "none"))
    assert "no predictions" in refused("evaluate", str(tmp_path))
    assert "must look like cogvideox=tiny" in refused("compare", "life/B3S23", "--n", "3", "--flavour", "tiny")
    assert "Did you mean 'cogvideox'" in refused("pretrain", "cogvidex", "--out", str(tmp_path / "x"))
    assert "30m, 2h or 2000u" in refused("pretrain", "cogvideox", "--budget", "soon", "--out", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists() and not (tmp_path / "runs").exists()


def test_read_a_grid_from_a_picture_or_a_text(tmp_path) -> None:
    import numpy as np
    from PIL import Image

    from tasks.render import STYLES, paint
    from tasks.text import write

    grid = np.arange(12, dtype=np.int8).reshape(3, 4)
    Image.fromarray(paint(grid, STYLES["video-16"], (5, 6))).save(tmp_path / "grid.png")
    assert write(grid) in call("tasks", "read", str(tmp_path / "grid.png"), "--style", "video-16").output
    (tmp_path / "grid.json").write_text(write(grid))
    assert write(grid) in call("tasks", "read", str(tmp_path / "grid.json")).output

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert refused("tasks", "read", str(tmp_path / "noise.png"))
    for name, text in (
        ("words.json", "the answer is [[1]]"),
        ("open.json", "[[1,2],[3"),
        ("big.json", "[[12,1],[1,77]]"),
    ):
        (tmp_path / name).write_text(text)
        assert refused("tasks", "read", str(tmp_path / name))
    (tmp_path / "fake.png").write_text("not a picture")
    assert "not a picture" in refused("tasks", "read", str(tmp_path / "fake.png"))
    assert "Did you mean 'paper'" in refused("tasks", "read", str(tmp_path / "grid.png"), "--style", "papr")


def test_usage_errors_exit_with_2() -> None:
    assert "No such option" in call("compare", "maze/7x7", "--nn", "3", code=2).output
    assert "Missing argument" in call("compare", code=2).output


@pytest.mark.parametrize(
    ("text", "meant"),
    [("90s", (1.5, None)), ("30m", (30, None)), ("2h", (120, None)), ("1.5h", (90, None)), ("2000u", (None, 2000))],
)
def test_budget(text: str, meant: tuple) -> None:
    assert backbones.parse_budget(text) == meant


@pytest.mark.parametrize("text", ["", "30", "m", "-3m", "0u", "3 days"])
def test_no_budget(text: str) -> None:
    with pytest.raises(UserError, match="--budget"):
        backbones.parse_budget(text)


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is in use; take another one: vdmreason app --port {port + 1}" in refused(
            "app", "--port", str(port)
        )
    cli.refuse_used_port("127.0.0.1", port)
    with pytest.raises(UserError, match="no such address"):
        cli.refuse_used_port("no.such.host.invalid", port)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("do\n this"), "error: do this"),
        (OSError(errno.ENOSPC, "full"), "error: the disk is full"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "error: the GPU is out of memory"),
        (KeyboardInterrupt(), "interrupted"),
        (jobs.Stopped(), "stopped"),
    ],
)
def test_what_a_user_meets_is_one_line(error, words: str, monkeypatch) -> None:
    monkeypatch.setattr("tasks.variants", lambda family=None: (_ for _ in ()).throw(error))
    result = call("tasks", "list", "maze", code=2)
    assert result.stderr.startswith(words) and result.stderr.count("\n") == 1
    monkeypatch.setenv("VDMREASON_DEBUG", "1")
    result = CliRunner().invoke(cli.app, ["tasks", "list", "maze"])
    assert words in result.stderr and ("Traceback" in result.stderr or isinstance(error, jobs.Stopped))


def test_debug_takes_no_error_for_a_full_disk(monkeypatch) -> None:
    monkeypatch.setattr("tasks.variants", lambda family=None: open("/nonexistent/file"))
    monkeypatch.setenv("VDMREASON_DEBUG", "1")
    result = CliRunner().invoke(cli.app, ["tasks", "list", "maze"])
    assert result.exit_code == 1 and "No such file" in result.stderr and "disk is full" not in result.stderr


def test_a_bug_keeps_its_traceback(monkeypatch) -> None:
    monkeypatch.setattr("tasks.variants", lambda family=None: 1 / 0)
    result = CliRunner().invoke(cli.app, ["tasks", "list", "maze"])
    assert result.exit_code == 1 and isinstance(result.exception, ZeroDivisionError)


def test_a_job_that_is_refused_says_why(tmp_path) -> None:
    """What goes wrong before the first step reaches the job's folder, not only its log."""
    folder = tmp_path / "job"
    argv = [
        sys.executable,
        "-m",
        "vdmreason",
        "train",
        "--set",
        "task=life/B3S23",
        "--set",
        "n=4",
        "--set",
        "family=nobody",
    ]
    os.environ["PYTHONPATH"] = str(ROOT)
    jobs.start("train", argv, folder)
    while jobs.status(folder).active:
        pass
    now = jobs.status(folder)
    assert now.state == "failed" and "No model family 'nobody'" in now.error


def test_a_tasks_py_of_ones_own_stops_no_job(tmp_path, monkeypatch) -> None:
    """A process finds our code from wherever it is started, and not what lies there by the name of ours."""
    (tmp_path / "tasks.py").write_text("raise SystemExit('not this')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    jobs.start("list", [sys.executable, "-m", "vdmreason", "tasks", "list", "life"], tmp_path / "job")
    log = tmp_path / "job" / jobs.LOG
    for _ in range(600):
        if jobs.log_tail(tmp_path / "job"):
            break
        time.sleep(0.1)
    assert "life/B3S23" in log.read_text()


def test_looking_loads_no_torch() -> None:
    code = """
import sys
from typer.testing import CliRunner
from vdmreason.__main__ import app
import vdmreason.compare, vdmreason.doctor, vdmreason.jobs, vdmreason.evaluate, vdmreason.predict
for words in (["--help"], ["train", "--help"], ["compare", "--help"], ["tasks", "list"], ["tasks", "show", "maze/7x7"],
              ["evaluate", "no-such-folder"], ["train", "--set", "task=nothing", "--set", "family=causal_lm"]):
    CliRunner().invoke(app, words)
    heavy = {"torch", "diffusers", "transformers", "peft", "accelerate", "gradio"} & set(sys.modules)
    assert not heavy, (words, heavy)
print("light")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.stdout == "light\n", done.stderr


def test_the_program_itself() -> None:
    done = shell("tasks", "show", "life/B3S24x")
    assert (
        done.returncode == 2
        and done.stdout == ""
        and done.stderr.startswith("error: ")
        and done.stderr.count("\n") == 1
    )
    assert "Traceback" in shell("tasks", "show", "life/B3S24x", "--debug").stderr
    done = shell("tasks", "show", "life/B3S23")
    assert done.returncode == 0 and "question" in done.stdout


def test_a_closed_pipe_is_silent() -> None:
    command = f"{sys.executable} -m vdmreason tasks list arc1 | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.stdout.startswith("arc1/") and done.stderr == ""


def test_compare_an_arc_puzzle_with_both_real_arms(tmp_path) -> None:
    """The main job: both arms learn the demos, both answer, grids and verdicts are printed, the folder stays."""
    import adapters

    if not (adapters.family("cogvideox").ZOO / "vae").exists():
        pytest.skip("the shipped video backbone is not built yet")
    words = ["compare", "arc1/evaluation/00576224", "--updates", "2", "--set", "cogvideox:options.steps=2"]
    words += ["--flavour", "cogvideox=tiny", "--flavour", "causal_lm=tiny"]
    text = call(*words).output
    assert "same examples: yes" in text and "test 0" in text and "codec ceiling" in text
    (folder,) = (tmp_path / "runs" / "compare").iterdir()
    result = json.loads((folder / "compare.json").read_text())
    assert [arm["kind"] for arm in result["arms"]] == ["video", "language"]
    for arm in result["arms"]:
        assert len(arm["answers"]) == 1 and (folder / arm["folder"] / "predictions.jsonl").exists()
        run = store.read_config(folder / arm["folder"])
        assert run.n == 2 and run.optim.updates == 2
        assert store.read_state(folder / arm["folder"])["state"] == "done"
    call(*words)  # nothing to do twice


# ---------------------------------------------------------------------------------------------------------------------
# doctor


def test_doctor_reports_and_fails_on_a_problem(monkeypatch) -> None:
    findings = doctor.examine()
    names = {finding.name for finding in findings}
    assert {"python", "device", "memory", "disk", "torch", "chromium"} <= names
    code = 0 if doctor.healthy(findings) else 1
    assert "device" in call("doctor", code=code).output
    monkeypatch.setattr(doctor, "NEEDED", ("no-such-library",))
    assert "pip install no-such-library" in call("doctor", code=1).output


def test_doctor_sees_a_cut_off_weights_file(tmp_path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    assert doctor.whole(path)
    content = path.read_bytes()
    for cut in (len(content) - 1, 60, 8, 3, 0):
        path.write_bytes(content[:cut])
        assert not doctor.whole(path)
    path.write_bytes(b"\xff" * 64)
    assert not doctor.whole(path)
