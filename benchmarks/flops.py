"""Multiplications and additions of what runs inside, as torch counts them; attention on a CPU too, which torch leaves out."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def _attention(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


def counter() -> FlopCounterMode:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: _attention})
