"""Self-contained HTML pages: one file each, styles and script inside, no request to another host.

A content security policy forbids every script but the page's, and every address but those of images beside the page.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

ASSETS = files("esr.publishing") / "assets"
FORBIDDEN_IN_JSON = str.maketrans(
    {"&": "\\u0026", "<": "\\u003c", ">": "\\u003e", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def asset(name: str) -> str:
    """The text of a file in esr/publishing/assets."""
    return (ASSETS / name).read_text(encoding="utf-8")


def page(
    title: str,
    body: str,
    *,
    nav: Sequence[tuple[str, str]] = (),
    script: str = "",
    data: Any = None,
    description: str = "",
) -> str:
    """A whole page. `title` and `description` are escaped, `body` is HTML.

    nav: (text, address) of links above the body. script: a file of assets that runs when the page is loaded. data: what
    the script finds as JSON in the element `data`, whatever text it holds.
    """
    code = asset(script) if script else ""
    policy = f"default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; {_allow(code)}"
    head = [
        '<meta charset="utf-8">',
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}; base-uri 'none'; form-action 'none'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta name="description" content="{html.escape(description or title)}">',
        '<link rel="icon" href="data:,">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{asset('style.css')}</style>",
    ]
    tail = [f'<script type="application/json" id="data">{embedded(data)}</script>'] if data is not None else []
    tail += [f"<script>{code}</script>"] if code else []
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>',
        *head,
        "</head>\n<body>",
        links(nav),
        "<main>",
        body,
        "</main>",
    ]
    return "\n".join(part for part in [*parts, *tail, "</body>\n</html>"] if part) + "\n"


def links(nav: Sequence[tuple[str, str]]) -> str:
    """A navigation bar; "" without links."""
    items = "".join(f"<li>{link(text, address)}</li>" for text, address in nav)
    return f'<nav aria-label="Site"><ul>{items}</ul></nav>' if items else ""


def link(text: str, address: str) -> str:
    """A link; both texts are escaped. Without an address, the text alone."""
    shown = html.escape(text)
    return f'<a href="{html.escape(address)}">{shown}</a>' if address else shown


def embedded(data: Any) -> str:
    """JSON that no text in `data` can end: it holds no `<`, `>` or `&`."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(FORBIDDEN_IN_JSON)


def _allow(code: str) -> str:
    """The policy's words for this script alone."""
    if not code:
        return "script-src 'none'"
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return f"script-src 'sha256-{digest}'"
