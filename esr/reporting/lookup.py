"""Measured values of claims, looked up in paper/numbers/ or computed from it.

`files`: existing numbers files by name. Functions return None where something is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from esr.statistics.estimates import Estimate, difference
from esr.statistics.verdicts import Verdict

RATE = "multi_attempt_rate"
Measure = Callable[[dict, str, str], Estimate | None]  # (files, model, base model) -> measured value


def find(value: Any, *keys: str) -> Any:
    """Value of nested dicts under `keys`; None where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def entry(files: dict, file: str, model: str, *keys: str):
    """Value of a model's entry in a numbers file under `keys`."""
    return find(files, file, model, *keys)


def at(file: str, *keys: str) -> Measure:
    """A Measure that finds the Estimate under `keys` of the model's entry."""
    return lambda files, model, base: entry(files, file, model, *keys)


def _nearest(rows: list[dict], sd: float) -> dict:
    """The sweep's row with the boost nearest to `sd`."""
    return min(rows, key=lambda row: abs(row["boost_sd"] - sd))


def inverted_u(rows: list[dict] | None, sweep: dict) -> Estimate | None:
    """Multi-attempt rate at the boost nearest to the published peak, minus the larger rate of both ends."""
    if not rows:
        return None
    higher = max((rows[0][RATE], rows[-1][RATE]), key=lambda end: end.estimate or 0.0)
    return difference(_nearest(rows, sweep["multi_attempt_peak_sd"])[RATE], higher)


def improvement(rows: list[dict] | None, sweep: dict) -> Estimate | None:
    """Improvement rate at the boost nearest to its published peak."""
    return _nearest(rows, sweep["improvement_peak_sd"])["improvement_rate"] if rows else None


def finetuned_rate(files: dict, base: str, condition: str) -> Estimate | None:
    """Multi-attempt rate of the base model trained on the largest share of self-corrections."""
    ratios = sorted(find(files, "finetune", base) or {}, key=float)
    return entry(files, "finetune", base, ratios[-1], condition, RATE) if ratios else None


def finetuned_label(files: dict, base: str) -> str:
    """The model of `finetuned_rate`: another one than the fine-tuned model that the study follows."""
    ratios = sorted(find(files, "finetune", base) or {}, key=float)
    return f"{base}, {100 * float(ratios[-1]):g} % self-corrections" if ratios else base


def finetuning_effect(files: dict, model: str, base: str) -> Estimate | None:
    """Steered multi-attempt rate of the model with most self-corrections minus its base's."""
    return difference(finetuned_rate(files, base, "steered"), entry(files, "esr", base, "steered", RATE))


def steering_effect(files: dict, model: str, base: str) -> Estimate | None:
    """Steered minus unsteered multi-attempt rate of the model with most self-corrections."""
    return difference(*(finetuned_rate(files, base, condition) for condition in ("steered", "unsteered")))


def activity_decrease(activity: dict | None) -> Estimate | None:
    """Detector activity relative to unsteered responses: before the restart minus after it."""
    return difference(*(find(activity, name) for name in ("off_topic_ratio", "after_ratio")))


def strict_detectors(found: dict | None) -> Estimate | None:
    """Number of latents that meet the paper's rule, with an interval of width zero."""
    count = find(found, "rules", "strict", "qualify")
    return None if found is None or count is None else Estimate.of(count, count, count, found["n_pairs"])


def min_agreement(name: str) -> Measure:
    """A Measure of the smallest estimate of `name` over all pairs of judges; a null one where all are null.

    Excludes annotated responses, which are chosen to be hard.
    """

    def measure(files: dict, model: str, base: str) -> Estimate | None:
        compared = find(files.get("judge"), "agreement") or {}
        found = _agreements({key: pairs for key, pairs in compared.items() if key != "annotated"}, name)
        known = [value for value in found if value.is_known]
        return min(known, key=lambda value: value.estimate, default=found[0] if found else None)

    return measure


def _agreements(compared: Any, name: str) -> list[Estimate]:
    if not isinstance(compared, dict):
        return []
    return (
        [compared[name]] if name in compared else [x for value in compared.values() for x in _agreements(value, name)]
    )


def ablation_effect(files: dict, model: str, condition: str, outcome: str = "") -> Estimate | None:
    """Relative reduction by an ablation; outcome "" (multi-attempt) or "esr_"."""
    return entry(files, "ablate", model, condition, f"{outcome}relative_reduction")


def ablation_verdict(files: dict, model: str, condition: str, outcome: str = "") -> Verdict | None:
    """Verdict of the stage `ablate` on that reduction and its adjusted test."""
    verdict = entry(files, "ablate", model, f"{outcome}verdict", condition)
    return None if verdict is None else Verdict(**verdict)


def detectors_over_random(files: dict, model: str, base: str) -> Estimate | None:
    """Relative reduction by ablating detectors minus that by ablating random latents."""
    return difference(*(ablation_effect(files, model, condition) for condition in ("detectors", "random")))


def sustained_difference(files: dict, model: str, base: str) -> Estimate | None:
    """Score after a restart minus that after an on-topic prefill, in the first window."""
    windows = entry(files, "controls", model, "sustained", "matched_difference")
    return next(iter(windows.values())) if windows else None
