"""What the Library shows and takes: rows from folders, cards of strangers, uploads, names on the hub, runs side by side."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from fixture_runs import make_run, make_runs

from tasks.base import UserError
from vdmreason import library, store, trash
from vdmreason.ui import public, shelf

ZOO = Path(__file__).resolve().parent.parent / "adapters" / "zoo"
SHIPPED = ZOO / "maze-7x7--causal_lm--n300"
pytestmark = pytest.mark.skipif(not SHIPPED.is_dir(), reason="the shipped adapters are not in this checkout")


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "runs"
    root.mkdir()
    monkeypatch.setenv("VDMREASON_RUNS", str(root))
    monkeypatch.setenv("VDMREASON_ZOO", str(ZOO))
    monkeypatch.delenv("VDMREASON_PUBLIC", raising=False)
    return root


@pytest.fixture
def mine(runs: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, runs / "mine"))


def cells(key: str) -> dict[str, str]:
    known, _ = shelf.adapters_here()
    return next(row["cells"] for row in shelf.adapters_table(known, None)["rows"] if row["id"] == key)


def test_a_row_says_what_is_on_the_disk(mine: Path) -> None:
    row, result = cells("runs/mine"), store.read_json(mine / "result.json")
    exact = result["scores"]["exact"]
    assert row["exact match"] == f"{100 * exact['value']:.0f} % [{100 * exact['low']:.0f}, {100 * exact['high']:.0f}]"
    assert row["sha"] == library.sha256(library.weights_of(mine))[:8]
    assert (row["family"], row["backbone"], row["task"], row["n"]) == ("causal_lm", "small", "maze/7x7", "300")
    assert row["source"] == "trained here" and cells(f"shipped/{SHIPPED.name}")["source"] == "shipped"


def test_where_it_comes_from(mine: Path) -> None:
    result = store.read_json(mine / "result.json")
    for changes, source in (
        ({"imported": "2026-01-01T00:00:00Z"}, "imported"),
        ({"imported": "2026-01-01T00:00:00Z", "origin": "me/x@" + "a" * 40}, "pulled"),
    ):
        store.write_json(mine / "result.json", result | {"provenance": result["provenance"] | changes})
        assert cells("runs/mine")["source"] == source


def test_a_damaged_folder_is_said_and_the_rest_is_shown(mine: Path, runs: Path) -> None:
    bad = Path(shutil.copytree(SHIPPED, runs / "bad"))
    (bad / "result.json").write_text("{")
    known, faults = shelf.adapters_here()
    assert "runs/mine" in known and "runs/bad" not in known
    assert len(faults) == 1 and "bad" in faults[0] and "damaged" in faults[0]


def test_what_was_removed_is_in_the_trash_alone(mine: Path) -> None:
    entry = trash.remove(mine)
    assert "runs/mine" not in shelf.adapters_here()[0] and not shelf.runs_here()[1]
    assert [row["id"] for row in shelf.trash_table()["rows"]] == [entry.name]


def test_a_strangers_card_is_text(mine: Path) -> None:
    (mine / "README.md").write_text(
        "---\nlicense: x\n---\n# Title\n\n<script>alert(1)</script> <img src=x onerror=alert(1)>\n\n"
        "![far](https://else.example/p.png) [run](javascript:alert(1)) [good](https://huggingface.co)\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    text = shelf.readme(mine)
    assert "<script" not in text and "<img" not in text and 'href="javascript' not in text and "license" not in text
    assert "&lt;script&gt;" in text and "<table>" in text and 'href="https://huggingface.co"' in text


def test_a_card_of_one_adapter(mine: Path) -> None:
    text = shelf.card(shelf.adapters_here()[0]["runs/mine"])
    made = store.read_json(mine / "result.json")["provenance"]
    for said in (made["data"], library.sha256(library.weights_of(mine)), made["command"], "torch 2", "<svg", "✓ right"):
        assert str(said) in text, said


# ---------------------------------------------------------------------------------------------------------------------
# In and out


def test_a_zip_goes_out_and_comes_back(mine: Path, runs: Path) -> None:
    kept = shelf.adapters_here()[0]["runs/mine"]
    out = shelf.pack(kept, False)
    assert out == shelf.pack(kept, False) and not [n for n in zipfile.ZipFile(out).namelist() if "predictions" in n]
    back = shelf.bring_in([str(out)], {})
    assert shelf.id_of(back) in shelf.adapters_here()[0] and cells(shelf.id_of(back))["sha"] == kept.sha[:8]
    with pytest.raises(UserError, match="is there already") as refused:
        shelf.bring_in([str(out)], {})
    assert "/tmp" not in str(refused.value)


def test_a_bare_lora_is_asked_for_what_it_lacks(tmp_path: Path, runs: Path) -> None:
    """Ours says in its header what it is for; without that, each missing word is named, and a wrong backbone refused."""
    from safetensors.numpy import load_file, save_file

    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copyfile(SHIPPED / "adapter" / name, tmp_path / name)
    weights, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    save_file(load_file(weights), tmp_path / "bare.safetensors")
    bare = [str(tmp_path / "bare.safetensors"), str(settings)]
    with pytest.raises(UserError, match="the family, the backbone, the task, n, the number of examples"):
        shelf.bring_in(bare, {})
    with pytest.raises(UserError, match="the task") as refused:
        shelf.bring_in(bare, shelf.given("causal_lm", "small", "", 300))
    assert "family" not in str(refused.value)
    with pytest.raises(UserError, match=r"adapter_config\.json: is missing"):
        shelf.bring_in(bare[:1], shelf.given("causal_lm", "small", "maze/7x7", 300))
    with pytest.raises(UserError, match="was made for another backbone"):
        shelf.bring_in(
            bare, shelf.given("causal_lm", "tiny", "maze/7x7", 300) | {"flavour": str(other_backbone(tmp_path))}
        )
    assert not store.find_runs(runs)
    place = shelf.bring_in(bare, shelf.given("causal_lm", "small", "maze/7x7", 300))
    assert store.read_config(place).task == "maze/7x7" and cells(shelf.id_of(place))["source"] == "imported"


def other_backbone(tmp_path: Path) -> Path:
    """A language backbone on this disk whose layers are of other sizes."""
    import numpy as np
    from safetensors.numpy import save_file

    folder = Path(shutil.copytree(ZOO.parents[1] / "pretrain" / "zoo" / "causal_lm", tmp_path / "other"))
    for path in folder.glob("*.safetensors"):
        path.unlink()
    names = library.read_lora(tmp_path / "adapter_model.safetensors").modules
    save_file({f"{name}.weight": np.zeros((3, 5), np.float32) for name in names}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.bin", b"\x80", "pickle"),
        ("a.pt", b"\x80", "pickle"),
        ("a.txt", b"", "is no adapter"),
        ("a.zip", b"PK", "is no zip"),
        ("a.safetensors", b"\0" * 20, "damaged or cut off"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path: Path, runs: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as refused:
        shelf.bring_in([str(tmp_path / name)], {})
    assert str(refused.value).startswith(name) and "\n" not in str(refused.value) and not list(runs.iterdir())


def test_uploads_are_few_and_small(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Choose a file first"):
        shelf.bring_in(None, {})
    with open(tmp_path / "big.zip", "wb") as file:
        file.truncate(shelf.UPLOAD + 1)
    with pytest.raises(UserError, match="larger than 20 MB"):
        shelf.bring_in([str(tmp_path / "big.zip")], {})
    with pytest.raises(UserError, match="one"):
        shelf.bring_in(["a.zip", "b.zip", "c.zip"], {})


def test_words_from_a_browser_are_checked(runs: Path) -> None:
    for fields in (("strange", "", "", None), ("causal_lm", "../../etc", "", None), ("", "", "maze/9x", None),
                   ("", "", "", -1), ("", "", "", 1.5), ("", "", "", True), ("", "", "", "many")):  # fmt: skip
        with pytest.raises(UserError):
            shelf.given(*fields)
    assert shelf.given("", None, "", None) == {}
    for name in ("", "x", "a/b/c", "/a", "a/..b c", "--out/x", "-n/3", "a/-b", "a/b@-x", "a/b; ls", "x" * 400, None):
        with pytest.raises(UserError, match="owner/name"):
            shelf.start_pull(name, {})
    assert not list(runs.iterdir())


def test_a_push_is_shown_first_and_wants_a_login(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = shelf.adapters_here()[0]["runs/mine"]
    shown = shelf.parcel(kept, "me/maze", False)
    assert "adapter_model.safetensors" in shown and "metrics" not in shown and "predictions.jsonl" not in shown
    assert "me/maze" in shown and "Training examples are never" in shown
    monkeypatch.setattr(library, "logged_in", lambda: False)
    with pytest.raises(UserError, match="hf auth login"):
        shelf.start_push(mine, "me/maze", True, False)


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def test_runs_of_every_kind(runs: Path) -> None:
    made = make_runs(runs)
    store.write_state(made["maze-cogvideox"], state="done", step=300, updates=300, pid=1, created=1.0)
    lost = made["maze-causal_lm"]
    store.write_state(lost, state="running", step=7, updates=100, pid=2**22, created=1.0)
    (runs / "strange").mkdir()
    (runs / "strange" / "state.json").write_text("{")
    places, rows, more = shelf.runs_here()
    states = {row["id"].partition("/")[2]: row["cells"]["state"] for row in rows}
    assert more == 0 and len(rows) == len(places) == 5
    assert states[made["maze-cogvideox"].name] == "done" and states[lost.name] == "lost"
    assert states[made["life-cogvideox"].name] == "recorded" and states["strange"] == "damaged"
    assert "of 6" in next(row["cells"]["result"] for row in rows if row["id"].endswith(made["life-cogvideox"].name))


def test_side_by_side_says_what_differs_and_no_more(runs: Path, mine: Path) -> None:
    other = make_run(runs, "maze/7x7", "causal_lm", [True, False], n=3, seed=1)
    text = shelf.side_by_side({"runs/mine": mine, f"runs/{other.name}": other})
    for key in ("seed", "n", "optim.updates", "flavour"):
        assert f'<th scope="row">{key}</th>' in text
    for key in ("task", "family", "lora.dropout"):
        assert f'<th scope="row">{key}</th>' not in text
    assert "exact match" in text and "<svg" in text and "No loss was recorded" in text
    assert "Their settings are the same" in shelf.side_by_side({"runs/mine": mine, "runs/again": mine})


def test_what_folders_say_is_escaped(runs: Path, mine: Path) -> None:
    result = store.read_json(mine / "result.json")
    evil = "<img src=x onerror=alert(1)>"
    result["provenance"] |= {"command": evil, "device": evil, "data": evil}
    store.write_json(mine / "result.json", result)
    moved = mine.rename(runs / "<b>bold<")
    assert "<img src=x" not in shelf.card(shelf.adapters_here()[0]["runs/<b>bold<"])
    text = shelf.side_by_side({"runs/<b>bold<": moved, "runs/x": SHIPPED})
    assert "<b>bold" not in text and "<img src=x" not in text


def test_a_public_page_names_no_folder(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDMREASON_PUBLIC", "1")
    (mine / "log.txt").write_text("secret")
    text = shelf.card(shelf.adapters_here()[0]["runs/mine"])
    assert str(mine.parent) not in text and "secret" not in public.log_of(mine)
    (mine / "result.json").write_text(json.dumps([1]))
    assert str(mine.parent) not in "".join(shelf.adapters_here()[1])
