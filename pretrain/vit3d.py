"""A vision transformer over space and time, in parts that the published recipes share.

A clip (B, C, F, H, W) is cut into tubelets of `tubelet` frames by `patch` x `patch` pixels; a token is one of them, and a
"frame" of tokens is a slice of tubelets. A token's place is its coordinates (t, y, x), so that hiding tokens, other frame
counts and pictures that are not square cost nothing: positions are computed from coordinates, never looked up.

One `Block` serves as encoder block (attention to itself), as predictor block (attention to a context that it never
changes) and as DiT block (adaLN from a condition). Who may attend to whom is a `pattern` of the tokens' frames, handed to
scaled_dot_product_attention as a mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Pattern = Literal["full", "frame-causal", "strictly-past", "within-frame"]
QKNorm = Literal["", "head", "width"]
Rope = tuple[Tensor, Tensor]  # cos and sin, each (..., 1, N, head_dim)


# Pixels, tokens and where they are


def patchify(video: Tensor, tubelet: int, patch: int) -> Tensor:
    """(B, C, F, H, W) -> tokens (B, N, tubelet * patch * patch * C) in the order t, y, x. `unpatchify` is the inverse."""
    b, c, f, h, w = video.shape
    if f % tubelet or h % patch or w % patch:
        raise ValueError(f"a clip of {f} x {h} x {w} does not divide into tubelets of {tubelet} x {patch} x {patch}")
    cut = video.reshape(b, c, f // tubelet, tubelet, h // patch, patch, w // patch, patch)
    return cut.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(b, -1, tubelet * patch * patch * c)


def unpatchify(tokens: Tensor, grid: tuple[int, int, int], tubelet: int, patch: int) -> Tensor:
    """Tokens (B, N, tubelet * patch * patch * C) of a grid (t, y, x) -> (B, C, F, H, W)."""
    t, y, x = grid
    cut = tokens.reshape(len(tokens), t, y, x, tubelet, patch, patch, -1)
    return cut.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(len(tokens), -1, t * tubelet, y * patch, x * patch)


def coordinates(grid: tuple[int, int, int], device: torch.device | str = "cpu") -> Tensor:
    """(N, 3) float: t, y, x of every token of a grid, in the order of the tokens."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """Those of (B or 1, N, D) that `index` (B, K) names: (B, K, D)."""
    tokens = tokens.expand(len(index), -1, -1)
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


BASE = 10_000.0  # of the frequencies 1 ... 1 / base; of a grid of 8 x 8 most of these tell nothing, see `Encoder`


def sincos(at: Tensor, width: int, base: float = BASE) -> Tensor:
    """Fixed embeddings (..., N, width) of coordinates (..., N, 3): a third of the channels each for t, y and x, the rest 0
    (Vaswani et al. 2017, section 3.5, on three axes)."""
    pairs = width // 6
    frequency = base ** -(torch.arange(pairs, dtype=torch.float32, device=at.device) / max(pairs, 1))
    angle = (at[..., None] * frequency).flatten(-2)  # (..., N, 3 * pairs)
    return F.pad(torch.cat([angle.sin(), angle.cos()], -1), (0, width - 6 * pairs))


def rope(at: Tensor, head_dim: int, base: float = BASE) -> Rope:
    """Rotary tables for coordinates (..., N, 3): three even parts of the head for t, y and x, the remainder is not turned.

    Neighbouring channels (2i, 2i + 1) form a pair and share one frequency. (V-JEPA 2 pairs them so too but repeats the
    frequencies in another order, so that its products depend on more than the distance; ours do not.)
    """
    pairs = head_dim // 6
    frequency = base ** -(torch.arange(pairs, dtype=torch.float32, device=at.device) / max(pairs, 1))
    angle = (at[..., None] * frequency).flatten(-2).repeat_interleave(2, -1)  # (..., N, 6 * pairs)
    angle = F.pad(angle, (0, head_dim - 6 * pairs))[..., None, :, :]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, table: Rope) -> Tensor:
    """Turn each pair of channels of (B, heads, N, head_dim) by its angle."""
    cos, sin = table
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)


def may_attend(pattern: Pattern, queries: Tensor, keys: Tensor) -> Tensor | None:
    """Which keys a query may attend to, told from their frames (..., Nq) and (..., Nk): bool (..., 1, Nq, Nk), None for all.

    Under "strictly-past" a query of the first frame has no key at all; leave such queries out, their result is not a
    number.
    """
    q, k = queries[..., None, :, None], keys[..., None, None, :]
    if pattern == "full":
        return None
    compare = {"frame-causal": torch.le, "strictly-past": torch.lt, "within-frame": torch.eq}[pattern]
    return compare(k, q)


class Table(nn.Module):
    """Positions that are learnt, one a place of a grid, sines at first. For another grid they are interpolated, bicubic over
    the picture and linear over time (as in InternVideo)."""

    def __init__(self, grid: tuple[int, int, int], width: int, base: float = BASE) -> None:
        super().__init__()
        self.grid = grid
        self.weight = nn.Parameter(sincos(coordinates(grid), width, base))

    def forward(self, grid: tuple[int, int, int]) -> Tensor:
        """(N, width) for the places of `grid`, in the order of the tokens."""
        if grid == self.grid:
            return self.weight
        frames = self.weight.view(*self.grid, -1).permute(0, 3, 1, 2)  # (t, D, y, x)
        if grid[1:] != self.grid[1:]:
            frames = F.interpolate(frames, grid[1:], mode="bicubic")
        if grid[0] != self.grid[0]:
            times = frames.permute(2, 3, 1, 0).flatten(0, 1)  # (y * x, D, t)
            frames = F.interpolate(times, grid[0], mode="linear").unflatten(0, grid[1:]).permute(3, 2, 0, 1)
        return frames.permute(0, 2, 3, 1).reshape(-1, self.weight.shape[-1])


# The transformer


class Attention(nn.Module):
    """Multi-head attention of `x` to itself or to a context. Queries and keys may be normalised: "head" by layer norm, head by
    head (ViT-22B), "width" by RMS norm over all heads at once (InternVideo)."""

    def __init__(self, width: int, heads: int, qk_norm: QKNorm = "", bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} does not divide into {heads} heads")
        self.heads, self.head_dim, self.qk_norm = heads, width // heads, qk_norm
        self.q, self.kv = nn.Linear(width, width, bias), nn.Linear(width, 2 * width, bias)
        self.out = nn.Linear(width, width)
        norm = {"": nn.Identity, "head": lambda: nn.LayerNorm(self.head_dim), "width": lambda: nn.RMSNorm(width, 1e-6)}
        self.norm_q, self.norm_k = norm[qk_norm](), norm[qk_norm]()

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        turn: Rope | None = None,
        turn_context: Rope | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """`x` (B, Nq, D), `context` (B, Nk, D) or None for `x` itself -> (B, Nq, D)."""
        b, n, d = x.shape
        given = x if context is None else context
        q, (k, v) = self.q(x), self.kv(given).chunk(2, -1)
        if self.qk_norm == "width":
            q, k = self.norm_q(q), self.norm_k(k)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        if self.qk_norm == "head":
            q, k = self.norm_q(q), self.norm_k(k)
        if turn is not None:
            if context is not None and turn_context is None:
                raise ValueError("a context needs its own positions")
            q, k = rotate(q, turn), rotate(k, turn if turn_context is None else turn_context)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)).

    `cross`: keys and values come from a context. `condition`: the width of a condition from which shift, scale and gate of
    both halves are made, zero at the start (adaLN-Zero: Peebles and Xie 2023, section 3.2); the norms then carry no
    weights of their own.

    `rms`: RMS norms for layer norms. `bias`: of queries, keys and values. `scale`: where weights by which each channel of both
    halves is multiplied begin (LayerScale: Touvron et al. 2021), 0 for none. `drop`: how often a sample goes past a half
    (stochastic depth: Huang et al. 2016).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        cross: bool = False,
        condition: int = 0,
        qk_norm: QKNorm = "",
        rms: bool = False,
        bias: bool = True,
        scale: float = 0.0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        norm = nn.RMSNorm if rms else nn.LayerNorm
        self.norm1 = norm(width, 1e-6, elementwise_affine=not condition)
        self.norm_context = norm(width, 1e-6) if cross else None
        self.attention = Attention(width, heads, qk_norm, bias)
        self.norm2 = norm(width, 1e-6, elementwise_affine=not condition)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.modulation = nn.Linear(condition, 6 * width) if condition else None
        self.scale1 = nn.Parameter(torch.full((width,), scale)) if scale else None
        self.scale2 = nn.Parameter(torch.full((width,), scale)) if scale else None
        self.drop = drop

    def forward(
        self,
        x: Tensor,
        turn: Rope | None = None,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        turn_context: Rope | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """`x` (B, Nq, D); `context` (B, Nk, D) is read and never changed; `condition` (B, 1 or Nq, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self._modulated(condition)
        if self.norm_context is not None:
            assert context is not None
            context = self.norm_context(context)
        normed = self.norm1(x) * (1 + scale1) + shift1
        x = x + self._past(gate1 * self.attention(normed, context, turn, turn_context, mask), self.scale1)
        normed = self.norm2(x) * (1 + scale2) + shift2
        return x + self._past(gate2 * self.fc2(F.gelu(self.fc1(normed))), self.scale2)

    def _past(self, added: Tensor, scale: Tensor | None) -> Tensor:
        """What a half adds, scaled by channel and dropped sample by sample, the mean kept."""
        if scale is not None:
            added = added * scale
        if not self.drop or not self.training:
            return added
        stays = torch.rand(len(added), 1, 1, device=added.device) >= self.drop
        return added * stays / (1 - self.drop)

    def _modulated(self, condition: Tensor | None) -> tuple[Tensor | float, ...]:
        if self.modulation is None:
            return 0.0, 0.0, 1.0, 0.0, 0.0, 1.0
        assert condition is not None
        return self.modulation(F.silu(condition)).chunk(6, -1)


@dataclass(frozen=True)
class Size:
    """A stack of blocks."""

    width: int
    depth: int
    heads: int
    hidden: int = 0  # of the MLP; 0: four times the width

    @property
    def mlp(self) -> int:
        return self.hidden or 4 * self.width


class Stack(nn.ModuleList):
    """Blocks one after the other, with random weights (see `initialise`), the last layer of each half divided by
    sqrt(2 * its number), so that the stream keeps its scale (as in BEiT and V-JEPA)."""

    def __init__(self, size: Size, *, checkpointing: bool = False, drop: float = 0.0, **options: Any) -> None:
        """`drop` is the last block's, the first has none. The other options are those of `Block`."""
        rates = [drop * k / max(1, size.depth - 1) for k in range(size.depth)]
        super().__init__(Block(size.width, size.heads, size.mlp, drop=rate, **options) for rate in rates)
        self.checkpointing = checkpointing
        self.apply(initialise)
        for number, block in enumerate(self, 1):
            for last in (block.attention.out, block.fc2):
                last.weight.data.div_(math.sqrt(2 * number))
            if block.modulation is not None:
                nn.init.zeros_(block.modulation.weight)

    def forward(self, x: Tensor, *given: Tensor | Rope | None, keep: tuple[int, ...] = ()) -> Tensor | list[Tensor]:
        """The last block's output, or those of the blocks `keep` names, counted from 0. Other inputs as in `Block`."""
        kept = []
        for number, block in enumerate(self):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, *given, use_reentrant=False)
            else:
                x = block(x, *given)
            if number in keep:
                kept.append(x)
        return kept if keep else x


def initialise(module: nn.Module) -> None:
    """Truncated normal weights of deviation .64 / sqrt(fan-in), zero biases.

    That is the usual .02 at a width of 1024. A narrow model with .02 would start with layers that say next to nothing, and
    does not leave chance in the first thousand updates (measured, docs/log.md).
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.64 * module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Encoder(nn.Module):
    """The backbone: tubelets in, features out.

    Positions are 3-axis rotary ("rope"), fixed sines added to the tokens ("sincos"), or "both"; `pattern` says which frames
    a token sees, "full" or "frame-causal". `base` is that of the positions' frequencies: a few hundred places apart they are
    all of use with 10,000, a few places apart with 100.
    """

    def __init__(
        self,
        size: Size,
        patch: int,
        tubelet: int,
        *,
        pattern: Pattern = "full",
        positions: Literal["rope", "sincos", "both"] = "rope",
        base: float = BASE,
        channels: int = 3,
        checkpointing: bool = False,
        qk_norm: QKNorm = "",
    ) -> None:
        super().__init__()
        self.size, self.patch, self.tubelet, self.pattern = size, patch, tubelet, pattern
        self.positions, self.base = positions, base
        self.embed = nn.Linear(channels * tubelet * patch * patch, size.width)
        # Its weights are small beside sqrt(fan-in), so the tokens would start much smaller than what the blocks add.
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        self.blocks = Stack(size, checkpointing=checkpointing, qk_norm=qk_norm)
        self.norm = nn.LayerNorm(size.width, 1e-6)

    def grid(self, video: Tensor) -> tuple[int, int, int]:
        """Tokens along t, y and x of a clip (B, C, F, H, W)."""
        _, _, f, h, w = video.shape
        return f // self.tubelet, h // self.patch, w // self.patch

    def forward(self, video: Tensor, keep: Tensor | None = None, layers: tuple[int, ...] = ()) -> Tensor:
        """Features (B, K, D) of the tokens that `keep` (B, K), sorted, names, of all N without it.

        `layers` asks for the outputs of several blocks, side by side on the channels: (B, K, D * len(layers)).
        """
        at = coordinates(self.grid(video), video.device)[None]
        tokens = patchify(video, self.tubelet, self.patch)
        if keep is not None:
            tokens, at = gather(tokens, keep), gather(at, keep)
        x = self.embed(tokens)
        if self.positions != "rope":
            x = x + sincos(at, self.size.width, self.base).to(x.dtype)
        turn = rope(at, self.size.width // self.size.heads, self.base) if self.positions != "sincos" else None
        mask = may_attend(self.pattern, at[:1, :, 0], at[:1, :, 0])  # tokens lie in the same frames in every sample
        if layers:
            return torch.cat([self.norm(kept) for kept in self.blocks(x, turn, mask, keep=layers)], -1)
        return self.norm(self.blocks(x, turn, mask))
