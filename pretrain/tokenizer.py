"""The adaptive tokenizer of LVMAE: what a patch of video is in a few numbers, and which patches matter (arXiv 2411.13683,
section 3.3).

    clip V -> 3-D CNN -> soft tokens e_i -> * top-k of importance s_i -> FSQ -> 3-D CNN -> clip
           -> scorer -> u_i,  s_i = |u_(t, p) - u_(t-1, p)|

Tokens that are not among the k most important are set to zero before they are quantised, and the scorer learns which ones cannot
be guessed from the rest of the clip. Trained once, then frozen: an LVMAE has its targets and its decoder masks from it.

    vdmreason pretrain tokenizer --budget 1h --out my-tokenizer

Of MAGVIT's losses only the squared error is kept; the perceptual and the adversarial one are not here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ

from pretrain import long, masks
from pretrain import recipe as recipes
from pretrain.data import named_rng
from pretrain.loop import Share, fit, trapezoid
from pretrain.recipe import Clips, check_side, files_of, generator, is_main, record_of, to_pixels, to_uint8
from pretrain.vit3d import patchify, unpatchify

ZOO = Path(__file__).resolve().parent / "zoo" / "tokenizer"
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Stage:
    """Residual blocks at one size, then a stride in time and space."""

    width: int
    blocks: int
    time: int = 1
    space: int = 1


@dataclass(frozen=True)
class Config:
    stages: tuple[Stage, ...]
    scorer: int  # channels of u
    levels: tuple[int, ...] = (8,) * 6  # of FSQ: 2^18 codes
    window: int = 16  # frames that are seen at once; longer clips window by window
    # Share of the tokens that stay in training, drawn between the two: 768 of 1568 as published.
    keep: tuple[float, float] = (768 / 1568, 768 / 1568)

    @property
    def tubelet(self) -> int:
        return math.prod(stage.time for stage in self.stages)

    @property
    def patch(self) -> int:
        return math.prod(stage.space for stage in self.stages)


_SMALL: dict[str, Any] = {"keep": (0.1, 1.0)}
FLAVOURS = {
    "tiny": Config((Stage(8, 0, 2, 4), Stage(16, 1, 1, 2), Stage(16, 1)), 8, (8, 5, 5, 5), window=8, **_SMALL),
    "small": Config((Stage(16, 0, 2, 2), Stage(32, 1, 1, 2), Stage(64, 1, 1, 2), Stage(96, 1)), 16, **_SMALL),
    # After MAGVIT's B and L (filters 64 and 128, two blocks a stage), with strides of 2 in time and 16 in space. The
    # multipliers that LVMAE used stand in a table that could not be had.
    **{
        name: Config(
            (
                Stage(f, 2, 1, 2),
                Stage(2 * f, 2, 1, 2),
                Stage(2 * f, 2, 1, 2),
                Stage(4 * f, 2, 2, 2),
                Stage(4 * f, 2),
            ),
            f,
        )
        for name, f in (("b", 64), ("l", 128))
    },
}


class Norm(nn.Module):
    """Layer norm over the channels of (B, C, T, H, W), place by place: what a token is does not depend on how large its
    picture is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class Residual(nn.Module):
    """x + conv(act(norm(conv(act(norm(x))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(width), nn.Conv3d(width, width, 3, padding=1)
        self.norm2, self.conv2 = Norm(width), nn.Conv3d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


def encoder_of(config: Config, channels: int) -> nn.Sequential:
    """(B, 3, F, H, W) -> (B, channels, t, h, w). A stride is a linear map of what it covers, so that nothing is averaged away."""
    layers: list[nn.Module] = [nn.Conv3d(3, config.stages[0].width, 3, padding=1)]
    widths = [*(stage.width for stage in config.stages[1:]), config.stages[-1].width]
    for stage, wide in zip(config.stages, widths, strict=True):
        layers += [Residual(stage.width) for _ in range(stage.blocks)]
        if stage.time * stage.space > 1 or stage.width != wide:
            stride = (stage.time, stage.space, stage.space)
            layers.append(nn.Conv3d(stage.width, wide, stride, stride))
    last = widths[-1]
    return nn.Sequential(*layers, Norm(last), nn.SiLU(), nn.Conv3d(last, channels, 1))


def decoder_of(config: Config, channels: int) -> nn.Sequential:
    """The encoder backwards."""
    last = config.stages[-1].width
    layers: list[nn.Module] = [nn.Conv3d(channels, last, 3, padding=1)]
    widths = [*(stage.width for stage in config.stages[1:]), last]
    for stage, wide in reversed(list(zip(config.stages, widths, strict=True))):
        if stage.time * stage.space > 1 or stage.width != wide:
            stride = (stage.time, stage.space, stage.space)
            layers.append(nn.ConvTranspose3d(wide, stage.width, stride, stride))
        layers += [Residual(stage.width) for _ in range(stage.blocks)]
    first = config.stages[0].width
    return nn.Sequential(*layers, Norm(first), nn.SiLU(), nn.Conv3d(first, 3, 3, padding=1))


def scorer_of(config: Config) -> nn.Sequential:
    """Two layers, strided to the tokens' grid: (B, 3, F, H, W) -> u (B, C, t, h, w)."""
    first = 2 ** math.ceil(math.log2(config.patch) / 2)  # of the patch; the second layer has the rest
    one, two = (config.tubelet, first, first), (1, config.patch // first, config.patch // first)

    def strided(given: int, out: int, stride: tuple[int, ...], bias: bool = True) -> nn.Conv3d:
        # A clip goes on as it ends: with zeros around it the first and the last frame would always seem to change.
        return nn.Conv3d(
            given, out, tuple(s + 2 for s in stride), stride, padding=1, bias=bias, padding_mode="replicate"
        )

    # What is added to every u is in no difference of them.
    second = strided(config.scorer, config.scorer, two, bias=False)
    return nn.Sequential(strided(3, config.scorer, one), nn.SiLU(), second)


class Tokenizer(nn.Module):
    """Pixels are (B, 3, F, H, W) in -1..1; tokens lie in the order t, y, x as those of a ViT do."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width = len(config.levels)  # numbers a token
        self.encoder, self.decoder = encoder_of(config, self.width), decoder_of(config, self.width)
        self.scorer = scorer_of(config)
        self.fsq = FSQ(list(config.levels))
        self.apply(initialise)
        for module in self.modules():
            if isinstance(module, Residual):
                nn.init.zeros_(module.conv2.weight)

    def grid(self, pixels: Tensor) -> Grid:
        """Tokens along t, y and x."""
        _, _, f, h, w = pixels.shape
        tubelet, patch = self.config.tubelet, self.config.patch
        if f % tubelet or h % patch or w % patch:
            raise ValueError(
                f"a clip of {f} x {h} x {w} does not divide into tubelets of {tubelet} x {patch} x {patch}"
            )
        return f // tubelet, h // patch, w // patch

    # From pixels to codes and back, window by window

    def windows(self, pixels: Tensor) -> Iterator[Tensor]:
        yield from pixels.split(self.config.window, 2)

    def quantised(self, soft: Tensor) -> Tensor:
        """Soft tokens (B, d, t, h, w) -> the nearest codes (B, N, d) in -1..1, gradients straight through."""
        return self.fsq(soft.flatten(2).transpose(1, 2))[0]

    def encode(self, pixels: Tensor) -> Tensor:
        """Codes (B, N, d)."""
        self.grid(pixels)
        return torch.cat([self.quantised(self.encoder(some)) for some in self.windows(pixels)], 1)

    def decode(self, codes: Tensor, grid: Grid) -> Tensor:
        """Codes (B, N, d) of a grid (t, y, x) -> pixels."""
        volume = codes.to(next(self.decoder.parameters()).dtype).transpose(1, 2).unflatten(2, grid)
        each = self.config.window // self.config.tubelet
        return torch.cat([self.decoder(some) for some in volume.split(each, 2)], 2)

    def nearest(self, codes: Tensor) -> Tensor:
        """Numbers (..., d) near -1..1 -> the codes nearest to them."""
        half = self.fsq._levels // 2
        low, high = -half, self.fsq._levels - 1 - half
        return (codes * half).round().clamp(low, high) / half

    def indices(self, codes: Tensor) -> Tensor:
        """Codes (B, N, d) -> their numbers (B, N) int32; `codes_of` is the inverse."""
        return self.fsq.codes_to_indices(codes)

    def codes_of(self, indices: Tensor) -> Tensor:
        return self.fsq.indices_to_codes(indices)

    # What matters

    def importance(self, pixels: Tensor) -> Tensor:
        """How much each token differs from the one before it, by what the scorer sees, as shares of the whole clip: (B, N). The
        first frame has the second's (the paper leaves it open; EVEREST does so). The scorer, which is small, sees the clip whole:
        at the borders of windows nothing changes."""
        return changes(self.scorer(pixels))

    # Training

    def forward(self, video: Tensor, keep: Tensor, chance: Tensor, by_chance: Tensor) -> dict[str, Tensor]:
        """The squared error of what is made of the tokens that stay, and what the scorer costs.

        `video` uint8 (B, F, H, W, 3) of one window; `keep` (B,), the share of the tokens that stay: all of the first frame and
        the most important others; where `by_chance` (B,) says so, those of the highest `chance` (B, N) instead.
        """
        pixels = to_pixels(video)
        soft, importance = self.encoder(pixels), self.importance(pixels)
        total, first = importance.shape[1], soft[0, 0, 0].numel()
        later = importance[:, first:]
        count = ((keep * total).round().long() - first).clamp(0, total - first)
        stays = top(torch.where(by_chance[:, None], chance[:, first:], later.detach()), count)
        kept = torch.cat([torch.ones_like(importance[:, :first]), stays.float()], 1)
        made = self.decode(self.quantised(soft * kept.unflatten(1, soft.shape[2:])[:, None]), self.grid(pixels))
        error = patchify((made - pixels).square(), self.config.tubelet, self.config.patch).mean(-1)  # (B, N)
        missed = error.detach()[:, first:] * ~stays
        # In a sum of all importances the scorer has a part also where a clip has one frame of tokens: DDP waits for it.
        scorer = surprise(later, missed).mean() + 0 * importance.sum()
        return {"loss": error.mean() + scorer, "scorer": scorer, "psnr": psnr(error.mean().detach())}

    @torch.no_grad()
    def rebuilt(self, pixels: Tensor, stays: Tensor | None = None) -> Tensor:
        """There and back. `stays` (B, N) is 1 where a token stays, 0 where it is dropped."""
        grid, found, start = self.grid(pixels), [], 0
        for some in self.windows(pixels):
            soft = self.encoder(some)
            if stays is not None:
                count = soft[0, 0].numel()
                soft = soft * stays[:, start : start + count].unflatten(1, soft.shape[2:])[:, None]
                start += count
            found.append(self.quantised(soft))
        return self.decode(torch.cat(found, 1), grid)


def initialise(module: nn.Module) -> None:
    """Weights of deviation 1 / sqrt(fan-in), zero biases: a layer keeps the scale of what goes in. With torch's usual ones, a
    third of that variance, a narrow tokenizer was no better after 240 updates than this one after 40 (docs/log.md)."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        strided = isinstance(module, nn.ConvTranspose3d)  # each of its outputs is made from one place
        fan = module.in_channels * (1 if strided else math.prod(module.kernel_size))
        nn.init.normal_(module.weight, std=fan**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def distance(volume: Tensor) -> Tensor:
    """How far each place of (B, C, t, h, w) is from the one before it: (B, t - 1, h, w)."""
    # The root has no gradient at 0, where nothing moves.
    return ((volume[:, :, 1:] - volume[:, :, :-1]).square().sum(1) + 1e-8).sqrt()


def changes(volume: Tensor) -> Tensor:
    """How far each place of (B, C, t, h, w) is from the one before it, as shares of the whole: (B, t * h * w). The first frame
    has the second's; one frame alone has nothing to compare with, and all of its places are alike."""
    if volume.shape[2] == 1:
        moved = torch.ones_like(volume[:, 0]) + 0 * volume.sum(1)
    else:
        moved = distance(volume)
        moved = torch.cat([moved[:, :1], moved], 1)
    return moved.flatten(1) / moved.flatten(1).sum(1, keepdim=True).clamp_min(1e-12)


def top(scores: Tensor, count: Tensor) -> Tensor:
    """bool (B, N): the `count` (B,) highest of scores (B, N)."""
    return scores.argsort(1, descending=True).argsort(1) < count[:, None]


def surprise(importance: Tensor, missed: Tensor) -> Tensor:
    """How far the importance of dropped tokens is from the shares that they have in what is missed: the cross entropy of the two
    as distributions, (B,), of (B, N) each; `missed` is the error where a token was dropped, 0 where it stayed.

    Which relaxation of top-k the paper has stands in a footnote that could not be had. Two others failed here (docs/log.md): hard
    forwards and the gradient straight through a sigmoid taught the scorer to look away from what moves, for at a dropped token it
    asks what a first small step of its code would do, and at one that stays, whose code is at an end of its range, nothing.
    """
    dropped = missed > 0
    total = missed.sum(1, keepdim=True)
    share = importance * dropped / (importance * dropped).sum(1, keepdim=True).clamp_min(1e-12)
    return -(missed / total.clamp_min(1e-12) * (share + 1e-9).log() * dropped).sum(1)


def psnr(error: Tensor) -> Tensor:
    """Decibels, of a mean squared error in -1..1."""
    return 10 * torch.log10(4 / error.clamp_min(1e-12))


# The recipe


@dataclass(frozen=True)
class Recipe:
    side: int
    batch: int
    lr: float
    lengths: tuple[int, ...]  # frames of a step's clips, one of these
    # Share of the clips of which chance says which tokens stay: so every token is dropped now and then, and its error seen.
    chance: float = 0.5


RECIPES = {
    "tiny": Recipe(32, 4, 1e-3, (2, 8)),
    "small": Recipe(64, 8, 1e-3, (2, 4, 8, 8, 16)),
    **{name: Recipe(224, 128, 1e-4, (16,)) for name in ("b", "l")},
}


class Batches:
    """What a step learns from, as a function of the step: without `videos` procedural clips and windows of long ones in turn, or
    the latter alone (`only_long`)."""

    def __init__(self, config: Config, recipe: Recipe, seed: int, videos: Any = None, only_long: bool = False) -> None:
        self.config, self.recipe, self.seed, self.videos, self.only_long = config, recipe, seed, videos, only_long
        self.clips = Clips(config.patch, recipe.side, seed, videos)

    def __call__(self, step: int, share: Share) -> dict[str, Any]:
        rng = named_rng("tokenizer", self.seed, step)
        frames = int(rng.choice(self.recipe.lengths))
        most = max(self.recipe.lengths)
        rows, columns = self.clips.shape(step)
        from_long = self.videos is None and (self.only_long or step % 2 == 1)
        if from_long:
            rows = columns = max(recipes.LEAST, self.recipe.side // self.config.patch // int(rng.integers(1, 3)))
        batch = self.clips.batch(self.recipe.batch, rows, columns, min(2.0, max(1.0, most / 2 / frames)))
        mine = share.rows(batch)
        numbers = [step * 4 * self.recipe.batch + row for row in mine]
        low, high = self.config.keep
        keep = torch.tensor([rng.uniform(low, high) for _ in range(batch)])[mine.start : mine.stop].float()
        if from_long:
            video = long.clips(numbers, self.seed, frames, rows * self.config.patch)[0]
        else:
            video = self.clips(numbers, frames, rows, columns)
        total = frames // self.config.tubelet * rows * columns
        chance = torch.stack([torch.rand(total, generator=generator(self.seed, step, row)) for row in mine])
        by_chance = torch.tensor([rng.random() < self.recipe.chance for _ in range(batch)])[mine.start : mine.stop]
        return {"video": video, "keep": keep, "chance": chance, "by_chance": by_chance}


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
    precision: str = "no",
    most_bad: float = 0.1,
) -> dict[str, Any]:
    """Train a tokenizer and write `model.safetensors`, `config.json` and a card to `out`. Resumes after a kill; `data` as in
    `nextvid.pretrain`, or "long" for long procedural clips alone."""
    from pretrain.video import Videos

    out, config = Path(out), FLAVOURS[size]
    recipe = replace(RECIPES[size], batch=batch or RECIPES[size].batch, side=side or RECIPES[size].side)
    check_side(recipe.side, config.patch)
    given = {"size": size, "seed": seed, "data": str(data), "batch": recipe.batch, "side": recipe.side, "fps": fps}
    given |= {"precision": precision}
    torch.manual_seed(seed)
    model = Tokenizer(config)
    videos = None
    if data not in ("", "long"):
        videos = Videos(data, max(recipe.lengths), recipe.side, fps=fps, seed=seed, most_bad=most_bad)
    log = fit(
        model,
        Batches(config, recipe, seed, videos, only_long=data == "long"),
        out / "work",
        minutes=minutes,
        updates=updates,
        schedule=trapezoid(recipe.lr),
        decay_vectors=False,
        precision=precision,  # type: ignore[arg-type]
        settings={**given, **files_of(videos)},
        ahead=videos is not None,
        micro=micro,
        on_checkpoint=lambda step: save(out, model),
        bad=videos.bad if videos else {},
        title=f"tokenizer {size}",
    )
    if not is_main():
        return {"log": log}
    save(out, model)
    options = {**given, "batch": batch, "micro": micro, "side": side, "most_bad": most_bad}
    budget = f"{minutes:g}m" if minutes else f"{updates}u"
    record = record_of("tokenizer", recipe, out, budget, options, pretrain)
    record |= {"bad": log.pop("bad"), "log": log}
    return recipes.write_down(record, out, card(record, model))


def save(out: Path, model: Tokenizer) -> None:
    recipes.save(out, "tokenizer", model, model.config)


def config_of(stored: dict[str, Any]) -> Config:
    """A `Config` from JSON."""
    stages = tuple(Stage(**stage) for stage in stored["stages"])
    return Config(**{**stored, "stages": stages, "levels": tuple(stored["levels"]), "keep": tuple(stored["keep"])})


def load(folder: Path | str, *, random_weights: bool = False) -> Tokenizer:
    """The tokenizer in `folder`, in fp32. "small" is the one that ships, "tiny" one with random weights, for tests."""
    if str(folder) == "tiny":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Tokenizer(FLAVOURS["tiny"])
    folder = ZOO if str(folder) == "small" else Path(folder)
    try:
        model = Tokenizer(config_of(recipes.stored_config(folder, "tokenizer", "tokenizer")))
        if not random_weights:
            model.load_state_dict(recipes.stored_weights(folder))
    except (KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"the tokenizer in {folder} does not fit its config.json ({reason}). Copy it again") from None
    return model


def card(record: dict[str, Any], model: Tokenizer) -> str:
    config, log, parts = model.config, record["log"], recipes.millions(model)
    about = (
        "**Not the authors' model.** Written and trained by this project after arXiv 2411.13683, section 3.3: a 3-D CNN, a "
        "scorer, the most important tokens, finite scalar quantisation. What an LVMAE has its targets and masks from."
    )
    low, high = config.keep
    points = [
        f"**Parameters**: {', '.join(f'{n} {parts[n]:.2f} M' for n in ('encoder', 'decoder', 'scorer'))}.",
        f"**Tokens**: {config.tubelet} frames of {config.patch} x {config.patch} pixels in {len(config.levels)} numbers, "
        f"{math.prod(config.levels):,} codes.",
        f"**Training**: {log['updates']:,} updates, {log['seconds'] / 60:.0f} minutes; last PSNR {log['psnr']:.1f} dB with "
        f"{low:.0%} to {high:.0%} of the tokens.",
        "**Ours, not the paper's**: squared error alone, no perceptual and no adversarial loss; layer norm place by place; "
        "strides by linear maps; how many tokens stay is drawn anew for every clip, of every other one chance says which; the "
        "scorer is told the error of dropped tokens.",
    ]
    if record["data"] == "procedural":
        points.append("**Half of its batches** are windows of long clips (`pretrain/long.py`).")
    return recipes.card(f"An adaptive tokenizer, size {record['size']}, pretrained by us", about, record, points)


# For people


def pictures(model: Tokenizer, video: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """A clip uint8 (1, F, H, W, 3) as the tokenizer meets it, by caption, each uint8 (F, H, W, 3): where it looks, and what it
    makes of all tokens and of the most important ones."""
    pixels = to_pixels(video)
    grid = model.grid(pixels)
    with torch.no_grad():
        scores = model.importance(pixels)
    shown = {"the clip": video[0], "importance": heat(video[0], scores[0], grid, model.config)}
    total = scores.shape[1]
    shown["all tokens"] = to_uint8(model.rebuilt(pixels))[0]
    for share in (0.5, 0.25, 0.1):
        kept = masks.importance(scores, round(share * total), 0, scores)
        stays = torch.zeros_like(scores).scatter_(1, kept, 1.0)
        shown[f"the best {share:.0%}"] = to_uint8(model.rebuilt(pixels, stays))[0]
    return shown


def heat(video: Tensor, scores: Tensor, grid: Grid, config: Any) -> Tensor:
    """Importance (N,) laid over a clip uint8 (F, H, W, 3): dark grey where there is none, red where there is most."""
    grey = video.float().mean(-1, keepdim=True).expand(-1, -1, -1, 3) * 0.4
    share = (scores / scores.max().clamp_min(1e-12)).sqrt()
    tokens = share[None, :, None].expand(-1, -1, config.tubelet * config.patch**2)
    over = unpatchify(tokens, grid, config.tubelet, config.patch)[0].permute(1, 2, 3, 0)  # (F, H, W, 1)
    red = torch.tensor([255.0, 60.0, 30.0])
    return (grey * (1 - over) + red * over).round().clamp(0, 255).byte()
