"""The one shape of a measured number: an estimate, the ends of its interval, and n."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """`low` and `high` bound the interval. None is no bound, or, for `estimate`, nothing to estimate from; `n` counts
    what it is measured on: trials, or pairs of trials.
    """

    estimate: float | None
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, estimate, low, high, n) -> Estimate:
        """From numpy's numbers as well as Python's."""
        ends = (None if value is None else float(value) for value in (estimate, low, high))
        return cls(*ends, int(n))

    @property
    def is_known(self) -> bool:
        return self.estimate is not None

    @property
    def is_bounded(self) -> bool:
        """Both ends of the interval are known."""
        return self.low is not None and self.high is not None


NOTHING = Estimate(None, None, None, 0)
FIELDS = set(vars(NOTHING))


def difference(one: Estimate | None, other: Estimate | None) -> Estimate | None:
    """`one` less `other`, as uncertain as both intervals together: wider than a test of the difference would be.

    For quantities that no stage compared trial by trial. Its `n` is the smaller one. None where one is missing.
    """
    if one is None or other is None:
        return None

    def less(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a - b

    return Estimate(
        less(one.estimate, other.estimate), less(one.low, other.high), less(one.high, other.low), min(one.n, other.n)
    )


def from_json(fields: dict) -> Estimate | dict:
    """A JSON object of that shape as an Estimate, others as they are: `json.loads(text, object_hook=from_json)`."""
    return Estimate(**fields) if set(fields) == FIELDS else fields
