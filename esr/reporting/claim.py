"""What a claim is: how it is measured, and the kinds of rules that decide it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from esr.reporting import lookup
from esr.reporting.lookup import Measure
from esr.statistics import verdicts
from esr.statistics.estimates import Estimate
from esr.statistics.verdicts import Verdict

SUBJECTS = {  # of a verdict, in a model of this size
    "machinery": "how resistance works once present: testable in a model fine-tuned to restart",
    "taught": "behaviour the model was trained on: shows that the protocol detects it, not that others do it",
    "endogenous": "behaviour of models without that training: this study covers its base model only",
}
Subject = Literal["machinery", "taught", "endogenous"]
Unit = Literal["%", "x", "points", "latents"]
Rule = Callable[[Estimate], Verdict]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper's abstract or experiments, and how it is decided.

    measure: finds the Estimate in the numbers files, None where missing. rule: maps it to a Verdict; None where its
    stage decides, and `verdict` finds the verdict. label: names the model measured where it is not the one that the
    study follows. withdrawn: the measurement is known to be wrong; the row stands as a record.
    """

    experiment: str
    text: str
    measure: Measure
    rule: Rule | None
    published: float | None = None
    unit: Unit = "%"
    subject: Subject = "machinery"
    verdict: Callable[[dict, str], Verdict | None] | None = None
    label: Callable[[dict, str], str] | None = None
    withdrawn: bool = False


def above(limit: float) -> Rule:
    return lambda interval: verdicts.bound(interval, limit, side="above")


def below(limit: float) -> Rule:
    return lambda interval: verdicts.bound(interval, limit, side="below")


def effect(published: float, null: float = 0.0) -> Rule:
    return lambda interval: verdicts.effect(interval, published, null=null)


def ablation(condition: str, published: float, outcome: str = "") -> dict:
    """Fields of a Claim on a relative reduction and its verdict by notebook 14; outcome "" or "esr_"."""
    return {
        "published": published,
        "rule": None,
        "measure": lambda files, model, base: lookup.ablation_effect(files, model, condition, outcome),
        "verdict": lambda files, model: lookup.ablation_verdict(files, model, condition, outcome),
    }


def absence(margin: float) -> Rule:
    return lambda interval: verdicts.absence(interval, margin)
