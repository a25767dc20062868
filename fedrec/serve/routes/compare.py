"""`POST /v1/compare`: what another version of the model would have answered, for the merchant's own people."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from fedrec.errors import InputError
from fedrec.serve.compare_schemas import CompareRequest
from fedrec.serve.faults import Fault, errors, without_paths
from fedrec.serve.models import load_model, versions_of
from fedrec.serve.replies import JSON, reply
from fedrec.serve.schemas import ListAnswer
from fedrec.serve.service import Call, call_of

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/compare", response_model=ListAnswer, response_class=JSON, responses=errors(400, 401, 404, 413, 422, 429, 503))
async def compare(asked: CompareRequest, call: Annotated[Call, Depends(call_of)]) -> Response:
    """A list as `/v1/recommend` makes it, by another version. It ranks for nobody else."""
    tenant, person = call.tenant(asked.merchant), asked.person()
    if not call.caller.staff:
        raise Fault(401, "staff_key", "versions are compared by the merchant's own people: it needs the staff's key")
    if tenant.is_run:
        raise Fault(404, "no_versions", "a run has no versions: a merchant's folder does")
    current = await call.service.tenants.model(tenant, call.left)
    if asked.version not in versions_of(tenant.folder):
        raise Fault(422, "no_version", "there is no such version; /info names them", "version")
    key = (tenant.name, current.loaded, asked.version)
    try:
        model = await call.service.versions.of(key, lambda: load_model(tenant.folder, version=asked.version), call.left)
    except InputError as error:
        raise Fault(422, "invalid", without_paths(str(error), [tenant.folder]), "version") from None
    answer = await call.lists_of(model, None, person, asked.wish(asked.diversity))
    return reply(call.listed(tenant, person, model, answer))
