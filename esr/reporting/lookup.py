"""Where the measured side of a claim stands in paper/numbers/, and what has to be computed to get it.

`files` holds the numbers files by name, as far as they are there. Everything returns an interval, `{"estimate", "low",
"high", "n"}`, or None where something is missing.
"""

from __future__ import annotations

from collections.abc import Callable

RATE = "multi_attempt_rate"
Measure = Callable[[dict, str, str], dict | None]  # (files, model, its base) -> interval


def find(value, *keys: str) -> dict | None:
    """What nested dicts hold under `keys`; None where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def entry(files: dict, file: str, model: str, *keys: str):
    """What a numbers file holds of a model under `keys`; None where something is missing."""
    return find(files, file, model, *keys)


def at(file: str, *keys: str) -> Measure:
    """The interval under `keys` of the model's entry."""
    return lambda files, model, base: entry(files, file, model, *keys)


def gap(one: dict | None, other: dict | None) -> dict | None:
    """`one` less `other`, as uncertain as both intervals together: wider than a test of the difference would be.

    For quantities that no stage compared trial by trial. Its `n` is the smaller one.
    """
    if one is None or other is None:
        return None
    ends = {"estimate": ("estimate", "estimate"), "low": ("low", "high"), "high": ("high", "low")}
    values = {name: (one[own], other[theirs]) for name, (own, theirs) in ends.items()}
    difference = {name: None if None in pair else pair[0] - pair[1] for name, pair in values.items()}
    return difference | {"n": min(one["n"], other["n"])}


def _level(rows: list[dict], sd: float) -> dict:
    """The sweep's level nearest to `sd`."""
    return min(rows, key=lambda row: abs(row["boost_sd"] - sd))


def inverted_u(rows: list[dict] | None, sweep: dict) -> dict | None:
    """Multi-attempt rate at the level nearest to the published peak, less the higher one of both ends."""
    if not rows:
        return None
    higher = max((rows[0][RATE], rows[-1][RATE]), key=lambda end: end["estimate"] or 0.0)
    return gap(_level(rows, sweep["multi_attempt_peak_sd"])[RATE], higher)


def improvement(rows: list[dict] | None, sweep: dict) -> dict | None:
    """Improvement rate at the level nearest to its published peak."""
    return _level(rows, sweep["improvement_peak_sd"])["improvement_rate"] if rows else None


def tuned(files: dict, condition: str) -> dict | None:
    """Multi-attempt rate of the model trained with the largest share of self-corrections."""
    shares = sorted(files.get("finetune") or {}, key=float)
    return find(files["finetune"], shares[-1], condition, RATE) if shares else None


def fall(activity: dict | None) -> dict | None:
    """Detector activity over that of unsteered answers: before the restart, less after it."""
    return gap(*(find(activity, name) for name in ("off_topic_ratio", "after_ratio")))


def strict_detectors(found: dict | None) -> dict | None:
    """Latents that meet the paper's rule, as an interval without width: these answers have the detectors they have."""
    count = find(found, "rules", "strict", "qualify")
    return None if count is None else {"estimate": count, "low": count, "high": count, "n": found["n_pairs"]}


def least_agreement(compared, name: str) -> dict | None:
    """The smallest estimate of `name` wherever in `compared` two judges are compared; a null one where all are null."""
    found = _agreements(compared, name)
    known = [value for value in found if value["estimate"] is not None]
    return min(known, key=lambda value: value["estimate"], default=found[0] if found else None)


def study_agreements(judge: dict | None) -> dict:
    """Agreement of judges on the study's answers. Labelled ones are chosen to be hard: agreement there is lower."""
    return {name: pairs for name, pairs in (find(judge, "agreement") or {}).items() if name != "labelled"}


def _agreements(compared, name: str) -> list[dict]:
    if not isinstance(compared, dict):
        return []
    return (
        [compared[name]] if name in compared else [x for value in compared.values() for x in _agreements(value, name)]
    )


def ablation_effect(files: dict, model: str, condition: str, outcome: str = "") -> dict | None:
    """Relative reduction by an ablation with the adjusted p that notebook 13 judged it by; outcome "" or "esr_"."""
    reduction = entry(files, "ablation", model, condition, f"{outcome}relative_reduction")
    p_value = find(files.get("ablation", {}), model, f"{outcome}verdict", condition, "p_value_holm")
    return None if reduction is None else reduction | {"p_value_holm": p_value}


def first_window(windows: dict | None) -> dict | None:
    """The result nearest to the restart."""
    return next(iter(windows.values())) if windows else None
