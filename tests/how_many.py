"""How many examples a test looks at. The study benchmarks/independent.py asks the same of more."""

import os


def many(usually: int, most: int = 10**9) -> int:
    """`usually`, or what VDMREASON_MANY says where that is more, but never above `most`."""
    return min(max(usually, int(os.environ.get("VDMREASON_MANY", 0))), most)
