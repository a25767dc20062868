"""`POST /v1/feedback`: what customers did, into the merchant's own folder and nowhere else."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from fedrec.errors import InputError
from fedrec.serve.faults import Fault, errors, fault_of
from fedrec.serve.feedback_schemas import FeedbackAnswer, FeedbackRequest
from fedrec.serve.replies import JSON, reply
from fedrec.serve.service import Call, call_of

__all__ = ["router"]

router = APIRouter()


@router.post(
    "/v1/feedback", response_model=FeedbackAnswer, response_class=JSON, responses=errors(400, 401, 404, 413, 422, 429, 503)
)
async def feedback(asked: FeedbackRequest, call: Annotated[Call, Depends(call_of)]) -> Response:
    """Keep a batch. When this is answered it is on disk; without an answer, send the same again."""
    tenant, service = call.tenant(asked.merchant), call.service
    if tenant.log is None:
        raise Fault(404, "no_feedback", "a run takes no feedback: a merchant's folder does")
    tenant.touch()
    if service.writing >= service.settings.queue:
        raise Fault(429, "queue_full", "too many batches wait to be written", retry_after=1)
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    events = [tenant.shown.filled(event.stored(now)) for event in asked.events]
    service.writing += 1
    writing = asyncio.get_running_loop().run_in_executor(service.writer, tenant.log.append, events)
    writing.add_done_callback(lambda _: setattr(service, "writing", service.writing - 1))
    try:
        async with asyncio.timeout(call.left):
            found = await asyncio.shield(writing)
    except TimeoutError:
        raise Fault(503, "time_limit", "it was not on disk in time; send the same again", retry_after=1) from None
    except InputError as error:
        raise fault_of(error) from None
    except OSError:
        raise Fault(503, "not_written", "it cannot be written now; send the same again", retry_after=10) from None
    for result, count in zip(("stored", "repeated"), found, strict=True):
        service.metrics.feedback.labels(tenant.name, result).inc(count)
    return reply(
        FeedbackAnswer(
            request_id=call.id, merchant=tenant.name, stored=found.stored, repeated=found.repeated, took_ms=call.took_ms
        )
    )
