"""Backbones of our own: the small ones that ship, and the published pretraining recipes. Knows nothing of the exam."""
