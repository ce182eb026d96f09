"""Effects of ablations from paired trials of a condition and its baseline, and verdicts on the published claims.

`one` and `other` are the baseline's and the condition's rows of the same trials (esr.experiments.run.paired). Keys
carry the prefix of their outcome, none for multi-attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from esr.statistics import metrics, verdicts
from esr.statistics.effects import (
    gee_difference,
    holm,
    mcnemar_exact,
    paired_difference,
    relative_reduction,
    unclustered_difference,
)
from esr.statistics.estimates import Estimate
from esr.statistics.intervals import clustered, effective_size
from esr.statistics.power import minimum_detectable_reduction
from esr.statistics.verdicts import Verdict

Outcome = Callable[[pd.DataFrame], pd.Series]
OUTCOMES: dict[str, Outcome] = {"": metrics.multi_attempt, "esr_": metrics.esr}
PUBLISHED = {"": "multi_attempt_reduction", "esr_": "esr_reduction"}  # in published.json: detector_ablation
EFFECTS = ("detectors", "held_out")  # conditions published to reduce
CONTROLS = ("random",)  # conditions published not to


def ablation_effects(one: pd.DataFrame, other: pd.DataFrame, *, confidence: float, n_bootstrap: int, seed: int) -> dict:
    """Effects on multi-attempt and ESR (prefix esr_), and the difference of first-attempt scores.

    By outcome: difference and relative reduction with intervals, exact McNemar p, a clustered logistic model, the
    authors' unclustered difference.
    """
    interval: dict = {"confidence": confidence, "n_bootstrap": n_bootstrap, "seed": seed}
    figures: dict = {"n_pairs": len(one)}
    for prefix, outcome in OUTCOMES.items():
        events = outcome(one).to_numpy(bool), outcome(other).to_numpy(bool)
        figures |= {
            f"{prefix}difference": paired_difference(*events, one.latent, **interval),
            f"{prefix}relative_reduction": relative_reduction(*events, one.latent, **interval),
            f"{prefix}p_value": mcnemar_exact(*events).p_value,
            f"{prefix}gee": gee_difference(*events, one.latent, confidence=confidence),
            f"{prefix}unclustered_difference": unclustered_difference(*events, confidence=confidence),
        }
    figures["score_difference"] = paired_difference(one.first_score, other.first_score, one.latent, **interval)
    return figures


def decide(effects: dict[str, dict], detector_ablation: dict, confidence: float) -> dict[str, dict[str, Verdict]]:
    """`{"verdict": {condition: Verdict}, "esr_verdict": ...}` for the measured conditions of `EFFECTS` and `CONTROLS`.

    No other function judges ablations. An effect's relative reduction is judged against the published one
    (`detector_ablation` of data/published.json); it is reproduced only if McNemar's exact p, Holm-adjusted over the
    outcome's conditions, is below 1 - confidence. A control's reduction must stay within half of the published one.
    """
    names = [name for name in (*EFFECTS, *CONTROLS) if name in effects]
    result = {}
    for prefix in OUTCOMES:
        published = detector_ablation[PUBLISHED[prefix]]
        adjusted = holm([effects[name][f"{prefix}p_value"] for name in names])
        result[f"{prefix}verdict"] = {
            name: _verdict(name, effects[name][f"{prefix}relative_reduction"], published, p, confidence)
            for name, p in zip(names, adjusted, strict=True)
        }
    return result


def detectable(one: pd.DataFrame, other: pd.DataFrame, *, confidence: float, n_bootstrap: int, seed: int) -> dict:
    """`{"minimum_detectable_reduction": ..., "esr_...": ...}` of this number of pairs, discordance and clustering.

    Relative reductions at 80 % power; None without events, or where no reduction is detectable.
    """
    result = {}
    for prefix, outcome in OUTCOMES.items():
        a, b = outcome(one).to_numpy(bool), outcome(other).to_numpy(bool)
        differences, codes, count = clustered(b.astype(float) - a, one.latent)
        known = 0 < a.mean() < 1 and count > 1 and np.ptp(differences) > 0
        result[f"{prefix}minimum_detectable_reduction"] = (
            minimum_detectable_reduction(
                len(a),
                float(a.mean()),
                float((a != b).mean()),
                len(a) / effective_size(differences, codes, count, n_bootstrap, seed),
                confidence=confidence,
            )
            if known
            else None
        )
    return result


def _verdict(condition: str, reduction: Estimate, published: float, p_value: float, confidence: float) -> Verdict:
    """Verdict on one condition with its adjusted p."""
    if condition in CONTROLS:
        return replace(verdicts.absence(reduction, published / 2), p_value_holm=p_value)
    return verdicts.tested(reduction, published, p_value, confidence)
