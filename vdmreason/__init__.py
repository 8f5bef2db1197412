"""The controlled comparison: one loop, one score, one folder layout, for every model family."""

__version__ = "0.1.0"
