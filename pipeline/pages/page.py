"""Self-contained HTML pages: templates that share one style, and pictures inside the page."""

from __future__ import annotations

import base64
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_ENVIRONMENT = Environment(
    loader=PackageLoader("pipeline.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, content: dict[str, Any]) -> str:
    """Fill one of `templates`; a name that the content lacks is an error, and text is escaped."""
    return _ENVIRONMENT.get_template(template).render(content)


def picture(image: bytes, kind: str = "png") -> str:
    """An image as a ``data:`` address, so that the page needs no other file; `kind` is png or svg+xml."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
