"""Real video: what is read is what was written, every set is found, and a broken file is named and costs nothing else."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import struct
import tarfile
import time
from pathlib import Path
from typing import Any

import gradio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pretrain import video
from pretrain.data import clip

av = pytest.importorskip("av")
SHIPPED = Path(gradio.__file__).parent / "media_assets" / "videos"  # real clips that a library of ours brings along


def write(path: Path, frames: np.ndarray, rate: int = 8, codec: str = "libx264", faststart: bool = False) -> Path:
    """uint8 (F, H, W, 3) to a video file."""
    options = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "4"} if codec == "libx264" else {}
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def counted(frames: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """A video whose frame k has brightness 8 k."""
    return np.broadcast_to((8 * np.arange(frames, dtype=np.uint8))[:, None, None, None], (frames, *size, 3))


def numbers(frames: np.ndarray) -> list[int]:
    return np.rint(frames.astype(float).mean((1, 2, 3)) / 8).astype(int).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole files, some of our own and some that a library ships, one level down too, and four kinds of broken ones."""
    root = tmp_path_factory.mktemp("videos")
    (root / "more").mkdir()
    for i in range(5):
        write(root / "more" / f"clip {i}.mp4", clip(i, 0, 24, (48, 64)).frames)
    for name in ("a.mp4", "world.mp4", "b.avi"):
        (root / name).write_bytes((SHIPPED / name).read_bytes())
    whole = write(root / "counted.mp4", counted(24)).read_bytes()
    (root / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    noisy = np.random.default_rng(0).integers(0, 255, (60, 48, 48, 3), dtype=np.uint8)
    early = write(root / "early.mp4", noisy, rate=10, faststart=True).read_bytes()
    (root / "early.mp4").write_bytes(early[: len(early) // 3])  # its header says 6 s, its data end after 2
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.mp4").write_text("this is no video\n" * 100)
    (root / "notes.txt").write_text("not looked at")
    return root


# Reading


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov"])
def test_frames_are_the_ones_asked_for(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"v{suffix}", counted(30), rate=10, codec="mpeg4" if suffix == ".avi" else "libx264")
    assert video.duration(str(path)) == pytest.approx(3.0, abs=0.11)
    assert numbers(video.read_clip(str(path), [0.0, 0.5, 1.0])) == [0, 5, 10]
    assert numbers(video.read_clip(str(path), [2.05, 2.15, 2.95])) == [20, 21, 29]  # starts in the middle
    assert numbers(video.read_clip(str(path), [1.0, 1.0, 1.01, 1.19])) == [10, 10, 10, 11]  # the picture shown then


@pytest.fixture(scope="module")
def three_seconds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("counted") / "v.mp4", counted(30), rate=10)


@settings(max_examples=15, deadline=None)
@given(times=st.lists(st.floats(0, 2.9), min_size=1, max_size=6))
def test_any_times_are_read_as_if_decoded_from_the_start(three_seconds: Path, times: list[float]) -> None:
    times = sorted(times)
    seen = numbers(video.read_clip(str(three_seconds), times))
    for shown, at in zip(seen, times, strict=True):
        assert abs(shown - at * 10) <= 1.001 and (shown == int(at * 10 + 1e-3) or at * 10 % 1 < 2e-3)


def test_a_file_that_ends_early_is_not_a_whole_one(tmp_path: Path) -> None:
    """The header promises three seconds and the data end before: no silent repetition of the last frame."""
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 255, (60, 64, 64, 3), dtype=np.uint8)
    data = write(tmp_path / "v.mp4", noisy, rate=20, faststart=True).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 6 // 10])
    video.read_clip(str(tmp_path / "cut.mp4"), [0.0, 0.5])
    with pytest.raises(video.Unreadable):
        video.read_clip(str(tmp_path / "cut.mp4"), [0.0, 2.5])


@pytest.mark.parametrize("tagged", [True, False])
def test_sound_that_goes_on_is_no_part_of_the_video(tmp_path: Path, tagged: bool) -> None:
    """Matroska has no length of a stream, but a tag; and where that is missing the video's own packets."""
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream, sound = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=16000, layout="mono")
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for picture in counted(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 56_000), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 16000, 0
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    if not tagged:
        path.write_bytes(path.read_bytes().replace(b"DURATION", b"UNTAGGED"))
    with av.open(str(path)) as container:
        assert container.duration > 3.4e6 and ("DURATION" in container.streams.video[0].metadata) == tagged
    assert video.duration(str(path)) == pytest.approx(3.0)
    for seed in range(10):
        times = video.sample_times(np.random.default_rng(seed), video.duration(str(path)), 8, 4.0, "sparse")
        assert numbers(video.read_clip(str(path), times)) == [int(10 * t) for t in times]


def test_a_last_frame_is_shown_as_long_as_it_says(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((32, 48, 3), 8 * k, np.uint8)) for k in range(7)]
    path = tmp_path / "v.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100] * 6 + [2000])
    assert video.duration(str(path)) == pytest.approx(2.6)
    assert numbers(video.read_clip(str(path), [0.05, 0.55, 0.7, 1.5, 2.55])) == [0, 5, 6, 6, 6]
    assert numbers(video.read_clip(str(path), [2.0])) == [6]
    with pytest.raises(video.Unreadable):
        video.read_clip(str(path), [0.0, 3.5])


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("v.mp4", "libx265", {"x265-params": "open-gop=1:keyint=10:min-keyint=10:bframes=4:log-level=none"}),
        ("v.mov", "mpeg4", {"bf": "2", "g": "10"}),
        ("v.avi", "mpeg4", {"bf": "2", "g": "10"}),
    ],
)
def test_a_seek_does_not_land_past_the_time(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    """Key frames that are shown after frames which lie behind them in the file: each frame by itself is the one that is found
    when all are decoded."""
    pictures = np.random.default_rng(0).integers(0, 255, (30, 4, 4, 3), dtype=np.uint8)  # each another
    pictures = pictures.repeat(16, 1).repeat(16, 2)
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.options = 64, 64, "yuv420p", options
        if codec == "mpeg4":
            stream.codec_context.max_b_frames, stream.codec_context.gop_size = 2, 10
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(tmp_path / name)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(whole) == 30
    for k in range(30):
        shown = video.read_clip(str(tmp_path / name), [(k + 0.5) / 10])[0]
        assert np.array_equal(shown, whole[k]), k


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_what_a_phone_wrote_lying_stands(tmp_path: Path, turns: int) -> None:
    """The display matrix of an mp4, written by hand: it says where a pixel (x, y) is shown. A bright corner tells."""
    marked = np.zeros((4, 32, 48, 3), np.uint8)
    marked[:, :16, :16] = 255  # top left, as stored
    path = write(tmp_path / "v.mp4", marked)
    content = bytearray(path.read_bytes())
    a, b, c, d = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)][turns]  # quarter turns, clockwise
    place = content.index(b"tkhd") + 4 + 40
    content[place : place + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    shown = video.read_clip(str(path), [0.1])[0].mean(-1)
    assert shown.shape == ((48, 32) if turns % 2 else (32, 48))
    corners = [shown[:8, :8], shown[:8, -8:], shown[-8:, -8:], shown[-8:, :8]]  # clockwise from the top left
    assert np.argmax([corner.mean() for corner in corners]) == turns


@pytest.mark.parametrize("name", ["truncated.mp4", "empty.mp4", "text.mp4"])
def test_broken_files_say_why(folder: Path, name: str) -> None:
    for call in (lambda p: video.duration(p), lambda p: video.read_clip(p, [0.0])):
        with pytest.raises(video.Unreadable) as error:
            call(str(folder / name))
        assert str(error.value) and "\n" not in str(error.value)


# Sampling


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.floats(0.05, 100),
    frames=st.integers(1, 64),
    fps=st.floats(0.5, 60),
    sampling=st.sampled_from(["dense", "sparse"]),
    seed=st.integers(0, 99),
)
def test_times_lie_in_the_video(seconds: float, frames: int, fps: float, sampling: str, seed: int) -> None:
    times = video.sample_times(np.random.default_rng(seed), seconds, frames, fps, sampling)  # type: ignore[arg-type]
    assert len(times) == frames and all(0 <= t < seconds for t in times) and times == sorted(times)
    if sampling == "dense" and frames > 1:
        assert np.allclose(np.diff(times), min(1 / fps, seconds * 0.999 / frames))
    if sampling == "sparse":  # one in each part
        assert all(k - 1e-6 <= t / seconds * frames < k + 1 + 1e-6 for k, t in enumerate(times))


@pytest.mark.parametrize("size", [(20, 90), (90, 20), (33, 33)])
def test_crops_are_squares(size: tuple[int, int]) -> None:
    frames = counted(3, size)
    for rng in (None, np.random.default_rng(0)):
        made = video.cropped(frames, 24, rng)
        assert made.shape == (3, 24, 24, 3) and numbers(made) == [0, 1, 2]


# Finding


def test_a_folder_a_list_and_shards_hold_the_same(folder: Path, tmp_path: Path) -> None:
    found = video.sources(folder)
    assert [s.name for s in found] == sorted(s.name for s in found) and len(found) == 13
    assert not any("notes" in s.name for s in found)

    lines = ["# a comment", "", *(f"{s.name} {i}" for i, s in enumerate(found)), "counted.mp4"]
    (folder / "list.csv").write_text("\n".join(lines))
    listed = video.sources(folder / "list.csv")
    assert [(s.name, s.label) for s in listed] == [*((s.name, i) for i, s in enumerate(found)), ("counted.mp4", None)]
    commas = folder / "commas.csv"
    commas.write_text("\n".join(f'"{s.name}",{i}' for i, s in enumerate(found)))
    assert [(s.path, s.label) for s in video.sources(commas)] == [(s.path, s.label) for s in listed[:-1]]
    tabs = folder / "tabs.txt"
    tabs.write_text("\ufeff" + "\n".join(f"{s.name}\t{i}" for i, s in enumerate(found)), encoding="utf-8")
    assert [(s.path, s.label) for s in video.sources(tabs)] == [(s.path, s.label) for s in listed[:-1]]
    for path in (folder / "list.csv", commas, tabs):
        path.unlink()

    for shard in range(2):
        with tarfile.open(tmp_path / f"set-{shard:03d}.tar", "w") as tar:
            for i, source in enumerate(found[shard::2]):
                tar.add(source.path, f"{i:06d}.mp4")
                label = str(i).encode() if shard else json.dumps({"label": i}).encode()
                info = tarfile.TarInfo(f"{i:06d}.{'cls' if shard else 'json'}")
                info.size = len(label)
                tar.addfile(info, io.BytesIO(label))
    for where in (tmp_path, str(tmp_path / "set-{000..001}.tar"), str(tmp_path / "*.tar")):
        shards = video.sources(where)
        assert len(shards) == 13 and [s.label for s in shards] == [*range(7), *range(6)]
    for source, original in zip(shards, found[0::2] + found[1::2], strict=True):
        opened = video._opened(source)
        assert not isinstance(opened, str) and opened.read() == Path(original.path).read_bytes()

    one, other = (video.Videos(w, 4, 16, seed=3, augment=False, most_bad=0.5) for w in (tmp_path, tmp_path / "*.tar"))
    assert np.array_equal(one.clip(5), other.clip(5))


def test_shards_that_lie_elsewhere(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address is fetched once, kept, and the oldest copies make room."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for shard in range(3):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            tar.add(folder / "counted.mp4", "000.mp4")
    address = f"file://{tmp_path}/{{0..2}}.tar"
    videos = video.Videos(address, 3, 16, augment=False)
    kept = tmp_path / "cache" / "vdmreason" / "shards"
    assert len(videos.sources) == 3 and not list(kept.glob("*.tar"))  # to list them no shard is fetched
    assert videos.clip(0).shape == (3, 16, 16, 3) and len(list(kept.glob("*.tar"))) == 1
    fetched = []
    monkeypatch.setattr(video, "_far", lambda path: fetched.append(path) or open(path.removeprefix("file://"), "rb"))
    together = videos.clips([*range(3)] * 4)  # by threads
    assert together.shape == (12, 3, 16, 16, 3) and len(list(kept.glob("*.tar"))) == 3
    assert len(fetched) == len(set(fetched)) == 2
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert all(np.array_equal(together[i], videos.clip(i % 3)) for i in range(12))
    (tmp_path / "9.tar").write_bytes((tmp_path / "0.tar").read_bytes())
    video.local(f"file://{tmp_path}/9.tar", keep=2)
    assert len(list(kept.glob("*.tar"))) == 2
    for shard in range(3):
        (tmp_path / f"{shard}.tar").unlink()
    assert len(video.sources(address)) == 3  # listed once
    with pytest.raises(video.BadData, match="cannot be read"):
        gone = video.Videos(address, 3, 16, augment=False, most_bad=0)
        for i in range(3):
            gone.clip(i)


def fetched_by(address: str, ledger: str) -> None:
    """What a process of many does: it wants the shard, and says when it fetches it."""

    def far(path: str) -> Any:
        with open(ledger, "a") as file:
            file.write(f"{path}\n")
        time.sleep(0.2)
        return open(path.removeprefix("file://"), "rb")

    video._far = far
    video.local(address)


def test_a_damaged_beginning_costs_only_the_beginning(tmp_path: Path) -> None:
    """What lies behind the next key frame can be read all the same."""
    whole = write(tmp_path / "whole.mp4", counted(30), rate=10, codec="mpeg4")
    data = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    second = [p for p in packets if p.is_keyframe][1]
    for packet in packets:
        if packet.dts < second.dts:
            data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    (tmp_path / "x.mp4").write_bytes(data)
    times = [float(second.pts * second.time_base) + 0.05, 2.85]
    assert numbers(video.read_clip(str(tmp_path / "x.mp4"), times)) == numbers(video.read_clip(str(whole), times))


def test_processes_share_the_shards(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One fetches for all; what was killed half way is removed; a copy that another takes away is fetched again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(folder / "counted.mp4", "000.mp4")
    address, kept = f"file://{tmp_path}/0.tar", tmp_path / "cache" / "vdmreason" / "shards"
    kept.mkdir(parents=True)
    for name, when in (("aa.part", 1), ("bb.part", time.time())):
        (kept / name).write_text("half")
        os.utime(kept / name, (when, when))
    forks = multiprocessing.get_context("fork")
    each = [forks.Process(target=fetched_by, args=(address, str(tmp_path / "ledger"))) for _ in range(3)]
    for process in each:
        process.start()
    for process in each:
        process.join(30)
    assert [process.exitcode for process in each] == [0, 0, 0]
    assert len((tmp_path / "ledger").read_text().splitlines()) == 1
    assert {p.name for p in kept.glob("*.part")} == {"bb.part"}  # another process is at it
    assert {p.suffix for p in kept.iterdir()} - {".lock"} == {".tar", ".part"}

    (source,) = video.sources(address)
    local = video.local

    def taken(path: str) -> str:
        place = local(path)
        monkeypatch.setattr(video, "local", local)
        os.unlink(place)
        return place

    monkeypatch.setattr(video, "local", taken)
    found = video._opened(source)
    assert not isinstance(found, str) and found.read() == (folder / "counted.mp4").read_bytes()
    (tmp_path / "0.tar").unlink()
    os.unlink(local(address))
    with pytest.raises(video.Unreadable):
        video._opened(source)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p / "missing", "no such file or folder"),
        (lambda p: p, "no videos here"),
        (lambda p: p / "list.csv", "line 2: the label 'cat' is not a whole number"),
        (lambda p: p / "bad.tar", "not a readable tar shard"),
    ],
)
def test_what_cannot_be_found_is_one_line(tmp_path: Path, make, said: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "list.csv").write_text("a.mp4 1\nb.mp4,cat\n")
    if make(tmp_path).name == "bad.tar":
        (tmp_path / "bad.tar").write_text("no")
    with pytest.raises(video.BadData, match=said) as error:
        video.sources(make(tmp_path))
    assert "\n" not in str(error.value)


# Clips without end


def test_a_clip_is_a_function_of_its_number(folder: Path) -> None:
    one, two = (video.Videos(folder, 4, 32, seed=1, most_bad=0.5) for _ in range(2))
    backwards = {i: two.clip(i) for i in reversed(range(40))}  # whatever was met before
    for i in range(40):
        assert np.array_equal(one.clip(i), backwards[i])
    assert one.clip(0, 6).shape == (6, 32, 32, 3)


def test_every_video_once_an_epoch(folder: Path) -> None:
    videos = video.Videos(folder, 4, 32)
    first, second = ([videos.order(e * 13 + k) for k in range(13)] for e in range(2))
    assert sorted(first) == sorted(second) == list(range(13)) and first != second


def test_broken_files_are_named_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = video.Videos(folder, 4, 32, most_bad=0.5)
    for i in range(60):
        assert videos.clip(i).shape == (4, 32, 32, 3)
    assert set(videos.bad) == {"truncated.mp4", "empty.mp4", "text.mp4", "early.mp4"}
    assert videos.bad["empty.mp4"] == "it is empty" and all(videos.bad.values())
    said = capsys.readouterr().out
    assert all(said.count(name) == 1 for name in videos.bad)


def test_too_many_broken_files_stop_the_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(video.BadData, match="1 of 13 videos cannot be read"):
        strict = video.Videos(folder, 4, 32, most_bad=0)
        for i in range(13):
            strict.clip(i)
    for i in range(5):
        (tmp_path / f"{i}.mp4").write_text("no")
    with pytest.raises(video.BadData, match=r"4 of 5 videos cannot be read.*--most-bad"):
        video.Videos(tmp_path, 4, 32).clip(0)
