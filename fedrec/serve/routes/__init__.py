"""One router for each kind of question."""

from __future__ import annotations

from fedrec.serve.routes import explain, feedback, operations, rank, recommend, search

__all__ = ["ROUTERS"]

ROUTERS = (recommend.router, search.router, rank.router, explain.router, feedback.router, operations.router)
