"""Where the site has what the repository has: addresses of pages, figures, numbers and copied files."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from esr.publishing.rendering import CITED

DOCUMENTS = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "data/judge/RUBRIC.md", "paper/LOG.md",
)  # fmt: skip


def documents(root: Path) -> list[str]:
    """Markdown files that the site shows, those of docs/ included."""
    more = sorted(path.relative_to(root).as_posix() for path in (root / "docs").glob("*.md"))
    return [name for name in (*DOCUMENTS, *more) if (root / name).exists()]


class Addresses:
    """Addresses below the site's folder of files of the repository; remembers files that have to be copied there."""

    def __init__(self, root: Path):
        self.root = root
        self.pages = {name: document_page(name) for name in documents(root)}
        self.copied: dict[str, Path] = {}

    def of(self, name: str) -> str | None:
        """The address of a file named from the repository's root; None for a folder and for what is not there."""
        file = self.root / name
        if name in self.pages:
            return self.pages[name]
        if not file.is_file():
            return None
        path = PurePosixPath(name)
        if path.parent.name == "executed" and path.suffix == ".ipynb":
            return f"notebooks/{path.stem}.html"
        places = {"paper/figures": "figures", "paper/numbers": "numbers", "paper": ""}
        known = str(path.parent) in places and path.suffix in (".svg", ".json", ".pdf")
        address = str(PurePosixPath(places[str(path.parent)]) / path.name) if known else f"files/{name}"
        self.copied[address] = file
        return address

    def link(self, page: str, written: str, base: str = "") -> str | None:
        """The address that a page needs for an address as written in a file of the repository's folder `base`.

        None where it leads to nothing that the site has.
        """
        if written.startswith(("#", "data:", *CITED)):
            return written
        name, _, fragment = written.partition("#")
        path = os.path.normpath(PurePosixPath(base) / name).replace(os.sep, "/")
        found = None if path.startswith("..") else self.of(path)
        return None if found is None else relative(page, found) + (f"#{fragment}" if fragment else "")


def document_page(name: str) -> str:
    """The page of a Markdown file; README.md of a folder is named after the folder."""
    path = PurePosixPath(name)
    title = path.parent.name if path.stem == "README" and path.parent.name else path.stem
    return f"documents/{title.lower()}.html"


def relative(page: str, address: str) -> str:
    """An address of the site as seen from one of its pages."""
    return os.path.relpath(address, PurePosixPath(page).parent).replace(os.sep, "/")
