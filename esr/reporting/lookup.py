"""Where the measured side of a claim stands in paper/numbers/, and what has to be computed to get it.

`files` holds the numbers files by name, as far as they are there. Functions return None where something is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from esr.statistics.estimates import Estimate, difference
from esr.statistics.verdicts import Verdict

RATE = "multi_attempt_rate"
Measure = Callable[[dict, str, str], Estimate | None]  # (files, model, its base) -> what was measured


def find(value: Any, *keys: str) -> Any:
    """What nested dicts hold under `keys`; None where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def entry(files: dict, file: str, model: str, *keys: str):
    """What a numbers file holds of a model under `keys`; None where something is missing."""
    return find(files, file, model, *keys)


def at(file: str, *keys: str) -> Measure:
    """The Estimate under `keys` of the model's entry."""
    return lambda files, model, base: entry(files, file, model, *keys)


def _nearest(rows: list[dict], sd: float) -> dict:
    """The sweep's level nearest to `sd`."""
    return min(rows, key=lambda row: abs(row["boost_sd"] - sd))


def inverted_u(rows: list[dict] | None, sweep: dict) -> Estimate | None:
    """Multi-attempt rate at the level nearest to the published peak, less the higher one of both ends."""
    if not rows:
        return None
    higher = max((rows[0][RATE], rows[-1][RATE]), key=lambda end: end.estimate or 0.0)
    return difference(_nearest(rows, sweep["multi_attempt_peak_sd"])[RATE], higher)


def improvement(rows: list[dict] | None, sweep: dict) -> Estimate | None:
    """Improvement rate at the level nearest to its published peak."""
    return _nearest(rows, sweep["improvement_peak_sd"])["improvement_rate"] if rows else None


def tuned(files: dict, condition: str) -> Estimate | None:
    """Multi-attempt rate of the model trained with the largest share of self-corrections."""
    shares = sorted(files.get("finetune") or {}, key=float)
    return find(files["finetune"], shares[-1], condition, RATE) if shares else None


def fall(activity: dict | None) -> Estimate | None:
    """Detector activity over that of unsteered answers: before the restart, less after it."""
    return difference(*(find(activity, name) for name in ("off_topic_ratio", "after_ratio")))


def strict_detectors(found: dict | None) -> Estimate | None:
    """Latents that meet the paper's rule, as an interval without width: these answers have the detectors they have."""
    count = find(found, "rules", "strict", "qualify")
    return None if count is None else Estimate.of(count, count, count, found["n_pairs"])


def lowest_agreement(compared: Any, name: str) -> Estimate | None:
    """The smallest estimate of `name` wherever in `compared` two judges are compared; a null one where all are null."""
    found = _agreements(compared, name)
    known = [value for value in found if value.is_known]
    return min(known, key=lambda value: value.estimate, default=found[0] if found else None)


def study_agreements(judge: dict | None) -> dict:
    """Agreement of judges on the study's answers. Labelled ones are chosen to be hard: agreement there is lower."""
    return {name: pairs for name, pairs in (find(judge, "agreement") or {}).items() if name != "annotated"}


def _agreements(compared: Any, name: str) -> list[Estimate]:
    if not isinstance(compared, dict):
        return []
    return (
        [compared[name]] if name in compared else [x for value in compared.values() for x in _agreements(value, name)]
    )


def ablation_effect(files: dict, model: str, condition: str, outcome: str = "") -> Estimate | None:
    """Relative reduction by an ablation; outcome "" (multi-attempt) or "esr_"."""
    return entry(files, "ablation", model, condition, f"{outcome}relative_reduction")


def ablation_verdict(files: dict, model: str, condition: str, outcome: str = "") -> Verdict | None:
    """What the stage `ablate` concluded from that reduction and its adjusted test."""
    verdict = entry(files, "ablation", model, f"{outcome}verdict", condition)
    return None if verdict is None else Verdict(**verdict)


def first_window(windows: dict | None) -> Estimate | None:
    """The result nearest to the restart."""
    return next(iter(windows.values())) if windows else None
