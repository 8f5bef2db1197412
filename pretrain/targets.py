"""What a model learns from: a frozen or slowly following copy of itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Teacher(nn.Module):
    """A copy of a student that no gradient reaches. After every update it moves towards the student by 1 - `momentum`:

    1.0     it stays what it was (InternVideo-Next's second stage)
    0.99925 an exponential moving average (V-JEPA 2, NExT-Vid)
    0.0     it is the student, the setting that collapses (NExT-Vid, table 12)
    """

    def __init__(self, student: nn.Module, momentum: float) -> None:
        super().__init__()
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"a momentum is 0 to 1, not {momentum}")
        self.momentum = momentum
        self.model = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *given: Any, **named: Any) -> Tensor:
        return self.model(*given, **named)

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """Call after each update."""
        if self.momentum == 1.0:
            return
        for mine, theirs in zip(self.model.parameters(), student.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 1 - self.momentum)


def normalised(features: Tensor) -> Tensor:
    """Layer norm over the channels without weights: a target whose scale cannot shrink (V-JEPA 2)."""
    return F.layer_norm(features.float(), features.shape[-1:])


@torch.no_grad()
def meters(features: Tensor, most: int = 512) -> dict[str, Tensor]:
    """How alive features (B, N, D) are: `deviation`, the mean over channels of the standard deviation over tokens, and
    `rank`, the effective rank (exp of the entropy of the normalised singular values: Roy and Vetterli 2007).

    Both fall to nothing where a model collapses, long before its loss tells.
    """
    flat = features.detach().float().flatten(0, -2)
    flat = flat[:: max(1, len(flat) // most)][:most]
    values = torch.linalg.svdvals(flat - flat.mean(0))
    share = values / values.sum().clamp_min(1e-12)
    return {"deviation": flat.std(0).mean(), "rank": torch.exp(-(share * (share + 1e-12).log()).sum())}
