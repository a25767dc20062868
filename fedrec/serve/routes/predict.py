"""`POST /v1/predict`: how likely a response is."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Response

from fedrec.recommender import MerchantRecommender, Person
from fedrec.serve.faults import Fault, errors
from fedrec.serve.models import Model
from fedrec.serve.predict_schemas import PredictAnswer, Prediction, PredictRequest
from fedrec.serve.replies import JSON, reply
from fedrec.serve.service import Call, call_of

__all__ = ["router"]

router = APIRouter()


@router.post(
    "/v1/predict", response_model=PredictAnswer, response_class=JSON, responses=errors(400, 401, 404, 413, 422, 429, 503)
)
async def predict(asked: PredictRequest, call: Annotated[Call, Depends(call_of)]) -> Response:
    """The probability of a response to each item, where a run with `objective = "response"` has come home, or is served."""
    tenant, person = call.tenant(asked.merchant), asked.person()
    call.may_ask(person, "probabilities")
    model = await call.service.tenants.model(tenant, call.left)
    if model.responses is None:
        raise Fault(404, "no_response_model", "no response model is in use here")
    found: np.ndarray = await call.ask(lambda: _predicted(model, person, asked.items, asked.merchant))
    predictions = [Prediction(item_id=name, probability=one) for name, one in zip(asked.items, found.tolist(), strict=True)]
    return reply(PredictAnswer(
        request_id=call.id, merchant=tenant.name, model=model.responses, snapshot=model.snapshot, took_ms=call.took_ms,
        predictions=predictions,
    ))  # fmt: skip


def _predicted(model: Model, person: Person, items: list[str], merchant: str | None) -> np.ndarray:
    if isinstance(model.recommender, MerchantRecommender):
        return model.recommender.predict(person.history, items, None, person.user_id)
    return model.recommender.predict(person.history or [], items, merchant)
