"""How far what is in a patch moves, by optical flow: one of the decoder masks that LVMAE is compared with.

The paper has RAFT; here it is Farneback's method as OpenCV has it, which needs no weights: `pip install -e '.[flow]'`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LARGER = 2  # times as large a picture is looked at
REACH = 2  # frames before and after


def flow_scores(video: Tensor, tubelet: int, patch: int) -> Tensor:
    """The mean length of the flow in each token of clips uint8 (B, F, H, W, 3), as shares of the clip: (B, N). A frame's flow
    is that from two frames before it to two after it, where these are."""
    try:
        import cv2
    except ImportError:
        raise ValueError("the flow mask needs OpenCV: pip install -e '.[flow]'") from None
    clips = video.cpu().numpy()
    grey = (clips.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)).round().astype(np.uint8)
    scores = []
    for clip in grey:
        # Twice as large and a little blurred: what moves a tenth of a pixel a frame among noise is seen by windows of 15 pixels
        # over four frames, and not by what suits large pictures (docs/log.md).
        large = [cv2.GaussianBlur(cv2.resize(f, None, fx=LARGER, fy=LARGER), (5, 5), 1.0) for f in clip]
        lengths = []
        for t in range(len(clip)):
            first, last = max(0, t - REACH), min(len(clip) - 1, t + REACH)
            if first == last:  # a picture does not move
                lengths.append(np.zeros(large[0].shape, np.float32))
                continue
            flow = cv2.calcOpticalFlowFarneback(
                large[first],
                large[last],
                None,
                0.5,
                3,
                15,
                3,
                5,
                1.1,
                0,  # type: ignore[call-overload]
            )
            lengths.append(np.linalg.norm(flow, axis=-1) / (last - first))
        scores.append(np.stack(lengths))
    patch *= LARGER
    means = F.avg_pool3d(torch.from_numpy(np.stack(scores))[:, None], (tubelet, patch, patch)).flatten(1)
    return (means / means.sum(1, keepdim=True).clamp_min(1e-12)).to(video.device)
