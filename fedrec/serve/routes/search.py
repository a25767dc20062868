"""`POST /v1/search`: the best items for words alone."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from fedrec.recommender import Person
from fedrec.serve.faults import errors
from fedrec.serve.replies import JSON, reply
from fedrec.serve.schemas import ListAnswer, SearchRequest
from fedrec.serve.service import Call, call_of

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/search", response_model=ListAnswer, response_class=JSON, responses=errors(400, 401, 404, 413, 422, 429, 503))
async def search(asked: SearchRequest, call: Annotated[Call, Depends(call_of)]) -> Response:
    """What words name exactly, then words and meaning fused."""
    tenant = call.tenant(asked.merchant)
    model = await call.service.tenants.model(tenant, call.left)
    call.check_words(model, asked.query)
    part = asked.merchant if tenant.is_run else None
    answer = await call.ask(
        lambda: model.recommender.search(asked.query, asked.k, asked.filter.filter(), asked.exclude, merchant=part)
    )
    return reply(call.listed(tenant, Person(), model, answer))
