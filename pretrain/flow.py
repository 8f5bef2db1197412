"""How far what is in a patch moves, by optical flow: one of the decoder masks that LVMAE is compared with.

The paper has RAFT; here it is Farneback's method as OpenCV has it, which needs no weights: `pip install -e '.[flow]'`.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def flow_scores(video: Tensor, tubelet: int, patch: int) -> Tensor:
    """The mean length of the flow in each token of clips uint8 (B, F, H, W, 3), as shares of the clip: (B, N). A frame's flow
    is that from the frame before; the first has the second's."""
    try:
        import cv2
    except ImportError:
        raise ValueError("the flow mask needs OpenCV: pip install -e '.[flow]'") from None
    clips = video.cpu().numpy()
    grey = (clips.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)).round().astype(np.uint8)
    scores = []
    for clip in grey:
        lengths = []
        for before, after in itertools.pairwise(clip):
            # a pyramid of two, windows of 7 pixels: made for pictures of a few dozen pixels as well
            flow = cv2.calcOpticalFlowFarneback(
                before,
                after,
                None,  # type: ignore[call-overload]
                0.5,
                2,
                7,
                3,
                5,
                1.1,
                0,
            )
            lengths.append(np.linalg.norm(flow, axis=-1))
        scores.append(np.stack([lengths[0], *lengths]))
    means = F.avg_pool3d(torch.from_numpy(np.stack(scores))[:, None], (tubelet, patch, patch)).flatten(1)
    return (means / means.sum(1, keepdim=True).clamp_min(1e-12)).to(video.device)
