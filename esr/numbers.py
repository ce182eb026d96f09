"""The way of every measured figure into the paper: paper/numbers/NAME.json, kept in git and comparable byte by byte.

    python -m esr.numbers compare [--strict]

compares the files of the working tree with the committed ones, and so tells a reader what was reproduced.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from esr import paths
from esr.records import write_text

DIGITS = 6  # significant
TOLERANCE = 0.05  # relative, for figures without an interval
SHOWN = 6  # differences named per file
UNCOMPARED = {"bench", "judge_speed"}  # timings: they never repeat
UNJUDGED = {"unclustered"}  # the same trials once more, with an interval of width zero when nothing happens
VERDICTS = ("identical", "within intervals", "different")


def write_numbers(name: str, numbers: dict | list, section: str | None = None) -> None:
    """Write `numbers` as paper/numbers/NAME.json, floats rounded to 6 significant digits, whole or not at all.

    With `section` (a model, say) only that part of the file is replaced, the others stay; sections are in order of
    name. Processes that write sections of one file at the same time wait for each other.
    Raises ValueError naming the key of a value that is not finite: a missing number is written as None.
    """
    numbers = _rounded(numbers, name if section is None else f"{name}.{section}")
    with _locked():
        if section is not None:
            path = paths.NUMBERS / f"{name}.json"
            sections = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            numbers = dict(sorted((sections | {section: numbers}).items()))
        text = json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_text(paths.NUMBERS / f"{name}.json", text)


def read_numbers(name: str) -> dict | list:
    """Content of paper/numbers/NAME.json. Raises FileNotFoundError or ValueError with what to do."""
    path = paths.NUMBERS / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run the stage that writes it (dvc repro), or check the name.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): run dvc repro to write it again.") from None


@contextmanager
def _locked() -> Iterator[None]:
    """One writer at a time; the lock is on the folder itself, so it leaves no file behind."""
    paths.NUMBERS.mkdir(parents=True, exist_ok=True)
    folder = os.open(paths.NUMBERS, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)  # releases the lock


def _rounded(value, key: str):
    """Plain Python values, floats rounded; numpy's scalars and arrays are taken as what they hold."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(name): _rounded(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item, f"{key}.{place}") for place, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{key} is {value}: a number must be finite; write None for one that is missing.")
        return float(f"{value:.{DIGITS}g}")
    if value is None or isinstance(value, (str, int)):
        return value
    raise ValueError(f"{key} is a {type(value).__name__}: numbers are dicts, lists, numbers, text, true, false, None.")


# Comparing fresh numbers with the committed ones


def compare(fresh: dict | list, committed: dict | list) -> tuple[str, list[str]]:
    """The verdict on one file and the differences that led to it, "key: committed ..., fresh ...".

    identical: every value is the same. within intervals: every estimate's fresh interval overlaps the committed one
    (two honest 95 % intervals of the same quantity nearly always do; an estimate that is null for want of trials is
    not held against the other), and every other number is within 5 % of the committed one, counts (keys that begin
    with n_) within 5 % of the largest count beside them; rates under `unclustered` are not judged. different: anything
    else, a key that only one side has included. Lists of one length are compared item by item. Differences are named
    for the worst verdict only.
    """
    found: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for key, verdict, was, now in _differences(fresh, committed, ""):
        found[verdict].append(f"{key}: committed {was}, fresh {now}")
    for verdict in reversed(VERDICTS):
        if found[verdict]:
            return verdict, found[verdict]
    return "identical", []


def _differences(fresh, committed, key: str) -> Iterator[tuple[str, str, str, str]]:
    """Key, verdict, committed and fresh value of everything that is not the same."""
    if fresh == committed:
        return
    if isinstance(fresh, list) and isinstance(committed, list) and len(fresh) == len(committed):
        for place, (now, was) in enumerate(zip(fresh, committed, strict=True)):
            yield from _differences(now, was, f"{key}[{place}]")
    elif not (isinstance(fresh, dict) and isinstance(committed, dict)):
        yield key, _judge(fresh, committed), _show(committed), _show(fresh)
    elif _is_estimate(fresh) and _is_estimate(committed):
        yield key, _judge_estimates(fresh, committed), _show(committed), _show(fresh)
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


def _judge_estimates(fresh: dict, committed: dict) -> str:
    if None in (fresh["estimate"], committed["estimate"]):
        return "within intervals"
    if None in (fresh["low"], fresh["high"], committed["low"], committed["high"]):
        return _judge(fresh["estimate"], committed["estimate"])
    overlap = fresh["low"] <= committed["high"] and committed["low"] <= fresh["high"]
    return "within intervals" if overlap else "different"


def _is_estimate(value: dict) -> bool:
    return {"estimate", "low", "high"} <= set(value)


def _are_numbers(*values) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _largest_count(values: dict) -> float:
    return max((v for name, v in values.items() if name.startswith("n_") and _are_numbers(v)), default=0)


def _show(value) -> str:
    if isinstance(value, dict) and _is_estimate(value):
        if value["low"] is None:
            return f"{_show(value['estimate'])} (n {value.get('n')})"
        return f"{value['estimate']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"
    if isinstance(value, dict):
        return f"{len(value)} keys"
    if isinstance(value, list):
        return f"{len(value)} values"
    return f"{value:.6g}" if isinstance(value, float) else "null" if value is None else str(value)


def committed_numbers() -> tuple[str, dict[str, dict]]:
    """Short name of the last commit and its paper/numbers files by name, UNCOMPARED ones left out.

    Raises RuntimeError with one clear sentence when there is no git, no repository or no commit.
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
    return commit, {name.rsplit("/", 1)[-1]: json.loads(_git("show", f"HEAD:./{name}")) for name in files}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(paths.ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout


def report() -> tuple[str, str]:
    """The overall verdict ("nothing to compare" when there is none) and a text of few lines on every file."""
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


def results_table(esr: dict) -> str:
    """The README's table of esr.json: one line a model and condition, intervals in brackets."""
    return _rates_table(esr, "model", str)


def finetuning_table(finetune: dict) -> str:
    """The README's table of finetune.json: one line a share of self-corrections and condition."""
    return _rates_table(finetune, "self-corrections", lambda ratio: f"{100 * float(ratio):g} %")


def _rates_table(entries: dict, first: str, name: Callable[[str], str]) -> str:
    head = [first, "condition", "n", "multi-attempt", "improved", "ESR", "first attempt (0-100)"]
    lines = [head, ["---"] * len(head)]
    for key, conditions in entries.items():
        for condition, entry in conditions.items():
            rates = [_cell(entry[f"{rate}_rate"], 100, " %") for rate in ("multi_attempt", "improvement", "esr")]
            count = str(entry["first_attempt_score"]["n"])
            lines.append([name(key), condition, count, *rates, _cell(entry["first_attempt_score"], 1, "")])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(result: dict, factor: float, unit: str) -> str:
    if result["estimate"] is None:
        return "–"
    low, high = (f"{factor * result[end]:.1f}" for end in ("low", "high"))
    return f"{factor * result['estimate']:.1f}{unit} [{low}, {high}]"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m esr.numbers", description="Compare and show the measured numbers.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("compare", help="working tree against the last commit")
    command.add_argument("--strict", action="store_true", help="exit with 1 when something is different")
    commands.add_parser("table", help="rates and fine-tuning as the README shows them")
    options = parser.parse_args(arguments)
    if options.command == "table":
        print(results_table(read_numbers("esr")), finetuning_table(read_numbers("finetune")), sep="\n\n")
        return 0
    try:
        verdict, text = report()
    except ValueError as error:  # a broken file
        print(error, file=sys.stderr)
        return 1
    print(text)
    return int(options.strict and verdict == "different")


if __name__ == "__main__":
    sys.exit(main())
