"""LVMAE: a masked autoencoder of long video that decodes a few tokens, the important ones (arXiv 2411.13683).

    encoder    sees a tube of 10 % of the tokens: the same places in all frames
    decoder    reads those and mask tokens at 15 % of the places: the 10 % most important and 5 % by chance
    target     the codes of a frozen adaptive tokenizer there (`pretrain/tokenizer.py`), whose scorer says what is important

The decoder is what ends the memory at 128 frames: of 12,544 tokens it reads 3,136, as many as of 32 frames if it read them all.

    vdmreason pretrain lvmae --budget 2h --out my-lvmae
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import long, masks, tokenizer
from pretrain import recipe as recipes
from pretrain.data import named_rng
from pretrain.flow import flow_scores
from pretrain.loop import Share, check_settings, fit, processes, warm_cosine
from pretrain.recipe import Clips, check_side, files_of, generator, is_main, record_of, to_pixels, to_uint8
from pretrain.stored import Stored, sum_of
from pretrain.targets import meters
from pretrain.tokenizer import Grid, Tokenizer, changes, heat
from pretrain.vit3d import (
    BASE,
    Encoder,
    Rope,
    Size,
    Stack,
    coordinates,
    gather,
    initialise,
    patchify,
    rope,
    sincos,
    unpatchify,
)

Mask = Literal["adaptive", "random", "uniform", "flow", "everest", "difference", "none"]
MASKS: tuple[Mask, ...] = ("adaptive", "random", "uniform", "flow", "everest", "difference", "none")


@dataclass(frozen=True)
class Config:
    """A model and its objective. The published values are the defaults of the objective, `FLAVOURS` has the sizes."""

    encoder: Size
    decoder: Size
    patch: int = 16
    tubelet: int = 2
    hidden: float = 0.9  # share of the places that the encoder's tube hides
    # Which tokens are decoded: by the tokenizer's importance, at random, whole frames, by optical flow, by how the embedding
    # of a patch changes (EVEREST), how its pixels change, or all that are hidden.
    mask: Mask = "adaptive"
    top: float = 0.10  # share of all tokens decoded for their importance
    extra: float = 0.05  # and by chance
    target: Literal["codes", "levels", "pixels"] = (
        "codes"  # squared error of codes, each number's level as a class, pixels
    )
    positions: Literal["sincos", "both"] = "sincos"  # sines added to the tokens, or rotary ones too
    base: float = BASE
    ahead: bool = False  # one more pass: the next frame from all before it, as generation asks
    tokenizer: str = "small"
    tokens: dict[str, Any] = field(default_factory=dict)  # the tokenizer's own configuration
    flavour: str = ""

    def __post_init__(self) -> None:
        recipes.shares(self, "hidden", "top", "extra")
        decoded = self.top + self.extra
        # These two take what is hidden, however little.
        most = 1.0 if self.mask in ("none", "uniform") else self.hidden + 1e-9
        if not 0 < decoded <= most:
            share = f"{decoded:g} of the tokens"
            raise ValueError(f"top + extra: {share}; more than none, and at most hidden, {self.hidden:g}")

    @property
    def every(self) -> int:
        """Of so many frames the uniform mask decodes one: what is hidden there is as much as the others decode."""
        return max(1, round(self.hidden / (self.top + self.extra)))

    def budget(self, total: int) -> tuple[int, int]:
        """How many of `total` tokens are decoded for their importance and by chance."""
        if self.mask == "random":
            return 0, round((self.top + self.extra) * total)
        return round(self.top * total), round(self.extra * total)


KEYS = ("hidden", "top", "extra", "positions", "ahead")


class Decoder(nn.Module):
    """The encoder's tokens and mask tokens, at their places, through a narrower transformer."""

    def __init__(self, config: Config, out: int, checkpointing: bool = False) -> None:
        super().__init__()
        self.size, self.base, self.turns = config.decoder, config.base, config.positions == "both"
        width = self.size.width
        self.embed = nn.Linear(config.encoder.width, width, bias=False)
        self.mask = nn.Parameter(0.02 * torch.randn(width))
        self.blocks = Stack(self.size, checkpointing=checkpointing)
        self.norm, self.out = nn.LayerNorm(width, 1e-6), nn.Linear(width, out)
        initialise(self.embed)
        initialise(self.out)

    def forward(self, encoded: Tensor, at: Tensor, at_asked: Tensor) -> Tensor:
        """`encoded` (B, K, D) at `at` (B, K, 3); what is asked for lies at `at_asked` (B, M, 3): (B, M, out)."""
        width, places = self.size.width, torch.cat([at, at_asked], 1)
        x = torch.cat([self.embed(encoded), self.mask.expand(*at_asked.shape[:2], -1).to(encoded.dtype)], 1)
        x = x + sincos(places, width, self.base).to(x.dtype)
        turn: Rope | None = rope(places, width // self.size.heads, self.base) if self.turns else None
        return self.out(self.norm(self.blocks(x, turn)[:, at.shape[1] :]))


class LVMAE(nn.Module):
    """Encoder, decoder, and the frozen tokenizer. `forward` is the loss."""

    def __init__(self, config: Config, tokens: Tokenizer | None = None, *, checkpointing: bool = False) -> None:
        super().__init__()
        if tokens is None:  # a configuration that was stored has the tokenizer's own; else it is named
            stored = config.tokens
            tokens = Tokenizer(tokenizer.config_of(stored)) if stored else tokenizer.load(config.tokenizer)
        config = replace(config, tokens=json.loads(json.dumps(asdict(tokens.config))))
        if (tokens.config.tubelet, tokens.config.patch) != (config.tubelet, config.patch):
            raise ValueError(
                f"a tokenizer of {tokens.config.tubelet} x {tokens.config.patch} x {tokens.config.patch} does not fit a model of "
                f"{config.tubelet} x {config.patch} x {config.patch}"
            )
        self.config = config
        self.encoder = Encoder(config.encoder, config.patch, config.tubelet, positions=config.positions,
                               base=config.base, checkpointing=checkpointing)  # fmt: skip
        self.levels = tuple(tokens.config.levels)
        self.channels = {"codes": len(self.levels), "levels": sum(self.levels)}.get(
            config.target, config.tubelet * config.patch**2 * 3
        )
        self.decoder = Decoder(config, self.channels, checkpointing)
        self.tokenizer = tokens.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> LVMAE:
        """The tokenizer is frozen."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    # What is decoded

    @torch.no_grad()
    def scores(self, video: Tensor) -> Tensor:
        """How important each token is to the decoder mask, for clips uint8 (B, F, H, W, 3): shares (B, N).

        In fp32 whatever the training is in: differences of nearly equal numbers are little but noise in bf16.
        """
        with torch.autocast(video.device.type, enabled=False):
            return self._scores(video)

    def _scores(self, video: Tensor) -> Tensor:
        config = self.config
        if config.mask == "flow":
            return flow_scores(video, config.tubelet, config.patch)
        pixels = to_pixels(video)
        if config.mask == "adaptive":
            return self.tokenizer.importance(pixels)
        grid = self.encoder.grid(pixels)
        if config.mask not in ("everest", "difference"):
            return torch.ones(len(video), math.prod(grid), device=video.device)
        seen = patchify(pixels, config.tubelet, config.patch)
        seen = self.encoder.embed(seen) if config.mask == "everest" else seen
        return changes(seen.transpose(1, 2).unflatten(2, grid))

    def chosen(self, scores: Tensor, keep: Tensor, uniform: Tensor, grid: Grid, first: int) -> Tensor:
        """The tokens (B, M) that are decoded, none of those that the encoder sees, `keep` (B, K): by their `scores` and by
        chance, `uniform`, each (B, N). The uniform mask decodes one frame of `config.every`, from `first` on."""
        total = math.prod(grid)
        hidden = masks.complement(keep, total)
        if self.config.mask == "none":
            return hidden
        if self.config.mask == "uniform":
            frames = hidden[0] // (grid[1] * grid[2])  # a tube hides as many in every frame
            every = self.config.every
            return hidden[:, (frames % every) == first % min(every, grid[0])]
        top, extra = self.config.budget(total)
        return masks.importance(scores, min(top, hidden.shape[1]), min(extra, hidden.shape[1] - top), uniform, keep)

    # Training

    def forward(
        self,
        video: Tensor,
        keep: Tensor,
        uniform: Tensor,
        first: int,
        ahead: int = 0,
        codes: Tensor | None = None,
        scores: Tensor | None = None,
        measure: bool = False,
    ) -> dict[str, Tensor]:
        """The loss of a batch and its parts.

        `video` uint8 (B, F, H, W, 3); `keep` (B, K), the tokens that the encoder sees; `uniform` (B, N) and `first`, what chance
        the decoder mask has; `ahead`: after so many frames of tokens the next one is asked for too, 0 for none. `codes` (B, N)
        int32 and `scores` (B, N) where they are stored already.
        """
        pixels = to_pixels(video)
        grid = self.encoder.grid(pixels)
        scores = self.scores(video) if scores is None else scores.float()
        with torch.no_grad():
            target = self.target(pixels, codes)
        asked = self.chosen(scores, keep, uniform, grid, first)
        parts = {"masked": self.loss(self.predict(pixels, keep, asked), gather(target, asked))}
        if ahead:
            places = grid[1] * grid[2]
            known = recipes.everywhere(len(video), ahead * places).to(pixels.device)
            coming = known[:, :places] + ahead * places
            wanted = gather(target, coming)
            if self.config.target != "pixels":  # by itself, as it is drawn: nothing that comes later is in its codes
                with torch.no_grad():
                    wanted = self.tokenizer.encode(pixels.split(self.config.tubelet, 2)[ahead])
            parts["ahead"] = self.loss(self.predict(pixels, known, coming), wanted)
        logs = {"loss": torch.stack(list(parts.values())).sum(), **parts}
        if measure and len(video) > 1:
            with torch.no_grad():
                logs |= meters(self.encoder(pixels[:8, :, :16]))
        return logs

    def target(self, pixels: Tensor, codes: Tensor | None = None) -> Tensor:
        """What is predicted of every token (B, N, d): the tokenizer's codes, or pixels with each patch's mean taken away and
        divided by its deviation (as MAE does, over its colours together; VideoMAE takes each colour by itself)."""
        if self.config.target == "pixels":
            patches = patchify(pixels, self.config.tubelet, self.config.patch)
            return F.layer_norm(patches, patches.shape[-1:])
        return self.tokenizer.encode(pixels) if codes is None else self.tokenizer.codes_of(codes)

    def predict(self, pixels: Tensor, keep: Tensor, asked: Tensor) -> Tensor:
        """What the decoder says of the tokens `asked` (B, M), from those that `keep` (B, K) names: (B, M, channels)."""
        at = coordinates(self.encoder.grid(pixels), pixels.device)[None]
        return self.decoder(self.encoder(pixels, keep), gather(at, keep), gather(at, asked))

    def loss(self, said: Tensor, wanted: Tensor) -> Tensor:
        """The error of (B, M, channels) against targets (B, M, d)."""
        if self.config.target != "levels":
            return (said.float() - wanted).square().mean()
        half = torch.tensor(self.levels, device=wanted.device) // 2
        level = (wanted * half).round().long() + half  # (B, M, d) in 0 .. L - 1
        parts = said.float().split(self.levels, -1)
        losses = [F.cross_entropy(p.flatten(0, 1), level[..., k].flatten()) for k, p in enumerate(parts)]
        return torch.stack(losses).mean()

    def guessed(self, said: Tensor) -> Tensor:
        """The decoder's words as codes (B, M, d)."""
        if self.config.target == "codes":
            return self.tokenizer.nearest(said.float())
        if self.config.target == "pixels":
            raise ValueError("a model of normalised pixels draws nothing")
        half = torch.tensor(self.levels, device=said.device) // 2
        level = torch.stack([part.argmax(-1) for part in said.split(self.levels, -1)], -1)
        return (level - half) / half

    # At the exam: the frames that follow

    def grid(self, video: Tensor) -> Grid:
        return self.encoder.grid(video)

    def encoded(self, video: Tensor) -> Tensor:
        return self.tokenizer.encode(video)

    def decoded(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.tokenizer.decode(tokens, grid).clamp(-1, 1)

    def times(self, grid: Grid) -> int:
        """There is no noise, so no time of it; the protocol has one a sample."""
        if grid[0] != 1:
            raise ValueError("an LVMAE answers with one tubelet of frames")
        return 1

    def shifted(self, uniform: Tensor, shift: float) -> Tensor:
        return uniform

    def said(self, known: Tensor) -> Tensor:
        """What the decoder says of the tubelet after `known` (B, 3, F, H, W): (B, M, channels)."""
        frames, rows, columns = self.grid(known)
        places = rows * columns
        coming = known.new_zeros(*known.shape[:2], self.config.tubelet, *known.shape[3:])
        keep = recipes.everywhere(len(known), frames * places).to(known.device)
        asked = keep[:, :places] + frames * places
        return self.predict(torch.cat([known, coming], 2), keep, asked)

    def ahead_loss(self, known: Tensor, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The loss for the codes `clean` (B, M, d) of the tubelet after `known`. Noise and time are not looked at."""
        return self.loss(self.said(known), clean)

    @torch.no_grad()
    def ahead(self, known: Tensor, noise: Tensor, steps: int, watch: Any = None) -> Tensor:
        """Codes of the tubelet after `known`: there is one step, whatever `steps` says."""
        codes = self.guessed(self.said(known))
        if watch:
            watch(1, 1, codes)
        return codes

    # Longer video than the memory holds

    def stream(self, pixels: Tensor, chunk: int, memory: int, seed: int = 0) -> Tensor:
        """Features (B, N, D) of a clip that is read `chunk` frames at a time, each block looking back at `memory` tokens of what
        it read before, a random choice from all of that. With a memory as long as the clip nothing before is lost; with one chunk
        it is the encoder itself. The authors name this direction; the choice of random tokens is MC-ViT's (2402.05861)."""
        size, found = self.encoder.size, []
        past: list[Tensor] = [pixels.new_zeros(len(pixels), 0, size.width) for _ in self.encoder.blocks]
        grid, at = self.encoder.grid(pixels), coordinates(self.encoder.grid(pixels), pixels.device)[None]
        tokens = self.encoder.embed(patchify(pixels, self.config.tubelet, self.config.patch))
        tokens = tokens + sincos(at, size.width, self.config.base).to(tokens.dtype)
        turns = self.config.positions == "both"
        each, places, luck = chunk // self.config.tubelet * grid[1] * grid[2], at.new_zeros(1, 0, 3), torch.zeros(0)
        if not each:
            raise ValueError(f"a chunk of {chunk} frames is less than a tubelet of {self.config.tubelet}")
        for number, (x, here) in enumerate(zip(tokens.split(each, 1), at.split(each, 1), strict=True)):
            around = torch.cat([places, here], 1)
            turn = rope(here, size.width // size.heads, self.config.base) if turns else None
            turned = rope(around, size.width // size.heads, self.config.base) if turns else None
            states = []
            for block, before in zip(self.encoder.blocks, past, strict=True):
                states.append(torch.cat([before, x], 1))
                x = block(x, turn, None, block.norm1(states[-1]), turned)
            found.append(self.encoder.norm(x))
            luck = torch.cat([luck, torch.rand(here.shape[1], generator=generator(seed, number))])
            kept = luck.argsort()[:memory].sort().values  # each token so far with the same chance
            luck, kept = luck[kept], kept.to(pixels.device)
            past, places = [state[:, kept] for state in states], around[:, kept]
        return torch.cat(found, 1)


# What a step learns from


@dataclass(frozen=True)
class Draw:
    keep: Tensor
    uniform: Tensor
    first: int
    ahead: int

    def batch(self) -> dict[str, Any]:
        return {"keep": self.keep, "uniform": self.uniform, "first": self.first, "ahead": self.ahead}


def draw(config: Config, grid: Grid, rows: range, *name: int) -> Draw:
    """Everything random of a step but its clips, as a function of `name` (seed and step), sample by sample, so that a process
    draws only for its `rows`."""
    frames, places = grid[0], grid[1] * grid[2]
    own, shared = [generator(*name, row) for row in rows], generator(*name)
    keep = torch.cat([masks.tube(1, places, config.hidden, g) for g in own])
    uniform = torch.stack([torch.rand(frames * places, generator=g) for g in own])
    first, cut = (int(torch.randint(most, (), generator=shared)) for most in (config.every, max(1, frames - 1)))
    return Draw(
        masks.over_time(keep, range(frames), places), uniform, first, cut + 1 if config.ahead and frames > 1 else 0
    )


# The recipe

_SMALL: dict[str, Any] = {"patch": 8, "positions": "both", "base": 100.0, "ahead": True}
FLAVOURS: dict[str, Config] = {
    "tiny": Config(Size(24, 2, 2), Size(24, 1, 2), tokenizer="tiny", **_SMALL),
    "small": Config(Size(160, 6, 5), Size(96, 3, 3), **_SMALL),
    "vit-b": Config(Size(768, 12, 12), Size(384, 4, 6), tokenizer=""),
    "vit-l": Config(Size(1024, 24, 16), Size(512, 4, 8), tokenizer=""),
}


@dataclass(frozen=True)
class Recipe:
    """How a flavour is trained: AdamW, linear warm-up, then a cosine to 0 (VideoMAE V2, which the paper builds on)."""

    side: int  # pixels; procedural clips have shapes of their own
    batch: int
    lr: float
    lengths: tuple[int, ...]  # frames of a step's clips, one of these
    long: float = 0.0  # share of the steps that see whole long clips, of half the side
    warmup: float = 0.05


RECIPES = {
    "tiny": Recipe(32, 4, 1e-3, (4, 8)),
    "small": Recipe(64, 16, 1e-3, (4, 8, 16), long=0.2),
    # 1.5e-4 or 1e-3 for 256 clips: the paper's own table could not be had
    **{name: Recipe(224, 256, 1e-3, (128,)) for name in ("vit-b", "vit-l")},
}
OPTIMISER: dict[str, Any] = {"weight_decay": 0.05, "decay_vectors": False, "betas": (0.9, 0.95)}


class Batches:
    """What a step learns from, as a function of the step. With `stored` there are as many different clips as that holds."""

    def __init__(
        self, config: Config, recipe: Recipe, seed: int, videos: Any = None, stored: Stored | None = None
    ) -> None:
        self.config, self.recipe, self.seed, self.videos, self.stored = config, recipe, seed, videos, stored
        self.clips = Clips(config.patch, recipe.side, seed, videos)

    def __call__(self, step: int, share: Share) -> dict[str, Any]:
        rng = named_rng("lvmae", self.seed, step)
        whole = self.videos is None and rng.random() < self.recipe.long
        frames = long.LENGTH if whole else int(rng.choice(self.recipe.lengths))
        rows, columns = self.clips.shape(step)
        if whole:
            rows = columns = self.recipe.side // self.config.patch // 2
        elif self.stored:
            rows = columns = self.recipe.side // self.config.patch
        batch = self.clips.batch(self.recipe.batch, rows, columns)
        mine = share.rows(batch)
        numbers = [step * self.recipe.batch + row for row in mine]
        given: dict[str, Any] = {}
        if self.stored:
            numbers = [self.clip_at(number) for number in numbers]
            given = dict(self.stored(numbers))
        if whole:
            given["video"] = long.clips(numbers, self.seed, frames, rows * self.config.patch)[0]
        else:
            given["video"] = self.clips(numbers, frames, rows, columns)
        grid = (frames // self.config.tubelet, rows, columns)
        return {**draw(self.config, grid, mine, self.seed, step).batch(), **given, "measure": step % 50 == 0}

    def clip_at(self, number: int) -> int:
        """Which stored clip is the `number`-th: every pass sees all of them, in an order of its own."""
        assert self.stored is not None
        return clip_at(number, self.stored.total, self.seed)


def clip_at(number: int, total: int, seed: int) -> int:
    """Which of `total` clips is the `number`-th: every pass sees all of them, in an order of its own."""
    return int(named_rng("order", seed, number // total).permutation(total)[number % total])


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
    frames: int | None = None,
    fps: float = 4.0,
    tokens: str = "",
    mask: Mask = "adaptive",
    target: Literal["codes", "levels", "pixels"] | None = None,
    stored: int = 0,
    precision: Literal["no", "bf16"] = "no",
    most_bad: float = 0.1,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a flavour and write `model.safetensors`, `tokenizer.safetensors`, `config.json` and a card to `out`.

    `overrides` are fields of `Config` among KEYS that are to be otherwise.

    `tokens` is the folder of a tokenizer ("small" ships), `mask` one of MASKS. `stored` > 0: so many different clips, whose codes
    and importance are computed once, kept beside the training, and found again only by the same tokenizer. `data` and resuming
    as in `nextvid.pretrain`.
    """
    from pretrain.video import Videos

    out = Path(out)
    config, recipe = FLAVOURS[size], RECIPES[size]
    name = tokens or config.tokenizer
    if not name:
        raise ValueError(
            f"size {size} needs a tokenizer of {config.tubelet} x {config.patch} x {config.patch}: name its folder with "
            "--tokenizer, made by vdmreason pretrain tokenizer --size b"
        )
    lengths = (frames,) if frames else recipe.lengths
    if any(length % config.tubelet for length in lengths):
        raise ValueError(f"{frames} frames do not divide into tubelets of {config.tubelet}")
    recipe = replace(recipe, batch=batch or recipe.batch, side=side or recipe.side, lengths=lengths)
    recipe = replace(recipe, long=0.0 if frames or stored else recipe.long)
    if stored and len(lengths) > 1:
        raise ValueError("--stored keeps clips of one length: say how many --frames")
    check_side(recipe.side, config.patch)
    config = replace(
        config, mask=mask, target=target or config.target, tokenizer=name, flavour=size, **(overrides or {})
    )
    given = {"size": size, "seed": seed, "data": str(data), "batch": recipe.batch, "side": recipe.side, "fps": fps}
    given |= {"frames": frames, "tokens": tokens, "mask": mask, "target": target, "stored": stored}
    given |= {"precision": precision, **({"overrides": dict(overrides)} if overrides else {})}
    torch.manual_seed(seed)
    model = LVMAE(config, tokenizer.load(name), checkpointing=size.startswith("vit"))
    videos = Videos(data, max(lengths), recipe.side, fps=fps, seed=seed, most_bad=most_bad) if data else None
    batches = Batches(model.config, recipe, seed, videos)
    # A tokenizer that was trained again since would say codes that the one in the checkpoint cannot draw.
    settings = {**given, "weights of the tokenizer": sum_of(model.tokenizer), **files_of(videos)}
    if is_main():
        check_settings(out / "work", settings)
    if stored:
        batches.stored = keep(model, batches.clips, stored, out / "stored", given)
    log = fit(
        model,
        batches,
        out / "work",
        minutes=minutes,
        updates=updates,
        schedule=lambda step, total: {"": warm_cosine(step, total, recipe.lr, recipe.warmup)},
        **OPTIMISER,
        precision=precision,
        settings=settings,
        ahead=videos is not None,
        micro=micro,
        on_checkpoint=lambda step: save(out, model),
        bad=videos.bad if videos else {},
        title=f"lvmae {size}",
    )
    if not is_main():
        return {"log": log}
    save(out, model)
    options = {**given, "batch": batch, "micro": micro, "side": side, "most_bad": most_bad}
    budget = f"{minutes:g}m" if minutes else f"{updates}u"
    record = record_of("lvmae", recipe, out, budget, options, pretrain, {"tokens": "tokenizer"})
    record |= {"bad": log.pop("bad"), "log": log}
    return recipes.write_down(record, out, card(record, model))


def keep(model: LVMAE, clips: Clips, total: int, folder: Path, given: dict[str, Any]) -> Stored:
    """Codes and importance of `total` clips, computed once. They depend on the tokenizer's weights, on the clips and, but for
    EVEREST's, whose embedding learns, on the mask."""
    side = clips.side // clips.patch
    frames = int(given["frames"])
    model.to(processes().device)

    def one(number: int) -> dict[str, Tensor]:
        """One clip at a time: a published tokenizer wants gigabytes for each."""
        video = clips([number], frames, side, side).to(processes().device)
        codes = model.tokenizer.indices(model.tokenizer.encode(to_pixels(video)))
        return {"codes": codes} if model.config.mask == "everest" else {"codes": codes, "scores": model.scores(video)}

    def make(numbers: range) -> dict[str, Tensor]:
        found = [one(number) for number in numbers]
        return {name: torch.cat([values[name].cpu() for values in found]) for name in found[0]}

    key = {name: given[name] for name in ("seed", "data", "side", "fps", "frames", "mask")}
    key |= {"tokenizer": sum_of(model.tokenizer), "config": model.config.tokens}
    if clips.videos is not None:
        key["files"] = clips.videos.fingerprint()
    with torch.no_grad():
        return Stored(folder, key, total, make).fill("codes and importance")


def save(out: Path, model: LVMAE) -> None:
    """`model.safetensors`, and the frozen tokenizer in a file of its own."""
    recipes.save(out, "lvmae", model, model.config, beside=["tokenizer"])


def load(folder: Path | str, *, random_weights: bool = False) -> LVMAE:
    """The model in `folder`, in fp32. `random_weights` are the encoder's and the decoder's: the tokenizer is always its own."""
    folder = Path(folder)
    stored = recipes.stored_config(folder, "lvmae", "LVMAE")
    stored |= {part: Size(**stored[part]) for part in ("encoder", "decoder")}
    model = LVMAE(Config(**stored))
    weights = recipes.stored_weights(folder, beside=["tokenizer"])
    if random_weights:
        weights = {n: v if n.startswith("tokenizer.") else model.state_dict()[n] for n, v in weights.items()}
    model.load_state_dict(weights)
    return model


def card(record: dict[str, Any], model: LVMAE) -> str:
    """The model card, from the record of the run and the model itself."""
    config, log, recipe, parts = model.config, record["log"], record["recipe"], recipes.millions(model)
    ours = {
        "rotary positions beside the sines": config.positions == "both",
        f"positions' frequencies down to 1/{config.base:g}": config.base != BASE,
        "a pass that asks for the next frame from all before it, as generation asks": config.ahead,
        "each number of a code told as one of its levels": config.target == "levels",
    }
    said = "; ".join(text for text, differs in ours.items() if differs)
    lengths = [*recipe["lengths"], *([long.LENGTH] if recipe["long"] else [])]
    points = [
        f"**Parameters**: {', '.join(f'{n} {parts[n]:.2f} M' for n in ('encoder', 'decoder', 'tokenizer'))}.",
        f"**Masks**: {config.hidden:.0%} of the places hidden from the encoder, decoder mask {config.mask}, "
        f"{config.top + config.extra:.0%} of the tokens decoded.",
        f"**Tokenizer**: `{config.tokenizer}`, kept beside the weights.",
        f"**Training**: {log['updates']:,} updates of {recipe['batch']} clips of {', '.join(map(str, lengths))} frames, "
        f"{log['seconds'] / 60:.0f} minutes; last loss {log['loss']:.3f}.",
    ]
    if recipe["long"]:
        what = "one object, other clips than `probe --long` and `finetune --long` ask of"
        points.append(f"**Long clips** in {recipe['long']:.0%} of the updates, of `pretrain/long.py`: {what}.")
    points += [f"**Ours, not the paper's**: {said}."] if said else []
    if record["size"] in ("tiny", "small"):
        points.append("**Limits**: pictures of about 64 x 64 pixels; long clips of 32 x 32.")
    about = (
        "**Not the authors' model**: they released neither code nor weights. Written and trained by this project after arXiv "
        "2411.13683: a masked autoencoder whose decoder is asked for the important tokens alone, of codes of a frozen tokenizer."
    )
    return recipes.card(f"An LVMAE, size {record['size']}, pretrained by us", about, record, points)


# For people, and for probes


def encode(model: LVMAE, video: Tensor) -> Tensor:
    """What a probe reads: features (B, N, D) of clips uint8 (B, F, H, W, 3)."""
    return model.encoder(to_pixels(video))


@torch.no_grad()
def pictures(model: LVMAE, video: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """A clip uint8 (1, F, H, W, 3) as the model meets it, by caption, each uint8 (F, H, W, 3): what the encoder sees, where the
    importance lies, what is decoded and what becomes of it, and how the clip goes on from its first half."""
    config, pixels = model.config, to_pixels(video)
    grid = model.grid(pixels)
    total = math.prod(grid)
    drawn, scores = draw(config, grid, range(1), seed), model.scores(video)
    shown = {"the clip": video[0], f"importance, {config.mask}": heat(video[0], scores[0], grid, config)}

    def film(tokens: Tensor) -> Tensor:
        return to_uint8(unpatchify(tokens, grid, config.tubelet, config.patch))[0]

    def only(index: Tensor) -> Tensor:
        seen = torch.zeros(1, total, 1).scatter_(1, index[..., None], 1.0)
        return patchify(pixels, config.tubelet, config.patch) * seen

    shown[f"encoder, {1 - config.hidden:.0%}"] = film(only(drawn.keep))
    asked = model.chosen(scores, drawn.keep, drawn.uniform, grid, drawn.first)
    shown[f"decoded, {asked.shape[1] / total:.0%}"] = film(only(asked))
    if config.target == "pixels":
        return shown
    codes = model.tokenizer.encode(pixels)
    shown["the tokenizer's"] = to_uint8(model.decoded(codes, grid))[0]
    hidden = masks.complement(drawn.keep, total)
    guess = codes.clone()
    guess[0, hidden[0]] = model.guessed(model.predict(pixels, drawn.keep, hidden))[0]
    shown["all hidden, decoded"] = to_uint8(model.decoded(guess, grid))[0]
    half = max(1, grid[0] // 2) * config.tubelet
    known = pixels[:, :, :half]
    while known.shape[2] < pixels.shape[2]:
        made = model.decoded(model.guessed(model.said(known)), (1, *grid[1:]))
        known = torch.cat([known, made], 2)
    shown[f"rollout from frame {half}"] = to_uint8(known)[0]
    return shown
