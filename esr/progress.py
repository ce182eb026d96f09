"""What long work says while it runs: what, how much is done, how fast, how long it still takes.

Lines go to stderr, or to the file ESR_PROGRESS names: under papermill a kernel's stderr would end up in the executed
notebook, where times differ from run to run, so the runner reads that file aloud instead.
"""

from __future__ import annotations

import os
import sys
import time


def say(line: str) -> None:
    """One line to whoever watches."""
    if path := os.environ.get("ESR_PROGRESS"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    else:
        print(line, file=sys.stderr, flush=True)


class Progress:
    """Counts `done` of `total` items, and units (tokens) on the way, and says so every `every` seconds."""

    def __init__(
        self, what: str, total: int, item: str, unit: str = "tokens", every: float = 10.0, max_units: int | None = None
    ):
        self.what, self.total, self.item, self.unit, self.every = what, total, item, unit, every
        self.max_units = max_units  # what is left to do in this run takes at most so many units
        self.start = self.last = time.monotonic()
        self.reused = 0

    def reuse(self, items: int) -> None:
        """`items` were finished by an earlier run: they count as done but not as speed."""
        if items:
            self.reused += items
            say(f"{self.what}: {items} of {self.total} {self.item} already finished, not done again")

    def update(self, items: int, units: int, force: bool = False) -> None:
        """`items` and `units` finished in this run so far."""
        now = time.monotonic()
        if not force and now - self.last < self.every:
            return
        self.last = now
        seconds = max(now - self.start, 1e-9)
        done = self.reused + items
        share = items / max(1, self.total - self.reused)
        if self.max_units:  # answers written side by side all finish late: the units say more
            share = max(share, units / self.max_units)
        left = seconds * (1 - share) / share if share else None
        say(
            f"{self.what}: {done}/{self.total} {self.item}, {units / seconds:.0f} {self.unit}/s, "
            + (f"{left:.0f} s left" if left is not None else "time left not known yet")
        )
