"""The site's index and its page of claims: each experiment with its question, figure, claims, notebooks and data."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from esr.publishing import readme
from esr.publishing.addresses import Addresses, relative
from esr.publishing.experiments import Experiment, Experiments, figure_files
from esr.publishing.notebooks import Executed
from esr.publishing.pages import link
from esr.publishing.rendering import markdown, readdressed
from esr.publishing.responses import Source
from esr.reporting import rules
from esr.reporting.claims import ABOUT, Row, measured_text, published_text
from esr.reporting.numbers import read_numbers

HELD = {"reproduced": "✓", "manipulation check passed": "✓"}
OPPOSED = {"contradicted": "✗", "manipulation check failed": "✗"}


def verdict(words: str) -> str:
    """A verdict as a label, told apart by its words and sign as well as by its colour."""
    kind = "held" if words in HELD else "opposed" if words in OPPOSED else "open"
    sign = (HELD | OPPOSED).get(words, "–" if words == "not measured" else "?")
    return f'<span class="verdict" data-kind="{kind}">{sign} {html.escape(words)}</span>'


class Story:
    """What both pages are made of. `responses`: pages of responses that the site has."""

    def __init__(
        self,
        experiments: Experiments,
        claims: Sequence[Row],
        notebooks: Sequence[Executed],
        responses: Sequence[Source],
        addresses: Addresses,
    ):
        self.experiments, self.claims, self.notebooks = experiments.experiments, claims, notebooks
        self.methods, self.responses, self.addresses = experiments.methods, responses, addresses
        self.drawn: dict[Path, str] = {}  # figures and the section that shows each

    def index(self) -> str:
        """Introduction, tally of verdicts, experiments, methods, data."""
        self.drawn.clear()
        return "\n".join(
            [self._introduction(), self._tally(), "<h2>Experiments</h2>", *map(self._experiment, self.experiments),
             self._methods(), self._data()]
        )  # fmt: skip

    def _introduction(self) -> str:
        """The README up to its first section."""
        text = (self.addresses.root / "README.md").read_text(encoding="utf-8")
        shown = markdown(re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0])
        return readdressed(shown, lambda written: self.addresses.link("index.html", written))

    def _tally(self) -> str:
        ways = [link("all claims with their rules", "claims.html")]
        ways += [link("paper (PDF)", paper)] if (paper := self.addresses.of("paper/paper.pdf")) else []
        ways += [link("README", self.addresses.pages["README.md"]), link("responses to browse", "#responses")]
        about = _list(f"<em>{name}</em>: {html.escape(text)}" for name, text in ABOUT.items())
        table = markdown(readme.tally(read_numbers))
        return f'<h2 id="verdicts">Verdicts</h2>{table}{about}<p>Read on: {", ".join(ways)}.</p>'

    def _experiment(self, experiment: Experiment) -> str:
        section = f"experiment-{experiment.id}"
        found = [n for n in self.notebooks if n.stage == experiment.stage]
        claims = "".join(map(self._claim, (row for row in self.claims if row.experiment == experiment.id)))
        title = f"Experiment {experiment.id}: {experiment.title}"
        return (
            f'<section id="{section}"><h3>{html.escape(title)}</h3>'
            f"<p>{html.escape(found[0].question) if found else ''}</p>"
            f'{self._figures(experiment.figures, section)}<ul class="claims">{claims}</ul>'
            f'<p class="links">{self._sources(experiment, found)}</p></section>'
        )

    def _claim(self, row: Row) -> str:
        """A claim as a line of its experiment."""
        n = f", n = {row.n}" if row.n is not None else ""
        facts = f"measured {measured_text(row)}{n}" if row.measured else "no number yet"
        facts += "" if row.published is None else f"; published {published_text(row)}"
        return (
            f"<li>{link(row.hypothesis, f'claims.html#{row.id}')} {verdict(row.verdict)}<br>{html.escape(facts)}</li>"
        )

    def _figures(self, named: Mapping[str, str], section: str) -> str:
        """Figures, each shown once and linked where it comes again."""
        parts = []
        for file, text in figure_files(named, self.addresses.root).items():
            if file in self.drawn:
                parts.append(f"<p>Figure: {link(file.stem, f'#figure-{file.stem}')}, above.</p>")
                continue
            self.drawn[file] = section
            address = html.escape(self.addresses.of(file.relative_to(self.addresses.root).as_posix()) or "")
            image = f'<img src="{address}" {_size(file)} alt="{html.escape(text)}">'
            caption = f"<figcaption>{html.escape(text)}.</figcaption>"
            parts.append(f'<figure id="figure-{file.stem}"><a href="{address}">{image}</a>{caption}</figure>')
        return "".join(parts)

    def _sources(self, experiment: Experiment, found: Sequence[Executed]) -> str:
        """Links to notebooks, numbers and responses."""
        ways = [link(n.short, n.address) for n in found]
        ways += [self._file(f"paper/numbers/{name}.json") for name in experiment.numbers]
        pages = [source for source in self.responses if source.stage == experiment.responses]
        ways += [link(f"responses of {source.model}", f"responses/{source.page}") for source in pages]
        return " · ".join(ways)

    def _methods(self) -> str:
        """Notebooks that answer no experiment, and figures of methods."""
        answering = {experiment.stage for experiment in self.experiments}
        cards = "".join(
            f"<li>{link(n.name, n.address)}<br>{html.escape(n.question)}</li>"
            for n in self.notebooks if n.stage not in answering
        )  # fmt: skip
        figures = "".join(self._figures(named, "methods") for named in self.methods.values())
        return f'<h2 id="methods">Methods</h2><ul class="cards">{cards}</ul>{figures}'

    def _data(self) -> str:
        """Pages of responses, numbers files, documents."""
        pages = [link(f"{source.model}: {source.stage}", f"responses/{source.page}") for source in self.responses]
        none = "This copy of the site was made without the responses; data/README.md says where they are."
        root = self.addresses.root
        files = [self._file(f.relative_to(root).as_posix()) for f in sorted((root / "paper/numbers").glob("*.json"))]
        files += [self._file(name) for name in ("data/rules.yaml", "data/published.json", "params.yaml", "dvc.yaml")]
        papers = [link(name, address) for name, address in self.addresses.pages.items()]
        return (
            f'<h2 id="responses">Responses</h2>{_list(pages) if pages else f"<p>{none}</p>"}'
            f'<h2 id="data">Numbers and rules</h2>{_list(files)}<h2 id="documents">Documents</h2>{_list(papers)}'
        )

    def _file(self, name: str) -> str:
        return link(name, self.addresses.of(name) or "")

    def decisions(self, files: Mapping) -> str:
        """The page of claims: how each was decided, and what it rests on."""
        edition = rules.read_rules()
        known = {rule.id: rule for rule in edition.rules}
        parts = [self._decided(row, known.get(row.id), edition, files) for row in self.claims]
        intro = (
            "<h1>Claims</h1><p>One entry for each rule of "
            f"{self._file('data/rules.yaml')}, written before the data that decide it. A claim with a check that does "
            "not hold is not interpretable, whatever its interval says.</p>"
        )
        return intro + "".join(parts)

    def _decided(self, row: Row, rule: rules.Rule | None, edition: rules.Edition, files: Mapping) -> str:
        checks = edition.checks_of(rule) if rule else []
        states = [f"{check.text}: {rules.state(check, files, row.model)}" for check in checks if row.model]
        keys = ".".join(rule.outcome[1:]) if rule else ""
        experiment = next((e for e in self.experiments if e.id == row.experiment), None)
        ways = [
            link(f"Experiment {row.experiment}", relative("claims.html", f"index.html#experiment-{row.experiment}"))
        ]
        found = [n for n in self.notebooks if experiment and n.stage == experiment.stage and n.model in ("", row.model)]
        ways += [link(n.short, n.address) for n in found]
        ways += [f"{self._file(f'paper/numbers/{rule.outcome[0]}.json')} ({html.escape(keys)})"] if rule else []
        facts = {
            "Measured": measured_text(row), "Published": published_text(row), "n": "–" if row.n is None else str(row.n),
            "Model": row.model or "–", "About": row.about, "Rule": row.rule, "Digest of rule and checks": row.sha256,
        }  # fmt: skip
        terms = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
        return (
            f'<section id="{html.escape(row.id)}"><h2>{html.escape(row.hypothesis)}</h2><p>{verdict(row.verdict)}</p>'
            f"<dl>{terms}</dl>{f'<p>Checks:</p>{_list(map(html.escape, states))}' if states else ''}"
            f'<p class="links">{" · ".join(ways)}</p></section>'
        )


def _size(file: Path) -> str:
    """Width and height of a figure as attributes, so that the page does not move when it arrives."""
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', file.read_text(encoding="utf-8")[:2000])
    return f'width="{round(float(found[1]) * 4 / 3)}" height="{round(float(found[2]) * 4 / 3)}"' if found else ""


def _list(items) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"
