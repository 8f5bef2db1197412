"""The endpoints that programs ask, and what becomes of garbage: by gradio_client and by plain requests, on a served page."""

from __future__ import annotations

import http.client
import json
import random
import re
import subprocess
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import psutil
import pytest
from fixture_runs import adapted, make_runs
from visit import served

import tasks
from tasks.base import UserError
from vdmreason import jobs
from vdmreason.ui import api, scenes
from vdmreason.worker import Worker

TASK = "maze/7x7"
HARMLESS_JOBS: set[str] = set()  # kinds of jobs that garbage may start


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    make_runs(root)
    adapted(root, "causal_lm", max_new_tokens=24)
    return root


@pytest.fixture(scope="module")
def served_page(root: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    log = root.parent / "page.log"
    with open(log, "wb") as file, served(root, output=file, VDMREASON_PUBLIC="") as (url, process):
        yield url, process, log


@pytest.fixture(scope="module")
def client(served_page: tuple[str, Any, Path]) -> Any:
    from gradio_client import Client

    return Client(served_page[0], verbose=False)


def test_gradio_client_runs_each_endpoint(client: Any, root: Path) -> None:
    assert {name for name in client.view_api(return_format="dict", print_info=False)["named_endpoints"]} == {
        f"/{endpoint.__name__}" for endpoint in api.ENDPOINTS
    }
    families = client.predict("", api_name="/list_tasks")
    assert {row["family"] for row in families} == set(tasks.families()) - {"reasoning_gym"}
    assert {row["name"] for row in client.predict("maze", api_name="/list_tasks")} == set(tasks.variants("maze"))

    puzzle = client.predict(TASK, 2, 0, "test", api_name="/get_example")
    example = tasks.examples(TASK, "test", 3, 0)[2]
    assert puzzle["question"] == example.question.tolist() and puzzle["key"] == example.key

    known = client.predict(TASK, api_name="/list_adapters")
    (able,) = [a for a in known if a["live"]]
    assert able["arm"] == "language" and able["task"] == TASK
    answer = client.predict(able["name"], TASK, 2, 0, "", api_name="/solve")
    assert answer["adapter"] == able["name"] and answer["text"] is not None
    assert answer["right"] is False and answer["reason"]  # untrained weights
    own = client.predict(able["name"], TASK, 0, 0, json.dumps(puzzle["question"]), api_name="/solve")
    assert own["right"] is False

    text, wanted = json.dumps(puzzle["question"]), json.dumps(puzzle["answer"])
    verdict = client.predict(TASK, "", wanted, 2, 0, api_name="/score")
    assert verdict["exact"] and verdict["right"] and verdict["cells"] == 1
    assert client.predict(TASK, text, wanted, -1, 0, api_name="/score")["right"] is True  # by the rules alone
    assert client.predict(TASK, text, text, -1, 0, api_name="/score")["right"] is False

    assert client.predict("", api_name="/job_status") == []


@pytest.mark.parametrize(
    "name, given, words",
    [
        ("list_tasks", ("maaze",), "maze"), ("get_example", ("maze/7x8x", 0, 0, "test"), "7x8x"),
        ("get_example", (TASK, -3, 0, "test"), "whole number"), ("get_example", (TASK, 10**9, 0, "test"), "0 to 999"),
        ("get_example", (TASK, 0, 0, "dev"), "'train' nor 'test'"), ("solve", ("../..", TASK, 0, 0, ""), "no adapter"),
        ("score", (TASK, "[[0]", "[[0]]", -1, 0), "no JSON grid"), ("score", (TASK, "[[0]]", "[[99]]", -1, 0), "proposed"),
        ("job_status", ("../../etc",), "no job of this page"),
    ],
)  # fmt: skip
def test_a_mistake_comes_back_as_one_line(client: Any, name: str, given: tuple[Any, ...], words: str) -> None:
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=re.escape(words)) as caught:
        client.predict(*given, api_name=f"/{name}")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Garbage


def garbage(dice: random.Random, depth: int = 0) -> Any:
    """Something that no honest caller sends."""
    makers = [
        lambda: None, lambda: dice.choice([True, False]), lambda: dice.choice([0, -1, 1e308, 2**70, 0.5, -(2**63)]),
        lambda: dice.choice(["", "\0", "../../etc/passwd", "<img src=x onerror=alert(1)>", "x" * 3000, "NaN", "'; --", "[[", "💥",
                             TASK, "[[0,1],[1,0]]", "/etc/passwd", "{}"]),
        lambda: {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, lambda: {"__class__": "x", "i": [[]]},
        lambda: [garbage(dice, depth + 1) for _ in range(dice.randrange(4))] if depth < 3 else [],
        lambda: [[dice.choice([0, 99, -1, "a", None]) for _ in range(dice.randrange(40))] for _ in range(dice.randrange(40))],
    ]  # fmt: skip
    return dice.choice(makers)()


def test_garbage_into_the_endpoints_is_a_line_and_never_a_traceback(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, root: Path
) -> None:
    """1,000 calls: every one is answered with JSON, or refused in words."""
    monkeypatch.setenv("VDMREASON_RUNS", str(root))
    monkeypatch.setattr(scenes, "ZOO", root / "no-zoo")
    worker = Worker()
    request.addfinalizer(worker.close)
    monkeypatch.setattr(api, "_worker", worker, raising=False)
    adapter = next(one["name"] for one in api.list_adapters(TASK) if one["live"])
    dice, refused = random.Random(0), 0
    good: dict[str, list[Any]] = {
        "list_tasks": ["maze"], "get_example": [TASK, 0, 0, "test"], "solve": [adapter, TASK, 0, 0, ""],
        "score": [TASK, "", "[[0]]", 0, 0], "list_adapters": [TASK], "job_status": [""],
    }  # fmt: skip
    for _ in range(1000):
        endpoint = dice.choice(api.ENDPOINTS)
        given = [*good[endpoint.__name__]]
        for place in dice.sample(range(len(given)), dice.randrange(1, len(given) + 1)):
            given[place] = garbage(dice)
        try:
            json.dumps(api._in_words(endpoint)(*given))
        except gr.Error as error:
            refused += 1
            assert error.message and "\n" not in str(error.message) and len(str(error.message)) < 1000
    assert 500 < refused < 1000 and worker.seconds  # some were asked and answered


def test_garbage_into_every_listener_of_the_page(
    served_page: tuple[str, subprocess.Popen[bytes], Path], root: Path
) -> None:
    """What a browser could send to each of the page's own listeners, private ones too: no 500, no frame of our code in
    the page's log, nothing of the machine in an answer, and the page lives."""
    url, process, log = served_page
    dice = random.Random(1)
    with httpx.Client(base_url=url, timeout=60) as http:
        listeners = [d for d in http.get("config").json()["dependencies"] if d["backend_fn"]]
        before = log.stat().st_size

        def ask(number: int, listener: dict[str, Any]) -> None:
            session = f"garbage{number}"
            event = {"data": [garbage(dice) for _ in listener["inputs"]], "fn_index": listener["id"], "session_hash": session,
                     "event_data": garbage(dice)}  # fmt: skip
            joined = http.post("gradio_api/queue/join", json=event)
            assert joined.status_code < 500, joined.text
            if joined.status_code != 200:
                return
            with http.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as stream:
                for line in stream.iter_lines():
                    assert "Traceback" not in line and "root:x:" not in line
                    if '"process_completed"' in line or '"unexpected_error"' in line:
                        break

        with ThreadPoolExecutor(6) as pool:
            for done in [pool.submit(ask, k, listener) for k, listener in enumerate(listeners * 2)]:
                done.result(120)
        assert http.get("").status_code == 200
    said = log.read_bytes()[before:].decode(errors="replace")
    ours = [line for line in said.splitlines() if re.search(r'File ".*/vdmreason/', line)]
    assert not ours, "\n".join(ours[:10])
    assert process.poll() is None
    started = {s.kind for s in jobs.find(root) if s.kind}
    assert started <= HARMLESS_JOBS, started


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=pyproject.toml", "gradio_api/file=/etc/passwd", "gradio_api/file=../../etc/passwd",
        "gradio_api/file=%2e%2e/%2e%2e/etc/passwd", "file=/etc/passwd", "gradio_api/proxy=http://127.0.0.1:1/",
        "static/../../pyproject.toml", "assets/..%2f..%2fpyproject.toml", "gradio_api/file={root}/config.yaml",
    ],
)  # fmt: skip
def test_no_file_of_the_machine_is_served(served_page: tuple[str, Any, Path], root: Path, path: str) -> None:
    some = next(root.glob("*/config.yaml")).parent
    page = urllib.parse.urlsplit(served_page[0])
    asking = http.client.HTTPConnection(page.netloc)  # httpx would take the dots out before it asks
    asking.request("GET", page.path + path.format(root=some))
    answer = asking.getresponse()
    text = answer.read().decode("utf-8", "replace")
    assert 300 <= answer.status < 500
    assert "vdmreason" not in text and "root:x:" not in text and "flavour" not in text


@pytest.mark.parametrize("said", [None, [], {"component_id": 0}, {"component_id": 1, "fn_name": "movie"}, "x"])
def test_a_stages_server_function_refuses_in_words(said: Any) -> None:
    from vdmreason.ui.components import movie

    assert "no film" in movie(said)["error"]


# ---------------------------------------------------------------------------------------------------------------------
# Many at once


def test_fifty_visitors_are_answered_in_turn(
    served_page: tuple[str, subprocess.Popen[bytes], Path], root: Path
) -> None:
    """Fifty ask for a live answer at the same moment: each gets one, and the page's memory is what it was."""
    url, process, _ = served_page
    with httpx.Client(base_url=url, timeout=180, limits=httpx.Limits(max_connections=60)) as http:
        known = call(http, "list_adapters", TASK)
        name = next(a["name"] for a in known if a["live"])
        call(http, "solve", name, TASK, 0, 0, "")  # loads the model
        sizes = []
        for visitors in (50, 20):
            with ThreadPoolExecutor(visitors) as pool:
                answers = [*pool.map(lambda k: call(http, "solve", name, TASK, k, 0, ""), range(visitors))]
            assert len(answers) == visitors and all(a["seconds"] > 0 for a in answers)
            assert len({a["text"] for a in answers}) > 1
            sizes.append(psutil.Process(process.pid).memory_info().rss / 2**20)
    assert sizes[1] - sizes[0] < 30, f"the page grew from {sizes[0]:.0f} to {sizes[1]:.0f} MiB"


def call(http: httpx.Client, name: str, *given: Any) -> Any:
    """An endpoint's answer, by plain requests."""
    event = http.post(f"gradio_api/call/{name}", json={"data": [*given]}).json()["event_id"]
    said = http.get(f"gradio_api/call/{name}/{event}").text
    assert "event: complete" in said, said
    return json.loads(said.rpartition("data: ")[2])[0]


@pytest.mark.parametrize(
    "task, question",
    [
        ("maze/7x7", [[0, 1], [1, 0]]),
        ("sudoku/9x9", [[0] * 5] * 5),
        ("life/B3S23", [[15] * 5] * 5),
        ("eca/110", [[2] * 5] * 5),
    ],
)
def test_rules_are_asked_only_what_their_family_asks(task: str, question: list[list[int]]) -> None:
    with pytest.raises(UserError, match="question: "):
        api.score(task, json.dumps(question), json.dumps(question))


def test_a_public_page_says_what_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDMREASON_PUBLIC", "1")
    from vdmreason.ui import training

    with pytest.raises(UserError, match="public page"):
        training.act(tmp_path, "stop")


def test_a_public_page_opens_no_file_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    puzzle = json.dumps({"train": [{"input": [[0]], "output": [[1]]}], "test": [{"input": [[0]], "output": [[1]]}]})
    for place in ("runs/drawn", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.json").write_text(puzzle, encoding="utf-8")
    monkeypatch.setenv("VDMREASON_RUNS", str(tmp_path / "runs"))
    asked = [f"{kind}{tmp_path}/elsewhere/a.json" for kind in ("", "arc:")] + [
        f"arc:{tmp_path}/runs/../elsewhere/a.json"
    ]
    for name in asked:
        assert api.get_example(name)["answer"] == [[1]]
    monkeypatch.setenv("VDMREASON_PUBLIC", "1")
    for name in asked:
        with pytest.raises(UserError, match="public page"):
            api.get_example(name)
    with pytest.raises(UserError, match="public page"):
        api.list_tasks(f"arc:{tmp_path}")
    assert api.get_example(f"arc:{tmp_path}/runs/drawn/a.json")["answer"] == [[1]]  # one that was drawn here
