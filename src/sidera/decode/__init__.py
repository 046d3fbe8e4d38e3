"""Turning a model's scores into items that exist: constrained beam search, exact scoring, dense search."""
