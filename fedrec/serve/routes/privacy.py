"""`POST /v1/privacy`: what was released of this merchant's customers and what that means, for the merchant's own people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from fedrec.errors import InputError
from fedrec.merchant import LEDGER
from fedrec.serve.faults import Fault, errors, without_paths
from fedrec.serve.privacy_schemas import PrivacyAnswer, PrivacyRequest
from fedrec.serve.replies import JSON, reply
from fedrec.serve.service import Call, call_of

__all__ = ["router"]

router = APIRouter()


@router.post(
    "/v1/privacy", response_model=PrivacyAnswer, response_class=JSON, responses=errors(400, 401, 404, 413, 422, 429, 503)
)
async def privacy(asked: PrivacyRequest, call: Annotated[Call, Depends(call_of)]) -> Response:
    """The privacy report of the merchant's own ledger, as `fedrec privacy report` has it. It is only read."""
    tenant = call.tenant(asked.merchant)
    if not call.caller.staff:
        raise Fault(401, "staff_key", "the ledger is the merchant's own: it needs the staff's key")
    if tenant.is_run:
        raise Fault(404, "no_ledger", "a run has no ledger of its own: a merchant's folder does")
    folder = tenant.folder
    found = await call.service.reports.of((folder, _stamp(folder)), lambda: _report(folder), call.left)
    return reply(PrivacyAnswer.model_validate({"request_id": call.id, "merchant": tenant.name, "took_ms": call.took_ms, **found}))


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What a report is told from the next one by."""
    there = sorted(path for path in (folder / LEDGER).glob("*") if path.is_file())
    return tuple((path.name, (found := path.stat()).st_mtime_ns, found.st_size) for path in [*there, folder / "merchant.toml"])


def _report(folder: Path) -> dict[str, Any]:
    from fedrec.report.privacy_report import privacy_report, to_json  # with it comes a library that draws, which takes a second
    from fedrec.report.privacy_sources import find_sources

    try:
        found = to_json(privacy_report(find_sources([folder])))
    except InputError as error:
        return {"failure": without_paths(str(error), [folder])}
    summary = [{**line, "text": without_paths(line["text"], [folder])} for line in found["summary"]]
    return {"summary": summary, "ledgers": found["merchants"]}
