"""A clip leads from the question's picture to the answer's, and gives both back."""

import numpy as np
import pytest

import tasks
from tasks.base import UserError
from tasks.render import STYLES, paint, read
from tasks.transition import MODES, answer_frames, clip, ends

STYLE = STYLES["video-8"]


def pictures(name="maze/7x7"):
    example = tasks.examples(name, "train", 1)[0]
    frames = [
        paint(grid, STYLE, example.canvas)
        for grid in (example.frames if len(example.frames) else (example.question, example.answer))
    ]
    return example, frames


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frames", [2, 3, 8, 9, 17, 49])
@pytest.mark.parametrize("name", ["maze/7x7", "life/B3S23", "eca/110", "colour_moves/mirror"])
def test_there_and_back(mode, frames, name):
    example, (first, *middle, last) = pictures(name)
    made = clip(first, last, frames, mode, middle)
    assert made.dtype == np.uint8 and made.shape == (2 if mode == "image" else frames, *first.shape)
    assert all(np.array_equal(a, b) for a, b in zip(ends(made), (first, last), strict=True))
    assert np.array_equal(read(ends(made)[1], STYLE).grid, example.answer)
    shown = answer_frames(frames, mode)
    assert shown[-1] == len(made) - 1
    assert all(np.array_equal(made[f], last) for f in shown)
    assert not np.array_equal(made[0], last)


def test_discrete_is_four_and_five_frames_at_nine():
    _, (first, *_, last) = pictures()
    made = clip(first, last, 9, "discrete")
    assert [np.array_equal(frame, last) for frame in made] == [False] * 4 + [True] * 5
    assert answer_frames(9, "discrete") == range(4, 9)


def test_linear_is_a_cross_fade():
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8)
    made = clip(black, white, 5, "linear")
    assert made[:, 0, 0, 0].tolist() == [0, 50, 100, 150, 200]
    assert answer_frames(5, "linear") == range(4, 5)


@pytest.mark.parametrize(
    ("states", "frames", "shown"),
    [
        (2, 9, [0] * 4 + [1] * 5),  # the same as discrete
        (9, 9, list(range(9))),
        (3, 5, [0, 1, 1, 2, 2]),
        (8, 3, [0, 4, 7]),
        (5, 2, [0, 4]),
    ],
)
def test_a_trajectory_is_resampled_in_equal_steps(states, frames, shown):
    first, *middle, last = (np.full((8, 8, 3), 10 * i, np.uint8) for i in range(states))
    assert (clip(first, last, frames, "trajectory", middle)[:, 0, 0, 0] // 10).tolist() == shown


def test_image_is_the_condition_and_one_frame():
    _, (first, *_, last) = pictures()
    assert clip(first, last, 9, "image").shape[0] == 2 and answer_frames(9, "image") == range(1, 2)


def test_what_is_wrong_is_said():
    first = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="Did you mean 'discrete'"):
        clip(first, first, 9, "discret")
    with pytest.raises(UserError, match="at least 2 frames"):
        clip(first, first, 1, "linear")
    with pytest.raises(UserError, match="equally large"):
        clip(first, np.zeros((8, 16, 3), np.uint8), 9, "linear")
    with pytest.raises(UserError, match="at least 2 frames"):
        answer_frames(0, "discrete")
