"""Progress of a long run: reports each step and the remaining time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from esr.progress import say


class Schedule:
    """Steps in order; steps of equal duration share a name.

    guesses: estimated seconds by name; the latest measurement replaces them.
    """

    def __init__(self, steps: Sequence[str], guesses: dict[str, float]):
        self.steps, self.guesses, self.done = list(steps), dict(guesses), 0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Report and time a step. Raises ValueError when `name` is not next: the remaining time would be wrong."""
        if self.done == len(self.steps) or self.steps[self.done] != name:
            raise ValueError(f"{name} is not the step after {self.done} of {len(self.steps)}.")
        left = sum(self.guesses[step] for step in self.steps[self.done :])
        say(f"[{self.done + 1}/{len(self.steps)}] {name}: about {self.guesses[name]:.0f} s; {_time(left)} left in all")
        start = time.monotonic()
        yield
        self.guesses[name] = time.monotonic() - start
        self.done += 1


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
