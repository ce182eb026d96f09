"""Sample sizes, power and costs of paired experiments on events (restarts, ESR).

Formulas for the designs of esr.statistics.simulation: milliseconds instead of seconds. Tests compare the two. Events
are rare; scores need far fewer trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.optimize import brentq
from scipy.stats import beta, binom, chi2, norm, t
from statsmodels.stats.proportion import power_proportions_2indep

from esr.statistics.simulation import CONFIDENCE, Design, design_effect, discordance, rejected_up_to

POWER = 0.8
OUTCOMES = ("multi_attempt", "esr")
POINTS = 50  # of each distribution that the formulas average over
MIN_ERROR = 1e-9  # stands for a standard error of 0 in divisions
MAX_ICC = 0.99  # at 1, all trials of a latent would count as one


def mcnemar_power(design: Design, confidence: float = CONFIDENCE) -> float:
    """Power of the exact McNemar test: binomial given the number of discordant pairs, averaged over that number.

    The test treats pairs as independent. Where they are not (`shared` below 1) it rejects too often, also without any
    reduction; the formula reproduces this by spreading the share of pairs that favour the baseline.
    """
    pairs, effect = discordance(design), design_effect(design)
    if not pairs.total:
        return 0.0
    counts, chance = _discordant_counts(design), pairs.only_baseline / pairs.total
    correlation = (effect - 1) / max(effect, design.trials * pairs.total - 1)
    chances = np.array([chance])
    if 0 < correlation < 1 and 0 < chance < 1:
        odds = (1 - correlation) / correlation
        chances = beta.ppf(_midpoints(POINTS), chance * odds, (1 - chance) * odds)
    rejected = rejected_up_to(counts, confidence)[:, None]
    either = binom.cdf(rejected, counts[:, None], chances) + binom.cdf(rejected, counts[:, None], 1 - chances)
    return float(either.mean())


def cluster_power(design: Design, confidence: float = CONFIDENCE) -> float:
    """Probability that the interval of esr.statistics.effects.paired_difference excludes 0.

    Normal given the number of discordant pairs, averaged over that number and over the estimated design effect, which
    scatters around the true one like chi square / (latents - 1), bounded below as in
    esr.statistics.intervals.effective_size. Within 3 points of simulations at base rates of 4 % or more with 30
    discordant pairs or more. With fewer pairs it is some points too high, at a base rate of 1 % up to 7 too low:
    simulate there.
    """
    pairs, freedom = discordance(design), design.latents - 1
    if not pairs.total:
        return 0.0
    counts = _discordant_counts(design)[:, None].astype(float)
    chance, effect = pairs.only_baseline / pairs.total, design_effect(design)
    estimated = effect * chi2.ppf(_midpoints(POINTS), freedom) / freedom
    smallest = 1 + (design.prompts - 1) / np.maximum(counts, 1) ** 2
    needed = t.isf((1 - confidence) / 2, freedom) * np.sqrt(counts * np.maximum(estimated, smallest))
    difference = counts * (2 * chance - 1)
    error = np.maximum(np.sqrt(4 * counts * chance * (1 - chance) * effect), MIN_ERROR)
    found = norm.sf((needed - difference) / error) + norm.sf((needed + difference) / error)
    return float(np.where(counts > 0, found, 0.0).mean())


def sample_needed(
    base_rate: float,
    reduction: float,
    icc: float,
    power: float = POWER,
    *,
    prompts: int,
    pairing: float = 0.0,
    shared: float = 1.0,
    confidence: float = CONFIDENCE,
    max_latents: int = 10**6,
) -> int | None:
    """Trials per condition that detect the reduction with this power, in whole latents of `prompts` trials each.

    By `cluster_power`; None where `max_latents` latents are too few. Both conditions take twice as many.
    """

    def enough(count: int) -> bool:
        return cluster_power(first.model_copy(update={"latents": count}), confidence) >= power

    first = Design(
        latents=2, prompts=prompts, base_rate=base_rate, reduction=reduction, icc=icc, pairing=pairing, shared=shared
    )
    latents = 2
    while not enough(latents):
        if latents >= max_latents:
            return None
        latents *= 2
    too_few = latents // 2  # or 1, below the minimum of 2
    while latents - too_few > 1:
        middle = (too_few + latents) // 2
        too_few, latents = (too_few, middle) if enough(middle) else (middle, latents)
    return latents * prompts


def minimum_detectable_reduction(
    n: int,
    base_rate: float,
    discordant: float,
    effect: float = 1.0,
    *,
    power: float = POWER,
    confidence: float = CONFIDENCE,
) -> float | None:
    """Smallest relative reduction that n pairs detect with this power, by Connor's (1987) formula for McNemar's test.

    discordant: measured share of pairs whose conditions differ; a larger reduction raises it. effect: design effect,
    which divides n. None where not even a reduction to 0 is detected.
    """
    if not (n > 0 and 0 < base_rate < 1 and 0 <= discordant <= 1 and effect > 0):
        raise ValueError(
            f"n {n}, base rate {base_rate}, discordant {discordant}, design effect {effect}: "
            "the first and the last must be positive, the others shares."
        )

    def excess(reduction: float) -> float:
        difference = reduction * base_rate
        total = max(discordant, difference)
        found = difference * math.sqrt(n / effect)
        return (
            found
            - norm.isf((1 - confidence) / 2) * math.sqrt(total)
            - norm.ppf(power) * math.sqrt(total - difference**2)
        )

    return float(brentq(excess, 0.0, 1.0)) if excess(1.0) >= 0 > excess(0.0) else None


def budget(trials: int, tokens_per_trial: float, tokens_per_second: float, judge_usd_per_trial: float = 0.0) -> dict:
    """Cost of `trials` responses: `{"trials", "tokens", "hours", "usd"}`, hours of generation, dollars of judging.

    Trials of both conditions count: twice `sample_needed`.
    """
    if trials < 0 or tokens_per_trial <= 0 or tokens_per_second <= 0 or judge_usd_per_trial < 0:
        raise ValueError(
            f"{trials} trials of {tokens_per_trial} tokens at {tokens_per_second} a second and "
            f"{judge_usd_per_trial} dollars: trials and dollars are 0 or more, tokens and their speed above 0."
        )
    tokens = trials * tokens_per_trial
    return {
        "trials": trials,
        "tokens": tokens,
        "hours": tokens / tokens_per_second / 3600,
        "usd": trials * judge_usd_per_trial,
    }


def published_table(published: dict, *, icc: float, pairing: float = 0.0, shared: float = 1.0) -> pd.DataFrame:
    """Sample sizes for the published effects on each published model: one row per model, outcome and experiment.

    published: data/published.json. Detector ablation and the self-monitoring prompt are published for one model; the
    table applies their relative change to each model's rate (its upper limit where only that is published).
    trials_needed: per condition, paired. power: of the paired test; unpaired_power: of the authors' test (independent
    trials); both at the published n. detectable: smallest reduction the paired test detects there (null: none, or the
    change is an increase).
    """
    prompts = published["protocol"]["prompts"]
    assumed: dict = {"icc": icc, "pairing": pairing, "shared": shared}
    changes, rows = _changes(published), []
    for model, entry in published["models"].items():
        for (experiment, outcome), reduction in changes.items():
            rate = entry.get(f"{outcome}_rate", entry.get(f"{outcome}_rate_max"))
            latents = round(entry["n"] / prompts)
            design = Design(latents=latents, prompts=prompts, base_rate=rate, reduction=reduction, **assumed)
            unpaired = power_proportions_2indep(
                design.rate - rate, rate, entry["n"], alpha=1 - CONFIDENCE, return_results=False
            )
            rows.append(
                {
                    "model": model,
                    "experiment": experiment,
                    "outcome": outcome,
                    "base_rate": rate,
                    "reduction": reduction,
                    "n_published": entry["n"],
                    "trials_needed": sample_needed(rate, reduction, prompts=prompts, **assumed),
                    "power": cluster_power(design),
                    "unpaired_power": float(unpaired),
                    "detectable": _detectable(design) if reduction > 0 else None,
                }
            )
    return pd.DataFrame(rows)


def measured_table(
    esr: dict, sizes: dict, icc: dict, published: dict, *, assumed_icc: float, power: float = POWER
) -> pd.DataFrame:
    """Sample sizes for the published effects on the models measured here: one row per model, experiment and outcome.

    esr: paper/numbers/esr.json from `read_numbers`. sizes: `{model: {experiment: trials per condition}}`, as run. icc:
    `{model: {outcome: measured intra-class correlation}}`; `assumed_icc` replaces None. The upper end of its interval
    replaces a base rate of 0, with `rate_measured` false. Columns as in `published_table`, with `n` the present size;
    an experiment without a published effect (the boost sweep) has `detectable` alone. None: impossible at any size,
    e.g. four times a rate of 30 %.
    """
    changes, rows = _changes(published), []
    for model, experiments in sizes.items():
        entry = esr[model]["steered"]
        latents = max(2, entry["n_latents"])
        for experiment, n in experiments.items():
            for outcome in OUTCOMES:
                known = entry[f"{outcome}_rate"]
                rate = known.estimate or known.high
                if rate is None or not 0 < rate < 1:
                    continue
                correlation, change = icc[model][outcome], changes.get((experiment, outcome))
                fields = {"latents": latents, "prompts": max(1, round(n / latents)), "base_rate": rate}
                fields["icc"] = assumed_icc if correlation is None else min(correlation, MAX_ICC)
                rows.append(
                    {"model": model, "experiment": experiment, "outcome": outcome, "base_rate": rate}
                    | {"rate_measured": bool(known.estimate), "icc": fields["icc"], "reduction": change, "n": n}
                    | _requirement(fields, change, power)
                )
    return pd.DataFrame(rows)


def _requirement(fields: dict, reduction: float | None, power: float) -> dict:
    """`trials_needed`, `power` and `detectable` of the design `fields`; null where undefined."""
    detectable = _detectable(Design(**fields, reduction=0.0), power) if (reduction or 1.0) > 0 else None
    if reduction is None or fields["base_rate"] * (1 - reduction) >= 1:
        return {"trials_needed": None, "power": None, "detectable": detectable}
    needed = sample_needed(fields["base_rate"], reduction, fields["icc"], power, prompts=fields["prompts"])
    return {
        "trials_needed": needed,
        "power": cluster_power(Design(**fields, reduction=reduction)),
        "detectable": detectable,
    }


def power_curve(
    base_rate: float, reduction: float, icc: float, *, prompts: int, trials: Sequence[int]
) -> Float[np.ndarray, " sizes"]:
    """`cluster_power` at each number of trials per condition, in whole latents (two or more)."""
    latents = [max(2, round(n / prompts)) for n in trials]
    designs = [Design(latents=x, prompts=prompts, base_rate=base_rate, reduction=reduction, icc=icc) for x in latents]
    return np.array([cluster_power(design) for design in designs])


def nested(table: pd.DataFrame) -> dict:
    """A table of this module as `{model: {experiment: {outcome: other columns}}}`, missing values null."""
    result: dict = {}
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        model, experiment, outcome = (row.pop(name) for name in ("model", "experiment", "outcome"))
        result.setdefault(model, {}).setdefault(experiment, {})[outcome] = row
    return result


def _changes(published: dict) -> dict[tuple[str, str], float]:
    """Published relative reductions by experiment and outcome; an increase is negative."""
    return {("detector_ablation", name): published["detector_ablation"][f"{name}_reduction"] for name in OUTCOMES} | {
        ("meta_prompt", name): 1 - published["meta_prompt"][f"{name}_ratio"] for name in OUTCOMES
    }


def _detectable(design: Design, power: float = POWER) -> float | None:
    size = design.trials, design.base_rate, discordance(design).total, design_effect(design)
    return minimum_detectable_reduction(*size, power=power)


def _midpoints(points: int) -> Float[np.ndarray, " points"]:
    """Midpoints of equal shares of probability; the quantiles there represent a distribution."""
    return (np.arange(points) + 0.5) / points


def _discordant_counts(design: Design) -> Int[np.ndarray, " points"]:
    """Equally likely numbers of discordant pairs: binomial, with the spread times the root of the design effect."""
    expected = design.trials * discordance(design).total
    counts = binom.ppf(_midpoints(POINTS), design.trials, min(1.0, discordance(design).total))
    spread = expected + (counts - expected) * math.sqrt(design_effect(design))
    return np.clip(np.rint(spread), 0, design.trials).astype(int)
