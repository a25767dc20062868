"""`POST /v1/rank`: given items in order."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from fedrec.recommender import Filter, Wish
from fedrec.serve.faults import errors
from fedrec.serve.replies import JSON, reply
from fedrec.serve.schemas import ListAnswer, RankRequest
from fedrec.serve.service import Call, call_of

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/rank", response_model=ListAnswer, response_class=JSON, responses=errors(400, 401, 404, 413, 422, 429, 503))
async def rank(asked: RankRequest, call: Annotated[Call, Depends(call_of)]) -> Response:
    """The candidates, best first, but for what the catalogue lacks, which the notes name, and what the history holds."""
    tenant, person = call.tenant(asked.merchant), asked.person()
    call.may_ask(person, "candidates in order")
    wish = Wish(len(asked.candidates), asked.query, Filter(only=asked.candidates), repeats=asked.repeats)
    return reply(call.listed(tenant, person, *await call.lists(tenant, asked.merchant, person, wish)))
