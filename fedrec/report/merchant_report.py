"""A merchant's own page: what it has alone, and what the federation pays it. It stays at the merchant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedrec.config import write_atomically
from fedrec.errors import InputError
from fedrec.report.pages import page

__all__ = ["write_merchant_report"]


def write_merchant_report(path: Path, found: dict[str, Any]) -> None:
    """Write what `fedrec merchant evaluate` found as a page that its owner alone may read.

    Raises:
        InputError: it cannot be written.
    """
    k = found["k"]
    names = (f"ndcg@{k}", f"hr@{k}", f"recall@{k}", "mrr")
    again = (f"ndcg@{k}", f"recall@{k}", f"repeat_recall@{k}", f"explore_recall@{k}")
    html = page("merchant.html", found=found, k=k, metric_names=names, repeat_names=again)
    try:
        write_atomically(path, html.encode(), mode=0o600)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=f"--html {path}") from None
