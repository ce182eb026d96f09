"""README's findings: one line a question, each sentence made of measured numbers.

Sentences state what was measured, whatever it came to; the verdicts of the rules stand behind them. A line whose
numbers do not exist yet is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

from esr import paths
from esr.publishing.experiments import Experiment, executed_notebooks, figure_files, read_experiments, verdicts_of
from esr.reporting import claims
from esr.reporting.numbers import find
from esr.reporting.tables import cell
from esr.statistics.estimates import Estimate

Read = Callable[[str], Any]  # content of a numbers file by name; raises FileNotFoundError
Role = Literal["base", "organism"]
RESULTS = "docs/results.md"


class Numbers:
    """The numbers that findings are made of, of the models that the rules are read on."""

    def __init__(self, read: Read):
        self.read = read
        self.published = json.loads((paths.DATA / "published.json").read_text(encoding="utf-8"))
        self.rows = claims.as_rows(read("claims"))
        named = claims.measured_models(list(read("esr")), {"esr": read("esr")})
        self.base, self.organism = str(named["base"]), named["organism"]

    def rows_on(self, role: Role) -> list[claims.Row]:
        return [row for row in self.rows if row.model == {"base": self.base, "organism": self.organism}[role]]

    def of(self, name: str, *keys: str) -> Estimate:
        """An estimate of a numbers file. Raises LookupError where it is not measured."""
        try:
            found = find(self.read(name), *keys)
        except FileNotFoundError as error:
            raise LookupError(str(error)) from None
        if not isinstance(found, Estimate) or found.estimate is None:
            raise LookupError(f"{'.'.join((name, *keys))} is not measured")
        return found


def findings(read: Read) -> str:
    """The list of findings as Markdown, each with links to its claims, notebook and figure."""
    numbers = Numbers(read)
    known = {experiment.id: experiment for experiment in read_experiments().experiments}
    lines = []
    for sentence, experiment, role in SENTENCES:
        try:
            text = sentence(numbers)
        except LookupError:
            continue
        lines.append(f"- {text} ({_sources(known[experiment], numbers.rows_on(role))})")
    return "\n".join(lines)


def untaught(n: Numbers) -> str:
    steered, unsteered = (n.of("esr", n.base, name, "multi_attempt_rate") for name in ("steered", "unsteered"))
    published = 100 * n.published["models"]["llama-3.3-70b"]["multi_attempt_rate"]
    return (
        f"**Does a model that nobody taught correct itself?** Of {n.base}'s responses {_percent(steered)} restart when "
        f"steered (n = {steered.n}) and {_percent(unsteered)} when not (n = {unsteered.n}); Llama-3.3-70B's when "
        f"steered: {published:.1f} %, published."
    )


def taught(n: Numbers) -> str:
    rates = {name: n.of("esr", _tuned(n), name, "multi_attempt_rate") for name in ("steered", "unsteered")}
    net, esr, placebo = (
        n.of("esr", _tuned(n), "steered", name) for name in ("net_esr_rate", "esr_rate", "placebo_rate")
    )
    return (
        f"**Does one that was taught to restart come back?** {n.organism} restarts in {_percent(rates['steered'])} of "
        f"steered responses (n = {rates['steered'].n}) and {_percent(rates['unsteered'])} of unsteered ones "
        f"(n = {rates['unsteered'].n}). {_percent(esr)} restart and improve; were the restarts arbitrary cuts, "
        f"{_percent(placebo)} would. Improved minus worsened: {_percent(net)}."
    )


def ablated(n: Numbers) -> str:
    rates = {s: n.of("ablate", _tuned(n), s, "multi_attempt_rate") for s in ("steered", "detectors", "random", "sham")}
    changed = n.of("ablate", _tuned(n), "sham", "changed_share")
    return (
        f"**Do restarts need the detectors of off-topic text?** With them ablated {_percent(rates['detectors'])} of "
        f"steered responses restart instead of {_percent(rates['steered'])} (n = {rates['detectors'].n} pairs), with "
        f"matched random latents {_percent(rates['random'])}, with the sham, latents that should not fire, "
        f"{_percent(rates['sham'])}; it changes {_percent(changed)} of the texts."
    )


def instructed(n: Numbers) -> str:
    change = {s: n.of("meta_prompts", _tuned(n), s, "paired_difference") for s in ("monitor_yourself", "unrelated")}
    return (
        "**Do instructions to resist help?** Told to monitor itself, the taught model's restart rate rises by "
        f"{_points(change['monitor_yourself'])} (n = {change['monitor_yourself'].n} pairs); told something unrelated, "
        f"by {_points(change['unrelated'])}."
    )


def first_attempts(n: Numbers) -> str:
    score = n.of("esr", n.base, "unsteered", "first_attempt_score")
    low, high = (n.published["no_steering"][f"first_attempt_score_{end}"] for end in ("min", "max"))
    return (
        f"**Does the model answer its prompts at all?** Unsteered, {n.base}'s first attempts score "
        f"{cell(score, 1, '')} of 100 (n = {score.n}); published models, by another judge: {low} to {high}. Where a "
        "rule asks for a model that does, its verdict is *not interpretable*."
    )


SENTENCES: tuple[tuple[Callable[[Numbers], str], str, Role], ...] = (
    (untaught, "1", "base"), (taught, "1", "organism"), (ablated, "3b", "organism"), (instructed, "5", "organism"),
    (first_attempts, "8", "base"),
)  # fmt: skip
"""With the experiment and the model whose claims, notebook and figure are linked."""


def _tuned(n: Numbers) -> str:
    if n.organism is None:
        raise LookupError("no model was taught to restart")
    return n.organism


def _sources(experiment: Experiment, rows: Sequence[claims.Row]) -> str:
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts_of(experiment.id, rows).items())
    ways = [f"[experiment {experiment.id}]({RESULTS}#claim-by-claim): {verdicts or 'no rule'}"]
    files = {"notebook": executed_notebooks(experiment.stage), "figure": list(figure_files(experiment.figures))}
    ways += [f"[{word}]({some[-1].relative_to(paths.ROOT).as_posix()})" for word, some in files.items() if some]
    return "; ".join(ways)


def _percent(rate: Estimate) -> str:
    return cell(rate, 100, " %")


def _points(difference: Estimate) -> str:
    return cell(difference, 100, " points")
