"""The service that one would write in an hour: the recommender called in the handler, one request at a time.

It has no queue, no limits, no keys and no swap; what it leaves out makes it faster, not slower.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI

from fedrec.recommender import Filter, MerchantRecommender

__all__ = ["make_app"]


def make_app(folder: str) -> FastAPI:
    """The application."""
    recommender, app = MerchantRecommender.load(folder), FastAPI()

    @app.get("/readyz")
    async def ready() -> str:
        return "ready"

    @app.post("/v1/recommend")
    async def recommend(asked: dict[str, Any]) -> dict[str, Any]:
        wanted = {**asked, "filter": Filter(**asked.get("filter", {}))}
        return _said(recommender.recommend(**wanted))

    @app.post("/v1/search")
    async def search(asked: dict[str, Any]) -> dict[str, Any]:
        return _said(recommender.search(**asked))

    return app


def _said(answer: Any) -> dict[str, Any]:
    items = [{"item_id": item, "score": float(score)} for item, score in answer.items]
    reasons = [one.for_staff() for one in answer.reasons]
    return {"items": items, "source": answer.source, "notes": list(answer.notes), "reasons": reasons}


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1]), port=int(sys.argv[2]), access_log=False, log_level="warning")
