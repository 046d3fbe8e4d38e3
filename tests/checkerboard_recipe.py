"""A recipe that learns the checkerboard log in seconds."""

from __future__ import annotations

CHECKERBOARD_RECIPE = {
    "data": {},
    "catalog": {
        "vectors": ["behaviour"],
        "quantizer": {"num_levels": 1, "codebook_size": 5, "balanced": True},
        "vector_dim": 8,
    },
    "model": {"name": "sidera", "max_history": 8, "width": 16, "num_layers": 1, "num_heads": 1, "dropout": 0.0},
    "fit": {"epochs": 6, "batch_size": 16, "lr": 1e-2, "warmup_steps": 5, "patience": 0},
    "eval": {"bootstrap": 20, "latency_rows": 2, "free_rows": 10, "samples": 2},
}
