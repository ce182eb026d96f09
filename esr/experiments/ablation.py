"""Effects of ablations from paired trials of a condition and its baseline.

`one` and `other` are the baseline's and the condition's rows of the same trials (esr.experiments.run.paired). Keys
carry the prefix of their outcome, none for multi-attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from esr.statistics import intervals, metrics
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
from esr.statistics.outcomes import recovered
from esr.statistics.power import minimum_detectable_reduction
from esr.storage.records import Trial

Outcome = Callable[[pd.DataFrame], pd.Series]
OUTCOMES: dict[str, Outcome] = {"": metrics.multi_attempt, "esr_": metrics.esr}
FAMILY = ("detectors", "held_out", "random")  # conditions whose tests are adjusted together


def changed_shares(ablated: Sequence[Trial], steered: Sequence[Trial], **interval) -> dict[str, Estimate]:
    """By condition, the share of responses unlike that of the same latent, prompt and seed in `steered`.

    An ablation that changes no response is no test. Intervals are clustered by latent.
    """
    texts = {(t.latent, t.prompt_id, t.seed): t.text for t in steered}
    frame = pd.DataFrame({"condition": [t.condition for t in ablated], "latent": [t.latent for t in ablated]})
    frame["changed"] = [t.text != texts[t.latent, t.prompt_id, t.seed] for t in ablated]
    return {
        str(name): intervals.rate(rows.changed, rows.latent, **interval)
        for name, rows in frame.groupby("condition", sort=False)
    }


def ablation_effects(one: pd.DataFrame, other: pd.DataFrame, *, confidence: float, n_bootstrap: int, seed: int) -> dict:
    """Effects on multi-attempt and ESR (prefix esr_), and differences of first-attempt scores and recovery rates.

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
    figures["recovery_difference"] = paired_difference(recovered(one), recovered(other), one.latent, **interval)
    figures["score_difference"] = paired_difference(one.first_score, other.first_score, one.latent, **interval)
    return figures


def adjusted(effects: dict[str, dict]) -> dict[str, dict[str, float]]:
    """`{condition: {"p_value_holm": ..., "esr_p_value_holm": ...}}` of the measured conditions of `FAMILY`.

    McNemar's exact p, adjusted by Holm over these conditions, by outcome. effects: `ablation_effects` by condition.
    """
    names = [name for name in FAMILY if name in effects]
    result: dict[str, dict[str, float]] = {name: {} for name in names}
    for prefix in OUTCOMES:
        p_values = holm([effects[name][f"{prefix}p_value"] for name in names])
        for name, p_value in zip(names, p_values, strict=True):
            result[name][f"{prefix}p_value_holm"] = p_value
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
