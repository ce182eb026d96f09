"""The study as a site of plain files: index, claims, executed notebooks, responses, figures, numbers, documents.

    python -m esr.publishing.site [FOLDER]

Made from what is there: executed notebooks, paper/, data/experiments.yaml, data/rules.yaml, Markdown files, and the
responses in data/ where they are. It opens from disk and from any web server, runs no script but that of the pages of
responses, and requests nothing from another host.
"""

from __future__ import annotations

import argparse
import html
import shutil
import sys
from pathlib import Path, PurePosixPath

from esr import paths
from esr.config.params import STAGES
from esr.publishing import notebooks, responses
from esr.publishing.addresses import Addresses, relative
from esr.publishing.experiments import Experiments, figure_files, read_experiments
from esr.publishing.notebooks import Executed
from esr.publishing.pages import link, page
from esr.publishing.rendering import markdown, readdressed
from esr.publishing.story import Story
from esr.reporting.claims import NumbersFiles, as_rows
from esr.reporting.numbers import read_numbers
from esr.storage.files import replacing, write_text

TITLE = "Endogenous steering resistance, reproduced"
FOLDER = "site"
MARK = ".nojekyll"  # of a site made here; with it GitHub Pages serves the files as they are
PAGES = (("Home", "index.html"), ("Claims", "claims.html"))


def build(folder: Path, data: Path = paths.DATA) -> int:
    """Write the site in place of `folder`; returns its number of pages. data: where responses are looked for.

    Raises ValueError for a folder with something else in it.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise ValueError(f"{folder} holds something else than a site: name an empty folder, or remove it.")
    with replacing(folder) as new:
        experiments, found = read_experiments(), notebooks.all_executed()
        addresses = Addresses(paths.ROOT)
        sources = responses.sources(data)
        story = Story(experiments, as_rows(read_numbers("claims")), found, sources, addresses)
        _write(new, "index.html", TITLE, story.index())
        _write(new, "claims.html", f"Claims: {TITLE}", story.decisions(NumbersFiles()))
        for executed in found:
            _write_notebook(new, executed, found, experiments, addresses)
        for name in addresses.pages:
            _write_document(new, name, addresses)
        for _ in responses.write_pages(new / "responses", data, "../index.html"):
            pass
        for address, file in addresses.copied.items():
            (new / address).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, new / address)
        (new / MARK).touch()
        return len(list(new.rglob("*.html")))


def _write(folder: Path, address: str, title: str, body: str, more: list[tuple[str, str]] | None = None) -> None:
    nav = [(text, "" if address == to else relative(address, to)) for text, to in PAGES]
    write_text(folder / address, page(title, body, nav=[*nav, *(more or [])]))


def _write_document(folder: Path, name: str, addresses: Addresses) -> None:
    """The page of a Markdown file, its links leading to what the site has."""
    here, base = addresses.pages[name], str(PurePosixPath(name).parent)
    shown = markdown((paths.ROOT / name).read_text(encoding="utf-8"))
    _write(folder, here, name, readdressed(shown, lambda written: addresses.link(here, written, base)))


def _write_notebook(
    folder: Path, executed: Executed, every: list[Executed], experiments: Experiments, addresses: Addresses
) -> None:
    """The page of a notebook, with the ways from it to experiments, figures, numbers and responses."""
    here = executed.address
    around = notebooks.neighbours(executed, every)
    more = [(f"{word}: {other.short}", relative(here, other.address)) for word, other in around]
    theirs = [e for e in experiments.experiments if e.stage == executed.stage]
    ways = [link(f"Experiment {e.id}: {e.title}", relative(here, f"index.html#experiment-{e.id}")) for e in theirs]
    named = {
        **{n: text for e in theirs for n, text in e.figures.items()},
        **experiments.methods.get(executed.stage, {}),
    }
    ways += [
        link(f"Figure {file.stem}", relative(here, f"index.html#figure-{file.stem}")) for file in figure_files(named)
    ]
    numbers = dict.fromkeys(f"paper/numbers/{name}.json" for e in theirs for name in e.numbers)
    ways += [link(name, relative(here, addresses.of(name) or "")) for name in numbers]
    source = f"notebooks/{executed.path.stem.partition('-')[0]}.ipynb"
    if address := addresses.of(source):
        ways.append(link(source, relative(here, address)))
    intro = f'<p class="links">{" · ".join(ways)}</p>' if ways else ""
    if executed.stage in STAGES:
        model = f" --model {executed.model}" if executed.model else ""
        command = html.escape(f"python -m esr.pipeline.run {executed.stage}{model}")
        intro += f'<p class="links">Made by <code>{command}</code></p>'
    base = executed.path.parent.relative_to(paths.ROOT).as_posix()
    shown = readdressed(notebooks.body(executed), lambda to: addresses.link(here, to, base))
    _write(folder, here, executed.name, intro + shown, more)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m esr.publishing.site", description="The study as a site.")
    parser.add_argument("folder", nargs="?", type=Path, default=paths.ROOT / FOLDER)
    given = parser.parse_args(arguments)
    try:
        count = build(given.folder)
    except (FileNotFoundError, ValueError) as error:
        print(paths.from_root(str(error)), file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in given.folder.rglob("*") if file.is_file())
    print(f"{given.folder}: {count} pages, {size / 1e6:.1f} MB; open {given.folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
