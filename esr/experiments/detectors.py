"""Off-topic detectors, latents that fire on responses to another prompt (paper, section 5), and random control sets.

Activations are max-pooled over a response's tokens. A pair of prompt and response is matched when the response was
generated for the prompt, else mismatched.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

from esr.statistics.estimates import Estimate
from esr.statistics.unpaired import auc
from esr.steering.activations import Activity
from esr.storage.digests import seeded
from esr.storage.records import AblationSet, Detector

Rule = Literal["strict", "auc", "cohens_d"]
POOL = 2  # candidates per latent of a random set


@dataclass(frozen=True)
class Pair:
    """Ids of a prompt and of the prompt whose response it is paired with; `round` selects that prompt's response."""

    round: int
    prompt: str
    response_of: str

    @property
    def matched(self) -> bool:
        return self.prompt == self.response_of


@dataclass(frozen=True)
class Separation:
    """Differences between mismatched and matched responses by latent; shares are of responses with any activation.

    auc: probability that a mismatched response activates the latent more than a matched one, ties half.
    cohens_d: difference of the means over the pooled standard deviation; 0 where neither varies.
    """

    matched_share: Float[np.ndarray, " d_sae"]
    mismatched_share: Float[np.ndarray, " d_sae"]
    matched_mean: Float[np.ndarray, " d_sae"]
    mismatched_mean: Float[np.ndarray, " d_sae"]
    auc: Float[np.ndarray, " d_sae"]
    cohens_d: Float[np.ndarray, " d_sae"]


def derangement(n: int, seed: int) -> list[int]:
    """A uniformly drawn permutation of 0 to n - 1 without a fixed point. Raises ValueError for n below 2."""
    if n < 2:
        raise ValueError(f"{n} prompts cannot exchange their responses: at least two are needed.")
    rng = seeded("derangement", n, seed)
    order = list(range(n))
    while any(i == place for i, place in enumerate(order)):
        rng.shuffle(order)
    return order


def pair_up(prompts: Sequence[str], rounds: int, seed: int) -> list[Pair]:
    """Each prompt with its response and, by a new derangement each round, with another prompt's."""
    pairs = []
    for number in range(rounds):
        others = derangement(len(prompts), seed + number)
        pairs += [Pair(number, prompt, prompt) for prompt in prompts]
        pairs += [Pair(number, prompt, prompts[other]) for prompt, other in zip(prompts, others, strict=True)]
    return pairs


def split_halves(prompts: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Two random halves of the prompts, in their order; the first has one more of an odd number."""
    drawn = set(seeded("halves", seed).sample(list(prompts), -(-len(prompts) // 2)))
    return [x for x in prompts if x in drawn], [x for x in prompts if x not in drawn]


def separation(maxima: Float[np.ndarray, "pairs d_sae"], pairs: Sequence[Pair]) -> Separation:
    """How well each latent separates mismatched from matched responses; rows of `maxima` follow `pairs`."""
    matched = np.array([pair.matched for pair in pairs])
    if matched.all() or not matched.any():
        raise ValueError("Both matched and mismatched responses are needed.")
    matches, mismatches = maxima[matched].astype(float), maxima[~matched].astype(float)
    # Rank-sum AUC of all columns at once: scikit-learn's roc_auc_score takes one column at a time.
    ranks = rankdata(maxima, axis=0)[~matched].sum(0)
    auc = (ranks - len(mismatches) * (len(mismatches) + 1) / 2) / (len(matches) * len(mismatches))
    return Separation(
        matched_share=(matches > 0).mean(0),
        mismatched_share=(mismatches > 0).mean(0),
        matched_mean=matches.mean(0),
        mismatched_mean=mismatches.mean(0),
        auc=auc,
        cohens_d=cohens_d(mismatches, matches),
    )


def cohens_d(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """mean(a) - mean(b) over the pooled standard deviation, along the first axis; 0 where nothing varies."""
    freedom = len(a) + len(b) - 2
    squares = ((a - a.mean(0)) ** 2).sum(0) + ((b - b.mean(0)) ** 2).sum(0)
    sd = np.sqrt(squares / max(freedom, 1))
    return np.divide(a.mean(0) - b.mean(0), sd, out=np.zeros_like(sd), where=sd > 0)


def strict(found: Separation, min_active: float) -> np.ndarray:
    """The paper's rule: silent on every matched response, active on at least `min_active` of the mismatched ones."""
    return (found.matched_share == 0) & (found.mismatched_share >= min_active)


def find(
    found: Separation, rule: Rule, n: int, excluded: Collection[int] = (), *, min_active: float = 0.8
) -> list[Detector]:
    """The `n` best detectors by `rule`, best first, without `excluded`; fewer where fewer qualify.

    strict: the paper's rule, in order of AUC; auc, cohens_d: those above chance (above 0.5, above 0) with the largest
    value. The other measure, then the index, breaks ties.
    """
    by_auc = rule != "cohens_d"
    first, second = (found.auc, found.cohens_d) if by_auc else (found.cohens_d, found.auc)
    usable = strict(found, min_active) if rule == "strict" else first > (0.5 if by_auc else 0.0)
    usable = usable.copy()
    usable[list(excluded)] = False
    order = [int(i) for i in np.lexsort((np.arange(len(first)), -second, -first)) if usable[i]]
    names = ("matched_share", "mismatched_share", "matched_mean", "mismatched_mean", "auc", "cohens_d")
    return [
        Detector(latent=i, rank=rank, rule=rule, **{name: float(getattr(found, name)[i]) for name in names})
        for rank, i in enumerate(order[:n], start=1)
    ]


def held_out_auc(
    halves: Sequence[tuple[Float[np.ndarray, "pairs d_sae"], Sequence[Pair], Sequence[int]]], **interval
) -> Estimate:
    """AUC of the summed activity of detectors for mismatched against matched pairs on which they were not found.

    halves: for each half of the prompts its maxima, their pairs, and the detectors found on the other half. Pairs are
    compared within their half. Intervals resample the prompts that responses belong to; `n` counts pairs.
    """
    sums = np.concatenate([maxima[:, list(latents)].sum(1) for maxima, _, latents in halves])
    groups = np.repeat(np.arange(len(halves)), [len(pairs) for _, pairs, _ in halves])
    pairs = [pair for _, group, _ in halves for pair in group]
    mismatched = [not pair.matched for pair in pairs]
    return auc(sums, mismatched, [pair.response_of for pair in pairs], groups, **interval)


def overlap(sets: Sequence[Collection[int]]) -> float | None:
    """Mean Jaccard index of all pairs of sets: 1 equal, 0 disjoint; None for fewer than two sets."""
    shares = [len({*a} & {*b}) / len({*a} | {*b}) for a, b in combinations(sets, 2) if {*a} | {*b}]
    return float(np.mean(shares)) if shares else None


def match_random(
    activity: Activity, detectors: Sequence[int], excluded: Collection[int], n_sets: int, seed: int
) -> list[list[int]]:
    """Random sets as large and as active as the detectors: latent j of each set is matched to detector j.

    For each detector, in seeded order, the free latents nearest in log frequency and log mean (`POOL` per set) are
    candidates; each set draws one. No latent is used twice, none is a detector or in `excluded`. Raises ValueError when
    there are too few.
    """
    logs = activity.logs()
    free = np.ones(len(logs), dtype=bool)
    free[[*detectors, *excluded]] = False
    if free.sum() < n_sets * len(detectors):
        raise ValueError(
            f"{int(free.sum())} latents are too few for {n_sets} random sets of {len(detectors)}: "
            "ask for fewer detectors or sets."
        )
    rng = np.random.default_rng(seed)
    sets = np.zeros((n_sets, len(detectors)), dtype=int)
    for place in rng.permutation(len(detectors)):
        candidates = rng.permutation(np.flatnonzero(free))  # ties break by seed, not by index
        distance = np.linalg.norm(logs[candidates] - logs[detectors[place]], axis=1)
        nearest = candidates[np.argsort(distance, kind="stable")[: POOL * n_sets]]
        sets[:, place] = rng.choice(nearest, n_sets, replace=False)
        free[sets[:, place]] = False
    return sets.tolist()


def silent(margins: Float[np.ndarray, " d_sae"], n: int, excluded: Collection[int]) -> list[int]:
    """Up to `n` latents that fire on no token, those farthest from firing first: a sham to ablate.

    margins: of `latent_margins`. Raises ValueError when every latent fires.
    """
    free = margins < 0
    free[list(excluded)] = False
    if not free.any():
        raise ValueError("Every latent fires on the steered responses, so there is no sham: lower n_steered.")
    return [int(i) for i in np.argsort(margins, kind="stable") if free[i]][:n]


def matching(activity: Activity, detectors: Sequence[int], sets: Sequence[Sequence[int]]) -> pd.DataFrame:
    """How well each set matches the detectors: mean frequency, summed mean activation, and factors of mismatch.

    The factors are a latent's ratio to its detector in frequency and in mean activation, median and worst.
    """
    logs, rows = activity.logs(), []
    for name, latents in [
        ("detectors", detectors),
        *((f"random_{k}", latents) for k, latents in enumerate(sets, start=1)),
    ]:
        off = np.exp(np.abs(logs[list(latents)] - logs[list(detectors)]))
        rows.append(
            {
                "set": name,
                "frequency": float(activity.frequency[list(latents)].mean()),
                "activation": float(activity.mean[list(latents)].sum()),
                "frequency_off": float(np.median(off[:, 0])),
                "frequency_worst": float(off[:, 0].max()),
                "activation_off": float(np.median(off[:, 1])),
                "activation_worst": float(off[:, 1].max()),
            }
        )
    return pd.DataFrame(rows).set_index("set")


def ablation_sets(
    detectors: Sequence[int],
    randoms: Sequence[Sequence[int]],
    halves: Sequence[tuple[Sequence[str], Sequence[int]]],
    sham: Sequence[int],
) -> list[AblationSet]:
    """Latents that each condition of the ablation experiment ablates.

    sham: latents that do not fire, so that the same machinery should change no response. halves: twice (prompts,
    detectors found on them); `held_out` ablates those found on the half without the prompt.
    """
    sets = [AblationSet(condition="detectors", latents=list(detectors))]
    sets += [AblationSet(condition=f"random_{k}", latents=list(latents)) for k, latents in enumerate(randoms, start=1)]
    sets.append(AblationSet(condition="sham", latents=list(sham)))
    for (_, found), (prompts, _) in zip(halves, reversed(halves), strict=True):
        sets.append(AblationSet(condition="held_out", latents=list(found), prompts=list(prompts)))
    return sets


def ablated(sets: Sequence[AblationSet], condition: str, prompt_id: str) -> tuple[int, ...]:
    """The latents that a trial of `condition` ablates. Raises ValueError when no set covers it."""
    for row in sets:
        if row.condition == condition and (not row.prompts or prompt_id in row.prompts):
            return tuple(row.latents)
    raise ValueError(
        f"No set of latents to ablate in condition {condition!r} for prompt {prompt_id!r}: find them first."
    )
