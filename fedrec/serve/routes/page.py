"""`GET /`: the page of the merchant's people. It holds nothing of a merchant; what it shows it asks for with their key."""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import HTMLResponse

from fedrec.serve.service import Call, call_of

__all__ = ["router"]

router = APIRouter()


@router.get("/", include_in_schema=False)
async def page(call: Annotated[Call, Depends(call_of)]) -> HTMLResponse:
    """One file that loads nothing else, and that may ask this service and nobody."""
    html, policy = _page(call.service.keys is not None)
    return HTMLResponse(html, headers={"Content-Security-Policy": policy})


@cache
def _page(keys: bool) -> tuple[str, str]:
    """The HTML, which asks for a key where there are any, and the policy: a browser runs its own script and no other."""
    folder = files("fedrec.serve").joinpath("page")
    style, script = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    html = folder.joinpath("page.html").read_text(encoding="utf-8")
    for name, text in {"hidden": "" if keys else " hidden", "style": style, "script": script}.items():
        html = html.replace(f"{{{name}}}", text, 1)
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
