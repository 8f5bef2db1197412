"""NExT-Vid: masked next-frame prediction (Li et al., arXiv 2512.21004).

    video f_0..f_{T-1}            "frame" here is a tubelet of two real frames
      masked, frame-causal encoder     c_t  = E(M(f_0..f_t))            eq. 3
      autoregressive predictor         z_t  = AR(c_0..c_{t-1})          eq. 3: queries read the context and never change it
      alignment                        |z_t - sg E_ref(f_0..f_t)|^2     eq. 5: E_ref is an exponential moving average of E
      flow matching decoder            |g(h_tau, z_t, tau) - v|^2       eq. 8: h is the frame's pixels or VAE latents

    vdmreason pretrain nextvid --budget 2h --out my-nextvid

The predictor and the decoder are thrown away when the encoder is judged, and are all there is when frames are generated.
Where the paper is silent the choice is named at its place; they stem from V-JEPA 2, of whose recipe this one is a relative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pretrain import denoise, masks
from pretrain import recipe as recipes
from pretrain.loop import Share, fit
from pretrain.recipe import Clips, check_side, everywhere, files_of, generator, is_main, record_of, to_pixels, to_uint8
from pretrain.targets import Teacher, meters, normalised
from pretrain.vit3d import (
    Encoder,
    Size,
    Stack,
    coordinates,
    gather,
    initialise,
    may_attend,
    patchify,
    rope,
    sincos,
    unpatchify,
)


@dataclass(frozen=True)
class Config:
    """A model and its objective. The published values are the defaults of the objective, `FLAVOURS` has the sizes."""

    encoder: Size
    predictor: Size
    decoder: Size
    patch: int = 16
    tubelet: int = 2
    target: str = "pixels"  # or an image VAE in diffusers' layout, a folder or a hub id
    # Blocks and the share of the frame that each hides; every entry is a pass over each clip. () for no masking.
    masks: tuple[tuple[int, float], ...] = ((8, 0.15), (2, 0.7))
    plain: bool = False  # one more pass, over an unmasked past and asked for whole frames, as generation asks
    # Which places are asked for: figure 2 shows a mask before the decoder, the text does not define it.
    queries: Literal["hidden", "all"] = "hidden"
    # Added to tokens, context and queries: RoPE alone tells distances and no place, which small models feel.
    sines: bool = False
    base: float = 10_000.0  # of the positions' frequencies
    isolated: bool = True  # the predictor never changes the context (section 3.2)
    frame_isolated: bool = True  # frames are denoised apart (table 5)
    align: float = 1.0  # weight of the alignment with the reference (table 8)
    flow: float = 0.5  # weight of the decoder's flow loss (table 8)
    # Of the reference encoder: an average over 1 / (1 - momentum) updates, as published 1333 of 132,000. A short training
    # needs a shorter one, or the reference is still the random encoder that it began with.
    momentum: float = 0.99925
    asked_for: Literal["velocity", "clean"] = "velocity"  # of the decoder: see `denoise.Flow`
    shift: float = 1.0  # of the flow's times towards noise

    @property
    def process(self) -> denoise.Flow:
        return denoise.Flow(self.asked_for, self.shift)

    def __post_init__(self) -> None:
        recipes.shares(self, "momentum")
        recipes.weights(self, "align", "flow")
        recipes.masks_of_blocks(self, "masks")
        if self.shift <= 0:
            raise ValueError(f"shift: above 0, not {self.shift:g}")


KEYS = (
    "masks", "plain", "queries", "sines", "isolated", "frame_isolated", "align", "flow", "momentum", "asked_for", "shift",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A part of the training. Rates go from the first to the second value in a straight line (the paper gives the ends)."""

    name: str
    share: float  # of all updates
    lr: tuple[float, float]
    decoder_lr: tuple[float, float] | None  # None: as the rest
    frames: float  # times the model's usual number of frames
    batch: float  # times the usual batch
    samples: int  # times and noises drawn for one z, "tau sample"


STAGES = (  # table 8
    Stage("warm-up", 12 / 132, (1e-4, 5e-4), None, 1, 1, 4),
    Stage("stable 1", 28 / 132, (5e-4, 4.5e-4), None, 1, 1, 4),
    Stage("stable 2", 80 / 132, (4.5e-4, 1e-4), (8e-4, 8e-4), 1, 1, 1),
    Stage("cool-down", 12 / 132, (1e-4, 1e-6), (3e-4, 3e-4), 4, 0.25, 1),
)


def stage_at(step: int, updates: int, stages: Sequence[Stage] = STAGES) -> tuple[Stage, float]:
    """The stage of an update and how far it has got in it, 0..1: a pure function of the step."""
    start = 0.0
    for stage in stages:
        length = stage.share * updates
        if step < start + length or stage is stages[-1]:
            return stage, min(1.0, max(0.0, (step - start) / max(length, 1e-9)))
        start += length
    raise AssertionError


def rates(step: int, updates: int, scale: float = 1.0, stages: Sequence[Stage] = STAGES) -> dict[str, float]:
    """Learning rates of an update: "" for all weights, "decoder" for those of the decoder."""
    stage, done = stage_at(step, updates, stages)

    def between(ends: tuple[float, float]) -> float:
        return scale * (ends[0] + (ends[1] - ends[0]) * done)

    return {"": between(stage.lr), "decoder": between(stage.decoder_lr or stage.lr)}


PREDICTOR = DECODER = Size(384, 12, 12)
# What a narrow model with a short training and pixels for a target needs (docs/log.md); the published ones are as published.
# The error of a clean patch is a fraction of the velocity's, so its weight is larger.
_SMALL: dict[str, Any] = {
    "plain": True,
    "sines": True,
    "asked_for": "clean",
    "flow": 2.0,
    "momentum": 0.99,
    "base": 100.0,
}
FLAVOURS: dict[str, Config] = {
    "tiny": Config(Size(24, 2, 2), Size(24, 2, 2), Size(24, 2, 2), patch=4, shift=4.0, **_SMALL),
    "small": Config(Size(160, 6, 5), Size(96, 3, 3), Size(128, 4, 4), patch=8, shift=10.0, **_SMALL),
    "vit-l": Config(Size(1024, 24, 16), PREDICTOR, DECODER),
    "vit-h": Config(Size(1280, 32, 16), PREDICTOR, DECODER),
    "vit-g": Config(Size(1408, 40, 22, 6144), PREDICTOR, DECODER),
}


class Target(nn.Module):
    """What the decoder draws: a frame on the grid of tokens, (B, N, tubelet * channels), and the way back to pixels.

    Pixels are cut into patches as they are. An image VAE encodes each real frame by itself; the latents of a tubelet's
    frames are stacked on the channels, each brought to mean 0 and deviation 1 (the paper stacks; the scale is LightningDiT's).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.patch, self.tubelet = config.patch, config.tubelet
        # Not a part of this module: it is frozen, lies elsewhere and is not saved with the model.
        object.__setattr__(self, "vae", None if config.target == "pixels" else load_vae(config.target))
        channels, stride = (3, 1) if self.vae is None else shape_of(self.vae)
        if config.patch % stride:
            raise ValueError(f"the VAE's stride of {stride} does not divide the patch of {config.patch} pixels")
        self.cell = config.patch // stride  # latents along a side of a patch
        self.width = config.tubelet * self.cell**2 * channels
        self.register_buffer("mean", torch.zeros(channels, 1, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1, 1))

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in -1..1 -> (B, N, width)."""
        return patchify((self._latents(video) - self.mean) / self.deviation, self.tubelet, self.cell)

    @torch.no_grad()
    def decode(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """The inverse for pixels; what the VAE makes of its latents otherwise. (B, 3, F, H, W) in about -1..1."""
        z = unpatchify(tokens, grid, self.tubelet, self.cell) * self.deviation + self.mean
        if self.vae is None:
            return z
        frames = z.transpose(1, 2).flatten(0, 1).to(self.vae.dtype)  # (B * F, C, h, w)
        vae = self.vae.to(frames.device)
        pictures = torch.cat([vae.decode(some).sample for some in frames.split(AT_ONCE)])
        return pictures.to(tokens.dtype).unflatten(0, (len(z), -1)).transpose(1, 2)

    @torch.no_grad()
    def measure(self, video: Tensor) -> None:
        """Take the latents' mean and deviation per channel from some clips. Pixels stay as they are."""
        if self.vae is not None:
            z = self._latents(video)
            self.mean.copy_(z.mean((0, 2, 3, 4))[:, None, None, None])
            self.deviation.copy_(z.std((0, 2, 3, 4)).clamp_min(1e-6)[:, None, None, None])

    def _latents(self, video: Tensor) -> Tensor:
        """(B, C, F, h, w): frame by frame."""
        if self.vae is None:
            return video
        frames = video.transpose(1, 2).flatten(0, 1).to(self.vae.dtype)
        vae = self.vae.to(frames.device)
        z = torch.cat([latents_of(vae, some) for some in frames.split(AT_ONCE)])
        return z.unflatten(0, (len(video), -1)).transpose(1, 2).float()


class Decoder(nn.Module):
    """A small DiT: noisy target beside z at the input, time by adaLN, velocity or clean target at the output."""

    def __init__(self, config: Config, channels: int, checkpointing: bool = False) -> None:
        super().__init__()
        size = config.decoder
        self.size, self.frame_isolated, self.base = size, config.frame_isolated, config.base
        self.embed = nn.Linear(channels + config.encoder.width, size.width)
        self.time = nn.Sequential(nn.Linear(256, size.width), nn.SiLU(), nn.Linear(size.width, size.width))
        self.norm = nn.LayerNorm(size.width, 1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(size.width, 2 * size.width)
        self.out = nn.Linear(size.width, channels)
        self.apply(initialise)
        self.blocks = Stack(size, checkpointing=checkpointing, condition=size.width)
        for last in (self.modulation, self.out):  # the first guess is 0, as in DiT
            nn.init.zeros_(last.weight)

    def forward(self, noisy: Tensor, z: Tensor, time: Tensor, at: Tensor, frames: int) -> Tensor:
        """(B, frames * S, channels). `noisy` likewise, `z` (B, frames * S, D), `time` (B, frames), `at` (B, ., 3).

        Frame-isolated: frames are folded into the batch. Else every token attends to the tokens of all frames.
        """
        dtype = self.embed.weight.dtype  # noise and times are fp32, the weights may be bf16
        x = self.embed(torch.cat([noisy.to(dtype), z.to(dtype)], -1))
        condition = self.time(denoise.waves(time).to(dtype))[:, :, None]  # (B, frames, 1, width)
        if self.frame_isolated:
            x, at = (v.unflatten(1, (frames, -1)).flatten(0, 1) for v in (x, at))
            condition = condition.flatten(0, 1)  # (B * frames, 1, width)
        else:
            condition = condition.expand(-1, -1, x.shape[1] // frames, -1).flatten(1, 2)
        turn = rope(at, self.size.width // self.size.heads, self.base)
        x = self.blocks(x, turn, None, None, None, condition)
        shift, scale = self.modulation(F.silu(condition)).chunk(2, -1)
        return self.out(self.norm(x) * (1 + scale) + shift).reshape(len(noisy), -1, noisy.shape[-1])


class NextVid(nn.Module):
    """Encoder, predictor, decoder and reference encoder. `forward` is the loss."""

    def __init__(self, config: Config, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.process = config.process
        self.encoder = Encoder(
            config.encoder,
            config.patch,
            config.tubelet,
            pattern="frame-causal",
            positions="both" if config.sines else "rope",
            base=config.base,
            checkpointing=checkpointing,
        )
        self.predictor = Predictor(config, checkpointing)
        self.target = Target(config)
        self.decoder = Decoder(config, self.target.width, checkpointing) if config.flow else None
        self.teacher = Teacher(self.encoder, config.momentum) if config.align else None

    # The three steps

    def context(self, video: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """c (B, K, D) of the tokens that `keep` (B, K) names, all without it, and their coordinates (B, K, 3)."""
        at = coordinates(self.encoder.grid(video), video.device)[None].expand(len(video), -1, -1)
        return self.encoder(video, keep), at if keep is None else gather(at, keep)

    def predict(self, context: tuple[Tensor, Tensor], at: Tensor, asked_by: int = 0) -> Tensor:
        """z (B, Q, D) at coordinates (B, Q, 3), from the context's frames before each."""
        return self.predictor(*context, at, asked_by)

    def guess(self, noisy: Tensor, z: Tensor, time: Tensor, at: Tensor) -> Tensor:
        """The decoder's guess of the velocity or of the clean target, (B, frames * S, channels); `time` (B, frames)."""
        assert self.decoder is not None
        return self.decoder(noisy, z, time, at, time.shape[1])

    # Training

    def forward(
        self,
        video: Tensor,
        keeps: Sequence[Tensor | None],
        asked: Sequence[Tensor],
        noises: Sequence[Tensor],
        times: Sequence[Tensor],
        measure: bool = False,
    ) -> dict[str, Tensor]:
        """The loss of a batch and its parts.

        `video` uint8 (B, F, H, W, 3). For each pass over it, one a mask: `keeps` (B, K), the tokens that the encoder sees
        (None: all); `asked` (B, (T - 1) * S), the tokens to predict, equally many in every frame after the first;
        `noises` (k, B, (T - 1) * S, channels) and `times` (k, B, T - 1) of the flow's k samples.
        """
        pixels = to_pixels(video)
        frames = self.encoder.grid(pixels)[0] - 1
        everywhere = coordinates(self.encoder.grid(pixels), pixels.device)[None]
        clean = self.target.encode(pixels) if self.decoder is not None else None
        reference = normalised(self.teacher(pixels)) if self.teacher is not None else None
        flows, alignments = [], []
        for number, (keep, wanted, noise, time) in enumerate(zip(keeps, asked, noises, times, strict=True)):
            context, at = self.context(pixels, keep), gather(everywhere, wanted)
            z = self.predict(context, at, number)
            if reference is not None:
                alignments.append((z.float() - gather(reference, wanted)).square().mean())  # eq. 5
            if clean is not None:
                drawn = gather(clean, wanted)
                draws = [self.flow_loss(drawn, z, at, noise[k], time[k], frames) for k in range(len(noise))]
                flows.append(torch.stack(draws).mean())
        parts = {name: torch.stack(found).mean() for name, found in (("flow", flows), ("align", alignments)) if found}
        weights = {"flow": self.config.flow, "align": self.config.align}
        logs = {"loss": sum(weights[name] * part for name, part in parts.items()), **parts}  # eq. 9
        if measure and len(video) > 1:  # of whole clips: behind a mask the k-th token is another place in each
            with torch.no_grad():
                logs |= meters(self.encoder(pixels[:8]))
        return logs

    def flow_loss(self, clean: Tensor, z: Tensor, at: Tensor, noise: Tensor, time: Tensor, frames: int) -> Tensor:
        """Eq. 8, the mean over everything. `time` (B, frames) is each frame's own."""

        def net(mixed: Tensor, _: Tensor) -> Tensor:
            return self.guess(mixed, z, time, at)

        each = time.repeat_interleave(clean.shape[1] // frames, 1)[..., None]  # (B, frames * S, 1)
        return denoise.loss(self.process, net, clean, noise, each).mean()

    def after_step(self) -> None:
        """The reference follows the encoder. The loop calls it after every update."""
        if self.teacher is not None:
            self.teacher.follow(self.encoder)

    # Generation

    @torch.no_grad()
    def rollout(self, video: Tensor, frames: int, steps: int = 20, generator: Generator | None = None) -> Tensor:
        """Go on with a clip: uint8 (B, F, H, W, 3), F a multiple of the tubelet -> uint8 (B, F + more, H, W, 3), at least
        `frames` new ones, a tubelet at a time: the encoder sees all there is, the decoder draws what follows."""
        known = to_pixels(video)
        _, rows, columns = self.encoder.grid(known)
        for _ in range(-(-frames // self.config.tubelet)):
            context = self.context(known)
            tokens = self.next_frame(context, (rows, columns), known.shape[2] // self.config.tubelet, steps, generator)
            known = torch.cat([known, self.target.decode(tokens, (1, rows, columns)).clamp(-1, 1)], 2)
        return to_uint8(known)

    @torch.no_grad()
    def next_frame(
        self,
        context: tuple[Tensor, Tensor],
        grid: tuple[int, int],
        number: int,
        steps: int,
        generator: Generator | None = None,
        noise: Tensor | None = None,
        watch: denoise.Watch | None = None,
    ) -> Tensor:
        """Draw frame `number` of a clip whose context is known: targets (B, rows * columns, channels)."""
        z, at = self.next_latent(context, grid, number)
        if noise is None:
            noise = torch.randn(len(z), z.shape[1], self.target.width, generator=generator)

        def net(mixed: Tensor, time: Tensor) -> Tensor:
            return self.guess(mixed, z, time.expand(len(z), 1), at)

        return self.process.sample(net, noise.to(z.device), steps, watch)

    def next_latent(self, context: tuple[Tensor, Tensor], grid: tuple[int, int], number: int) -> tuple[Tensor, Tensor]:
        """z (B, rows * columns, D) of frame `number`, all of its places, and their coordinates (B, rows * columns, 3)."""
        at = coordinates((1, *grid), context[0].device).expand(len(context[0]), -1, -1).clone()
        at[..., 0] = number
        return self.predict(context, at, len(self.config.masks) if self.config.plain else 0), at

    # At the exam: what follows is one frame

    def grid(self, video: Tensor) -> tuple[int, int, int]:
        return self.encoder.grid(video)

    def encoded(self, video: Tensor) -> Tensor:
        return self.target.encode(video)

    def decoded(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        return self.target.decode(tokens, grid)

    def times(self, grid: tuple[int, int, int]) -> int:
        """A frame's tokens share their time."""
        if grid[0] != 1:
            raise ValueError(f"this model draws one frame of {self.config.tubelet} at a time, not {grid[0]}")
        return 1

    def shifted(self, uniform: Tensor, shift: float) -> Tensor:
        return replace(self.process, shift=shift).shifted(uniform).clamp(max=0.999)

    def ahead_loss(self, known: Tensor, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The flow loss (eq. 8) of the frame after `known` (B, 3, F, H, W). `clean`, `noise` (B, S, channels), `time` (B, 1)."""
        number, *places = self.grid(known)
        z, at = self.next_latent(self.context(known), (places[0], places[1]), number)
        return self.flow_loss(clean, z, at, noise, time, 1)

    def ahead(self, known: Tensor, noise: Tensor, steps: int, watch: denoise.Watch | None = None) -> Tensor:
        """The frame after `known`, drawn from `noise` (B, S, channels)."""
        number, *places = self.grid(known)
        return self.next_frame(self.context(known), (places[0], places[1]), number, steps, noise=noise, watch=watch)


class Predictor(nn.Module):
    """Queries read the context of the frames before theirs: cross-attention only, so no query sees another, and the
    context is the encoder's to the last layer ("context isolation").

    Not isolated, context and queries attend together: a context token to the context up to its frame, a query to the
    context before its frame and to its frame's queries, and each layer changes both.
    """

    def __init__(self, config: Config, checkpointing: bool = False) -> None:
        super().__init__()
        size = config.predictor
        self.size, self.isolated, self.sines, self.base = size, config.isolated, config.sines, config.base
        self.embed = nn.Linear(config.encoder.width, size.width)
        self.norm, self.out = nn.LayerNorm(size.width, 1e-6), nn.Linear(size.width, config.encoder.width)
        self.apply(initialise)
        self.blocks = Stack(size, checkpointing=checkpointing, cross=config.isolated)
        # One query token a kind of mask, zero at first, as in V-JEPA 2.
        self.queries = nn.Parameter(torch.zeros(max(1, len(config.masks) + config.plain), size.width))

    def forward(self, context: Tensor, at_context: Tensor, at: Tensor, asked_by: int) -> Tensor:
        """`context` (B, K, D) at (B, K, 3), queries at (B, Q, 3) -> z (B, Q, D). No query is of frame 0."""
        head = self.size.width // self.size.heads
        context = self.embed(context)
        if self.sines:  # so that a query finds its own place in the past without having to learn where that is
            context = context + sincos(at_context, self.size.width, self.base).to(context.dtype)
        x = self.queries[asked_by].expand(*at.shape[:2], -1)
        if self.sines:
            x = x + sincos(at, self.size.width, self.base).to(x.dtype)
        past = may_attend("strictly-past", at[:1, :, 0], at_context[:1, :, 0])  # frames lie alike in every sample
        if self.isolated:
            x = self.blocks(x, rope(at, head, self.base), past, context, rope(at_context, head, self.base))
            return self.out(self.norm(x))
        upto = may_attend("frame-causal", at_context[:1, :, 0], at_context[:1, :, 0])
        beside = may_attend("within-frame", at[:1, :, 0], at[:1, :, 0])
        assert past is not None and upto is not None and beside is not None
        blind = torch.zeros_like(past).transpose(-1, -2)
        mask = torch.cat([torch.cat([upto, blind], -1), torch.cat([past, beside], -1)], -2)
        together = self.blocks(torch.cat([context, x], 1), rope(torch.cat([at_context, at], 1), head, self.base), mask)
        return self.out(self.norm(together[:, context.shape[1] :]))


AT_ONCE = 16  # frames through an image VAE


def load_vae(name: str) -> Any:
    """An image autoencoder of diffusers, frozen, from a folder or a hub id; of a whole pipeline its "vae". Raises ValueError
    in one line where there is none."""
    import diffusers

    try:
        try:
            vae = diffusers.AutoModel.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError):
            vae = diffusers.AutoModel.from_pretrained(name, subfolder="vae", trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name}: no image VAE of diffusers could be loaded ({' '.join(str(error).split())[:200]})"
        ) from None
    vae.eval().requires_grad_(False)
    return vae


def latents_of(vae: Any, pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in -1..1 -> (B, C, h, w): a distribution's mode, or what the autoencoder gives without one."""
    found = vae.encode(pictures)
    if hasattr(found, "latent_dist"):
        return found.latent_dist.mode()
    return found.latents if hasattr(found, "latents") else found.latent


@torch.no_grad()
def shape_of(vae: Any) -> tuple[int, int]:
    """Channels and stride of an image autoencoder's latents, by trying."""
    z = latents_of(vae, torch.zeros(1, 3, 64, 64, dtype=vae.dtype))
    return z.shape[1], 64 // z.shape[-1]


# What a step learns from


@dataclass(frozen=True)
class Draw:
    """Masks, noises and times of one step, as `NextVid.forward` takes them."""

    keeps: list[Tensor | None] = field(default_factory=list)
    asked: list[Tensor] = field(default_factory=list)
    noises: list[Tensor] = field(default_factory=list)
    times: list[Tensor] = field(default_factory=list)

    def batch(self) -> dict[str, Any]:
        return {"keeps": self.keeps, "asked": self.asked, "noises": self.noises, "times": self.times}


def draw(
    config: Config, channels: int, grid: tuple[int, int, int], batch: int, rows: range, samples: int, *name: int
) -> Draw:
    """Everything random of a step but its clips, as a function of `name` (seed and step).

    Masks are drawn for the whole batch, since its samples share the blocks' size and the count that stays; noise and times
    sample by sample, so that a process draws only for its `rows`.
    """
    t, y, x = grid
    places = y * x
    later = range(1, t)
    shared = generator(*name)
    drawn = Draw()
    for count, scale in config.masks:
        keep = masks.blocks(batch, (y, x), count, scale, shared)[rows.start : rows.stop]
        drawn.keeps.append(masks.over_time(keep, range(t), places))
        asked = masks.complement(keep, places) if config.queries == "hidden" else everywhere(len(rows), places)
        drawn.asked.append(masks.over_time(asked, later, places))
    if config.plain or not config.masks:
        drawn.keeps.append(None)
        drawn.asked.append(masks.over_time(everywhere(len(rows), places), later, places))
    for number, asked in enumerate(drawn.asked):
        own = [generator(*name, number, row) for row in rows]
        times = [config.process.times((samples, 1, len(later)), g) for g in own]
        noises = [torch.randn(samples, 1, asked.shape[1], channels, generator=g) for g in own]
        drawn.times.append(torch.cat(times, 1))
        drawn.noises.append(torch.cat(noises, 1))
    return drawn


# The recipe

# The small flavours: one time and noise for a z (table 11 finds no difference), clips twice as long at the end.
SMALL_STAGES = (*(replace(stage, samples=1) for stage in STAGES[:3]), replace(STAGES[3], frames=2, batch=0.5))


@dataclass(frozen=True)
class Recipe:
    """How a flavour is trained."""

    frames: int
    side: int  # pixels; procedural clips have the shapes above, in patches
    batch: int
    rate: float  # times the published learning rates
    stages: tuple[Stage, ...]


RECIPES = {
    "tiny": Recipe(8, 32, 4, 2.0, SMALL_STAGES),
    "small": Recipe(8, 64, 16, 2.0, SMALL_STAGES),
    **{name: Recipe(16, 256, 3072, 1.0, STAGES) for name in ("vit-l", "vit-h", "vit-g")},
}


class Batches:
    """What a step learns from, as a function of the step: clips, masks, noise."""

    def __init__(self, model: NextVid, recipe: Recipe, updates: int, seed: int, videos: Any = None) -> None:
        self.config, self.channels, self.recipe = model.config, model.target.width, recipe
        self.updates, self.seed = updates, seed
        self.clips = Clips(model.config.patch, recipe.side, seed, videos)

    def __call__(self, step: int, share: Share) -> dict[str, Any]:
        stage, _ = stage_at(step, self.updates, self.recipe.stages)
        frames = round(self.recipe.frames * stage.frames)
        rows, columns = self.clips.shape(step)
        batch = self.clips.batch(self.recipe.batch, rows, columns, stage.batch)
        mine = share.rows(batch)
        grid = (frames // self.config.tubelet, rows, columns)
        drawn = draw(self.config, self.channels, grid, batch, mine, stage.samples, self.seed, step)
        numbers = [step * self.recipe.batch + row for row in mine]
        return {"video": self.clips(numbers, frames, rows, columns), **drawn.batch(), "measure": step % 50 == 0}


def pretrain(
    out: Path | str,
    *,
    minutes: float | None = None,
    updates: int | None = None,
    size: str = "small",
    seed: int = 0,
    data: str = "",
    batch: int | None = None,
    micro: int = 1,
    side: int | None = None,
    fps: float = 4.0,
    target: str = "pixels",
    precision: Literal["no", "bf16"] = "no",
    most_bad: float = 0.1,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a flavour and write `model.safetensors`, `teacher.safetensors`, `config.json` and a card to `out`.

    `overrides` are fields of `Config` among KEYS that are to be otherwise.

    `data` is a folder, list or shards of real video (see `pretrain.video`), "" procedural clips. Resumes after a kill: the
    work lies in `out/work`. Under `accelerate launch` a batch is shared among the processes, and each walks through its share in
    `micro` pieces.
    """
    from pretrain.video import Videos

    out = Path(out)
    recipe = replace(RECIPES[size], batch=batch or RECIPES[size].batch, side=side or RECIPES[size].side)
    config = replace(FLAVOURS[size], target=target, **(overrides or {}))
    check_side(recipe.side, config.patch)
    given = {"size": size, "seed": seed, "data": str(data), "batch": recipe.batch, "side": recipe.side, "fps": fps}
    given |= {"target": target, "precision": precision, **({"overrides": dict(overrides)} if overrides else {})}
    torch.manual_seed(seed)
    model = NextVid(config, checkpointing=size.startswith("vit"))
    videos = Videos(data, recipe.frames, recipe.side, fps=fps, seed=seed, most_bad=most_bad) if data else None
    batches = Batches(model, recipe, updates or 10**9, seed, videos)
    if target != "pixels" and not (out / "work" / "checkpoint").exists():  # else they come with the weights
        rows = columns = recipe.side // config.patch
        model.target.measure(to_pixels(batches.clips([2**40 + i for i in range(16)], recipe.frames, rows, columns)))

    def schedule(step: int, total: int) -> dict[str, float]:
        batches.updates = total  # a budget in minutes becomes a number of updates only once some were timed
        return rates(step, total, recipe.rate, recipe.stages)

    log = fit(
        model,
        batches,
        out / "work",
        minutes=minutes,
        updates=updates,
        schedule=schedule,
        weight_decay=0.04,
        decay_vectors=False,
        precision=precision,
        settings={**given, **files_of(videos)},
        ahead=videos is not None,
        micro=micro,
        on_checkpoint=lambda step: save(out, model),
        bad=videos.bad if videos else {},
        title=f"nextvid {size}",
    )
    if not is_main():
        return {"log": log}
    save(out, model)
    budget = f"{minutes:g}m" if minutes else f"{updates}u"
    options = {**given, "batch": batch, "micro": micro, "side": side, "most_bad": most_bad}
    record = record_of("nextvid", recipe, out, budget, options, pretrain)
    record |= {"bad": log.pop("bad"), "log": log}
    return recipes.write_down(record, out, card(record, model))


def save(out: Path, model: NextVid) -> None:
    """`model.safetensors`, and the reference encoder, which probes read, in a file of its own."""
    recipes.save(out, "nextvid", model, model.config, beside=["teacher"])


def load(folder: Path | str, *, random_weights: bool = False) -> NextVid:
    """The model in `folder`, in fp32. Without `teacher.safetensors` the reference is the encoder itself."""
    folder = Path(folder)
    stored = recipes.stored_config(folder, "nextvid", "NExT-Vid")
    stored |= {part: Size(**stored[part]) for part in ("encoder", "predictor", "decoder")}
    stored["masks"] = tuple(tuple(mask) for mask in stored["masks"])
    model = NextVid(Config(**stored))
    if random_weights:
        return model
    weights = recipes.stored_weights(folder, beside=["teacher"])
    if model.teacher is not None and not any(name.startswith("teacher.") for name in weights):
        weights |= {f"teacher.model.{n[8:]}": v for n, v in weights.items() if n.startswith("encoder.")}
    model.load_state_dict(weights)
    return model


def card(record: dict[str, Any], model: NextVid) -> str:
    """The model card, from the record of the run and the model itself."""
    log, recipe, config = record["log"], record["recipe"], model.config
    ours = {
        "stages in the published proportions": True,
        "a third pass over the unmasked past, asked for whole frames, as generation asks": config.plain,
        "sines added to tokens, context and queries": config.sines,
        f"positions' frequencies down to 1/{config.base:g}": config.base != 10_000,
        "a decoder that is asked for the clean target and not for the velocity": config.asked_for == "clean",
        f"the flow's weight ({config.flow:g})": config.flow != 0.5,
        f"times drawn towards noise (shift {config.shift:g})": config.shift != 1,
        f"a shorter average for the reference encoder (momentum {config.momentum:g})": config.momentum != 0.99925,
    }
    parts = recipes.millions(model)
    sizes = ", ".join(f"{name} {parts[name]:.2f} M" for name in ("encoder", "predictor", "decoder"))
    points = [
        f"**Parameters**: {sizes}.",
        f"**Training**: {log['updates']:,} updates of {recipe['batch']} clips of {recipe['frames']} frames, "
        f"{log['seconds'] / 60:.0f} minutes; last flow loss {log.get('flow', float('nan')):.3f}, alignment "
        f"{log.get('align', float('nan')):.3f}.",
        f"**Ours, not the paper's**: {'; '.join(text for text, differs in ours.items() if differs)}.",
    ]
    if record["size"] in ("tiny", "small"):
        points.append(
            "**Limits**: pictures of a few hundred pixels, clips of 8 frames and, at the end of the training, 16."
        )
    drawn = "pixels" if config.target == "pixels" else "VAE latents"
    about = (
        "**Not the authors' model**: their code and weights were not to be had. Written and trained by this project after "
        "arXiv 2512.21004: masked frames, a frame-causal encoder, an isolated autoregressive predictor, alignment with an "
        f"averaged encoder, a flow-matching decoder of {drawn}."
    )
    return recipes.card(f"A NExT-Vid, size {record['size']}, pretrained by us", about, record, points)


# For people, and for probes


def encode(model: NextVid, video: Tensor) -> Tensor:
    """What a probe reads: features (B, N, D) of clips uint8 (B, F, H, W, 3), from the averaged encoder as V-JEPA 2 does,
    where there is one."""
    backbone = model.teacher.model if model.teacher is not None and model.config.momentum else model.encoder
    return backbone(to_pixels(video))


@torch.no_grad()
def pictures(model: NextVid, video: Tensor, seed: int = 0, steps: int = 20) -> dict[str, Tensor]:
    """A clip uint8 (1, F, H, W, 3) as the model meets it, by caption, each uint8 (F, H, W, 3): what each mask leaves of it,
    what is drawn at the hidden places, and how the clip goes on from its first half."""
    pixels = to_pixels(video)
    grid = model.encoder.grid(pixels)
    places = grid[1] * grid[2]
    everything = coordinates(grid)[None]
    shown = {"the clip": video[0]}
    drawn = draw(model.config, model.target.width, grid, 1, range(1), 1, seed)
    target = model.target.encode(pixels)
    for number, (keep, asked) in enumerate(zip(drawn.keeps, drawn.asked, strict=True)):
        context, at = model.context(pixels, keep), gather(everything, asked)
        z = model.predict(context, at, number)
        noise = drawn.noises[number][0]

        def net(mixed: Tensor, time: Tensor, z: Tensor = z, at: Tensor = at) -> Tensor:
            return model.guess(mixed, z, time.expand(1, grid[0] - 1), at)

        guessed = target.clone()
        guessed[0, asked[0]] = model.process.sample(net, noise, steps)[0]
        name = (
            f"{model.config.masks[number][0]} blocks of {model.config.masks[number][1]:.0%}"
            if keep is not None
            else "no mask"
        )
        if keep is not None:
            hidden = masks.complement(keep, grid[0] * places)
            seen = patchify(pixels, model.config.tubelet, model.config.patch)
            seen[0, hidden[0]] = 0.0
            shown[f"{name}: seen"] = to_uint8(unpatchify(seen, grid, model.config.tubelet, model.config.patch))[0]
        shown[f"{name}: drawn"] = to_uint8(model.target.decode(guessed, grid))[0]
    half = max(1, grid[0] // 2) * model.config.tubelet
    rolled = model.rollout(video[:, :half], video.shape[1] - half, steps, generator(seed, 1))
    shown[f"rollout from frame {half}"] = rolled[0]
    return shown
