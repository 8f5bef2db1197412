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
        self.model = copy.deepcopy(student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Teacher:
        """It never leaves evaluation: what it says of a clip is always the same, whatever the student drops."""
        return super().train(False)

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
    """How much features (B, N, D) tell of their clip, B at least 2: of what is left after the mean over the clips is taken
    from every place, `deviation` is the mean over channels of the standard deviation, and `rank` the effective rank (exp of
    the entropy of the normalised singular values: Roy and Vetterli 2007). Positions alone give neither.

    Where a model collapses the deviation falls to nothing, long before its loss tells. The rank has no scale: it falls where few
    directions are left, and stays where all shrink alike, so read both. Not a number where the features are none.
    """
    features = features.detach().float()
    flat = (features - features.mean(0)).flatten(0, -2)
    some = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))[:most].to(flat.device)
    flat = flat[some]
    if not torch.isfinite(flat).all():
        nothing = flat.new_tensor(torch.nan)
        return {"deviation": nothing, "rank": nothing}
    values = torch.linalg.svdvals(flat)
    share = values / values.sum().clamp_min(1e-12)
    return {"deviation": flat.std(0).mean(), "rank": torch.exp(-(share * (share + 1e-12).log()).sum())}
