"""Says before each step of a long run what begins and how long everything still takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from esr.progress import say


class Schedule:
    """Steps in their order, the same name for what takes equally long.

    guesses: seconds a step of that name may take; the first measured one replaces it.
    """

    def __init__(self, steps: Sequence[str], guesses: dict[str, float]):
        self.steps, self.guesses, self.done = list(steps), dict(guesses), 0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Raises ValueError when `name` is not next: the times said would be wrong."""
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
