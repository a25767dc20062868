"""`POST /v1/drift`: whether customers have moved away from what the model learned, for the merchant's own people."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from fedrec.serve.drift import measured, spent
from fedrec.serve.drift_schemas import DriftAnswer, DriftRequest
from fedrec.serve.faults import Fault, errors
from fedrec.serve.replies import JSON, reply
from fedrec.serve.service import Call, call_of

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/drift", response_model=DriftAnswer, response_class=JSON, responses=errors(400, 401, 404, 413, 422, 429, 503))
async def drift(asked: DriftRequest, call: Annotated[Call, Depends(call_of)]) -> Response:
    """The last weeks against those before, and what was spent of the privacy budget. Nothing follows from it by itself."""
    tenant = call.tenant(asked.merchant)
    if not call.caller.staff:
        raise Fault(401, "staff_key", "drift is computed from customers' data without noise: it needs the staff's key")
    if tenant.is_run:
        raise Fault(404, "no_customers", "a run has no customers: a merchant's folder does")
    await call.service.tenants.model(tenant, call.left)
    found = await measured(call.service.drift, tenant, asked.weeks, call.left)
    ledger = await asyncio.to_thread(spent, tenant.folder)
    told = {"request_id": call.id, "merchant": tenant.name, "took_ms": call.took_ms, "ledger": ledger}
    return reply(DriftAnswer.model_validate({**told, **found}))
