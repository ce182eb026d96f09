"""A measured number: an estimate, the ends of its interval, and n."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A measured number and its interval.

    estimate: None when there is nothing to estimate from. low, high: None is no bound. n: trials or pairs of trials.
    """

    estimate: float | None
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, estimate, low, high, n) -> Estimate:
        """An Estimate from numpy's or Python's numbers."""
        estimate, low, high = (None if value is None else float(value) for value in (estimate, low, high))
        return cls(estimate, low, high, int(n))

    @property
    def is_known(self) -> bool:
        return self.estimate is not None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Both ends of the interval; None unless both are known."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def is_bounded(self) -> bool:
        return self.bounds is not None


NOTHING = Estimate(None, None, None, 0)
FIELDS = set(vars(NOTHING))


def difference(one: Estimate | None, other: Estimate | None) -> Estimate | None:
    """`one` minus `other` for quantities without paired trials; None where one is missing.

    The interval adds both widths, wider than a test of the difference. `n` is the smaller one.
    """
    if one is None or other is None:
        return None

    def subtract(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a - b

    return Estimate(
        subtract(one.estimate, other.estimate),
        subtract(one.low, other.high),
        subtract(one.high, other.low),
        min(one.n, other.n),
    )


def from_json(fields: dict) -> Estimate | dict:
    """An Estimate from its JSON object, other objects unchanged: `json.loads(text, object_hook=from_json)`."""
    return Estimate(**fields) if set(fields) == FIELDS else fields
