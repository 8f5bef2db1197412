"""What is computed once and kept: never half, never from two hands at once, never with a byte changed."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tasks
from adapters import cogvideox, kept
from adapters.kept import Kept, content_of, key_of


def values(seed: int, n: int = 3) -> dict[str, dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return {f"{i + 10 * seed:032x}": {"mean": torch.randn(2, 3, generator=g), "n": torch.tensor(i)} for i in range(n)}


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(one[k][name], two[k][name]) for k in one for name in one[k].keys() | two[k].keys()
    )


def test_there_and_back(tmp_path: Path) -> None:
    made = values(0) | values(1)
    Kept(tmp_path).put(values(0))
    Kept(tmp_path).put(values(1))
    assert same(Kept(tmp_path).get([*made, "f" * 32]), made)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    Kept(tmp_path).put(values(0))  # the same content is the same file
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_what_is_not_asked_for_leaves_the_memory_alone(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    first, second = {"a1": {"x": torch.ones(2)}}, {"b2": {"x": torch.zeros(2)}}
    kept.put(first)
    with kept.only_what_is_asked():
        kept.put(second)
        kept.get(["b2"])
    assert set(kept.values) == {"b2"}
    assert torch.equal(kept.get(["a1"])["a1"]["x"], first["a1"]["x"])  # it is on the disk


def test_every_byte_is_watched(tmp_path: Path) -> None:
    """Whichever byte is changed, the shard is never used, goes away, and is made again."""
    made = values(0)
    for position in (0, 5, 40, -1, -9):
        Kept(tmp_path).put(made)
        (shard,) = tmp_path.glob("*.safetensors")
        content = bytearray(shard.read_bytes())
        content[position] ^= 1
        shard.write_bytes(content)
        found = Kept(tmp_path).get(made)
        if found:  # a byte of the header that says nothing of the content, such as padding
            assert same(found, made)
            shard.unlink()
            continue
        assert not shard.exists()
        again = Kept(tmp_path)
        again.put(made)
        assert same(Kept(tmp_path).get(made), made)
        next(tmp_path.glob("*.safetensors")).unlink()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_shard_that_was_cut_off_is_never_used(tmp_path: Path, share: float) -> None:
    Kept(tmp_path).put(values(0))
    (shard,) = tmp_path.glob("*.safetensors")
    content = shard.read_bytes()
    shard.write_bytes(content[: int(share * len(content))])
    assert not Kept(tmp_path).get(values(0)) and not shard.exists()


def test_killed_while_writing_leaves_nothing_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends between writing and naming: the file has no name that anybody reads, and is taken away in time."""

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kept.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Kept(tmp_path).put(values(0))
    monkeypatch.undo()
    (left,) = tmp_path.iterdir()
    assert not Kept(tmp_path).get(values(0)) and left.exists()  # it may still be somebody's
    os.utime(left, (time.time() - 2 * kept.FORGOTTEN,) * 2)
    assert not Kept(tmp_path).get(values(0)) and not left.exists()


def _write(folder: Path, number: int) -> None:
    for seed in range(20):
        Kept(folder).put(values(seed))


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, i)) for i in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    made = {k: v for seed in range(20) for k, v in values(seed).items()}
    assert same(Kept(tmp_path).get(made), made) and len(list(tmp_path.iterdir())) == 20


def test_a_folder_that_cannot_be_written_costs_time_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = Kept(tmp_path / "file")
    store.put(values(0))
    assert same(store.get(values(0)), values(0))


@given(st.lists(st.integers(), min_size=1, max_size=4), st.lists(st.integers(), min_size=1, max_size=4))
def test_keys_are_equal_for_equal_content_alone(one: list[int], two: list[int]) -> None:
    a, b = (np.array(x, dtype=np.float64) for x in (one, two))
    assert (key_of(a, "x") == key_of(b, "x")) == (a.shape == b.shape and a.tobytes() == b.tobytes())


def test_content_knows_shape_kind_and_name() -> None:
    x = torch.arange(6.0)
    others = [{"a": x.reshape(2, 3)}, {"a": x.double()}, {"b": x}, {"a": x, "b": x}, {"a": -x}]
    assert len({content_of(v) for v in [{"a": x}, *others]}) == 6


# In use: the latents of the video arm


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VDMREASON_CACHE", str(tmp_path))
    return tmp_path


def arm(**options: object) -> cogvideox.CogVideoX:
    return cogvideox.load(cogvideox.FLAVOURS["tiny"], cogvideox.Options(**options))  # type: ignore[arg-type]


def test_latents_are_encoded_once_and_a_changed_cache_changes_no_training(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = tasks.examples("life/B3S23", "train", 5)
    first = arm()
    samples = [first.frame(e) for e in examples]
    first.prepare(samples)
    batch = first.collate(samples, range(5))

    second = arm()
    monkeypatch.setattr(second, "_encoded", lambda frames: pytest.fail("encoded again"))
    assert all(torch.equal(v, batch[k]) for k, v in second.collate(samples, range(5)).items())

    shards = [p for p in cache.rglob("*.safetensors") if "latents" in p.parts]
    for shard in shards:
        content = bytearray(shard.read_bytes())
        content[-3] ^= 4
        shard.write_bytes(content)
    third = arm()
    assert all(torch.equal(v, batch[k]) for k, v in third.collate(samples, range(5)).items())


def test_a_vae_works_on_few_clips_at_once_and_says_the_same(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapters import clips

    ours = arm()
    frames = np.random.default_rng(0).integers(0, 256, (5, 9, 64, 64, 3), dtype=np.uint8)
    sizes: list[int] = []
    posterior = ours.posterior
    monkeypatch.setattr(ours, "posterior", lambda video: sizes.append(len(video)) or posterior(video))
    whole = ours.encode(frames)
    monkeypatch.setattr(clips, "VOXELS", 2 * 9 * 64 * 64)
    z = ours.encode(frames)
    assert sizes == [5, 2, 2, 2 if torch.get_num_threads() == 1 else 1]  # one is doubled (two_at_least)
    assert torch.allclose(z, whole, atol=1e-4)
    monkeypatch.undo()
    both = ours.decode(whole)
    monkeypatch.setattr(clips, "VOXELS", 1)
    assert np.abs(ours.decode(whole).astype(int) - both.astype(int)).max() <= 1
    assert clips.parts(7, 1) == [slice(i, i + 1) for i in range(7)] and clips.parts(0, 9) == []


def test_another_vae_finds_nothing_of_the_first(cache: Path) -> None:
    one, two = arm(), arm()
    with torch.no_grad():
        next(two.vae.parameters()).add_(0.01)
    assert one._kept.folder != two._kept.folder


def test_the_posterior_can_be_drawn_anew(cache: Path) -> None:
    """Mean and variance are kept, so each seed draws its own latents; the mode is the mean of them."""
    mode, drawn = arm(), arm(posterior="sample")
    sample = mode.frame(tasks.examples("life/B3S23", "train", 1)[0])
    z = mode.collate([sample], [0])["z"]
    many = torch.cat([drawn.collate([sample], [seed])["z"] for seed in range(64)])
    assert not torch.equal(many[0], many[1])
    spread = many.std(0, keepdim=True)
    assert ((many.mean(0, keepdim=True) - z).abs() <= 5 * spread / 8 + 1e-6).all()
