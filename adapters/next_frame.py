"""What backbones of our own share at the exam: the answer is what comes after the question, hidden and then drawn.

The clip is the question's picture for `context` frames, then the answer's for `answer` frames. A family says what its model
is and how it is loaded, and the model how what follows is learnt and drawn (`Backbone`). Training teaches what pretraining
taught, for those frames: nothing of the question is hidden, all of the answer is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from adapters.base import (
    Answer,
    Arm,
    Cancelled,
    Flavour,
    Lazy,
    Sample,
    Watch,
    load_errors,
    sample_generator,
    sampled_answers,
)
from adapters.pictures import Question, answer_picture, question, style_of
from tasks.base import Example, UserError, suggest
from tasks.render import STYLES, NotAPuzzle, read

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Lazy("torch")

SMALL = {"optim.lr": 3e-3, "optim.schedule": "cosine"}  # what our small backbones adapt with


class Backbone(Protocol):
    """A model that goes on with a clip. Videos are (B, 3, F, H, W) in -1..1, a "slice" is a tubelet of them."""

    config: Any  # with patch, tubelet

    def grid(self, video: Tensor) -> tuple[int, int, int]:
        """Tokens along t, y and x."""

    def encoded(self, video: Tensor) -> Tensor:
        """What the decoder draws, exactly: (B, N, channels)."""

    def decoded(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """The way back: (B, 3, F, H, W)."""

    def times(self, grid: tuple[int, int, int]) -> int:
        """How many times of the noise a sample has for what follows, a grid of slices."""

    def shifted(self, uniform: Tensor, shift: float) -> Tensor:
        """Uniform numbers in 0..1 -> times of the noise, drawn towards it by `shift`."""

    def ahead_loss(self, known: Tensor, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Pretraining's own loss for what follows `known`: `clean` and `noise` (B, M, channels), `time` (B, times)."""

    def ahead(self, known: Tensor, noise: Tensor, steps: int, watch: Any = None) -> Tensor:
        """Draw what follows from `noise` (B, M, channels): likewise."""


@dataclass(frozen=True)
class Options:
    """How the puzzle becomes a clip and what follows an answer."""

    context: int = 4  # frames that show the question; like `answer` a multiple of the backbone's tubelet
    answer: int = 2  # frames that show the answer; it is read from their mean
    style: str = "video-8"  # how a grid is drawn; video-8 puts one cell on one token of the small backbones
    pixels: int = 0  # >0: enlarge cells in whole tokens until the longer side comes nearest to this
    canvas: tuple[int, int] | None = None  # a fixed picture size in cells
    shift: float = 10.0  # training times: 1 uniform, above 1 drawn towards noise, where the answer has to be thought of
    steps: int = 8  # of the sampler
    batch: int = 16  # answers drawn at once

    asked: ClassVar[tuple[str, ...]] = ("steps", "batch")  # no part of training: may change after it

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise UserError(f"Unknown style '{self.style}'.{suggest(self.style, STYLES)} One of: {', '.join(STYLES)}.")
        for name in ("context", "answer", "steps", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: give at least 1.")
        if self.shift <= 0:
            raise UserError(f"shift = {self.shift}: give a number above 0; 1 draws times uniformly.")


def frame(example: Example, options: Options) -> Sample:
    """`given`: the question's picture. `wanted`: the clip uint8 (context + answer, H, W, 3) that ends with the answer, or None
    where the answer is larger than the picture."""
    given = question(example, options)
    last = answer_picture(example, given, options)
    wanted = None if last is None else np.stack([given.picture] * options.context + [last] * options.answer)
    return Sample(given, wanted, example.key)


def ready(
    flavour: Flavour,
    options: Options,
    made: Callable[[bool], Any],
    unused: Sequence[str],
    draw: Callable[[Any], None],
    *,
    codec: Callable[[Any], Sequence[str]] | None = None,
    init: str,
    seed: int,
    device: str,
    dtype: str,
) -> NextFrameArm:
    """A family's arm. `made(random)` gives its model, from the flavour's folder where it has one; the parts `unused` are
    pretraining's alone; `draw` gives it random weights, where `init` or the flavour wants them, from `seed`. What `codec` names
    stays as it was trained, like CogVideoX's VAE: what the answer is written with is no part of the control."""
    random = init != "pretrained" or not flavour.base
    with load_errors(flavour.base), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = made(random)
        for part in unused:
            setattr(model, part, None)
        if random:
            draw(model)
        if random and flavour.base and codec is not None:
            trained = made(False)
            for part in codec(trained):
                model.get_submodule(part).load_state_dict(trained.get_submodule(part).state_dict())
    return NextFrameArm(checked(model, options).to(device, getattr(torch, dtype)), options)


def checked(model: Any, options: Options) -> Any:
    """The model, if the options fit it."""
    config = model.config
    for name in ("context", "answer"):
        if getattr(options, name) % config.tubelet:
            raise UserError(
                f"{name} = {getattr(options, name)}: give a multiple of the backbone's tubelet, {config.tubelet}."
            )
    try:
        model.times((options.answer // config.tubelet, 1, 1))
    except ValueError as error:
        raise UserError(f"answer = {options.answer}: {error}.") from error
    cell = STYLES[options.style].cell
    if cell % config.patch:  # `pixels` enlarges them by whole numbers
        fit = [name for name, style in STYLES.items() if style.cell % config.patch == 0]
        raise UserError(
            f"style = {options.style}: its cells of {cell} px are not whole patches of {config.patch} px. "
            + (f"These are: {', '.join(fit)}." if fit else f"Pretrain one with a patch of {cell}.")
        )
    return model


def redraw(model: Any) -> None:
    """Random weights that a LoRA can work with: every layer keeps the scale of what goes in (see `adapters.cogvideox.draw`).
    Gates are the family's to open."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)


class NextFrameArm(Arm):
    layout = "peft"
    targets: Mapping[str, Sequence[str]] = {
        # ours, and a ModernBERT's where the predictor is one
        "attention": ("attention.q", "attention.kv", "attention.out", "attn.Wqkv", "attn.Wo"),
        "mlp": ("fc1", "fc2", "mlp.Wi", "mlp.Wo"),
    }

    def __init__(self, model: Any, options: Options) -> None:
        self.model, self.options = model, options

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def conventions(self) -> dict[str, Any]:
        return {"context": self.options.context, "answer": self.options.answer, "style": self.options.style}

    def frame(self, example: Example) -> Sample:
        return frame(example, self.options)

    # Pictures and clips

    def pixels(self, frames: np.ndarray) -> Tensor:
        """uint8 (B, F, H, W, 3) -> (B, 3, F, H, W) in -1..1."""
        video = torch.from_numpy(frames).to(self.device).permute(0, 4, 1, 2, 3)
        return (video.float() / 127.5 - 1).to(next(self.model.parameters()).dtype)

    def asked(self, pictures: Tensor) -> Tensor:
        """The question as a clip (B, 3, context, H, W), from pictures (B, 3, 1, H, W)."""
        return pictures.expand(-1, -1, self.options.context, -1, -1)

    def grid(self, pictures: Tensor) -> tuple[int, int, int]:
        """The tokens of the answer's frames, from the question's pictures (B, 3, 1, H, W)."""
        found: tuple[int, int, int] = self.model.grid(pictures.expand(-1, -1, self.options.answer, -1, -1))
        return found

    def drawn(self, tokens: Tensor, grid: tuple[int, int, int]) -> np.ndarray:
        """Tokens of the answer's frames -> uint8 (B, answer, H, W, 3)."""
        video = self.model.decoded(tokens, grid).float()
        frames: np.ndarray = ((video + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1).cpu().numpy()
        return frames

    def _whole(self, images: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """The question's frames, then those drawn: uint8 (B, F, H, W, 3)."""
        return np.concatenate([np.repeat(images[:, None], self.options.context, 1), drawn], 1)

    # The five verbs

    def collate(self, samples: Sequence[Sample], seeds: Sequence[int]) -> dict[str, Tensor]:
        """asked (B, 3, 1, H, W); clean, noise (B, M, channels) of the answer's frames; time (B, times)."""
        if any(sample.wanted is None for sample in samples):
            raise UserError("An example's answer is larger than the picture: this arm cannot be trained on it.")
        pictures = self.pixels(np.stack([s.given.picture for s in samples])[:, None])
        clean = self.model.encoded(self.pixels(np.stack([s.wanted[self.options.context :] for s in samples])))
        generators = [sample_generator(seed) for seed in seeds]
        count = self.model.times(self.grid(pictures))
        time = self.training_times(torch.stack([torch.rand(count, generator=g) for g in generators]))
        noise = torch.stack([torch.randn(clean.shape[1:], generator=g) for g in generators])
        batch = {"asked": pictures, "clean": clean, "noise": noise, "time": time}
        return {name: value.to(self.device) for name, value in batch.items()}

    def training_times(self, u: Tensor) -> Tensor:
        """Uniform u in 0..1 -> times, drawn towards noise."""
        times: Tensor = self.model.shifted(u, self.options.shift)
        return times

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Pretraining's own loss for the answer's frames, in fp32."""
        known, clean = self.asked(batch["asked"]), batch["clean"].float()
        loss: Tensor = self.model.ahead_loss(known, clean, batch["noise"], batch["time"])
        return loss

    def predict(self, givens: Sequence[Question], seeds: Sequence[int], watch: Watch | None = None) -> list[Answer]:
        """Draw what follows each question, noise from `seeds`, and read it. `watch` may see it form."""
        return sampled_answers(self, givens, seeds, self.options.batch, watch)

    def sample(self, images: np.ndarray, seeds: Sequence[int], watch: Watch | None = None) -> np.ndarray:
        """uint8 pictures (B, H, W, 3) -> uint8 clips (B, context + answer, H, W, 3)."""
        pictures = self.pixels(images[:, None])
        grid = self.grid(pictures)
        shape = self.model.encoded(pictures[:1].expand(-1, -1, self.options.answer, -1, -1)).shape[1:]
        noise = torch.stack([torch.randn(shape, generator=sample_generator(s)) for s in seeds])

        def seen(step: int, steps: int, clean: Tensor) -> None:
            if watch and watch(step, steps, lambda: self._whole(images, self.drawn(clean, grid))) is False:
                raise Cancelled("Cancelled.")

        with torch.no_grad():
            tokens = self.model.ahead(self.asked(pictures), noise.to(self.device), self.options.steps, seen)
        return self._whole(images, self.drawn(tokens, grid))

    def answer(self, frames: np.ndarray, asked: Question) -> Answer:
        """Read the answer from the mean of the frames behind the question's, uint8 (F, H, W, 3)."""
        picture = frames[self.options.context :].mean(0).round().astype(np.uint8)
        try:
            reading = read(picture, style_of(self.options, asked.canvas))
        except NotAPuzzle as error:
            return Answer(None, frames, problem=str(error))
        return Answer(reading.grid, frames, reading.certainty)

    def codec(self, samples: Sequence[Sample]) -> list[Answer]:
        """The true answer through the target's encoding and back, read."""
        answers = []
        for sample in samples:
            if sample.wanted is None:
                answers.append(
                    Answer(None, sample.given.picture[None], problem="the answer is larger than the picture")
                )
                continue
            last = self.pixels(sample.wanted[None, self.options.context :])
            drawn = self.drawn(self.model.encoded(last), self.model.grid(last))
            answers.append(self.answer(self._whole(sample.given.picture[None], drawn)[0], sample.given))
        return answers
