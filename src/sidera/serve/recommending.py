"""POST /v1/recommend: what comes next after a history, or after what the store has of a user."""

from __future__ import annotations

import time

from fastapi import APIRouter

from sidera.core import Filter, InputError, Recommendation
from sidera.core import Request as Question
from sidera.serve.errors import printable
from sidera.serve.schemas import Answer, RecommendRequest, RecommendResponse
from sidera.serve.state import Served


def router(served: Served) -> APIRouter:
    """Routes that answer."""
    routes, recommender = APIRouter(), served.recommender

    @routes.post("/v1/recommend", response_model=RecommendResponse)
    def recommend(body: RecommendRequest) -> RecommendResponse:
        """What comes next after this history?"""
        begun = time.perf_counter()
        if body.history is None and body.user is None:
            raise InputError("the request has neither history nor user", allowed="one of them")
        question = Question(
            tuple(body.history or ()), k=body.k, filter_seen=body.filter_seen, exclude=tuple(body.exclude),
            feedback=body.feedback, times=body.times, profile=body.profile, as_of=body.as_of, user=body.user,
            filter=None if body.filter is None else Filter.of(body.filter),
        )  # fmt: skip
        answer = recommender.recommend([question], unknown=body.unknown)[0]
        return response_of(answer, 1000 * (time.perf_counter() - begun))

    return routes


def response_of(answer: Recommendation, milliseconds: float) -> RecommendResponse:
    return RecommendResponse(
        items=[
            Answer(item=key, score=score, title=title)
            for key, score, title in zip(answer.item_keys, answer.scores, answer.titles, strict=True)
        ],
        cold_start=answer.cold_start,
        unknown=[printable(key) for key in answer.unknown],
        filtered_seen=answer.filtered_seen,
        unread=list(answer.unread),
        unknown_user=answer.unknown_user,
        policy_version=answer.policy_version,
        shadow_version=answer.shadow_version or None,
        reranker_version=answer.reranker_version or None,
        codebook_id=answer.codebook_id,
        items_version=answer.items_version,
        request=answer.request or None,
        eligible=answer.eligible,
        milliseconds=round(milliseconds, 3),
    )
