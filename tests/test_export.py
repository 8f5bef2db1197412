"""Export and back: what is read from the folder is what the task gave, and a stopped export goes on."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import tasks
from tasks.base import UserError
from tasks.render import STYLES, read
from tasks.text import parse
from vdmreason import __main__ as cli
from vdmreason import export, store

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (pip install pyarrow)")


@pytest.mark.parametrize("name", ["maze/7x7", "langton/3", "arc1/evaluation/00576224"])
def test_there_and_back(name, tmp_path):
    sizes = {"train": tasks.count(name, "train") or 5, "test": tasks.count(name, "test") or 3}
    export.export(name, tmp_path / "out", sizes["train"], sizes["test"], seed=0, mode="trajectory")
    for split, count in sizes.items():
        (path,) = (tmp_path / "out" / "data").glob(f"{split}-*.parquet")
        rows = parquet.read_table(path).to_pylist()
        for row, example in zip(rows, tasks.examples(name, split, count), strict=True):
            assert np.array_equal(row["question"], example.question) and np.array_equal(row["answer"], example.answer)
            assert np.array_equal(parse(row["answer_json"]), example.answer) and row["key"] == example.key
            picture = np.asarray(Image.open(io.BytesIO(row["answer_image"]["bytes"])))
            assert np.array_equal(read(picture, STYLES["video-16"]).grid, example.answer)
            clip = store.read_clip(tmp_path / "out" / row["clip"])
            assert len(clip) == 9 and np.array_equal(clip[-1], picture)
            assert json.loads(row["facts"]).keys() == dict(example.facts).keys()


def test_the_pictures_are_pictures_to_the_datasets_library(tmp_path):
    export.export("eca/110", tmp_path / "out", 2, 1, clips=False)
    (path,) = (tmp_path / "out" / "data").glob("train-*.parquet")
    features = json.loads(parquet.read_schema(path).metadata[b"huggingface"])["info"]["features"]
    assert features == {name: {"_type": "Image"} for name in ("question_image", "answer_image")}
    assert not (tmp_path / "out" / "clips").exists()
    head = (tmp_path / "out" / "README.md").read_text().split("---")[1]
    assert "data/train-*.parquet" in head and "data/test-*.parquet" in head


def test_a_stopped_export_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD", 4)
    whole = export.export("eca/30", tmp_path / "whole", 10, 3, clips=False)
    written, real = [], export._write

    def stops(rows, path):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        real(rows, path)

    monkeypatch.setattr(export, "_write", stops)
    with pytest.raises(KeyboardInterrupt):
        export.export("eca/30", tmp_path / "part", 10, 3, clips=False)
    monkeypatch.setattr(export, "_write", lambda rows, path: (written.append(path.name), real(rows, path)))
    export.export("eca/30", tmp_path / "part", 10, 3, clips=False)
    names = sorted(p.name for p in (whole / "data").iterdir())
    assert sorted(written) == names and len(names) == 4  # each was written once
    for name in names:
        a, b = (parquet.read_table(tmp_path / place / "data" / name) for place in ("whole", "part"))
        assert a.equals(b)


def test_what_is_refused_leaves_no_folder_behind(tmp_path):
    with pytest.raises(UserError, match="has 2 train examples"):
        export.export("arc1/evaluation/00576224", tmp_path / "out", 9, 1)
    assert not (tmp_path / "out").exists()
    export.export("arc1/evaluation/00576224", tmp_path / "out", 2, 1, clips=False)


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("eca/30", (2, 0), "The two share no question, no symmetric twin of one included"),
        ("arc1/evaluation/00576224", (2, 1), ""),
    ],
)
def test_the_card_says_what_holds(name, sizes, words, tmp_path):
    """Splits that have files, and what the task itself knows of its twins."""
    card = (export.export(name, tmp_path / "out", *sizes, clips=False) / "README.md").read_text()
    for split, count in zip(("train", "test"), sizes, strict=True):
        assert (
            bool(list((tmp_path / "out" / "data").glob(f"{split}-*")))
            == (f"data/{split}-*.parquet" in card)
            == (count > 0)
        )
    assert words in card and ("share no question" in card) == bool(words)


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        export.export("eca/30", tmp_path / "mine", 2, 1)
    export.export("eca/30", tmp_path / "out", 2, 1, clips=False)
    with pytest.raises(UserError, match="another export \\(train differ\\)"):
        export.export("eca/30", tmp_path / "out", 3, 1, clips=False)


def test_command(tmp_path):
    result = CliRunner().invoke(
        cli.app, ["tasks", "export", "eca/30", "--out", str(tmp_path / "o"), "--n", "2", "--test", "1"]
    )
    assert result.exit_code == 0 and (tmp_path / "o" / "clips" / "train" / "000001.webp").exists()
    wrong = CliRunner().invoke(
        cli.app, ["tasks", "export", "eca/30", "--out", str(tmp_path / "p"), "--style", "video8"]
    )
    assert wrong.exit_code == 2 and "Did you mean 'video-8'" in wrong.output
