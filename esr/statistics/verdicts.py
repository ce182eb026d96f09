"""Verdicts on published findings from measured intervals, by fixed rules.

Each function maps an Estimate to a Verdict. None is no bound: an interval that could not be computed decides nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from esr.statistics.estimates import Estimate

Outcome = Literal[
    "reproduced", "contradicted", "undecided at this n", "cannot be decided at this size",
    "not interpretable", "not measured", "manipulation check passed", "manipulation check failed",
]  # fmt: skip
UNDECIDED: Outcome = "undecided at this n"


@dataclass(frozen=True)
class Verdict:
    """A conclusion and its rule in a sentence or two."""

    verdict: Outcome
    rule: str


def effect(interval: Estimate, published: float | Estimate, *, null: float = 0.0) -> Verdict:
    """A finding with a sign and a size: a reduction, a difference, a ratio (`null` 1).

    Reproduced when the interval lies on the published side of `null`. Contradicted when it does not and also excludes
    the published effect and all beyond: opposite in sign, or too small.

    published: a number, or an interval, of which the bound nearest to `null` must be excluded: an uncertain published
    effect is not contradicted for being overstated.
    """
    size = published if isinstance(published, Estimate) else Estimate(published, published, published, 0)
    if size.estimate is None:
        raise ValueError("The published effect is null: give a number.")
    if size.estimate == null:
        raise ValueError(f"The published effect is {null}, no effect: use verdicts.absence.")
    low, high = _bounds(interval)
    smallest, largest = _bounds(size)
    if size.estimate > null:
        reproduced, contradicted, side = low > null, high < max(smallest, null), "above"
    else:
        reproduced, contradicted, side = high < null, low > min(largest, null), "below"
    rule = (
        f"Reproduced when the interval lies {side} {null:g}. "
        f"Contradicted when it does not and leaves out the published {size.estimate:g} and all beyond{_known(size)}."
    )
    return _conclude(reproduced, contradicted, rule)


def absence(interval: Estimate, margin: float, *, null: float = 0.0) -> Verdict:
    """A finding of no effect, e.g. of the ablation of random latents.

    Reproduced when the whole interval lies within `margin` of `null`, contradicted when it lies wholly beyond. Failing
    to exclude `null` shows nothing. Choose `margin` before measuring, e.g. half the effect under control.
    """
    if not margin > 0:
        raise ValueError(f"A margin of {margin} leaves no room for an interval: give the smallest effect that matters.")
    low, high = (bound - null for bound in _bounds(interval))
    rule = f"Reproduced when the whole interval lies within {margin:g} of {null:g}, contradicted when wholly beyond."
    return _conclude(-margin < low and high < margin, low > margin or high < -margin, rule)


def bound(interval: Estimate, limit: float, *, side: Literal["below", "above"] = "below") -> Verdict:
    """A finding that a rate stays on one side of a limit, e.g. ESR under 1 %.

    Reproduced when the whole interval lies on that side of `limit`, contradicted when it lies wholly on the other.
    """
    low, high = _bounds(interval)
    below, above = high < limit, low > limit
    other = {"below": "above", "above": "below"}[side]
    rule = f"Reproduced when the whole interval lies {side} {limit:g}. Contradicted when it lies wholly {other}."
    return _conclude(below, above, rule) if side == "below" else _conclude(above, below, rule)


def _bounds(interval: Estimate) -> tuple[float, float]:
    low, high = interval.low, interval.high
    return -math.inf if low is None else low, math.inf if high is None else high


def _known(size: Estimate) -> str:
    low, high = size.low, size.high
    return "" if low == high else f", down to the near end of its interval, {low:g} to {high:g}"


def _conclude(reproduced: bool, contradicted: bool, rule: str) -> Verdict:
    return Verdict("reproduced" if reproduced else "contradicted" if contradicted else UNDECIDED, rule)
