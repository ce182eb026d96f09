"""Simulation of paired experiments: latents x prompts under a baseline and a condition, with rare, clustered events.

Estimates the power and the false positive rate of the tests in esr.statistics.effects.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.stats import binom, t

CONFIDENCE = 0.95  # 1 - size of the two-sided tests
N_SIMULATIONS = 2000
SEED = 0


class Design(BaseModel):
    """A paired experiment and its assumptions. Invalid values raise ValidationError with the field and the range."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latents: int = Field(ge=2)
    prompts: int = Field(ge=1)  # trials per latent and condition: prompts, or prompts x seeds
    base_rate: float = Field(gt=0, lt=1)  # of events under the baseline
    reduction: float = Field(le=1)  # 1 - rate under the condition / base_rate; below 0 an increase
    icc: float = Field(ge=0, lt=1)  # intra-class correlation of the baseline's events within a latent
    pairing: float = Field(default=0.0, ge=0, le=1)  # share of trials that differ by the condition's effect alone
    shared: float = Field(default=1.0, ge=0, le=1)  # share of latents whose rate the condition changes by the reduction

    @model_validator(mode="after")
    def _possible(self):
        if self.rate >= 1:
            raise ValueError(f"a reduction of {self.reduction} makes a rate of {self.base_rate} one of {self.rate}")
        return self

    @property
    def rate(self) -> float:
        """Rate of events under the condition."""
        return self.base_rate * (1 - self.reduction)

    @property
    def trials(self) -> int:
        """Trials per condition."""
        return self.latents * self.prompts


class Discordance(BaseModel):
    """Expected discordant pairs of a design."""

    model_config = ConfigDict(frozen=True)

    only_baseline: float  # share of pairs with an event under the baseline only
    only_condition: float
    icc: float  # intra-class correlation of the pairs' differences

    @property
    def total(self) -> float:
        return self.only_baseline + self.only_condition

    @property
    def variance(self) -> float:
        """Variance of one pair's difference."""
        return self.total - (self.only_baseline - self.only_condition) ** 2


def simulate(
    design: Design, n_simulations: int = N_SIMULATIONS, seed: int = SEED
) -> Int[np.ndarray, "simulations latents 4"]:
    """Pairs of each latent with an event under both conditions, the baseline only, the condition only, and neither.

    A latent's baseline rate follows the beta distribution of mean base_rate and correlation icc. Its rate under the
    condition is the baseline rate, reduced; for a share 1 - `shared` of latents it is a new draw, reduced. A share
    `pairing` of trials keeps or loses the baseline's event by the reduction alone; the others draw both outcomes
    independently at the latent's rates. An increase is a reduction with the conditions swapped.
    """
    if design.reduction < 0:
        return simulate(_swapped(design), n_simulations, seed)[..., [0, 2, 1, 3]]
    rng, shape = np.random.default_rng(seed), (n_simulations, design.latents)
    baseline = _rates(rng, design, shape)
    unreduced = np.where(rng.random(shape) < design.shared, baseline, _rates(rng, design, shape))
    kept = 1 - design.reduction
    both = kept * baseline * (design.pairing + (1 - design.pairing) * unreduced)
    condition = kept * (design.pairing * baseline + (1 - design.pairing) * unreduced)
    shares = np.stack([both, baseline - both, condition - both, 1 - baseline - condition + both], axis=-1)
    return rng.multinomial(design.prompts, np.clip(shares, 0, 1))


def discordance(design: Design) -> Discordance:
    """Expected pairs of `simulate`, in closed form."""
    if design.reduction < 0:
        swapped = discordance(_swapped(design))
        return Discordance(only_baseline=swapped.only_condition, only_condition=swapped.only_baseline, icc=swapped.icc)
    p, kept, spread = design.base_rate, 1 - design.reduction, design.icc * design.base_rate * (1 - design.base_rate)
    both = kept * (design.pairing * p + (1 - design.pairing) * (p**2 + design.shared * spread))
    baseline, unreduced = 1 - design.pairing * kept, (1 - design.pairing) * kept  # weights of the two rates
    between = spread * (design.shared * design.reduction**2 + (1 - design.shared) * (baseline**2 + unreduced**2))
    pairs = {"only_baseline": p - both, "only_condition": kept * p - both}
    variance = Discordance(**pairs, icc=0).variance
    return Discordance(**pairs, icc=between / variance if variance else 0.0)


def design_effect(design: Design) -> float:
    """Clustered pairs worth one independent pair: 1 + (prompts - 1) x icc of the differences.

    Clustering costs a paired test little where the condition acts on all latents alike (`shared` 1): differences
    between latents cancel.
    """
    return 1 + (design.prompts - 1) * discordance(design).icc


def simulated_power(
    design: Design, n_simulations: int = N_SIMULATIONS, seed: int = SEED, confidence: float = CONFIDENCE
) -> dict[str, float]:
    """Share of simulations in which each test finds a difference: `{"mcnemar", "cluster"}`."""
    counts = simulate(design, n_simulations, seed)
    return {
        "mcnemar": float(mcnemar_rejects(counts, confidence).mean()),
        "cluster": float(cluster_rejects(counts, confidence).mean()),
    }


def mcnemar_rejects(
    counts: Int[np.ndarray, "simulations latents 4"], confidence: float = CONFIDENCE
) -> Bool[np.ndarray, " simulations"]:
    """Simulations in which the exact McNemar test finds a difference."""
    pairs = counts.sum(axis=1)
    return np.minimum(pairs[:, 1], pairs[:, 2]) <= rejected_up_to(pairs[:, 1] + pairs[:, 2], confidence)


def cluster_rejects(
    counts: Int[np.ndarray, "simulations latents 4"], confidence: float = CONFIDENCE
) -> Bool[np.ndarray, " simulations"]:
    """Simulations in which the interval of esr.statistics.effects.paired_difference excludes 0.

    Clusters of equal size give the bootstrap's variance in closed form.
    """
    latents, prompts = counts.shape[1], int(counts[0, 0].sum())
    n = latents * prompts
    differences = (counts[..., 2] - counts[..., 1]) / prompts
    mean, total = differences.mean(axis=1), counts[..., 1:3].sum(axis=(1, 2))
    seen = np.maximum(total, 1)
    variance = np.maximum(seen / n - mean**2, np.finfo(float).tiny)
    effect = differences.var(axis=1, ddof=1) / latents * n / variance
    size = n / np.maximum(effect, 1 + (prompts - 1) / seen**2)
    return (total > 0) & (np.abs(mean) * np.sqrt(size) > t.isf((1 - confidence) / 2, latents - 1) * np.sqrt(seen / n))


def rejected_up_to(discordant: Int[np.ndarray, " n"], confidence: float) -> Int[np.ndarray, " n"]:
    """Largest value of the smaller discordant count at which the exact McNemar test rejects; -1 if it never does."""
    count = binom.ppf((1 - confidence) / 2, discordant, 0.5).astype(int)
    return np.where(2 * binom.cdf(count, discordant, 0.5) <= 1 - confidence, count, count - 1)


def _swapped(design: Design) -> Design:
    """The design with baseline and condition swapped; the icc is that of the more frequent events."""
    return design.model_copy(
        update={"base_rate": design.rate, "reduction": 1 - design.base_rate / design.rate},
    )


def _rates(
    rng: np.random.Generator, design: Design, shape: tuple[int, int]
) -> Float[np.ndarray, "simulations latents"]:
    p, icc = design.base_rate, design.icc
    if icc == 0:
        return np.full(shape, p)
    return rng.beta(p * (1 - icc) / icc, (1 - p) * (1 - icc) / icc, size=shape)
