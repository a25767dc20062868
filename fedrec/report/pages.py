"""A page from its template: what is put in is text, and nothing that a browser obeys."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from fedrec.report.privacy_words import when
from fedrec.text import visible

__all__ = ["page"]


def page(template: str, **values: Any) -> str:
    """The HTML; of `values` only `Markup` is taken as HTML."""
    environment = Environment(loader=PackageLoader("fedrec.report", "."), autoescape=True, finalize=_shown)
    environment.filters["when"] = when
    return environment.get_template(template).render(**values)


def _shown(value: object) -> object:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
