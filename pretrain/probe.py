"""What a frozen encoder has learnt: probes on its features, many at once.

    vdmreason probe my-nextvid

An attentive probe is one learned query that attends to all tokens, then a linear layer (V-JEPA 2, NExT-Vid); a linear probe
is the mean of the tokens, then a linear layer. Features are computed once. All probes of a grid of learning rates and
weight decays are trained together; the setting is picked on one part of the held-out data and its accuracy reported on
another, so that the reported figure is not the one that was selected on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

Kind = Literal["linear", "attentive"]
# V-JEPA 2's grid for K400 and SSv2.
RATES, DECAYS = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4), (0.01, 0.1, 0.4, 0.8)


@dataclass(frozen=True)
class Features:
    """Features of clips, and their labels by name."""

    tokens: Tensor  # (clips, N, D), fp16
    labels: Mapping[str, Tensor]  # name -> int64 (clips,)

    def part(self, rows: slice) -> Features:
        return Features(self.tokens[rows], {name: label[rows] for name, label in self.labels.items()})

    def pooled(self) -> Features:
        """Each clip's mean token alone: all that a linear probe reads."""
        return Features(self.tokens.float().mean(1, keepdim=True), self.labels)


@torch.no_grad()
def features(
    encode: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Mapping[str, Tensor]]], total: int | None = None
) -> Features:
    """Run `encode`, uint8 (B, F, H, W, 3) -> (B, N, D), over batches of clips and labels, once."""
    tokens, labels = [], []
    for video, label in tqdm(batches, total=total, desc="features", mininterval=2.0):
        tokens.append(encode(video).half().cpu())
        labels.append(label)
    return Features(torch.cat(tokens), {name: torch.cat([label[name] for label in labels]) for name in labels[0]})


class Probes(nn.Module):
    """G probes that share their input: (B, N, D) -> logits (G, B, classes).

    The attentive one reads sum_n softmax_n(q . W_k x_n) W_v x_n, head by head. With a single query that is (W_k q) . x_n
    and W_v applied after the sum, which is the same probe for a fraction of the work: no token passes a matrix.
    """

    def __init__(
        self, kind: Kind, count: int, width: int, classes: int, heads: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.kind, self.heads = kind, heads

        def drawn(*shape: int) -> nn.ParameterList:
            # All probes start alike: they differ in how they are trained.
            weight = torch.randn(*shape, generator=generator) * shape[-1] ** -0.5
            return nn.ParameterList(weight.clone() for _ in range(count))

        if kind == "attentive":
            if width % heads:
                raise ValueError(f"features of width {width} do not divide into {heads} heads")
            self.query, self.key = drawn(heads, width // heads), drawn(heads, width // heads, width)
            self.value = drawn(heads, width // heads, width)
        self.weight = drawn(classes, width)
        self.bias = nn.ParameterList(torch.zeros(classes) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("gbd,gcd->gbc", self.pooled(x), _stack(self.weight)) + _stack(self.bias)[:, None]

    def pooled(self, x: Tensor) -> Tensor:
        """(G, B, D)."""
        if self.kind == "linear":
            return x.mean(1).expand(len(self.weight), -1, -1)
        asked = torch.einsum("ghe,ghed->ghd", _stack(self.query), _stack(self.key)) * self.query[0].shape[-1] ** -0.5
        share = torch.einsum("bnd,ghd->gbhn", x, asked).softmax(-1)
        mixed = torch.einsum("gbhn,bnd->gbhd", share, x)  # (G, B, heads, D): each head's mean of the tokens
        return torch.einsum("gbhd,ghed->gbhe", mixed, _stack(self.value)).flatten(2)


def _stack(parameters: nn.ParameterList) -> Tensor:
    return torch.stack(list(parameters))


@dataclass(frozen=True)
class Score:
    """Accuracy of the picked probe on the part of the held-out data that took no part in picking."""

    accuracy: float
    low: float  # 95 % interval over test clips (Wilson)
    high: float
    rate: float
    decay: float
    chosen_on: float  # accuracy on the part it was picked on: higher, by the luck of the pick


def probe(
    kind: Kind,
    train: Features,
    pick: Features,
    test: Features,
    label: str,
    *,
    epochs: int = 20,
    batch: int = 64,
    heads: int = 4,
    seed: int = 0,
    rates: Sequence[float] = RATES,
    decays: Sequence[float] = DECAYS,
) -> Score:
    """Train a probe of each rate and decay on `train`, pick by `pick`, report on `test`. Features are standardised by the
    training part, so that one grid of rates serves every encoder."""
    mean = train.tokens.float().mean((0, 1))
    scale = train.tokens.float().std((0, 1)).clamp_min(1e-6)
    grid = list(itertools.product(rates, decays))
    generator = torch.Generator().manual_seed(seed)
    classes = int(train.labels[label].max()) + 1
    probes = Probes(kind, len(grid), train.tokens.shape[-1], classes, heads, generator)
    groups = [
        {
            "params": [p for n, p in probes.named_parameters() if n.endswith(f".{g}")],
            "peak": rate,
            "weight_decay": decay,
        }
        for g, (rate, decay) in enumerate(grid)
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    count = len(train.tokens)
    steps = epochs * math.ceil(count / batch)
    step = 0
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        for rows in order.split(batch):
            for group in optimizer.param_groups:  # cosine to 0
                group["lr"] = group["peak"] * (1 + math.cos(math.pi * step / steps)) / 2
            logits = probes((train.tokens[rows].float() - mean) / scale)
            wanted = train.labels[label][rows].expand(len(grid), -1)
            # The sum over probes: each has the gradient that it would have alone.
            F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(len(grid), -1).mean(
                1
            ).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1

    right = {name: _right(probes, part, label, mean, scale, batch) for name, part in (("pick", pick), ("test", test))}
    best = int(right["pick"].float().mean(1).argmax())
    low, high = wilson(int(right["test"][best].sum()), len(test.tokens))
    accuracy = right["test"][best].float().mean().item()
    return Score(accuracy, low, high, *grid[best], chosen_on=right["pick"][best].float().mean().item())


@torch.no_grad()
def _right(probes: Probes, part: Features, label: str, mean: Tensor, scale: Tensor, batch: int) -> Tensor:
    """bool (G, clips)."""
    found = [
        probes((tokens.float() - mean) / scale).argmax(-1) == wanted
        for tokens, wanted in zip(part.tokens.split(batch), part.labels[label].split(batch), strict=True)
    ]
    return torch.cat(found, 1)


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share."""
    share, weight = right / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean over seeds and its interval, from Student's t: with three seeds a bootstrap would be far too sure."""
    x = np.asarray(values, float)
    half = 0.0 if len(x) < 2 else _t975(len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return {"value": float(x.mean()), "low": float(x.mean() - half), "high": float(x.mean() + half), "seeds": len(x)}


def _t975(freedom: int) -> float:
    """The 97.5 % point of Student's t."""
    known = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
    return known[freedom - 1] if freedom <= len(known) else 1.96 + 2.4 / freedom


def raw_patches(video: Tensor, tubelet: int, patch: int) -> Tensor:
    """The control that has learnt nothing and drawn nothing: the tokens' own pixels, uint8 (B, F, H, W, 3) -> (B, N, P)."""
    from pretrain.vit3d import patchify

    return patchify(video.permute(0, 4, 1, 2, 3).float() / 127.5 - 1, tubelet, patch)
