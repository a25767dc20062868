"""`/livez`, `/readyz`, `/info` and `/metrics`: for whoever runs the service."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from fedrec import __version__
from fedrec.serve.faults import Fault, errors
from fedrec.serve.models import versions_of
from fedrec.serve.replies import JSON, reply
from fedrec.serve.schemas import Info, MerchantInfo
from fedrec.serve.service import Call, call_of
from fedrec.serve.settings import Limits, ServeSettings
from fedrec.serve.tenants import Tenant

__all__ = ["router"]

router = APIRouter()


class State(BaseModel):
    """How it is."""

    state: str


@router.get("/livez", response_model=State, response_class=JSON, responses=errors(400, 413))
async def livez() -> Response:
    """The process answers."""
    return reply(State(state="alive"))


@router.get("/readyz", response_model=State, response_class=JSON, responses=errors(400, 413, 503))
async def readyz(call: Annotated[Call, Depends(call_of)]) -> Response:
    """What is served is loaded and has been asked everything once; several merchants are loaded when they are asked for."""
    if not call.service.ready:
        raise Fault(503, "starting", "it is not ready yet", retry_after=1)
    return reply(State(state="ready"))


@router.get("/info", response_model=Info, response_class=JSON, responses=errors(400, 401, 413, 429))
async def info(call: Annotated[Call, Depends(call_of)]) -> Response:
    """Versions and limits; of the merchants, the one whose key it is."""
    own = call.caller.merchant
    shown = [tenant for name, tenant in call.service.tenants.all.items() if own in (None, name)]
    limits = {name.lower(): value for name, value in vars(Limits).items() if name.isupper()}
    limits |= {name: value for name, value in call.service.settings if name in _SHOWN}
    return reply(Info(version=__version__, limits=limits, merchants=[_of(tenant, call.caller.staff) for tenant in shown]))


@router.get("/metrics", response_class=Response, responses=errors(400, 401, 413, 429))
async def metrics(call: Annotated[Call, Depends(call_of)]) -> Response:
    """For Prometheus."""
    call.service.metrics.waiting.set(call.service.worker.waiting)
    return Response(call.service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


_SHOWN = ServeSettings.model_fields.keys() & {"body_bytes", "body_seconds", "time_limit", "queue", "requests"}


def _of(tenant: Tenant, staff: bool) -> MerchantInfo:
    model = tenant.model
    known = {"merchant": tenant.name, "swaps": tenant.swaps, "up_to_date": tenant.failure is None}
    known |= {"versions": versions_of(tenant.folder) if staff and not tenant.is_run else None}
    known |= {"loaded": model is not None, "failure": tenant.failure if staff else None}
    if model is not None:
        known |= {
            "model": model.version, "snapshot": model.snapshot, "items": len(model.texts), "words": model.words,
            "loaded_at": _time(model.loaded), "data_at": _time(model.data_time),
            "export": None if model.export is None else "used" if model.export else "not used",
        }  # fmt: skip
    return MerchantInfo.model_validate(known)


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
