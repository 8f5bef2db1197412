"""InternVideo-Next: encoder, predictor, diffusion decoder, in two stages (arXiv 2512.01342, v2).

    Stage 1   visible tokens V, drawn by where an image teacher looks
      encoder      z = E(x_V)                            aligned with the frozen image teacher, |V| only
      predictor    c = P(z, mask tokens)                 a latent for every place of the clip
      decoder      |e - D(noisy x_i, t, c_i)|^2          i hidden: each patch is denoised by itself, given its latent
    Stage 2   visible tokens: what multi-block masks leave
      predictor    1 - cos(h(P(E(x_V)))_i, E_1(x)_i)     i hidden; E_1 is Stage 1's encoder, frozen, on the whole clip

    vdmreason pretrain internvideo-next --budget 2h --out my-internvideo

Written from the paper; where paper and released code differ, or the paper is silent, the choice is named at its place.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from pretrain import denoise, image_teacher, masks
from pretrain import recipe as recipes
from pretrain.image_teacher import ImageTeacher, layers_of
from pretrain.loop import Share, begun, ended, fit, warm_cosine
from pretrain.recipe import Clips, check_side, files_of, generator, is_main, record_of, to_pixels, to_uint8
from pretrain.stored import sum_of
from pretrain.targets import Teacher, meters
from pretrain.vit3d import (
    Attention,
    Rope,
    Size,
    Stack,
    Table,
    coordinates,
    gather,
    initialise,
    patchify,
    rope,
    unpatchify,
)

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Config:
    """A model and its objective. The published values are the defaults of the objective, `FLAVOURS` has the sizes."""

    encoder: Size
    predictor: Size
    decoder: Size  # width and depth of the diffusion decoder; it has no attention and so no heads
    grid: Grid  # of tokens (t, y, x) for which positions are learnt; others are interpolated
    patch: int = 14
    tubelet: int = 1
    registers: int = 4  # tokens that are learnt and never hidden
    drop: float = 0.0  # stochastic depth of the last block
    scale: float = 1e-5  # where LayerScale begins; 0: none
    # RMS norms on the raw patch and on its embedding. The first takes a flat patch's brightness away.
    dual_norm: bool = True
    rope: bool = False  # rotary positions in the encoder, beside the learnt ones
    base: float = 10_000.0  # of the positions' frequencies
    stage: Literal[1, 2] = 1

    # Of the stage that it is in: drawn where the teacher looks (Stage 1), or multi-block (Stage 2).
    # "frames": the first frames whole and nothing of those after, as many as `most` lets stay.
    mask: Literal["semantic", "blocks", "frames"] = "semantic"

    # Stage 1
    teacher: str = "google/siglip2-giant-opt-patch16-256"
    teacher_size: tuple[int, int] = (1536, 40)  # its width and depth
    aligned: int = 6  # so many of the last blocks, each with one of the teacher's
    hidden: float = 0.75  # of a frame, by the scripts; the paper's text has 0.8
    # Visible tokens are drawn in proportion to the teacher's attention (the code, UMT) or are its highest (the paper's words).
    pick: Literal["sample", "top"] = "sample"
    head: Literal["diffusion", "linear", "mlp"] = "diffusion"  # by which hidden patches become pixels
    align: float = 1.0  # weight of the loss on visible tokens and the teacher's
    pool: float = 1.0  # weight of the loss on what all of them are pooled to and the teacher's
    pixels: float = 1.0  # weight of the loss on hidden patches
    asked_for: Literal["noise", "clean"] = "noise"  # of the diffusion decoder
    shift: float = 1.0  # of the diffusion's times towards noise
    decoded: float = 1.0  # share of the hidden tokens that the decoder is asked for
    ahead: bool = False  # one more pass, all frames after some one hidden whole, as generation asks; pixels only

    # Stage 2: multi-block masks, each a pass: so many blocks, the share of a frame that each covers.
    blocks: tuple[tuple[int, float], ...] = ((8, 0.15), (2, 0.7))
    most: float = 400 / 8 / 256  # share of the tokens that stay at most
    cut: Literal["tail", "random"] = "tail"  # which tokens go where more are left than that
    momentum: float = 1.0  # of the Stage-1 teacher: frozen
    latent: Literal["stage 1", "image teacher"] = "stage 1"  # what is predicted
    pixels_too: float = 0.0  # weight of the decoder's loss in Stage 2 (table 3 finds no difference)

    # The last layers of a ModernBERT, as its own configuration has them; None: our blocks, with 3-axis positions.
    bert: dict[str, Any] | None = None
    flavour: str = ""  # the name it has in FLAVOURS, for its card and for a Stage 2 that goes on from it

    def __post_init__(self) -> None:
        recipes.shares(self, "decoded", "most", "momentum")
        recipes.shares(self, "hidden", "drop", whole=False)
        recipes.masks_of_blocks(self, "blocks")
        if self.stage == 1:
            recipes.weights(self, "align", "pool", "pixels")
        layers = min(self.encoder.depth, self.teacher_size[1])
        if (self.align or self.pool) and not 1 <= self.aligned <= layers:
            raise ValueError(
                f"aligned: the last 1 to {layers} blocks, which both it and the teacher have; not {self.aligned}"
            )
        if self.registers < 0 or self.shift <= 0:
            raise ValueError("registers: not negative; shift: above 0")
        if self.stage == 1 and self.mask == "frames":
            raise ValueError("mask frames: is Stage 2's, which says by `most` how many stay")
        if not self.passes:
            raise ValueError("blocks: at least one mask, where there is no pass ahead")

    @property
    def process(self) -> denoise.DDPM:
        return denoise.DDPM(self.asked_for, self.shift, limit=1.0)

    @property
    def channels(self) -> int:
        """Numbers in a patch."""
        return self.tubelet * self.patch**2 * 3

    @property
    def passes(self) -> tuple[str, ...]:
        """The kinds of masks that a step goes through."""
        kinds = ("blocks",) * len(self.blocks) if self.mask == "blocks" else (self.mask,)
        return (*kinds, "ahead") if self.ahead and self.pixel_weight else kinds

    @property
    def pixel_weight(self) -> float:
        return self.pixels if self.stage == 1 else self.pixels_too

    @property
    def looks(self) -> bool:
        """Whether the image teacher is asked."""
        aligned = self.stage == 1 and bool(self.align or self.pool)
        return aligned or self.mask == "semantic" or (self.stage == 2 and self.latent == "image teacher")

    @property
    def foresees(self) -> bool:
        """Whether the loss asks for anything but visible tokens."""
        return bool(self.pixel_weight) or self.stage == 2

    def visible(self, places: int) -> int:
        """Tokens of a frame that a semantic mask leaves."""
        return places - int(places * self.hidden)


FIRST_KEYS = (
    "aligned", "hidden", "pick", "head", "align", "pool", "pixels", "asked_for", "shift", "decoded", "ahead", "registers", "drop",
    "rope", "dual_norm",
)  # fmt: skip
SECOND_KEYS = ("blocks", "most", "cut", "momentum", "latent", "pixels_too")
KEYS = ("mask", *FIRST_KEYS, *SECOND_KEYS)


class Encoder(nn.Module):
    """A plain ViT with RMS norms, queries and keys normalised over all heads, LayerScale, learnt positions and registers. No
    final norm: what it gives is the raw stream."""

    def __init__(self, config: Config, checkpointing: bool = False) -> None:
        super().__init__()
        size = config.encoder
        self.size, self.patch, self.tubelet = size, config.patch, config.tubelet
        self.turns, self.base, self.registers = config.rope, config.base, config.registers
        self.norm_patch = nn.RMSNorm(config.channels, 1e-6) if config.dual_norm else nn.Identity()
        self.embed = nn.Linear(config.channels, size.width)
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        self.norm_embed = nn.RMSNorm(size.width, 1e-6) if config.dual_norm else nn.Identity()
        self.positions = Table(config.grid, size.width, config.base)
        self.register = nn.Parameter(0.02 * torch.randn(config.registers, size.width))
        options: dict[str, Any] = {"qk_norm": "width", "rms": True, "bias": False, "scale": config.scale}
        self.blocks = Stack(size, checkpointing=checkpointing, drop=config.drop, **options)

    def grid(self, video: Tensor) -> Grid:
        """Tokens along t, y and x of a clip (B, C, F, H, W)."""
        _, _, f, h, w = video.shape
        return f // self.tubelet, h // self.patch, w // self.patch

    def states(self, video: Tensor, keep: Tensor | None, layers: Sequence[int]) -> list[Tensor]:
        """What the blocks `layers`, ascending, give for the tokens that `keep` (B, K) names, all without it: each (B, R + K,
        D), the R registers first."""
        grid = self.grid(video)
        tokens = patchify(video, self.tubelet, self.patch)
        places = self.positions(grid)[None]
        at = coordinates(grid, video.device)[None]
        if keep is not None:
            tokens, places, at = gather(tokens, keep), gather(places, keep), gather(at, keep)
        x = self.norm_embed(self.embed(self.norm_patch(tokens))) + places
        x = torch.cat([self.register.expand(len(x), -1, -1).to(x.dtype), x], 1)
        turn = turned(at, self.registers, self.size, self.base) if self.turns else None
        found: list[Tensor] = self.blocks(x, turn, keep=tuple(layers))
        return found

    def forward(self, video: Tensor, keep: Tensor | None = None) -> Tensor:
        """Features (B, K, D), without the registers."""
        return self.states(video, keep, [self.size.depth - 1])[0][:, self.registers :]


def turned(at: Tensor, registers: int, size: Size, base: float) -> Rope:
    """Rotary tables for registers, which are not turned, and tokens at (B or 1, K, 3)."""
    return rope(F.pad(at, (0, 0, registers, 0)), size.width // size.heads, base)


class Predictor(nn.Module):
    """The encoder's tokens at their places and a mask token everywhere else, with positions of its own: a latent for every
    place. The body is five blocks with full attention and 3-axis rotary positions, or the last layers of a ModernBERT, as
    published, whose positions run along the raster."""

    def __init__(self, config: Config, checkpointing: bool = False) -> None:
        super().__init__()
        width, size = config.encoder.width, config.predictor
        self.size, self.base, self.registers = size, config.base, config.registers
        self.mask = nn.Parameter(0.02 * torch.randn(width))
        self.positions = Table(config.grid, width, config.base)
        self.embed = Head(width, width, size.width)
        self.bert = bert_body(config.bert) if config.bert else None
        self.blocks = None if config.bert else Stack(size, checkpointing=checkpointing)

    def forward(self, encoded: Tensor, keep: Tensor, grid: Grid) -> Tensor:
        """`encoded` (B, R + K, D), `keep` (B, K) -> (B, N, P) for all N places of `grid`."""
        registers, tokens = encoded[:, : self.registers], encoded[:, self.registers :]
        x = self.mask.to(tokens.dtype).expand(len(tokens), math.prod(grid), -1)
        x = x.scatter(1, keep[..., None].expand(-1, -1, tokens.shape[-1]), tokens) + self.positions(grid)
        x = self.embed(torch.cat([registers, x], 1))
        if self.bert is not None:
            x = self.bert(inputs_embeds=x).last_hidden_state
        else:
            assert self.blocks is not None
            at = coordinates(grid, x.device)[None]
            x = self.blocks(x, turned(at, self.registers, self.size, self.base))
        return x[:, self.registers :]


class Head(nn.Sequential):
    """Two layers and a layer norm."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out), nn.LayerNorm(out))
        self.apply(initialise)


class DiffusionMLP(nn.Module):
    """Denoises each patch by itself, given its latent: residual layers with adaLN from time and latent (after MAR's DiffLoss:
    Li et al. 2024, section 3.2). Gates and last layer start at zero."""

    def __init__(self, channels: int, latent: int, size: Size) -> None:
        super().__init__()
        width = size.width
        self.embed = nn.Linear(channels, width)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.latent = nn.Linear(latent, width)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(size.depth))
        self.norm = nn.LayerNorm(width, 1e-6, elementwise_affine=False)
        self.modulation, self.out = nn.Linear(width, 2 * width), nn.Linear(width, channels)
        self.apply(initialise)
        for last in (self.modulation, self.out, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(last.weight)

    def forward(self, noisy: Tensor, time: Tensor, latent: Tensor) -> Tensor:
        """`noisy` (..., channels), `time` (...), `latent` (..., P) -> (..., channels)."""
        dtype = self.embed.weight.dtype  # noise and times are fp32, the weights may be bf16
        x = self.embed(noisy.to(dtype))
        y = F.silu(self.time(denoise.waves(time).to(dtype)) + self.latent(latent.to(dtype)))
        for block in self.blocks:
            x = block(x, y)
        shift, scale = self.modulation(y).chunk(2, -1)
        return self.out(self.norm(x) * (1 + scale) + shift)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, 1e-6)
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(y).chunk(3, -1)
        return x + gate * self.fc2(F.silu(self.fc1(self.norm(x) * (1 + scale) + shift)))


class Pool(nn.Module):
    """The mean token looks at all tokens: (B, K, D) -> (B, out)."""

    def __init__(self, size: Size, out: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(size.width, 1e-6), Attention(size.width, size.heads)
        self.attention.apply(initialise)
        self.head = Head(size.width, size.width, out)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm(tokens)
        return self.head(self.attention(tokens.mean(1, keepdim=True), tokens)[:, 0])


class InternVideoNext(nn.Module):
    """Encoder, predictor, decoder and what one stage learns from. `forward` is the loss."""

    def __init__(self, config: Config, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.config, self.process = config, config.process
        self.encoder = Encoder(config, checkpointing)
        self.predictor = Predictor(config, checkpointing)
        latent, channels = config.predictor.width, config.channels
        if config.head == "diffusion":
            self.decoder: nn.Module = DiffusionMLP(channels, latent, config.decoder)
        elif config.head == "linear":
            self.decoder = nn.Linear(latent, channels)
        else:
            wide = config.decoder.width
            layers = [nn.Linear(latent, wide), nn.GELU(), nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, channels)]
            self.decoder = nn.Sequential(*layers)
            self.decoder.apply(initialise)
        if not config.pixel_weight:
            self.decoder.requires_grad_(False)
        if not config.foresees:
            self.predictor.requires_grad_(False)
        width, wide = config.encoder.width, config.teacher_size[0]
        aligns, pools = (config.stage == 1 and bool(w) for w in (config.align, config.pool))
        self.align = nn.ModuleList(Head(width, width, wide) for _ in range(config.aligned)) if aligns else None
        self.align_positions = Table(config.grid, width, config.base) if aligns else None
        self.pool = Pool(config.encoder, wide) if pools else None
        self.latent = self.reference = None
        if config.stage == 2:
            self.latent = Head(latent, latent, width if config.latent == "stage 1" else wide)
            if config.latent == "stage 1":
                self.reference = Teacher(self.encoder, config.momentum)
        # Not a part of this module: it is frozen, lies elsewhere and is not saved with the model.
        self.image: ImageTeacher | None
        object.__setattr__(self, "image", None)

    def learn_from(self, image: ImageTeacher | None) -> InternVideoNext:
        """Set the image teacher that Stage 1 aligns with."""
        object.__setattr__(self, "image", image)
        return self

    # The three steps

    def states(self, pixels: Tensor, keep: Tensor, layers: Sequence[int] = ()) -> list[Tensor]:
        """What the encoder's blocks `layers` and the last give for the tokens that `keep` (B, K) names: each (B, R + K, D)."""
        last = self.config.encoder.depth - 1
        return self.encoder.states(pixels, keep, [*[k for k in layers if k != last], last])

    def predict(self, pixels: Tensor, keep: Tensor) -> Tensor:
        """Latents c (B, N, P) for every place, from the tokens that `keep` (B, K) names."""
        return self.predictor(self.states(pixels, keep)[-1], keep, self.encoder.grid(pixels))

    def guess(self, noisy: Tensor, time: Tensor, latent: Tensor) -> Tensor:
        """The decoder's guess for patches (B, M, channels) at times (B, M) with latents (B, M, P)."""
        if self.config.head == "diffusion":
            return self.decoder(noisy, time, latent)
        return self.decoder(latent.to(next(self.decoder.parameters()).dtype))

    def pixel_loss(self, clean: Tensor, latent: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The mean squared error of what the decoder is asked for: noise or patch of a diffusion, else the patch itself."""
        if self.config.head != "diffusion":
            return (self.guess(clean, time, latent).float() - clean).square().mean()

        def net(mixed: Tensor, _: Tensor) -> Tensor:
            return self.guess(mixed, time, latent)

        return denoise.loss(self.process, net, clean, noise, time[..., None]).mean()

    def semantic(self, attention: Tensor, uniform: Tensor) -> Tensor:
        """The tokens that stay: of each frame as many, drawn by where the teacher looks. `attention` and `uniform` (B, T, S);
        returns (B, K)."""
        batch, frames, places = attention.shape
        flat, count = attention.flatten(0, 1), self.config.visible(places)
        if self.config.pick == "top":
            keep = flat.topk(count, 1).indices.sort(1).values
        else:
            keep = masks.sampled(flat, count, uniform.flatten(0, 1))
        starts = torch.arange(frames, device=keep.device)[:, None] * places
        return (keep.view(batch, frames, count) + starts).flatten(1)

    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the image teacher sees in a clip (B, 3, F, H, W): maps (K, B, N, D), the pooled embedding (B, D), the mean over
        frames, and where it looks (B, T, S). A tubelet has the mean of its frames."""
        if self.image is None:
            raise ValueError("this objective needs its image teacher: see learn_from")
        batch, grid, tubelet = len(pixels), self.encoder.grid(pixels), self.config.tubelet
        self.image.to(pixels.device)
        layers = layers_of(self.image.depth, self.config.encoder.depth, self.config.aligned)
        maps, pooled, attention = self.image(pixels.transpose(1, 2).flatten(0, 1), grid[1:], layers)
        maps = maps.unflatten(1, (batch, grid[0], tubelet)).mean(3).flatten(2, 3)
        attention = attention.unflatten(0, (batch, grid[0], tubelet)).mean(2)
        return maps, pooled.unflatten(0, (batch, -1)).mean(1), attention

    # Training

    def forward(
        self,
        video: Tensor,
        keeps: Sequence[Tensor | None],
        picks: Sequence[Tensor],
        noises: Sequence[Tensor],
        times: Sequence[Tensor],
        uniform: Tensor,
        measure: bool = False,
    ) -> dict[str, Tensor]:
        """The loss of a batch and its parts.

        `video` uint8 (B, F, H, W, 3). For each of the config's `passes`: `keeps` (B, K), the tokens that the encoder sees, None
        where the teacher's attention says which, with `uniform` (B, T, S) for chance; `picks` (B, M), which of the hidden tokens
        are decoded; `noises` (B, M, channels) and `times` (B, M) of their diffusion.
        """
        config, pixels = self.config, to_pixels(video)
        grid = self.encoder.grid(pixels)
        total = math.prod(grid)
        maps, pooled, attention = self.look(pixels) if config.looks else (None, None, None)
        clean = patchify(pixels, config.tubelet, config.patch)
        target = self.reference(pixels) if self.reference is not None else None
        if config.stage == 2 and config.latent == "image teacher":
            assert maps is not None
            target = maps[0]
        depth = config.encoder.depth
        layers = [depth - config.aligned + k for k in range(config.aligned)] if self.align is not None else []
        parts: dict[str, list[Tensor]] = {}
        for number, kind in enumerate(config.passes):
            keep = keeps[number]
            if keep is None:
                keep = self.semantic(attention, uniform)
            hidden = masks.complement(keep, total)
            whole = self.states(pixels, keep, layers)
            states = [state[:, config.registers :] for state in whole]
            latents = self.predictor(whole[-1], keep, grid) if config.foresees else None
            if self.align is not None and kind != "ahead":
                parts.setdefault("align", []).append(self.alignment(states, maps, keep, grid))
            if self.pool is not None and kind != "ahead":
                parts.setdefault("pool", []).append(apart(self.pool(states[-1]), pooled).mean())
            if config.pixel_weight:
                chosen = hidden.gather(1, picks[number])
                loss = self.pixel_loss(gather(clean, chosen), gather(latents, chosen), noises[number], times[number])
                parts.setdefault("pixels", []).append(loss)
            if self.latent is not None and kind != "ahead":
                wanted = F.normalize(gather(target, hidden).float(), dim=-1)
                parts.setdefault("latent", []).append(apart(self.latent(gather(latents, hidden)), wanted).mean())
        means = {name: torch.stack(found).mean() for name, found in parts.items()}
        weights = {"align": config.align, "pool": config.pool, "pixels": config.pixel_weight, "latent": 1.0}
        logs = {"loss": sum(weights[name] * part for name, part in means.items()), **means}
        if measure and len(video) > 1:
            with torch.no_grad():
                mode = self.encoder.training
                logs |= meters(self.encoder.eval()(pixels[:8]))
                self.encoder.train(mode)
        return logs

    def alignment(self, states: Sequence[Tensor], maps: Tensor, keep: Tensor, grid: Grid) -> Tensor:
        """The mean of 2 - 2 cos between each block's tokens, through its own head, and its teacher block's, at the visible
        tokens alone. `states` ascending, each (B, K, D); `maps` (aligned, B, N, D'), the last block's first."""
        assert self.align is not None and self.align_positions is not None
        places = gather(self.align_positions(grid)[None], keep)
        pairs = zip(self.align, reversed(states), maps, strict=True)
        return torch.stack([apart(head(state + places), gather(m, keep)).mean() for head, state, m in pairs]).mean()

    def after_step(self) -> None:
        """The Stage-1 teacher follows where it is not frozen. The loop calls it after every update."""
        if self.reference is not None:
            self.reference.follow(self.encoder)

    # Generation

    @torch.no_grad()
    def fill(
        self,
        pixels: Tensor,
        keep: Tensor,
        steps: int,
        noise: Tensor,
        watch: denoise.Watch | None = None,
    ) -> Tensor:
        """Draw the places that `keep` (B, K) leaves out from `noise` (B, N - K, channels): patches, likewise. What lies there in
        `pixels` is not looked at."""
        hidden = masks.complement(keep, math.prod(self.encoder.grid(pixels)))
        return self.drawn(gather(self.predict(pixels, keep), hidden), noise, steps, watch)

    def drawn(self, latents: Tensor, noise: Tensor, steps: int, watch: denoise.Watch | None = None) -> Tensor:
        """Patches (B, M, channels) for latents (B, M, P)."""
        if self.config.head != "diffusion":
            return self.guess(noise, noise[..., 0], latents).float()

        def net(mixed: Tensor, time: Tensor) -> Tensor:
            return self.guess(mixed, time.expand(mixed.shape[:2]), latents)

        return self.process.sample(net, noise.to(latents.device), steps, watch)

    # At the exam: what follows are frames that are hidden whole

    def grid(self, video: Tensor) -> Grid:
        return self.encoder.grid(video)

    def encoded(self, video: Tensor) -> Tensor:
        return patchify(video, self.config.tubelet, self.config.patch)

    def decoded(self, tokens: Tensor, grid: Grid) -> Tensor:
        return unpatchify(tokens, grid, self.config.tubelet, self.config.patch)

    def times(self, grid: Grid) -> int:
        """Every patch has its own."""
        return math.prod(grid)

    def shifted(self, uniform: Tensor, shift: float) -> Tensor:
        return replace(self.process, shift=shift).shifted(uniform).clamp(min=0.001)

    def latents_ahead(self, known: Tensor, count: int) -> Tensor:
        """Latents (B, count, P) of the tokens after those of `known` (B, 3, F, H, W), whole frames of them."""
        frames, rows, columns = self.grid(known)
        hidden = known.new_zeros(*known.shape[:2], count // (rows * columns) * self.config.tubelet, *known.shape[3:])
        keep = recipes.everywhere(len(known), frames * rows * columns).to(known.device)
        return self.predict(torch.cat([known, hidden], 2), keep)[:, -count:]

    def ahead_loss(self, known: Tensor, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The decoder's loss for the frames after `known` (B, 3, F, H, W). `clean`, `noise` (B, M, channels), `time` (B, M)."""
        return self.pixel_loss(clean, self.latents_ahead(known, clean.shape[1]), noise, time)

    def ahead(self, known: Tensor, noise: Tensor, steps: int, watch: denoise.Watch | None = None) -> Tensor:
        """The frames after `known`, drawn from `noise` (B, M, channels)."""
        return self.drawn(self.latents_ahead(known, noise.shape[1]), noise, steps, watch)


def apart(mine: Tensor, unit: Tensor) -> Tensor:
    """2 - 2 cos, (...), of vectors (..., D) and targets that are means of vectors of length 1."""
    return 2 - 2 * (F.normalize(mine.float(), dim=-1) * unit.float()).sum(-1)


# ModernBERT


class _Bare(nn.Module):
    """In place of a language model's embedding: what comes in are embeddings."""

    def forward(self, input_ids: None = None, inputs_embeds: Tensor | None = None) -> Tensor | None:
        return inputs_embeds


def bert_body(stored: dict[str, Any]) -> nn.Module:
    """The layers of a ModernBERT without its embedding and last norm, with random weights, from `stored` of `load_bert`."""
    from transformers import ModernBertConfig, ModernBertModel

    model = ModernBertModel(ModernBertConfig(**stored))
    model.layers = model.layers[1:]  # a first layer has no norm, and ours is not the first of its model
    model.embeddings, model.final_norm = _Bare(), nn.Identity()
    return model


def load_bert(name: str, depth: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The last `depth` layers of a ModernBERT by folder or hub id: a configuration for `bert_body`, and their weights. Raises
    ValueError in one line."""
    from transformers import ModernBertModel

    try:
        model = image_teacher.loaded(ModernBertModel, name)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"the text model {name} could not be loaded ({' '.join(str(error).split())[:150]}). Without a network name a folder "
            "that holds a ModernBERT, or leave --bert away: the predictor then starts from random weights"
        ) from None
    if model.config.num_hidden_layers < depth:
        raise ValueError(f"{name} has {model.config.num_hidden_layers} layers, {depth} are wanted")
    kinds = ["full_attention", *model.config.layer_types[-depth:]]  # the first is only a place, see `bert_body`
    named: tuple[str, ...] = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "hidden_activation",
        "norm_eps",
        "norm_bias",
    )
    named += ("attention_bias", "mlp_bias", "local_attention", "rope_parameters", "max_position_embeddings")
    stored = {key: getattr(model.config, key) for key in named}
    stored |= {"num_hidden_layers": depth + 1, "layer_types": kinds, "vocab_size": 1}
    stored |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
    return json.loads(json.dumps(stored)), model.layers[-depth:].state_dict()


# What a step learns from


@dataclass(frozen=True)
class Draw:
    """Masks, noises and times of one step, as `InternVideoNext.forward` takes them."""

    uniform: Tensor
    keeps: list[Tensor | None] = field(default_factory=list)
    picks: list[Tensor] = field(default_factory=list)
    noises: list[Tensor] = field(default_factory=list)
    times: list[Tensor] = field(default_factory=list)

    def batch(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("uniform", "keeps", "picks", "noises", "times")}


def draw(config: Config, grid: Grid, batch: int, rows: range, *name: int) -> Draw:
    """Everything random of a step but its clips, as a function of `name` (seed, stage and step): masks for the whole batch, the
    rest sample by sample, so that a process draws only for its `rows`."""
    frames, places = grid[0], grid[1] * grid[2]
    total = frames * places
    shared, own = generator(*name), [generator(*name, row) for row in rows]
    drawn = Draw(torch.stack([torch.rand(frames, places, generator=g) for g in own]))
    for number, kind in enumerate(config.passes):
        keep: Tensor | None = None
        visible = frames * config.visible(places)
        if kind == "blocks":
            count, scale = config.blocks[number]
            most = max(1, int(total * config.most))
            group = GROUPS.get(config.flavour, masks.GROUP)
            keep = masks.tubes_of_blocks(batch, grid, count, scale, shared, most, config.cut, group)
            keep = keep[rows.start : rows.stop]
        elif kind == "frames":
            if frames < 2:
                raise ValueError("mask frames: hides whole frames at the end; clips of one frame of tokens have none")
            keep = recipes.everywhere(len(rows), min(frames - 1, max(1, int(frames * config.most))) * places)
        elif kind == "ahead":
            first = int(torch.randint(1, frames, (), generator=shared))
            keep = recipes.everywhere(len(rows), first * places)
        visible = visible if keep is None else keep.shape[1]
        asked = max(1, round((total - visible) * config.decoded)) if config.pixel_weight else 0
        drawn.keeps.append(keep)
        chosen = [torch.randperm(total - visible, generator=g)[:asked].sort().values for g in own]
        drawn.picks.append(torch.stack(chosen))
        drawn.noises.append(torch.stack([torch.randn(asked, config.channels, generator=g) for g in own]))
        drawn.times.append(torch.stack([config.process.times((asked,), g) for g in own]))
    return drawn


# The recipe

_PUBLISHED: dict[str, Any] = {"predictor": Size(1024, 5, 16, 3936), "decoder": Size(1536, 6, 1), "grid": (16, 16, 16)}
# What a narrow model, a short training and flat pictures need (docs/log.md): no norm that takes a patch's brightness away,
# no gates that take thousands of updates to open, rotary positions, the clean patch asked for, whole frames to draw.
_SMALL: dict[str, Any] = {
    "patch": 8,
    "scale": 0.0,
    "dual_norm": False,
    "rope": True,
    "base": 100.0,
    "asked_for": "clean",
    "shift": 4.0,
    "decoded": 0.5,
    "ahead": True,
    "pixels_too": 1.0,
    "most": 0.25,
}
FLAVOURS: dict[str, Config] = {
    "tiny": Config(Size(24, 2, 2), Size(24, 2, 2), Size(32, 1, 1), (4, 4, 4), teacher="tiny", teacher_size=(24, 2),
                   aligned=1, **_SMALL),
    "small": Config(Size(160, 6, 5), Size(128, 4, 4), Size(256, 3, 1), (4, 8, 8), teacher="small", teacher_size=(96, 6),
                    aligned=2, **_SMALL),
    "base": Config(Size(768, 12, 12), drop=0.1, **_PUBLISHED),
    "large": Config(Size(1024, 24, 16), drop=0.2, **_PUBLISHED),
}  # fmt: skip


# Clips on a GPU in the published trainings, which share the count of tokens that a mask leaves: the more, the fewer are left.
GROUPS = {"base": 14, "large": 8}


@dataclass(frozen=True)
class Stage:
    """How a stage is trained: warm-up, then a cosine down to `floor` of the peak."""

    share: float  # of all updates; of the minutes, where a budget is time, though an update of Stage 2 takes longer
    frames: int
    batch: int
    lr: float
    warmup: float = 0.0  # share of the stage
    floor: float = 0.01

    def rates(self, step: int, updates: int) -> dict[str, float]:
        """The learning rate of an update, for all weights."""
        return {"": warm_cosine(step, updates, self.lr, self.warmup, self.floor)}


@dataclass(frozen=True)
class Recipe:
    side: int  # pixels; procedural clips have shapes of their own
    stages: tuple[Stage, Stage]


# 50 and 100 epochs of 1.1 M clips in batches of 2048 (table 12)
_BOTH = (Stage(1 / 3, 16, 2048, 1e-3, 0.1), Stage(2 / 3, 32, 2048, 1e-4))
RECIPES = {
    "tiny": Recipe(32, (Stage(0.5, 4, 4, 1e-3, 0.1), Stage(0.5, 4, 4, 5e-4))),
    "small": Recipe(64, (Stage(0.6, 4, 16, 1e-3, 0.05), Stage(0.4, 4, 16, 5e-4))),
    "base": Recipe(224, _BOTH),
    "large": Recipe(224, (replace(_BOTH[0], share=0.2), replace(_BOTH[1], share=0.8, batch=1024))),
}


# What `loop.fit` is told: weight decay on none but matrices, and not on positions, registers and the mask token.
OPTIMISER: dict[str, Any] = {
    "weight_decay": 0.05,
    "decay_vectors": False,
    "spared": ("positions", "register", "mask"),
    "betas": (0.9, 0.98),
    "eps": 1e-6,
    "clip": 5.0,
}


class Batches:
    """What a step of a stage learns from, as a function of the step: clips, masks, noise."""

    def __init__(self, config: Config, stage: Stage, side: int, seed: int, videos: Any = None) -> None:
        self.config, self.stage, self.seed = config, stage, seed
        self.clips = Clips(config.patch, side, seed, videos)

    def __call__(self, step: int, share: Share) -> dict[str, Any]:
        rows, columns = self.clips.shape(step)
        batch = self.clips.batch(self.stage.batch, rows, columns)
        mine = share.rows(batch)
        grid = (self.stage.frames // self.config.tubelet, rows, columns)
        drawn = draw(self.config, grid, batch, mine, self.seed, self.config.stage, step)
        # Stage 2 does not begin with the clips of Stage 1 again.
        numbers = [(self.config.stage - 1) * 2**40 + step * self.stage.batch + row for row in mine]
        return {
            "video": self.clips(numbers, self.stage.frames, rows, columns),
            **drawn.batch(),
            "measure": step % 50 == 0,
        }


def second_stage(first: InternVideoNext, *, checkpointing: bool = False, **changes: Any) -> InternVideoNext:
    """Stage 2 of a model that has been through Stage 1, with multi-block masks if `changes` name no other: encoder, predictor and
    decoder are its own, the head of latents is new, the teacher is its encoder as it is now."""
    config = replace(first.config, **{"stage": 2, "mask": "blocks", **changes})
    model = InternVideoNext(config, checkpointing=checkpointing)
    for part in ("encoder", "predictor", "decoder"):
        getattr(model, part).load_state_dict(getattr(first, part).state_dict())
    if model.reference is not None:
        model.reference.model.load_state_dict(first.encoder.state_dict())
    return model.learn_from(first.image)


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
    stages: Literal["1+2", "1", "2"] = "1+2",
    start: str = "",
    teacher: str = "",
    bert: str = "",
    lr_scale: Literal["none", "linear256"] = "none",
    precision: Literal["no", "bf16"] = "no",
    most_bad: float = 0.1,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a flavour and write `model.safetensors`, `reference.safetensors` (Stage 2's teacher), `config.json` and a card to
    `out`.

    `overrides` are fields of `Config` among KEYS that are to be otherwise, each in the stage whose it is; `mask` is both's, and
    may be said where one of them is trained.

    `stages` "1", "2" or both; "2" alone goes on from the Stage 1 in the folder `start`. `teacher` is a vision tower by folder or
    hub id, `bert` a ModernBERT whose last layers begin as the predictor. `lr_scale` "linear256" multiplies the rates by batch /
    256, as the released scripts do and the paper's text does not. `data` and resuming as in `nextvid.pretrain`.
    """
    from pretrain.video import Videos

    out = Path(out)
    if (stages == "2") != bool(start):
        raise ValueError("Stage 2 alone needs --start, the folder of a Stage 1; nothing else does")
    if start and (teacher or bert):
        raise ValueError("--teacher and --bert are Stage 1's; the one in --start has its own")
    if start and Path(start).resolve() == out.resolve():
        raise ValueError(f"--out {out} is --start: name another folder, or the Stage 1 in it would be lost")
    first = load(start) if start else None
    if first is not None and first.config.stage != 1:
        raise ValueError(f"{start} has been through Stage 2 already; name a folder of Stage 1")
    config = first.config if first else replace(FLAVOURS[size], flavour=size)
    overrides = dict(overrides or {})
    if "mask" in overrides and stages == "1+2":
        raise ValueError("mask: each stage has its own. Train them one after the other, with --stages 1 and --stages 2")
    if missing := [
        key for key in overrides if key != "mask" and (key in SECOND_KEYS) != (stages == "2") and stages != "1+2"
    ]:
        raise ValueError(f"{missing[0]}: is not of Stage {stages}")
    later = {key: value for key, value in overrides.items() if key in SECOND_KEYS or stages == "2"}
    config = replace(config, **{key: value for key, value in overrides.items() if key not in later})
    config, size = replace(config, teacher=teacher or config.teacher), config.flavour
    recipe = RECIPES[size]
    scaled = [replace(s, batch=batch or s.batch) for s in recipe.stages]
    if lr_scale == "linear256":
        scaled = [replace(s, lr=s.lr * s.batch / 256) for s in scaled]
    recipe = Recipe(side or recipe.side, (scaled[0], scaled[1]))
    check_side(recipe.side, config.patch)
    image = None
    if stages != "2":
        image = teacher_of(config)
        config = replace(config, teacher_size=(image.width, image.depth))
    weights: dict[str, Tensor] = {}
    if bert and first is None:
        stored, weights = load_bert(bert, config.predictor.depth)
        config = replace(config, predictor=replace(config.predictor, width=stored["hidden_size"]), bert=stored)
    given = {"size": size, "seed": seed, "data": str(data), "batch": batch, "side": side, "fps": fps, "stages": stages}
    given |= {"start": start, "teacher": teacher, "bert": bert, "lr_scale": lr_scale, "precision": precision}
    given |= {"overrides": overrides} if overrides else {}
    videos, bad, logs = None, dict[str, str](), {}
    checkpointing = size in ("base", "large")
    # Weights that a stage begins from or learns from, beside the settings: of another Stage 1 its checkpoint would be another's.
    learned_from: dict[str, str] = {"weights of the image teacher": sum_of(image)} if image else {}
    whole = stages == "1+2"
    shares = (recipe.stages[0].share, 1 - recipe.stages[0].share) if whole else (1.0, 1.0)
    budgets = [(minutes and minutes * share, updates and max(1, round(updates * share))) for share in shares]
    (first_minutes, first_updates), _ = budgets
    if whole and begun(out / "work/stage-2") and not ended(out / "work/stage-1", first_updates, first_minutes):
        raise ValueError(
            f"{out} has begun Stage 2, and with a larger budget Stage 1 would go on beneath it. Name another --out, or give "
            "Stage 2 more by itself: --stages 2 --start with the folder of a Stage 1"
        )
    torch.manual_seed(seed)
    model = first
    for number in (1, 2):
        if str(number) not in stages:
            continue
        if number == 1:
            model = InternVideoNext(config, checkpointing=checkpointing).learn_from(image)
            if weights:
                assert model.predictor.bert is not None
                model.predictor.bert.layers.load_state_dict(weights)
        else:
            assert model is not None
            learned_from |= {"weights of Stage 1": sum_of(model)}
            torch.manual_seed(seed + 1)
            model = second_stage(model, checkpointing=checkpointing, **later)
            if model.config.looks and model.image is None:  # a Stage 1 from a folder comes without
                model.learn_from(teacher_of(model.config))
            if model.image is not None:
                learned_from |= {"weights of the image teacher": sum_of(model.image)}
        stage, budget = recipe.stages[number - 1], budgets[number - 1]
        if data:
            options: dict[str, Any] = {"fps": fps, "seed": seed, "most_bad": most_bad, "sampling": "sparse"}
            videos = Videos(data, stage.frames, recipe.side, **options)
        log = fit(
            model,
            Batches(model.config, stage, recipe.side, seed, videos),
            out / "work" / f"stage-{number}",
            minutes=budget[0],
            updates=budget[1],
            schedule=stage.rates,
            **OPTIMISER,
            precision=precision,
            settings={**given, **learned_from, **files_of(videos)},
            ahead=videos is not None,
            micro=micro,
            on_checkpoint=functools.partial(save_at, out, model),
            bad=videos.bad if videos else {},
            title=f"internvideo-next {size}, stage {number}",
        )
        bad |= log.pop("bad")
        logs[f"stage {number}"] = log
    if not is_main():
        return {"log": logs}
    assert model is not None
    save(out, model)
    spent = f"{minutes:g}m" if minutes else f"{updates}u"
    record = record_of(
        "internvideo-next", recipe, out, spent, {**given, "micro": micro, "most_bad": most_bad}, pretrain
    )
    record |= {"log": logs, "bad": bad}
    return recipes.write_down(record, out, card(record, model))


def teacher_of(config: Config) -> ImageTeacher:
    """The image teacher that a configuration names. "tiny" is one with random weights, for tests."""
    if config.teacher == "tiny":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return ImageTeacher(image_teacher.tower_of("tiny"), "tiny")
    return image_teacher.load(image_teacher.resolve(config.teacher))


def save(out: Path, model: InternVideoNext) -> None:
    """`model.safetensors`, and the Stage-1 teacher, which only a training needs, in a file of its own."""
    recipes.save(out, "internvideo_next", model, model.config, beside=["reference"])


def save_at(out: Path, model: InternVideoNext, step: int) -> None:
    save(out, model)


def load(folder: Path | str, *, random_weights: bool = False) -> InternVideoNext:
    """The model in `folder`, in fp32. Without `reference.safetensors` Stage 2's teacher is the encoder itself."""
    folder = Path(folder)
    stored = recipes.stored_config(folder, "internvideo_next", "InternVideo-Next")
    stored |= {part: Size(**stored[part]) for part in ("encoder", "predictor", "decoder")}
    stored |= {name: tuple(stored[name]) for name in ("grid", "teacher_size")}
    stored["blocks"] = tuple(tuple(block) for block in stored["blocks"])
    model = InternVideoNext(Config(**stored))
    if random_weights:
        return model
    weights = recipes.stored_weights(folder, beside=["reference"])
    if model.reference is not None and not any(name.startswith("reference.") for name in weights):
        weights |= {f"reference.model.{n[8:]}": v for n, v in weights.items() if n.startswith("encoder.")}
    model.load_state_dict(weights)
    return model


def card(record: dict[str, Any], model: InternVideoNext) -> str:
    """The model card, from the record of the run and the model itself."""
    config, parts = model.config, recipes.millions(model)
    ours = {
        "no norm on the raw patch": not config.dual_norm,
        "no LayerScale": not config.scale,
        "rotary positions beside the learnt ones": config.rope,
        f"positions' frequencies down to 1/{config.base:g}": config.base != 10_000,
        "a decoder that is asked for the clean patch and not for the noise": config.asked_for == "clean",
        f"times drawn towards noise (shift {config.shift:g})": config.shift != 1,
        f"the decoder asked for {config.decoded:.0%} of the hidden tokens": config.decoded != 1,
        "a pass that hides whole frames at the end, as generation asks": config.ahead,
        "the decoder's loss in Stage 2 too, so that it still draws": bool(config.pixels_too),
        "a predictor of random weights, with 3-axis positions": config.bert is None,
    }
    sizes = ", ".join(f"{name} {parts[name]:.2f} M" for name in ("encoder", "predictor", "decoder"))
    shown = {"align": "alignment", "pixels": "pixels", "latent": "latents"}
    runs = [
        f"{name}: {log['updates']:,} updates, {log['seconds'] / 60:.0f} minutes, last "
        + ", ".join(f"{title} {log[key]:.3f}" for key, title in shown.items() if key in log)
        for name, log in record["log"].items()
    ]
    stood = {"small": "a stand-in that we trained ourselves on still procedural pictures, told what they show",
             "tiny": "a tower with random weights, for tests"}  # fmt: skip
    drawn = bool(config.pixels_too) or config.stage == 1
    points = [
        f"**Parameters**: {sizes}.",
        f"**Training**: {'; '.join(runs)}.",
        f"**Image teacher**: {stood.get(config.teacher, f'`{config.teacher}`')}.",
        f"**Ours, not the paper's**: {'; '.join(text for text, differs in ours.items() if differs)}.",
    ]
    if record["size"] in ("tiny", "small"):
        points.append("**Limits**: pictures of about 64 x 64 pixels, clips of 4 frames.")
    if not (drawn and config.ahead):
        points.append(
            "**Draws badly**: its decoder has not learnt whole frames, or not since Stage 1. Made to be probed."
        )
    about = (
        "**Not the authors' model.** Written and trained by this project after arXiv 2512.01342: an encoder of what an image "
        "teacher looks at, a predictor of latents for the whole clip, a diffusion decoder of single patches; then latents of the "
        "frozen first stage."
    )
    return recipes.card(f"An InternVideo-Next, size {record['size']}, pretrained by us", about, record, points)


# For people, and for probes


def encode(model: InternVideoNext, video: Tensor) -> Tensor:
    """What a probe reads: features (B, N, D) of clips uint8 (B, F, H, W, 3), without the registers."""
    return model.encoder(to_pixels(video))


@torch.no_grad()
def pictures(model: InternVideoNext, video: Tensor, seed: int = 0, steps: int = 20) -> dict[str, Tensor]:
    """A clip uint8 (1, F, H, W, 3) as the model meets it, by caption, each uint8 (F, H, W, 3): what each mask leaves of it, what
    the decoder draws at the hidden places, and the second half drawn from the first."""
    config, pixels = model.config, to_pixels(video)
    grid = model.encoder.grid(pixels)
    total, places = math.prod(grid), grid[1] * grid[2]
    name = f"semantic mask, {config.hidden:.0%} hidden"
    try:
        attention = (model if model.image else model.learn_from(teacher_of(config))).look(pixels)[2]
    except ValueError:  # its image teacher cannot be reached
        attention = torch.full((1, grid[0], places), 1 / places)
        name = f"random mask (no teacher), {config.hidden:.0%} hidden"
    drawn = draw(replace(config, mask="semantic"), grid, 1, range(1), seed)
    keeps = {name: model.semantic(attention, drawn.uniform)}
    if "frames" in config.passes:
        keeps["the first frames"] = draw(config, grid, 1, range(1), seed).keeps[0]
    if "blocks" in config.passes:
        for count, scale in config.blocks:
            most = max(1, int(total * config.most))
            keep = masks.tubes_of_blocks(1, grid, count, scale, generator(seed, count), most, config.cut)
            keeps[f"{count} blocks of {scale:.0%}"] = keep
    keeps["the first half"] = recipes.everywhere(1, max(1, grid[0] // 2) * places)
    shown, clean = {"the clip": video[0]}, patchify(pixels, config.tubelet, config.patch)
    for name, keep in keeps.items():
        hidden = masks.complement(keep, total)
        noise = torch.randn(1, hidden.shape[1], config.channels, generator=generator(seed, total, hidden.shape[1]))
        seen, filled = clean.clone(), clean.clone()
        seen[0, hidden[0]] = 0.0
        filled[0, hidden[0]] = model.fill(pixels, keep, steps, noise)[0]
        for what, tokens in (("seen", seen), ("drawn", filled)):
            frames = unpatchify(tokens, grid, config.tubelet, config.patch)
            shown[f"{name}: {what}"] = to_uint8(frames)[0]
    return shown
