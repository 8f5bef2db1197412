"""What arms of video diffusion models share: the puzzle as a clip, its latents computed once, an answer read from a frame.

A family says how its VAE is asked, what its model is conditioned on, what its loss is and how it samples; those whose models
were trained by flow matching share the last two (`FlowArm`). Nothing here knows a family.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adapters.base import (
    Answer,
    Arm,
    Cancelled,
    Lazy,
    Sample,
    Watch,
    read_safetensors,
    sample_generator,
    sampled_answers,
)
from adapters.kept import Kept, Values, cache_folder, content_of, key_of
from adapters.pictures import Question, answer_picture, question, style_of
from tasks.base import Example, UserError, suggest
from tasks.render import STYLES, NotAPuzzle, Reading, Style, paint, read
from tasks.transition import MODES, answer_frames, clip

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Lazy("torch")

VOXELS = 2**20  # that a VAE encodes or decodes at once: 28 clips of nine frames of 64 x 64 pixels, one of 480 x 480
END = 2  # latents that `decode: end` decodes
LATER = {"later": True}  # an option that came after runs were made without it (vdmreason.config)


@dataclass(frozen=True)
class Options:
    """How the puzzle becomes a clip and a clip becomes an answer."""

    transition: str = "discrete"  # discrete | linear | trajectory | image (one frame to one frame, no video)
    frames: int = 9  # of a clip: what the VAE encodes and decodes to the same number (`every` N + 1)
    style: str = "video-8"  # how a grid is drawn; video-8 puts one cell on one token of the small backbone
    pixels: int = 0  # >0: enlarge cells in whole tokens until the longer side comes nearest to this
    canvas: tuple[int, int] | None = None  # a fixed picture size in cells, for models that take one size only
    shift: float = 1.0  # training times: 1 uniform, above 1 drawn towards noise
    steps: int = 10  # denoising steps
    readout: str = "last"  # last | best (surest answer frame) | mean (of them) | calibrated (last, by the first one)
    batch: int = 16  # answers sampled at once
    prompt: str = ""  # the neutral text; a backbone without a text encoder ignores it
    posterior: str = field(default="mode", metadata=LATER)  # of the clip's latents: mode | sample (anew each time)
    decode: str = field(default="whole", metadata=LATER)  # whole | end: the last two latents alone, for `readout: last`

    every: ClassVar[int] = 8
    model: ClassVar[str] = "This model"
    stock: ClassVar[str] = ""  # how a stock pipeline asks the model otherwise than here, for the card
    asked: ClassVar[tuple[str, ...]] = (
        "steps",
        "readout",
        "decode",
        "batch",
    )  # no part of training: may change after it

    def __post_init__(self) -> None:
        for value, known in (
            (self.transition, MODES),
            (self.style, tuple(STYLES)),
            (self.readout, ("last", "best", "mean", "calibrated")),
            (self.posterior, ("mode", "sample")),
            (self.decode, ("whole", "end")),
        ):
            one_of(value, known)
        if self.frames % self.every != 1 or self.frames < self.every + 1:
            legal = ", ".join(str(self.every * n + 1) for n in range(1, 5))
            raise UserError(
                f"frames = {self.frames}: {self.model} encodes and decodes {self.every}N + 1 frames only: {legal}, ..."
            )
        if self.readout == "calibrated" and self.transition == "image":
            raise UserError("readout = calibrated: the image control has no first frame to calibrate on.")
        if self.decode == "end" and self.readout != "last":
            raise UserError(f"decode = end: shows the last frames alone; readout = {self.readout} wants others too.")
        if self.shift <= 0:
            raise UserError(f"shift = {self.shift}: give a number above 0; 1 draws timesteps uniformly.")
        if self.steps < 1 or self.batch < 1:
            raise UserError("steps and batch must be at least 1.")


def one_of(value: str, known: Sequence[str]) -> None:
    """Refuse a choice that there is not."""
    if value not in known:
        raise UserError(f"Unknown choice '{value}'.{suggest(value, known)} One of: {', '.join(known)}.")


def frame(example: Example, options: Options) -> Sample:
    """`given`: the question's picture. `wanted`: the transition clip uint8 (F, H, W, 3), or None where the answer is larger
    than the picture."""
    given = question(example, options)
    last = answer_picture(example, given, options)
    if last is None:
        return Sample(given, None, example.key)
    style = style_of(options, given.canvas)
    states = example.frames[1:-1] if options.transition == "trajectory" else ()
    middle = [paint(grid, style, given.canvas) for grid in states]
    return Sample(given, clip(given.picture, last, options.frames, options.transition, middle), example.key)


def prompt_embedding(
    base: str, prompt: str, dtype: str, device: str, compute: Callable[[], Tensor], *how: object
) -> Tensor:
    """The neutral text's embedding: shipped with the backbone, or computed once by its text encoder, which `compute` loads and
    lets go. `how` is what else it depends on, such as the number of tokens."""
    values = prompt_values(base, prompt, dtype, device, lambda: {"prompt_embeds": compute()}, *how)
    return values["prompt_embeds"]


def prompt_values(
    base: str, prompt: str, dtype: str, device: str, compute: Callable[[], Values], *how: object
) -> Values:
    """The same with what belongs to the embedding, such as the mask of its tokens. Floats come in `dtype`."""
    kind = getattr(torch, dtype)

    def as_kind(values: Values) -> Values:
        return {name: v.to(kind) if v.is_floating_point() else v for name, v in values.items()}

    shipped = Path(base) / "neutral_prompt.safetensors"
    if shipped.exists():
        found = as_kind(read_safetensors(shipped))
    else:
        kept, key = Kept(cache_folder() / "prompts"), key_of(prompt, base, _state_of(base), dtype, *how)
        if not kept.get([key]):
            kept.put({key: as_kind(compute())})
        found = kept.get([key])[key]
    return {name: v.to(device) for name, v in found.items()}


def _state_of(base: str) -> list[tuple[str, int, int]]:
    """Name, size and time of a local folder's text encoder, so that one that was replaced is asked anew."""
    files = sorted(Path(base).glob("text_encoder/*")) if Path(base).is_dir() else []
    return [(f.name, f.stat().st_size, int(f.stat().st_mtime)) for f in files]


class ClipArm(Arm):
    """An arm that draws the answer as a clip. A family adds loading, `collate`, `loss` and `sample`."""

    layout = "diffusers"
    vae: Any
    model: Any
    options: Options
    voxels: int = 8 * 8 * 4  # of a video that a latent stands for
    multiple: int = 1  # a picture's sides in pixels: whole tokens

    # How a family's VAE is asked. Videos are (B, 3, F, H, W) in -1..1, latents (B, C, f, h, w), both in the VAE's type.

    def posterior(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of a video's latents."""
        found = self.vae.encode(video).latent_dist
        return found.mean, found.logvar

    def drawn(self, z: Tensor) -> Tensor:
        """The video of latents."""
        video: Tensor = self.vae.decode(z).sample
        return video

    def scaled(self, z: Tensor) -> Tensor:
        """The VAE's latents (B, f, C, h, w) -> what the model is given and draws."""
        raise NotImplementedError

    def unscaled(self, z: Tensor) -> Tensor:
        """The way back."""
        raise NotImplementedError

    def condition(self, pictures: np.ndarray) -> Values:
        """What the model is told of the question alone: from uint8 (B, H, W, 3), tensors (B, ...) by name. From the single
        picture, never from the clip: in a clip's latents the first frame has already seen the answer."""
        return {"image": self.encode(pictures[:, None])[:, 0]}

    def sample(self, images: np.ndarray, seeds: Sequence[int], watch: Watch | None = None) -> np.ndarray:
        """uint8 pictures (B, H, W, 3) -> uint8 clips (B, F, H, W, 3)."""
        raise NotImplementedError

    # What all of them share

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.vae.dtype
        return dtype

    def conventions(self) -> dict[str, Any]:
        o = self.options
        return {"transition": o.transition, "frames": o.frames, "style": o.style}

    def frame(self, example: Example) -> Sample:
        sample = frame(example, self.options)
        height, width = sample.given.picture.shape[:2]
        if height % self.multiple or width % self.multiple:
            fits = [name for name, style in STYLES.items() if style.cell % self.multiple == 0 and not style.line]
            raise UserError(
                f"A picture of {height} x {width} pixels: this backbone takes multiples of {self.multiple}. "
                f"Set options.style to {' or '.join(fits)}."
            )
        return sample

    def encode(self, frames: np.ndarray) -> Tensor:
        """uint8 (B, F, H, W, 3) -> the VAE's latents (B, f, C, h, w), unscaled: the posterior's mode, fp32."""
        return self._encoded(frames)[0]

    def _encoded(self, frames: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.encode_video(self.as_video(frames))

    def as_video(self, frames: np.ndarray) -> Tensor:
        """uint8 (B, F, H, W, 3) -> (B, 3, F, H, W) in -1..1, as the VAE takes it."""
        return torch.from_numpy(frames).to(self.device).permute(0, 4, 1, 2, 3).to(self.dtype) / 127.5 - 1

    def encode_video(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """A video (B, 3, F, H, W) -> the posterior's mean and log variance (B, f, C, h, w), unscaled, fp32."""
        self.vae.to(self.device)
        found = []
        for part in parts(len(video), video[0, 0].numel()):
            with torch.no_grad(), two_at_least(video[part]) as padded:
                encoded = self.posterior(padded)
            found.append([z[: len(video[part])].permute(0, 2, 1, 3, 4).float() for z in encoded])
        mean, logvar = (torch.cat(some) for some in zip(*found, strict=True))
        return mean, logvar

    def decode(self, z: Tensor) -> np.ndarray:
        """Unscaled latents (B, f, C, h, w) -> uint8 (B, F, H, W, 3). A causal decoder needs all earlier latents, so a clip is
        decoded whole; its padding never is."""
        z = z.permute(0, 2, 1, 3, 4).to(self.device, self.dtype)
        self.vae.to(self.device)
        clips = []
        for part in parts(len(z), z[0, 0].numel() * self.voxels):
            with torch.no_grad(), two_at_least(z[part]) as padded:
                video = self.drawn(padded)[: len(z[part])].permute(0, 2, 3, 4, 1)
            clips.append(((video.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy())
        return np.concatenate(clips)

    def end(self, z: Tensor) -> Tensor:
        """What is decoded of a drawn clip's latents: all, or with `decode: end` the last two, as if nothing had been before."""
        return z[:, -END:] if self.options.decode == "end" else z

    # Latents, computed once

    def prepare(self, samples: Sequence[Sample], show: Callable[[int], None] | None = None) -> None:
        """Encode what was not encoded before, `batch` samples at a time, and keep it; then let the VAE leave the GPU, and what an
        earlier run of this backbone learned from leave the memory."""
        with self._kept.only_what_is_asked():
            for start in range(0, len(samples), self.options.batch):
                self.latents_of(samples[start : start + self.options.batch])
                if show:
                    show(min(start + self.options.batch, len(samples)))
        self.rest()

    def rest(self) -> None:
        if self.device.type == "cuda":
            self.vae.to("cpu")
            torch.cuda.empty_cache()

    def latents_of(self, samples: Sequence[Sample]) -> list[Values]:
        """For each sample the unscaled posterior of its clip, `mean` and `logvar` (f, C, h, w) fp32, and its condition."""
        targets = [self.target(sample) for sample in samples]
        if self.device.type == "meta":
            return [self._sketched(s, target) for s, target in zip(samples, targets, strict=True)]
        keys = [key_of(s.given.picture, target) for s, target in zip(samples, targets, strict=True)]
        known = self._kept.get(keys)
        missing = [i for i, key in enumerate(keys) if key not in known and keys.index(key) == i]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for i in missing:
            by_size.setdefault(targets[i].shape, []).append(i)
        for same in by_size.values():
            mean, logvar = self._encoded(np.stack([targets[i] for i in same]))
            told = self.condition(np.stack([samples[i].given.picture for i in same]))
            values = {"mean": mean, "logvar": logvar, **told}
            self._kept.put({keys[i]: {name: v[k] for name, v in values.items()} for k, i in enumerate(same)})
        known = self._kept.get(keys)
        return [known[key] for key in keys]

    def _sketched(self, sample: Sample, target: np.ndarray) -> Values:
        """What `latents_of` gives for a sample, in shape alone; nothing is kept."""
        mean, logvar = self._encoded(target[None])
        told = self.condition(sample.given.picture[None])
        return {name: v[0] for name, v in {"mean": mean, "logvar": logvar, **told}.items()}

    def kept_bytes(self, sample: Sample) -> int:
        (values,) = self.latents_of([sample])
        return sum(v.nbytes for v in values.values())

    @property
    def passes(self) -> int:  # type: ignore[override]
        return self.options.steps

    def clean(self, values: Sequence[Values], generators: Sequence[torch.Generator]) -> Tensor:
        """The clips' scaled latents (B, f, C, h, w): the posterior's mode, or with `posterior: sample` drawn anew."""
        mean = torch.stack([v["mean"] for v in values])
        if self.options.posterior == "sample":
            deviation = torch.stack([v["logvar"] for v in values]).mul(0.5).exp()
            noise = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in generators])
            mean = mean + deviation * noise.to(mean.device)
        return self.scaled(mean)

    def target(self, sample: Sample) -> np.ndarray:
        """The clip that is learned, uint8 (F, H, W, 3). In the image control it is the answer alone: one frame."""
        if sample.wanted is None:
            raise UserError("An example's answer is larger than the picture: this arm cannot be trained on it.")
        clip: np.ndarray = sample.wanted[-1:] if self.options.transition == "image" else sample.wanted
        return clip

    @cached_property
    def _kept(self) -> Kept:
        """By the VAE's weights and precision: another VAE never finds these."""
        weights = content_of(self.vae.state_dict())
        how = hashlib.sha256(f"{weights} {self.dtype} {type(self).__name__} {self.codec_key()}".encode()).hexdigest()
        return Kept(cache_folder() / "latents" / how[:16])

    def codec_key(self) -> object:
        """What else of the arm a condition depends on."""
        return ""

    # Answers

    def predict(self, givens: Sequence[Question], seeds: Sequence[int], watch: Watch | None = None) -> list[Answer]:
        """Sample a clip for each picture (deterministic, noise from `seeds`) and read its answer. `watch` may decode the
        estimate of the clean clip at every step."""
        return sampled_answers(self, givens, seeds, self.options.batch, watch)

    def answer(self, frames: np.ndarray, asked: Question) -> Answer:
        """Read the answer grid from a clip uint8 (F, H, W, 3)."""
        style = style_of(self.options, asked.canvas)
        shown = frames if len(frames) == 1 else frames[list(answer_frames(len(frames), self.options.transition))]
        try:
            if self.options.readout == "last":
                reading = read(frames[-1], style)
            elif self.options.readout == "mean":
                reading = read(shown.mean(0).round().astype(np.uint8), style)
            elif self.options.readout == "calibrated":  # the first frame shows the question as this clip draws it
                reading = read(frames[-1], style, reference=(frames[0], read(asked.picture, style).grid))
            else:
                reading = _surest(shown, style)
        except NotAPuzzle as error:
            return Answer(None, frames, problem=str(error))
        return Answer(reading.grid, frames, reading.certainty)

    def codec(self, samples: Sequence[Sample]) -> list[Answer]:
        """Encode the true clip, decode it, read it."""
        answers = []
        for start in range(0, len(samples), self.options.batch):
            part = samples[start : start + self.options.batch]
            z = [values["mean"] for values in self.latents_of([s for s in part if s.wanted is not None])]
            clips = iter(self.decode(self.end(torch.stack(z))) if z else ())
            for sample in part:
                if sample.wanted is None:
                    answers.append(
                        Answer(None, sample.given.picture[None], problem="the answer is larger than the picture")
                    )
                else:
                    answers.append(self.answer(next(clips), sample.given))
        return answers


class FlowArm(ClipArm):
    """A clip arm whose model was trained by flow matching: at x = (1 - s) clean + s noise it predicts noise - clean, and it is
    told the time 1000 s. A family adds `velocity`.

    Some models get the picture as a first latent that is clean and at time 0 (`pinned`). What is learned and drawn is then only
    what follows it; in the image control that is the answer's one latent, which is decoded alone.
    """

    scheduler: Any
    mean: Tensor  # (C, 1, 1), of the VAE's latents: the model is given and draws (z - mean) / deviation
    deviation: Tensor
    pinned: bool = False

    def scaled(self, z: Tensor) -> Tensor:
        return (z - self.mean.to(z.device)) / self.deviation.to(z.device)

    def unscaled(self, z: Tensor) -> Tensor:
        return z * self.deviation.to(z.device) + self.mean.to(z.device)

    def velocity(self, noisy: Tensor, told: Mapping[str, Tensor], t: Tensor) -> Tensor:
        """What the model predicts at the free latents (B, f, C, h, w) and times t (B,) in 0..1000, fp32. `told` is what
        `condition` gives."""
        raise NotImplementedError

    def schedule(self, shape: Sequence[int]) -> None:
        """Set the scheduler's times for latents (f, C, h, w), the pinned one among them."""
        self.scheduler.set_timesteps(self.options.steps, device=self.device)

    def step(self, velocity: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """One step of the scheduler."""
        stepped: Tensor = self.scheduler.step(velocity, t, x, return_dict=False)[0]
        return stepped

    def shown(self, z: Tensor, seeds: Sequence[int]) -> np.ndarray:
        """Unscaled latents that were drawn, as clips. `seeds` are for a decoder that wants noise of its own."""
        return self.decode(z)

    # What all of them share

    @property
    def first(self) -> int:
        """How many of a clip's latents the picture takes: they are given, not drawn."""
        return int(self.pinned and self.options.transition != "image")

    def collate(self, samples: Sequence[Sample], seeds: Sequence[int]) -> dict[str, Tensor]:
        """z and noise (B, f, C, h, w) fp32, of the free latents; t (B,) in 0..1000; and the condition's tensors by name."""
        values = self.latents_of(samples)
        generators = [sample_generator(seed) for seed in seeds]
        t = torch.cat([self.training_times(torch.rand(1, generator=g)) for g in generators])
        noise = torch.stack([torch.randn(values[0]["mean"].shape, generator=g) for g in generators])
        z = self.clean(values, generators)
        told = {name: torch.stack([v[name] for v in values]) for name in values[0] if name not in ("mean", "logvar")}
        batch = {**told, "z": z[:, self.first :], "noise": noise[:, self.first :], "t": t}
        return {name: value.to(self.device) for name, value in batch.items()}

    def training_times(self, u: Tensor) -> Tensor:
        """Uniform u in 0..1 -> times in 0..1000, shifted towards noise (Esser et al. 2024, eq. 23)."""
        shift = self.options.shift
        return shift * u / (1 + (shift - 1) * u) * 1000

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """MSE on the velocity noise - clean of the free latents, in fp32."""
        z, noise, t = batch["z"], batch["noise"], batch["t"]
        s = (t / 1000)[:, None, None, None, None]
        return (self.velocity((1 - s) * z + s * noise, batch, t) - (noise - z)).square().mean()

    def sample(self, images: np.ndarray, seeds: Sequence[int], watch: Watch | None = None) -> np.ndarray:
        """uint8 pictures (B, H, W, 3) -> uint8 clips (B, F, H, W, 3)."""
        told = {name: value.to(self.device) for name, value in self.condition(images).items()}
        picture = told["image"]  # (B, C, h, w)
        frames = 1 if self.options.transition == "image" else self.options.frames
        shape = ((frames - 1) // self.options.every + 1, *picture.shape[1:])
        noise = torch.stack([torch.randn(shape, generator=sample_generator(s)) for s in seeds]).to(self.device)
        x = noise[:, self.first :]

        def clip_of(x: Tensor) -> np.ndarray:
            return self.shown(self.end(torch.cat([picture[:, None][:, : self.first], self.unscaled(x)], 1)), seeds)

        self.schedule(shape)
        for step, t in enumerate(self.scheduler.timesteps):
            with torch.no_grad():
                v = self.velocity(x, told, t.expand(len(x)).to(self.device, torch.float32))
            estimate = x - float(t) / 1000 * v
            x = self.step(v, t, x)
            if watch and watch(step + 1, self.options.steps, functools.partial(clip_of, estimate)) is False:
                raise Cancelled("Cancelled.")
        return clip_of(x)


def known_config(classes: Any, base: str, part: str, published: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The config of a checkpoint's part ("transformer", "vae"; "index": of the whole) without a download: from the folder or
    the hub's cache, else from a family's table of published ones. UserError where neither knows it."""
    where = {} if part == "index" else {"subfolder": part}
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # of an argument of diffusers' that the hub's client wants no more
            return dict(classes.load_config(base, local_files_only=True, **where))
    except (OSError, ValueError) as error:
        if base in published:
            return dict(published[base][part])
        raise UserError(
            f"'{base}' is not on this machine, so its size is not known. Get its configs first: "
            f'hf download {base} --include "*.json"'
        ) from error


def sketched(classes: Any, config: Mapping[str, Any], kind: torch.dtype) -> Any:
    """A model on the meta device, its weights in `kind` but for those that its class keeps in fp32."""
    with torch.device("meta"):
        model = classes.from_config(dict(config))
    for name, weight in model.named_parameters():  # and not `model.to`, which warns of just those
        if not any(part in name for part in model._keep_in_fp32_modules or ()):
            weight.data = weight.data.to(kind)
    return model


def parts(count: int, voxels: int) -> list[slice]:
    """Cuts `count` clips of so many voxels into what a VAE works on at once: its layers hold hundreds of numbers a voxel."""
    size = max(1, min(count, VOXELS // max(1, voxels)))
    return [slice(start, start + size) for start in range(0, count, size)]


def drawn_anew(transformer: Any) -> Any:
    """Linear and patch layers drawn so that each keeps the scale of what goes in, biases zero: what a family's random control
    begins with. torch's own draw is sqrt(3) too small in each layer."""
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    return transformer


def _surest(frames: np.ndarray, style: Style) -> Reading:
    """The reading of the frame whose cells are surest on average."""
    readings = []
    for image in frames:
        try:
            readings.append(read(image, style))
        except NotAPuzzle as error:
            problem = error
    if not readings:
        raise problem
    return max(readings, key=lambda r: float(r.certainty.mean()))


class two_at_least:
    """A batch of one is doubled: with one thread, torch runs 3-D convolutions of a single sample on a path that took
    twice as long as for two samples (measured with torch 2.13 on CPU)."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __enter__(self) -> Tensor:
        single = len(self.x) == 1 and self.x.device.type == "cpu" and torch.get_num_threads() == 1
        return self.x.repeat(2, *[1] * (self.x.ndim - 1)) if single else self.x

    def __exit__(self, *_: object) -> None: ...
