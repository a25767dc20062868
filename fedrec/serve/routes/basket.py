"""`POST /v1/basket`: what completes a basket."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from fedrec.recommender import Person
from fedrec.serve.faults import errors
from fedrec.serve.replies import JSON, reply
from fedrec.serve.schemas import BasketRequest, ListAnswer
from fedrec.serve.service import Call, call_of

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/basket", response_model=ListAnswer, response_class=JSON, responses=errors(400, 401, 404, 413, 422, 429, 503))
async def basket(asked: BasketRequest, call: Annotated[Call, Depends(call_of)]) -> Response:
    """What goes with the items, without what would only replace one of them."""
    tenant = call.tenant(asked.merchant)
    model = await call.service.tenants.model(tenant, call.left)
    call.check_words(model, asked.query)
    part = asked.merchant if tenant.is_run else None
    answer = await call.ask(
        lambda: model.recommender.basket(
            asked.items, asked.k, asked.query, asked.filter.filter(), asked.exclude, part, asked.explain
        )
    )
    return reply(call.listed(tenant, Person(asked.items), model, answer))
