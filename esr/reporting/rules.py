"""Verdict rules of data/rules.yaml: hypotheses, outcomes and checks, written before the runs that decide them.

The digest of a rule and its checks stands beside every verdict: a rule that changes after its data is seen to have
changed.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, model_validator

from esr.config.registry import base_of
from esr.config.schema import ConfigError, Positive, Section, load_yaml, validate
from esr.paths import DATA
from esr.reporting.numbers import find
from esr.statistics import verdicts
from esr.statistics.estimates import NOTHING, Estimate
from esr.statistics.verdicts import UNDECIDED, Outcome, Verdict
from esr.storage.digests import digest

RULES = DATA / "rules.yaml"
TAUGHT: dict[Outcome, Outcome] = {
    "reproduced": "manipulation check passed",
    "contradicted": "manipulation check failed",
}
Unit = Literal["%", "x", "points", "log-odds", ""]
Id = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Keys = Annotated[list[str], Field(min_length=2)]


class Beyond(Section):
    """The whole interval lies on one side of `limit`."""

    kind: Literal["above", "below"]
    limit: float

    def decide(self, interval: Estimate, published: float | None) -> Verdict:
        return verdicts.bound(interval, self.limit, side=self.kind)


class Effect(Section):
    """The interval lies on the published side of `no_effect`."""

    kind: Literal["effect"]
    no_effect: float

    def decide(self, interval: Estimate, published: float | None) -> Verdict:
        if published is None:
            raise ConfigError(f"{RULES}: a rule of kind effect has no published value: add published.")
        return verdicts.effect(interval, published, null=self.no_effect)


class Absence(Section):
    """The whole interval lies within `margin` of 0."""

    kind: Literal["absence"]
    margin: float = Field(gt=0)

    def decide(self, interval: Estimate, published: float | None) -> Verdict:
        return verdicts.absence(interval, self.margin)


class Within(Section):
    """The whole interval lies between `low` and `high`."""

    kind: Literal["within"]
    low: float
    high: float

    def decide(self, interval: Estimate, published: float | None) -> Verdict:
        return verdicts.absence(interval, (self.high - self.low) / 2, null=(self.high + self.low) / 2)


AnyRule = Annotated[Beyond | Effect | Absence | Within, Field(discriminator="kind")]


class Check(Section):
    """What has to hold of the model before a rule is read: a manipulation check or a sham."""

    id: Id
    text: str
    outcomes: list[Keys] = Field(min_length=1)
    rule: AnyRule


class Rule(Section):
    """A hypothesis and how it is decided; fields as the head of data/rules.yaml says."""

    id: Id
    experiment: Annotated[str, Field(pattern=r"^[1-9]\d?b?$")]
    about: Literal["endogenous", "mechanism", "taught"]
    model: Literal["base", "organism"]
    hypothesis: str
    outcome: Keys
    rule: AnyRule
    published: Keys | None = None
    checks: list[Id] = []
    n: Positive | None = None
    unit: Unit = "%"


class Edition(Section):
    """The content of data/rules.yaml."""

    edition: int
    written: Annotated[datetime.date, Field(strict=False)]
    checks: list[Check]
    rules: list[Rule]

    def sha256(self, rule: Rule) -> str:
        """Digest of everything that decides the verdict on a rule: all of it but the unit, and its checks."""
        return digest(rule.model_dump(exclude={"unit"}), [check.model_dump() for check in self.checks_of(rule)])

    def checks_of(self, rule: Rule) -> list[Check]:
        return [check for check in self.checks if check.id in rule.checks]

    @model_validator(mode="after")
    def _names_fit(self):
        for kind, rows in (("checks", self.checks), ("rules", self.rules)):
            names = [row.id for row in rows]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{kind} has {twice[0]!r} twice: rename one")
        known = {check.id for check in self.checks}
        for rule in self.rules:
            if missing := sorted(set(rule.checks) - known):
                raise ValueError(f"the rule {rule.id} has the check {missing[0]!r}, which is not under checks: add it")
        return self


def read_rules(path: Path = RULES) -> Edition:
    """The rules. Raises ConfigError for a mistake in the file."""
    return validate(TypeAdapter(Edition), load_yaml(path), str(path))


def measured(files: Mapping, model: str, keys: Keys) -> Estimate | None:
    """The number under `keys` of a numbers file, in the entry of `model` where the file has one.

    finetune.json has a training in the entry of the model that was trained, an organism's base.
    """
    content = files.get(keys[0]) or {}
    name = base_of(model) if keys[0] == "finetune" else model
    found = find(content.get(name, content), *keys[1:])
    return found if isinstance(found, Estimate) else None


def state(check: Check, files: Mapping, model: str) -> Literal["holds", "does not hold", "not measured"]:
    """Whether a check holds of a model; "not measured" where one of its numbers is missing."""
    found = [measured(files, model, keys) for keys in check.outcomes]
    if None in found:
        return "not measured"
    decided = [check.rule.decide(interval or NOTHING, None).verdict for interval in found]
    return "holds" if set(decided) == {"reproduced"} else "does not hold"


def failed_checks(rule: Rule, edition: Edition, files: Mapping, model: str) -> list[str]:
    """Ids of the rule's checks that do not hold, or whose numbers are missing."""
    return [check.id for check in edition.checks_of(rule) if state(check, files, model) != "holds"]


def decide(rule: Rule, edition: Edition, files: Mapping, model: str | None, published: dict) -> Verdict:
    """The verdict on a rule in `model`; None where the study has none to measure it in.

    "not measured" without a number; "not interpretable" when a check does not hold; for what was taught, whether the
    manipulation check is passed. Undecided, with half an interval that is longer than the published effect, is "cannot
    be decided at this size": even an estimate of that effect would not have told it from none.
    """
    size = published_value(rule, published)
    interval = measured(files, model, rule.outcome) if model else None
    found = rule.rule.decide(interval or NOTHING, size)
    sentence = _sentence(rule, found.rule)
    if model is None or interval is None:
        return Verdict("not measured", sentence)
    if failed_checks(rule, edition, files, model):
        return Verdict("not interpretable", sentence)
    if found.verdict == UNDECIDED and isinstance(rule.rule, Effect) and _is_wide(interval, size, rule.rule.no_effect):
        return Verdict("cannot be decided at this size", sentence)
    if rule.about == "taught":
        return Verdict(TAUGHT.get(found.verdict, found.verdict), sentence)
    return Verdict(found.verdict, sentence)


def published_value(rule: Rule, published: dict) -> float | None:
    """The number of data/published.json beside which a rule's number stands."""
    return find(published, *rule.published) if rule.published else None


def _sentence(rule: Rule, decides: str) -> str:
    """What decides a rule, in the words of its verdicts."""
    if rule.about == "taught":
        return decides.replace("Reproduced", "Passed").replace("Contradicted", "Failed")
    if isinstance(rule.rule, Effect):
        return f"{decides} Cannot be decided where an undecided interval is over twice as long as the published effect."
    return decides


def _is_wide(interval: Estimate, published: float | None, null: float) -> bool:
    """Whether half of the interval is longer than the distance of the published value from `no_effect`."""
    bounds = interval.bounds
    return published is not None and (bounds is None or bounds[1] - bounds[0] > 2 * abs(published - null))
