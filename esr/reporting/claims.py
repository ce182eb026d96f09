"""The claims, one row for each rule of data/rules.yaml: published value, measured value, verdict.

    python -m esr.reporting.claims table

prints paper/numbers/claims.json as Markdown. Published values come from data/published.json, measured ones from
paper/numbers/; a missing one is "not measured".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from esr import paths
from esr.config.registry import base_of
from esr.reporting import numbers, rules
from esr.reporting.rules import Edition, Rule, Unit
from esr.statistics.estimates import Estimate
from esr.statistics.verdicts import Outcome
from esr.storage.records import Record

ABOUT = {  # of a verdict, in models of this size
    "endogenous": "behaviour of models without training on restarts: this study covers its base model only",
    "mechanism": "how resistance works once it is there: testable in a model fine-tuned to restart",
    "taught": "behaviour that the model was trained on: a manipulation check, which is passed or failed",
}


class Row(Record):
    """One line of the table; the table shows shares as percent.

    id, hypothesis, rule, sha256: of the rule. n: trials measured. model: None without a fine-tuned model to measure.
    failed_checks: those that do not hold, or are not measured; empty where nothing is measured.
    """

    id: str
    experiment: str
    hypothesis: str
    published: float | None
    measured: Estimate | None
    n: int | None
    unit: Unit
    model: str | None
    about: Literal["endogenous", "mechanism", "taught"]
    verdict: Outcome
    failed_checks: list[str]
    rule: str
    sha256: str


class NumbersFiles(dict):
    """Numbers files by name, each read when a rule first looks it up; None where there is no such file."""

    def get(self, name: str, default=None):
        if name not in self and (paths.NUMBERS / f"{name}.json").exists():
            self[name] = numbers.read_numbers(name)
        return super().get(name, default)


def measured_models(models: Sequence[str], files: Mapping) -> dict[str, str | None]:
    """The models that rules are read on: organism, the first fine-tuned one with rates, and base, its base.

    Without a fine-tuned model organism is None, and base that of the first of `models`.
    """
    tuned = [m for m in models if base_of(m) != m and m in (files.get("esr") or {})]
    return {"base": base_of(tuned[0] if tuned else models[0]), "organism": tuned[0] if tuned else None}


def evaluate(rule: Rule, edition: Edition, files: Mapping, model: str | None, published: dict) -> Row:
    """The row of a rule, measured on `model`."""
    measured = rules.measured(files, model, rule.outcome) if model else None
    decided = rules.decide(rule, edition, files, model, published)
    value = rules.published_value(rule, published)
    return Row(
        id=rule.id,
        experiment=rule.experiment,
        hypothesis=rule.hypothesis,
        published=None if value is None else float(value),
        measured=measured,
        n=None if measured is None else measured.n,
        unit=rule.unit,
        model=model,
        about=rule.about,
        verdict=decided.verdict,
        failed_checks=rules.failed_checks(rule, edition, files, model) if model and measured else [],
        rule=decided.rule,
        sha256=edition.sha256(rule),
    )


def rows(models: Sequence[str], files: Mapping | None = None) -> list[Row]:
    """Every rule, decided from the files on disk, in the order of data/rules.yaml."""
    published = json.loads((paths.DATA / "published.json").read_text(encoding="utf-8"))
    files = NumbersFiles() if files is None else files
    edition, named = rules.read_rules(), measured_models(models, files)
    return [evaluate(rule, edition, files, named[rule.model], published) for rule in edition.rules]


def states(models: Sequence[str], files: Mapping) -> dict[str, dict[str, str]]:
    """`{check: {model: "holds", "does not hold" or "not measured"}}` of the models that rules are read on."""
    named = [model for model in measured_models(models, files).values() if model]
    return {
        check.id: {model: rules.state(check, files, model) for model in named} for check in rules.read_rules().checks
    }


def as_rows(content: Sequence[dict]) -> list[Row]:
    """Rows from the content of paper/numbers/claims.json, as `numbers.parse_numbers` gives it."""
    return [Row(**fields) for fields in content]


def table(decided: Sequence[Row]) -> str:
    """The claims as a Markdown table."""
    head = ["", "hypothesis", "published", "measured", "n", "model", "about", "verdict", "failed checks"]
    lines = [head, ["---"] * len(head)]
    for row in decided:
        n = "–" if row.n is None else str(row.n)
        failed = ", ".join(row.failed_checks) or "–"
        numbers_shown = [published_text(row), measured_text(row), n, row.model or "–"]
        lines.append([row.experiment, row.hypothesis, *numbers_shown, row.about, row.verdict, failed])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def published_text(row: Row) -> str:
    """The published value with its unit; "–" where there is none."""
    return "–" if row.published is None else _value(row.published, row.unit)


def measured_text(row: Row) -> str:
    """The measured value and its interval; "–" where nothing is measured."""
    return "–" if row.measured is None else _interval(row.measured, row.unit)


def _interval(measured: Estimate, unit: Unit) -> str:
    if measured.estimate is None:
        return "–"
    if measured.low is measured.high is None:
        return _value(measured.estimate, unit)
    low, high = ("–" if end is None else _number(end, unit) for end in (measured.low, measured.high))
    return f"{_value(measured.estimate, unit)} [{low}, {high}]"


def _value(value: float, unit: Unit) -> str:
    return _number(value, unit) + {"%": " %", "x": " x"}.get(unit, "")


def _number(value: float, unit: Unit) -> str:
    if unit in ("log-odds", ""):
        return f"{value:.2f}"
    return f"{100 * value if unit == '%' else value:.1f}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m esr.reporting.claims", description="The claims and what was measured."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table", help="the claims as the README shows them")
    parser.parse_args(arguments)
    try:
        print(table(as_rows(numbers.read_numbers("claims"))))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
