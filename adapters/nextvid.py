"""NExT-Vid, our own backbone (`pretrain/nextvid.py`), sits the exam: the answer is the next frame after the question.

The clip is the question's picture, shown for `context` frames, then the answer's. The encoder reads the question, the
predictor says what the next frame is like, the decoder draws it from noise; LoRA is on all three. Training teaches what
pretraining taught, for that one frame: no mask, no alignment, all places asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

ARM = "video"
ZOO = Path(__file__).resolve().parents[1] / "pretrain" / "zoo" / "nextvid"

_SMALL = {"optim.lr": 3e-3, "optim.schedule": "cosine"}
FLAVOURS = {
    "small": Flavour(
        "small", str(ZOO), "ships with the project; pretrained by us on procedural video", 3_700_000, False, _SMALL
    ),
    "tiny": Flavour("tiny", "", "the real class with random weights, for tests", 70_000, False, _SMALL),
}


@dataclass(frozen=True)
class Options:
    """How the puzzle becomes a clip and the next frame an answer."""

    context: int = 4  # frames that show the question, a multiple of the backbone's tubelet
    style: str = "video-8"  # how a grid is drawn; video-8 puts one cell on one token of the small backbone
    pixels: int = 0  # >0: enlarge cells in whole tokens until the longer side comes nearest to this
    canvas: tuple[int, int] | None = None  # a fixed picture size in cells
    shift: float = 10.0  # training times: 1 uniform, above 1 drawn towards noise, where the answer has to be thought of
    steps: int = 8  # of Euler's method
    batch: int = 16  # answers drawn at once

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise UserError(f"Unknown style '{self.style}'.{suggest(self.style, STYLES)} One of: {', '.join(STYLES)}.")
        for name, value, least in (("context", self.context, 1), ("steps", self.steps, 1), ("batch", self.batch, 1)):
            if value < least:
                raise UserError(f"{name} = {value}: give at least {least}.")
        if self.shift <= 0:
            raise UserError(f"shift = {self.shift}: give a number above 0; 1 draws times uniformly.")


def frame(example: Example, options: Options) -> Sample:
    """`given`: the question's picture. `wanted`: the clip uint8 (context + 2, H, W, 3) that ends with the answer, or None
    where the answer is larger than the picture."""
    given = question(example, options)
    last = answer_picture(example, given, options)
    wanted = None if last is None else np.stack([given.picture] * options.context + [last] * 2)
    return Sample(given, wanted, example.key)


def load(
    flavour: Flavour,
    options: Options,
    *,
    init: str = "pretrained",
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> NextVidArm:
    """A folder that `vdmreason pretrain nextvid` wrote. `init="random"` draws its weights anew from `seed` (`draw`)."""
    from pretrain import nextvid

    random = init != "pretrained" or not flavour.base
    with load_errors(flavour.base), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if flavour.base:
            model = nextvid.load(flavour.base, random_weights=random)
        else:
            model = nextvid.NextVid(replace(nextvid.FLAVOURS["tiny"], patch=8))
        model.teacher = None  # alignment is pretraining's
        if random:
            draw(model)
    if options.context % model.config.tubelet:
        raise UserError(
            f"context = {options.context}: give a multiple of the backbone's tubelet, {model.config.tubelet}."
        )
    cell = STYLES[options.style].cell
    if cell % model.config.patch and not options.pixels:
        raise UserError(
            f"style = {options.style}: its cells of {cell} px are not whole patches of {model.config.patch} px."
        )
    return NextVidArm(model.to(device, getattr(torch, dtype)), options)


def draw(model: Any) -> None:
    """Random weights that a LoRA can work with: every layer keeps the scale of what goes in, every gate is open. Fresh
    weights have closed gates, which training opens and a LoRA on attention and mlp can't (see `adapters.cogvideox.draw`)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
            torch.nn.init.zeros_(module.bias)
    for block in model.decoder.blocks:
        gates = block.modulation.bias.data.chunk(6)  # shift, scale, gate, twice
        gates[2].fill_(1.0)
        gates[5].fill_(1.0)


class NextVidArm(Arm):
    layout = "peft"
    targets: Mapping[str, Sequence[str]] = {
        "attention": ("attention.q", "attention.kv", "attention.out"),
        "mlp": ("fc1", "fc2"),
    }

    def __init__(self, model: Any, options: Options) -> None:
        self.model, self.options = model, options

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def conventions(self) -> dict[str, Any]:
        return {"context": self.options.context, "style": self.options.style}

    def frame(self, example: Example) -> Sample:
        return frame(example, self.options)

    # Pixels and targets

    def pixels(self, frames: np.ndarray) -> Tensor:
        """uint8 (B, F, H, W, 3) -> (B, 3, F, H, W) in -1..1."""
        from pretrain.nextvid import to_pixels

        return to_pixels(torch.from_numpy(frames).to(self.device)).to(next(self.model.parameters()).dtype)

    def drawn(self, tokens: Tensor, grid: tuple[int, int]) -> np.ndarray:
        """Targets of one frame (B, rows * columns, channels) -> uint8 (B, 2, H, W, 3)."""
        from pretrain.nextvid import to_uint8

        frames: np.ndarray = to_uint8(self.model.target.decode(tokens, (1, *grid)).float()).cpu().numpy()
        return frames

    def asked(self, pictures: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The question as a clip (B, 3, context, H, W), from pictures (B, 3, 1, H, W), and the grid of a frame's tokens."""
        clip = pictures.expand(-1, -1, self.options.context, -1, -1)
        return clip, self.model.encoder.grid(clip)[1:]

    # The five verbs

    def collate(self, samples: Sequence[Sample], seeds: Sequence[int]) -> dict[str, Tensor]:
        """asked (B, 3, 1, H, W); clean, noise (B, S, channels) of the answer's frame; time (B, 1)."""
        if any(sample.wanted is None for sample in samples):
            raise UserError("An example's answer is larger than the picture: this arm cannot be trained on it.")
        tubelet = self.model.config.tubelet
        last = self.pixels(np.stack([np.stack([s.wanted[-1]] * tubelet) for s in samples]))
        clean = self.model.target.encode(last)
        generators = [sample_generator(seed) for seed in seeds]
        times = self.training_times(torch.cat([torch.rand(1, 1, generator=g) for g in generators]))
        noise = torch.stack([torch.randn(clean.shape[1:], generator=g) for g in generators])
        pictures = self.pixels(np.stack([s.given.picture for s in samples])[:, None])
        batch = {"asked": pictures, "clean": clean, "noise": noise, "time": times}
        return {name: value.to(self.device) for name, value in batch.items()}

    def training_times(self, u: Tensor) -> Tensor:
        """Uniform u in 0..1 -> times, shifted towards noise, which is at 0."""
        return replace(self.model.process, shift=self.options.shift).shifted(u).clamp(max=0.999)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The flow loss of the one frame (NExT-Vid eq. 8), in fp32."""
        clip, grid = self.asked(batch["asked"])
        z, at = self.model.next_latent(
            self.model.context(clip), grid, self.options.context // self.model.config.tubelet
        )
        loss: Tensor = self.model.flow_loss(batch["clean"].float(), z, at, batch["noise"], batch["time"], 1)
        return loss

    def predict(self, givens: Sequence[Question], seeds: Sequence[int], watch: Watch | None = None) -> list[Answer]:
        """Draw the next frame of each question, noise from `seeds`, and read it. `watch` may see it form."""
        return sampled_answers(self, givens, seeds, self.options.batch, watch)

    def sample(self, images: np.ndarray, seeds: Sequence[int], watch: Watch | None = None) -> np.ndarray:
        """uint8 pictures (B, H, W, 3) -> uint8 clips (B, context + 2, H, W, 3)."""
        clip, grid = self.asked(self.pixels(images[:, None]))
        shape = (grid[0] * grid[1], self.model.target.width)
        noise = torch.stack([torch.randn(shape, generator=sample_generator(s)) for s in seeds])

        def seen(step: int, steps: int, clean: Tensor) -> None:
            if watch and watch(step, steps, lambda: self._whole(images, self.drawn(clean, grid))) is False:
                raise Cancelled("Cancelled.")

        with torch.no_grad():
            context = self.model.context(clip)
            number = self.options.context // self.model.config.tubelet
            tokens = self.model.next_frame(context, grid, number, self.options.steps, noise=noise, watch=seen)
        return self._whole(images, self.drawn(tokens, grid))

    def _whole(self, images: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """The question's frames, then those drawn: uint8 (B, F, H, W, 3)."""
        return np.concatenate([np.repeat(images[:, None], self.options.context, 1), drawn], 1)

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
            last = self.pixels(sample.wanted[None, -self.model.config.tubelet :])
            drawn = self.drawn(self.model.target.encode(last), self.model.encoder.grid(last)[1:])
            answers.append(self.answer(self._whole(sample.given.picture[None], drawn)[0], sample.given))
        return answers
