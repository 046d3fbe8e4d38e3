"""The peer of `serving`: a TIGER run behind FastAPI and transformers' `generate`, as public examples serve it.

    python benchmarks/generate_server.py RUN --port 8000

The weights are those of the run, under `prefix_allowed_tokens_fn` over a trie of dictionaries, beams as in the run's
recipe. Endpoints are plain functions, so FastAPI answers on its threads, and torch takes one thread for each.
"""

from __future__ import annotations

import argparse
from typing import Any

from fastapi import Body, FastAPI

from t5_twin import BEGIN, as_t5
from trie import nested_dictionary

QUESTION = Body()


def create_app(run: str) -> FastAPI:
    import numpy as np
    import torch

    from sidera.engine.recommender import Recommender

    recommender = Recommender.load(run)
    catalog = recommender.catalog
    model: Any = recommender.model
    starts = torch.tensor(model.level_starts)
    t5, codes = as_t5(model).eval(), torch.from_numpy(np.asarray(catalog.codes)).long()
    root: dict[int, Any] = nested_dictionary((codes + starts).numpy())
    items = {tuple(sid): item for item, sid in enumerate((codes + starts).tolist())}
    app = FastAPI()

    def allowed(batch_id: int, tokens: Any) -> list[int]:
        node: Any = root
        for token in tokens.tolist()[1:]:
            node = node.get(token) if isinstance(node, dict) else None
            if node is None:  # a beam that generate keeps for want of others
                return [0]
        return list(node)

    @app.post("/v1/recommend")
    def recommend(question: dict[str, Any] = QUESTION) -> dict[str, Any]:
        ids = [item for item in catalog.find_ids(question["history"]).tolist() if item >= 0]
        tokens = (codes[ids[-model.config.max_history :]] + starts).view(1, -1)
        with torch.inference_mode():
            found = t5.generate(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), num_beams=recommender.beam,
                num_return_sequences=question["k"], max_new_tokens=len(starts), do_sample=False, length_penalty=0.0,
                early_stopping=False, decoder_start_token_id=BEGIN, prefix_allowed_tokens_fn=allowed,
            )  # fmt: skip
        answered = [items.get(tuple(sid)) for sid in found[:, 1:].tolist()]
        keys = catalog.item_keys.take(np.array([item for item in answered if item is not None], np.int64))
        return {"items": [{"item": key} for key in keys]}

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return app


def main() -> None:
    import torch
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    uvicorn.run(create_app(options.run), port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
