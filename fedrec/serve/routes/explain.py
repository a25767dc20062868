"""`POST /v1/explain`: why."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from fedrec.serve.faults import errors
from fedrec.serve.replies import JSON, reply
from fedrec.serve.schemas import ExplainRequest, ListAnswer
from fedrec.serve.service import Call, call_of

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/explain", response_model=ListAnswer, response_class=JSON, responses=errors(400, 401, 404, 413, 422, 429, 503))
async def explain(asked: ExplainRequest, call: Annotated[Call, Depends(call_of)]) -> Response:
    """A list with the reasons of each item: exact for the staff's key, what a shopper may see for the shop's."""
    tenant, person = call.tenant(asked.merchant), asked.person()
    call.may_ask(person, "reasons")
    model = await call.service.tenants.model(tenant, call.left)
    call.check_words(model, "" if asked.words else asked.query)
    part = asked.merchant if tenant.is_run else None
    answer = await call.ask(
        lambda: model.recommender.explain(
            person.history, person.user_id, person.times, asked.most, asked.query, asked.items, asked.repeats, part, asked.words
        )
    )
    return reply(call.listed(tenant, person, model, answer))
