"""The paper's claims, one row each: published value, measured value, verdict.

    python -m esr.reporting.claims table

prints paper/numbers/claims.json as Markdown. esr.reporting.claim_rules gives each claim a rule of
esr.statistics.verdicts, but ablations are judged in esr.experiments.ablation. The rules of experiments 1, 2, 4, 5 and 8
were written after first data. Published values come from data/published.json, measured ones from
paper/numbers/; a missing one is "not measured".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Final

from esr import paths
from esr.config.registry import base_of
from esr.reporting import numbers
from esr.reporting.claim import Claim, Subject, Unit
from esr.reporting.claim_rules import claims
from esr.statistics import verdicts
from esr.statistics.estimates import NOTHING, Estimate
from esr.statistics.verdicts import Outcome, Verdict
from esr.storage.records import Record

NOT_MEASURED: Final[Outcome] = "not measured"


class Row(Record):
    """One line of the table; the table shows shares as percent."""

    experiment: str
    claim: str
    published: float | None
    measured: Estimate | None
    n: int | None
    unit: Unit
    model: str
    subject: Subject
    verdict: Outcome
    rule: str
    withdrawn: bool


def evaluate(claim: Claim, files: dict, models: Sequence[str]) -> Row:
    """The claim's row. Endogenous claims are tested in the base model, others in the first fine-tuned one with numbers.

    Without a fine-tuned model, all claims are tested in the first of `models`.
    """
    tuned = [m for m in models if base_of(m) != m and m in files.get("esr", {})]
    base = base_of(tuned[0]) if tuned else models[0]
    model = tuned[0] if tuned and claim.subject != "endogenous" else base
    measured = claim.measure(files, model, base)
    if measured is not None and claim.verdict:
        decided = _verdict_of_stage(claim, files, model)
    elif claim.rule:
        decided = claim.rule(measured or NOTHING)
    else:
        decided = Verdict(verdicts.UNDECIDED, "Decided by the stage that measures it (esr.experiments.ablation).")
    return Row(
        experiment=claim.experiment,
        claim=claim.text,
        published=None if claim.published is None else float(claim.published),
        measured=measured,
        n=None if measured is None else measured.n,
        unit=claim.unit,
        model=claim.label(files, base) if claim.label else model,
        subject=claim.subject,
        verdict=NOT_MEASURED if measured is None else decided.verdict,
        rule=decided.rule,
        withdrawn=claim.withdrawn,
    )


def _verdict_of_stage(claim: Claim, files: dict, model: str) -> Verdict:
    verdict = claim.verdict(files, model) if claim.verdict else None
    if verdict is None:
        raise ValueError(f"No verdict of its stage for {model}, claim {claim.text!r}: run the stage (dvc repro) again.")
    return verdict


class NumbersFiles(dict):
    """Numbers files by name, each read when a claim first looks it up; None where there is no such file."""

    def get(self, name: str, default=None):
        if name not in self and (paths.NUMBERS / f"{name}.json").exists():
            self[name] = numbers.read_numbers(name)
        return super().get(name, default)


def rows(models: Sequence[str], files: dict | None = None) -> list[Row]:
    """Every claim, decided from the files on disk, in order of the experiments."""
    published = json.loads((paths.DATA / "published.json").read_text(encoding="utf-8"))
    files = NumbersFiles() if files is None else files
    decided = [evaluate(claim, files, models) for claim in claims(published)]
    return sorted(decided, key=lambda row: (int(row.experiment.rstrip("b")), row.experiment))


def as_rows(content: Sequence[dict]) -> list[Row]:
    """Rows from the content of paper/numbers/claims.json, as `numbers.parse_numbers` gives it."""
    return [Row(**fields) for fields in content]


def table(decided: Sequence[Row]) -> str:
    """The claims as a Markdown table."""
    lines = [["", "claim", "published", "measured", "n", "model", "about", "verdict"], ["---"] * 8]
    for row in decided:
        n = "–" if row.n is None else str(row.n)
        shown = f"withdrawn ({row.verdict})" if row.withdrawn else row.verdict
        measured = "–" if row.measured is None else _interval(row.measured, row.unit)
        published = "–" if row.published is None else _value(row.published, row.unit)
        lines.append([row.experiment, row.claim, published, measured, n, row.model, row.subject, shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _interval(measured: Estimate, unit: str) -> str:
    if measured.estimate is None:
        return "–"
    estimate = _value(measured.estimate, unit)
    if measured.low == measured.high:
        return estimate
    low, high = ("–" if end is None else _number(end, unit) for end in (measured.low, measured.high))
    return f"{estimate} [{low}, {high}]"


def _value(value: float, unit: str) -> str:
    return _number(value, unit) + {"%": " %", "x": " x"}.get(unit, "")


def _number(value: float, unit: str) -> str:
    return f"{value:.0f}" if unit == "latents" else f"{100 * value if unit == '%' else value:.1f}"


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
