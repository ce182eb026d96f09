"""Markdown and executed notebooks as HTML that runs nothing and loads nothing: the text of models is in both."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import bleach
from bleach.css_sanitizer import CSSSanitizer
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from esr.publishing.pages import asset

TAGS = {
    "a", "abbr", "b", "blockquote", "br", "caption", "code", "col", "colgroup", "dd", "del", "details", "div", "dl",
    "dt", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "li", "ol", "p", "pre", "s", "small", "span",
    "strong", "sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul",
}  # fmt: skip
ATTRIBUTES = {
    "class", "id", "title", "style", "colspan", "rowspan", "scope", "start", "alt", "width", "height",
}  # fmt: skip
PROPERTIES = (
    "background", "background-color", "border", "border-bottom", "color", "font", "font-size", "font-weight", "margin",
    "padding", "text-align", "white-space", "width",
)  # fmt: skip
CITED = ("https://arxiv.org/", "https://doi.org/")  # other hosts that pages may link to, and never load from
STYLE = re.compile(r"<style\b.*?</style\s*>", re.DOTALL | re.IGNORECASE)  # of pandas' tables
HEADING = re.compile(r"<h([1-6])[^>]*>(.*?)</h\1>", re.DOTALL)
ADDRESS = re.compile(r'(<(?:a|img)\b[^>]*?\s(?:href|src))="([^"]*)"')
ELSEWHERE = re.compile(r"\s*([a-z][a-z0-9+.-]*:|[/\\]{2})", re.IGNORECASE)  # an address of another host or scheme
NO_ALT = "A figure of this notebook"


def clean(text: Any, images: bool = False) -> str:
    """HTML without scripts, styles, forms, frames, and links to other hosts but `CITED`.

    images: of files are kept, not only those inside the page. Tags that are not allowed are shown as text.
    """
    return bleach.clean(
        STYLE.sub("", str(text)),
        tags=TAGS,
        attributes=partial(_allowed, images),
        protocols={"https", "data"},
        css_sanitizer=CSSSanitizer(allowed_css_properties=PROPERTIES),
    )


def _allowed(images: bool, tag: str, name: str, value: str) -> bool:
    if tag == "img" and name == "src":
        return value.startswith("data:image/") or (images and not ELSEWHERE.match(value))
    if tag == "a" and name == "href":
        return value.startswith(CITED) or not ELSEWHERE.match(value)
    return name in ATTRIBUTES


def markdown(text: str) -> str:
    """Markdown as HTML; headings get the ids that GitHub gives them, tables a frame that scrolls."""
    renderer = IPythonRenderer(escape=False, exclude_anchor_links=True)
    shown = clean(MarkdownWithMath(renderer=renderer).render(text), images=True)
    shown = HEADING.sub(lambda match: f'<h{match[1]} id="{slug(match[2])}">{match[2]}</h{match[1]}>', shown)
    return re.sub(
        r"<table>.*?</table>",
        lambda match: f'<div class="wide-content" tabindex="0" role="region" aria-label="Table">{match[0]}</div>',
        shown,
        flags=re.DOTALL,
    )


def slug(heading: str) -> str:
    """The id of a heading, from its HTML, as GitHub makes it."""
    words = html.unescape(re.sub(r"<[^>]+>|¶", "", heading)).strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def readdressed(text: str, address: Callable[[str], str | None]) -> str:
    """HTML with each link's and image's address replaced; a link whose address is None stays as its text."""

    def replace(match: re.Match) -> str:
        found = address(html.unescape(match[2]))
        return match[1].rsplit(" ", 1)[0] if found is None else f'{match[1]}="{html.escape(found)}"'

    return ADDRESS.sub(replace, text)


@cache
def _exporter() -> HTMLExporter:
    """nbconvert's exporter without an address of a content delivery network: no page would load one."""
    blank = dict.fromkeys(("require_js_url", "mathjax_url", "mermaid_js_url", "jquery_url", "widget_renderer_url"), "")
    exporter = HTMLExporter(
        template_name="classic", raw_template=asset("notebook.html.j2"), exclude_anchor_links=True, embed_images=True,
        sanitize_html=True, **blank,
    )  # fmt: skip
    exporter.register_filter("clean_html", clean)
    return exporter


def notebook_body(notebook: NotebookNode, title: str) -> str:
    """The body of an executed notebook's page: cells and outputs, images embedded, code folded."""
    for cell in notebook.cells:
        cell.metadata.setdefault("alt", f"{NO_ALT}, {title}, cell {cell.get('id', '')}")
    body, _ = _exporter().from_notebook_node(notebook)
    return f"<style>{highlighting()}</style>{body}"


@cache
def highlighting() -> str:
    """Colours of code, for light and dark."""
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"
