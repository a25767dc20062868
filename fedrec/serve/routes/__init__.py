"""One router for each kind of question."""

from __future__ import annotations

from fedrec.serve.routes import (
    basket,
    compare,
    drift,
    explain,
    feedback,
    operations,
    page,
    predict,
    privacy,
    rank,
    recommend,
    search,
)

__all__ = ["ROUTERS"]

ROUTERS = (
    recommend.router, search.router, rank.router, predict.router, basket.router, explain.router, compare.router, drift.router,
    privacy.router, feedback.router, operations.router, page.router,
)  # fmt: skip
