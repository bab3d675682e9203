"""A hook of mkdocs: equations between dollar signs become MathML when the site is built, so no page loads a script."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

BLOCK = re.compile(r"^\$\$\n(.+?)\n\$\$$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\w$])")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Equations of the pages on concepts; elsewhere a dollar sign is a dollar sign."""
    if not page.file.src_uri.startswith("concepts/"):
        return markdown
    markdown = BLOCK.sub(lambda found: f"\n<div>{convert(found.group(1), display='block')}</div>\n", markdown)
    return INLINE.sub(lambda found: convert(found.group(1)), markdown)
