"""Calibration: per latent, the boost at which first attempts score the target on average.

Probabilistic bisection (Waeber, Frazier & Henderson 2011; paper, section 3): a posterior of the threshold on a grid of
boosts, queried at its median, updated by Bayes with the probability that the noisy score lies above the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, norm

from esr.config.registry import Boost
from esr.engine.workers import Workers
from esr.progress import say
from esr.steering.trials import Plan, Settings, generate_responses
from esr.storage.digests import seeded, trial_seed
from esr.storage.records import Latent, Prompt, Query, Threshold

CELLS = 400  # grid cells between the bounds
WEIGHT = 5.0  # pseudo-observations per score: the paper's Beta with Jeffreys prior
EDGE = 0.02  # probability mass within the last cells that counts as hitting a bound
DOUBT = 0.02  # a query never moves more than 1 - DOUBT of the mass to one side


class Bisection:
    """Posterior of one latent's threshold. Boosts in median residual norms, scores 0-100."""

    def __init__(self, bounds: Boost, target: float):
        self.target = target
        self.width = (bounds.max - bounds.min) / CELLS
        self.prior = (bounds.prior_mean, bounds.prior_sd)
        self.grid = bounds.min + self.width * (np.arange(CELLS) + 0.5)
        self.belief = _normalized(norm.pdf(self.grid, *self.prior))
        self.prior_sd = self.sd  # within the bounds, which cut the prior off
        self.queries: list[Query] = []
        self.widened = 0

    @property
    def median(self) -> float:
        """The next boost to query, and finally the threshold."""
        below = np.cumsum(self.belief)
        cell = int(np.searchsorted(below, 0.5))
        before = below[cell] - self.belief[cell]
        return float(self.grid[cell] + self.width * ((0.5 - before) / self.belief[cell] - 0.5))

    @property
    def sd(self) -> float:
        mean = float(self.belief @ self.grid)
        return float(np.sqrt(self.belief @ (self.grid - mean) ** 2))

    def update(self, boost: float, score: float, n: int) -> None:
        """Update on `n` first attempts at `boost` with mean `score`. Raises ValueError on a score outside 0-100."""
        if not 0 <= score <= 100:
            raise ValueError(f"A score of {score} was given; scores run from 0 to 100.")
        share = score / 100
        above = beta.sf(self.target / 100, 0.5 + WEIGHT * share, 0.5 + WEIGHT * (1 - share))  # P(true mean > target)
        above = float(np.clip(above, DOUBT, 1 - DOUBT))
        # A score above the target puts the threshold at a larger boost.
        self.belief = _normalized(self.belief * np.where(self.grid > boost, above, 1 - above))
        self.queries.append(Query(boost=boost, score=score, n=n))
        self._widen()

    def _widen(self) -> None:
        """Extend the grid by half when the posterior reaches the upper bound: a ceiling fakes thresholds."""
        if self.belief[-CELLS // 20 :].sum() < EDGE:
            return
        count = len(self.grid)
        extra = self.grid[-1] + self.width * (np.arange(count // 2) + 1)
        # Continue the posterior with the prior's slope: past queries keep their weight.
        tail = self.belief[-1] * norm.pdf(extra, *self.prior) / max(norm.pdf(self.grid[-1], *self.prior), 1e-300)
        self.grid = np.concatenate([self.grid, extra])
        self.belief = _normalized(np.concatenate([self.belief, np.maximum(tail, self.belief[-1] * 0.25)]))
        self.widened += 1

    def threshold(self, latent: int, label: str, max_sd_ratio: float, tolerance: float) -> Threshold:
        """The result; its reason says why it is unusable, or "converged"."""
        score = self.score_near(self.median)
        if self.sd > max_sd_ratio * self.prior_sd:
            reason = "posterior too wide"
        elif abs(score - self.target) > tolerance:
            reason = "score far from the target"
        else:
            reason = "converged"
        return Threshold(
            latent=latent,
            label=label,
            boost=round(self.median, 6),
            sd=round(self.sd, 6),
            score=round(score, 4),
            converged=reason == "converged",
            reason=reason,
            queries=self.queries,
        )

    def score_near(self, boost: float) -> float:
        """Mean score of the queries, weighted by a Gaussian around `boost` of a quarter of the prior's sd."""
        distance = np.array([q.boost for q in self.queries]) - boost
        weights = np.array([q.n for q in self.queries]) * np.exp(-0.5 * (4 * distance / self.prior[1]) ** 2) + 1e-12
        return float(weights @ np.array([q.score for q in self.queries]) / weights.sum())


@dataclass(frozen=True)
class Search:
    """Settings of the search: params.yaml, section calibrate."""

    target: float
    n_queries: int
    prompts_per_query: int
    max_sd_ratio: float
    tolerance: float
    seed: int


def find_thresholds(
    latents: Sequence[Latent],
    prompts: Sequence[Prompt],
    settings: Settings,
    search: Search,
    bounds: Boost,
    judge,
    workers: Workers,
) -> list[Threshold]:
    """Thresholds of all latents, bisected together: one batch of responses a round, judged on the first attempt.

    Prompts rotate between queries, in an order drawn for each latent. A response without a score is empty and counts as
    0: the steering was too strong.
    """
    bisections = {latent.index: Bisection(bounds, search.target) for latent in latents}
    orders = {x.index: seeded(search.seed, x.index).sample(list(prompts), len(prompts)) for x in latents}
    for number in range(search.n_queries):
        plans = [
            Plan("calibrate", x.index, x.label, prompt.id, prompt.text,
                 trial_seed(search.seed, x.index, prompt.id, 1000 + number), bisections[x.index].median)
            for x in latents
            for prompt in _turn(orders[x.index], number, search.prompts_per_query)
        ]  # fmt: skip
        trials = generate_responses(plans, settings, workers, f"calibrate, query {number + 1} of {search.n_queries}")
        scores: dict[int, list[float]] = {}
        for trial, judgement in zip(trials, judge.judge(trials), strict=True):
            first = judgement.attempts[0].score if judgement.attempts else None
            scores.setdefault(trial.latent, []).append(first or 0.0)
        boosts = {plan.latent: plan.boost for plan in plans}
        for latent, values in scores.items():
            bisections[latent].update(boosts[latent], float(np.mean(values)), len(values))
        say(f"calibrate: mean score {np.mean([v for vs in scores.values() for v in vs]):.1f}, target {search.target}")
    return [bisections[x.index].threshold(x.index, x.label, search.max_sd_ratio, search.tolerance) for x in latents]


def _turn(prompts: Sequence[Prompt], number: int, n: int) -> list[Prompt]:
    return [prompts[(number * n + i) % len(prompts)] for i in range(n)]


def _normalized(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()
