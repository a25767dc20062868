"""`POST /v1/recommend`: a list for a person."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from fedrec.serve.faults import errors
from fedrec.serve.replies import JSON, reply
from fedrec.serve.schemas import ListAnswer, RecommendRequest
from fedrec.serve.service import Call, call_of

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/recommend", response_model=ListAnswer, response_class=JSON, responses=errors(400, 401, 404, 413, 422, 429, 503))
async def recommend(asked: RecommendRequest, call: Annotated[Call, Depends(call_of)]) -> Response:
    """The best items for a history, a known user, words, or for nobody in particular."""
    tenant, person = call.tenant(asked.merchant), asked.person()
    if asked.explain:
        call.may_ask(person, "reasons")
    diversity = asked.diversity if call.caller.staff else round(asked.diversity, 1)  # the value that swaps two items is a score
    model, answer = await call.lists(tenant, asked.merchant, person, asked.wish(diversity))
    await call.remember(tenant, person, model, asked.explore, answer)
    return reply(call.listed(tenant, person, model, answer))
