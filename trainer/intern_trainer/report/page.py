"""Pages of HTML that load nothing from elsewhere, all in one style."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Render one of this folder's templates; a reader of `path` sees the old page or the whole new one."""
    page = _environment().get_template(template).render(content)
    scratch = path.with_suffix(".partial")
    scratch.write_text(page, encoding="utf-8")
    scratch.replace(path)
    return path


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
