"""The README's tables of measured numbers, and the drift of fresh numbers from the committed ones.

python -m esr.reporting.tables compare [--strict]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from esr.reporting.drift import report
from esr.statistics.estimates import Estimate


def results_table(esr: dict) -> str:
    """The README's table of esr.json: one line per model and condition, intervals in brackets."""
    return _rates_table(esr, "model", str)


def outcomes_table(esr: dict) -> str:
    """The README's table of what the ESR rates are compared with, one line per model and condition."""
    head = ["model", "condition", "placebo", "ESR above placebo", "net ESR", "recovery", "silent recovery"]
    names = ["placebo_rate", "esr_above_placebo", "net_esr_rate", "recovery_rate", "silent_recovery_rate"]
    lines = [head, ["---"] * len(head)] + [
        [model, condition, *(cell(entry[name], 100, " %") for name in names)]
        for model, conditions in esr.items() for condition, entry in conditions.items()
    ]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def judge_table(judge: dict) -> str:
    """The README's table of judge.json: the offline judge on responses that did not make it, and the annotators."""
    columns = {"test": "default model", "other_model": "another model", "annotators": "annotators, default model"}
    shares = {
        "multi_attempt_precision": "whether a response restarts: precision",
        "multi_attempt_recall": "recall",
        "restart_precision": "single restarts, within ten characters: precision",
        "restart_recall": "recall",
    }
    scores = {
        "score_spearman": ("first-attempt scores: Spearman correlation", 2),
        "score_error": ("mean absolute difference, points", 1),
        "middle_error": ("annotators minus judge where it gives 20 to 40, points", 1),
    }
    lines = [["", *columns.values()], ["---"] * (1 + len(columns))]
    lines += [[text, *(cell(judge[part][name], 100, " %") for part in columns)] for name, text in shares.items()]
    lines += [
        [text, *(cell(judge[part][name], 1, "", digits) for part in columns)] for name, (text, digits) in scores.items()
    ]
    kappas = [judge[part]["direction_kappa"] for part in columns]
    lines.append(["better after the restart: Cohen's kappa", *("–" if k is None else f"{k:.2f}" for k in kappas)])
    lines.append(["n", *(str(judge[part]["n"]) for part in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def finetuning_table(finetune: dict) -> str:
    """The README's table of finetune.json: one line per share of self-corrections and condition, of the first model."""
    ratios = next(iter(finetune.values()))["ratios"]
    return _rates_table(ratios, "self-corrections", lambda ratio: f"{100 * float(ratio):g} %")


def _rates_table(entries: dict, first: str, name: Callable[[str], str]) -> str:
    head = [first, "condition", "n", "multi-attempt", "improved", "ESR", "first attempt (0-100)"]
    lines = [head, ["---"] * len(head)]
    for key, conditions in entries.items():
        for condition, entry in conditions.items():
            rates = [cell(entry[f"{rate}_rate"], 100, " %") for rate in ("multi_attempt", "improvement", "esr")]
            count = str(entry["first_attempt_score"].n)
            lines.append([name(key), condition, count, *rates, cell(entry["first_attempt_score"], 1, "")])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(rate: Estimate, factor: float, unit: str, digits: int = 1) -> str:
    """An estimate times `factor` with its unit, and its interval in brackets; a dash where it is not measured."""
    if rate.estimate is None:
        return "–"
    ends = [f"{factor * end:.{digits}f}" for end in rate.bounds or ()]
    return f"{factor * rate.estimate:.{digits}f}{unit}" + (f" [{', '.join(ends)}]" if ends else "")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m esr.reporting.tables", description="Compare the measured numbers.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("compare", help="working tree against the last commit")
    command.add_argument("--strict", action="store_true", help="exit with 1 when something is different")
    options = parser.parse_args(arguments)
    try:
        verdict, text = report()
    except ValueError as error:  # an invalid file
        print(error, file=sys.stderr)
        return 1
    print(text)
    return int(options.strict and verdict == "different")


if __name__ == "__main__":
    sys.exit(main())
