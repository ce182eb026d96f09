"""Drift of fresh numbers from the committed ones."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esr import paths
from esr.reporting.numbers import parse_numbers, read_numbers
from esr.statistics.estimates import Estimate

TOLERANCE = 0.05  # relative, for numbers without an interval
SHOWN = 6  # differences listed per file
UNCOMPARED = {"bench", "judge_speed", "times"}  # timings vary between runs
UNJUDGED = {"unclustered"}  # repeats the rates, with intervals of width zero without events
VERDICTS = ("identical", "within intervals", "different")


def compare(fresh: dict | list, committed: dict | list) -> tuple[str, list[str]]:
    """The verdict on one file and the differences behind it, "key: committed ..., fresh ...".

    identical: all values are equal. within intervals: every estimate's fresh interval overlaps the committed one, as
    two 95 % intervals of one quantity nearly always do, or one estimate is null; every other number is within 5 % of
    the committed one, counts (keys that begin with n_) within 5 % of the largest count beside them; rates under
    `unclustered` are skipped. different: anything else, including a key on one side only. Lists of equal length are
    compared by item. Lists the differences of the worst verdict only.
    """
    found: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for key, verdict, was, now in _differences(fresh, committed, ""):
        found[verdict].append(f"{key}: committed {was}, fresh {now}")
    for verdict in reversed(VERDICTS):
        if found[verdict]:
            return verdict, found[verdict]
    return "identical", []


def _differences(fresh, committed, key: str) -> Iterator[tuple[str, str, str, str]]:
    """Key, verdict, committed and fresh value of every difference."""
    if fresh == committed:
        return
    if isinstance(fresh, list) and isinstance(committed, list) and len(fresh) == len(committed):
        for place, (now, was) in enumerate(zip(fresh, committed, strict=True)):
            yield from _differences(now, was, f"{key}[{place}]")
    elif isinstance(fresh, Estimate) and isinstance(committed, Estimate):
        yield key, _judge_estimates(fresh, committed), _show(committed), _show(fresh)
    elif not (isinstance(fresh, dict) and isinstance(committed, dict)):
        yield key, _judge(fresh, committed), _show(committed), _show(fresh)
    else:
        largest = max(_largest_count(fresh), _largest_count(committed))
        for name in {**committed, **fresh}:
            inner = f"{key}.{name}" if key else name
            if name not in fresh or name not in committed:
                was, now = (_show(side[name]) if name in side else "missing" for side in (committed, fresh))
                yield inner, "different", was, now
            elif name.startswith("n_") and _are_numbers(fresh[name], committed[name]):
                if abs(fresh[name] - committed[name]) > TOLERANCE * largest:
                    yield inner, "different", _show(committed[name]), _show(fresh[name])
                elif fresh[name] != committed[name]:
                    yield inner, "within intervals", _show(committed[name]), _show(fresh[name])
            elif name not in UNJUDGED:
                yield from _differences(fresh[name], committed[name], inner)


def _judge(fresh, committed) -> str:
    close = _are_numbers(fresh, committed) and math.isclose(fresh, committed, rel_tol=TOLERANCE)
    return "within intervals" if close else "different"


def _judge_estimates(fresh: Estimate, committed: Estimate) -> str:
    if not (fresh.is_known and committed.is_known):
        return "within intervals"
    if fresh.bounds is None or committed.bounds is None:
        return _judge(fresh.estimate, committed.estimate)
    overlap = fresh.bounds[0] <= committed.bounds[1] and committed.bounds[0] <= fresh.bounds[1]
    return "within intervals" if overlap else "different"


def _are_numbers(*values) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _largest_count(values: dict) -> float:
    return max((v for name, v in values.items() if name.startswith("n_") and _are_numbers(v)), default=0)


def _show(value) -> str:
    if isinstance(value, Estimate):
        if not value.is_bounded:
            return f"{_show(value.estimate)} (n {value.n})"
        return f"{value.estimate:.4g} [{value.low:.4g}, {value.high:.4g}]"
    if isinstance(value, dict):
        return f"{len(value)} keys"
    if isinstance(value, list):
        return f"{len(value)} values"
    return f"{value:.6g}" if isinstance(value, float) else "null" if value is None else str(value)


def committed_numbers() -> tuple[str, dict[str, Any]]:
    """Short name of the last commit and its paper/numbers files by name, without UNCOMPARED ones.

    Raises RuntimeError without git, a repository or a commit.
    """
    try:
        commit = _git("rev-parse", "--short", "HEAD").strip()
    except FileNotFoundError:
        raise RuntimeError("git is not installed: there is nothing to compare the fresh numbers with.") from None
    except subprocess.CalledProcessError:
        raise RuntimeError(
            f"{paths.ROOT} is not a git repository with a commit: there is nothing to compare the fresh numbers with."
        ) from None
    listed = _git("ls-tree", "--name-only", "HEAD", "paper/numbers/").splitlines()
    files = [name for name in listed if name.endswith(".json") and Path(name).stem not in UNCOMPARED]
    return commit, {name.rsplit("/", 1)[-1]: parse_numbers(_git("show", f"HEAD:./{name}")) for name in files}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(paths.ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout


def report() -> tuple[str, str]:
    """The overall verdict ("nothing to compare" without numbers) and a short text on every file."""
    try:
        commit, committed = committed_numbers()
    except RuntimeError as error:
        return "nothing to compare", str(error)
    files = [path for path in sorted(paths.NUMBERS.glob("*.json")) if path.stem not in UNCOMPARED]
    fresh = {path.name: read_numbers(path.stem) for path in files}
    if not fresh:
        return "nothing to compare", "paper/numbers/ holds no numbers yet: run dvc repro first."
    if not committed:
        return "nothing to compare", f"No numbers are committed at {commit}: nothing to compare the fresh ones with."
    lines, worst = [f"Fresh numbers against the committed ones ({commit}):"], "identical"
    for name in sorted({*fresh, *committed}):
        if name not in committed:
            lines.append(f"  {name:<18} not committed yet")
            continue
        if name not in fresh:
            verdict, differences = "different", ["the file is committed, but was not written"]
        else:
            verdict, differences = compare(fresh[name], committed[name])
        worst = max(worst, verdict, key=VERDICTS.index)
        count = f" ({len(differences)} values moved)" if verdict == "within intervals" else ""
        lines.append(f"  {name:<18} {verdict}{count}")
        if verdict == "different":
            lines += [f"      {difference}" for difference in differences[:SHOWN]]
            lines += [f"      and {len(differences) - SHOWN} more"] if len(differences) > SHOWN else []
    return worst, "\n".join([*lines, f"Overall: {worst}."])
