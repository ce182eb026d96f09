"""Off-topic detectors: latents that fire on an answer when it belongs to another prompt (paper section 5), and the
equally active latents they are compared with.

Activations are max-pooled over an answer's tokens. A pair of prompt and answer is matched when the answer was written
for the prompt, else mismatched.
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

from esr.steering.activations import Activity
from esr.storage.digests import seeded
from esr.storage.records import AblationSet, Detector

Rule = Literal["strict", "auc", "cohens_d"]
POOL = 2  # candidates per place in a random set, of which seeds choose


@dataclass(frozen=True)
class Pair:
    """The prompt `prompt` with the answer of `answer_of`, both ids; `round` says which of its answers."""

    round: int
    prompt: str
    response_of: str

    @property
    def matched(self) -> bool:
        return self.prompt == self.response_of


@dataclass(frozen=True)
class Separation:
    """What sets mismatched from matched answers, per latent. Shares are of answers on which the latent fires at all.

    auc: the chance that a mismatched answer activates the latent more than a matched one, ties half.
    cohens_d: difference of the means over the pooled standard deviation; 0 where neither varies.
    """

    matched_share: Float[np.ndarray, " d_sae"]
    mismatched_share: Float[np.ndarray, " d_sae"]
    matched_mean: Float[np.ndarray, " d_sae"]
    mismatched_mean: Float[np.ndarray, " d_sae"]
    auc: Float[np.ndarray, " d_sae"]
    cohens_d: Float[np.ndarray, " d_sae"]


def derangement(n: int, seed: int) -> list[int]:
    """A permutation of 0 to n - 1 without a fixed point, each as likely as any other: shuffled until it has none.

    Raises ValueError for fewer than two.
    """
    if n < 2:
        raise ValueError(f"{n} prompts cannot exchange their answers: at least two are needed.")
    draw = seeded("derangement", n, seed)
    order = list(range(n))
    while any(i == place for i, place in enumerate(order)):
        draw.shuffle(order)
    return order


def pair_up(prompts: Sequence[str], rounds: int, seed: int) -> list[Pair]:
    """Each prompt with its own answer and, by a new derangement a round, with another prompt's."""
    pairs = []
    for number in range(rounds):
        others = derangement(len(prompts), seed + number)
        pairs += [Pair(number, prompt, prompt) for prompt in prompts]
        pairs += [Pair(number, prompt, prompts[other]) for prompt, other in zip(prompts, others, strict=True)]
    return pairs


def split_halves(prompts: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Two halves of the prompts, drawn by seed; of an odd number the first has one more. Their order stays."""
    drawn = set(seeded("halves", seed).sample(list(prompts), -(-len(prompts) // 2)))
    return [x for x in prompts if x in drawn], [x for x in prompts if x not in drawn]


def separation(maxima: Float[np.ndarray, "pairs d_sae"], pairs: Sequence[Pair]) -> Separation:
    """How well each latent tells mismatched from matched answers, from max-pooled activations in the pairs' order."""
    matched = np.array([pair.matched for pair in pairs])
    if matched.all() or not matched.any():
        raise ValueError("Both matched and mismatched answers are needed to tell one from the other.")
    there, elsewhere = maxima[matched].astype(float), maxima[~matched].astype(float)
    ranks = rankdata(maxima, axis=0)[~matched].sum(0)
    auc = (ranks - len(elsewhere) * (len(elsewhere) + 1) / 2) / (len(there) * len(elsewhere))
    return Separation(
        matched_share=(there > 0).mean(0),
        mismatched_share=(elsewhere > 0).mean(0),
        matched_mean=there.mean(0),
        mismatched_mean=elsewhere.mean(0),
        auc=auc,
        cohens_d=cohens_d(elsewhere, there),
    )


def cohens_d(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """mean(a) - mean(b) over the pooled standard deviation, along the first axis; 0 where nothing varies."""
    free = len(a) + len(b) - 2
    squares = ((a - a.mean(0)) ** 2).sum(0) + ((b - b.mean(0)) ** 2).sum(0)
    sd = np.sqrt(squares / max(free, 1))
    return np.divide(a.mean(0) - b.mean(0), sd, out=np.zeros_like(sd), where=sd > 0)


def strict(found: Separation, min_active: float) -> np.ndarray:
    """The paper's rule: silent on every matched answer, active on at least this share of mismatched ones."""
    return (found.matched_share == 0) & (found.mismatched_share >= min_active)


def find(
    found: Separation, rule: Rule, n: int, excluded: Collection[int] = (), *, min_active: float = 0.8
) -> list[Detector]:
    """The `n` best detectors by `rule`, best first, or fewer where fewer qualify; never one of `excluded`.

    strict: the paper's rule, in order of the area under the curve; auc, cohens_d: those above chance (above 0.5, above
    0) with the largest value. Equal latents are in order of the other measure, then of their index.
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


def overlap(sets: Sequence[Collection[int]]) -> float | None:
    """Mean Jaccard index of all pairs of sets: 1 for equal ones, 0 for disjoint ones; None for fewer than two."""
    shares = [len({*a} & {*b}) / len({*a} | {*b}) for a, b in combinations(sets, 2) if {*a} | {*b}]
    return float(np.mean(shares)) if shares else None


def match_random(
    activity: Activity, detectors: Sequence[int], excluded: Collection[int], n_sets: int, seed: int
) -> list[list[int]]:
    """Random sets as large and as active as the detectors: place j of each set is matched to detector j.

    Near is near in log frequency and log mean. For each detector, in seeded order, the nearest latents that are still
    free (`POOL` for each set) are candidates, of which seeds choose one for every set. No latent is used twice, none
    is a detector or in `excluded`. Raises ValueError when there are too few.
    """
    logs = activity.logs()
    free = np.ones(len(logs), dtype=bool)
    free[[*detectors, *excluded]] = False
    if free.sum() < n_sets * len(detectors):
        raise ValueError(
            f"{int(free.sum())} latents are too few for {n_sets} random sets of {len(detectors)}: "
            "ask for fewer detectors or sets."
        )
    draw = np.random.default_rng(seed)
    sets = np.zeros((n_sets, len(detectors)), dtype=int)
    for place in draw.permutation(len(detectors)):
        candidates = draw.permutation(np.flatnonzero(free))  # so that seeds, not indices, choose among equals
        distance = np.linalg.norm(logs[candidates] - logs[detectors[place]], axis=1)
        nearest = candidates[np.argsort(distance, kind="stable")[: POOL * n_sets]]
        sets[:, place] = draw.choice(nearest, n_sets, replace=False)
        free[sets[:, place]] = False
    return sets.tolist()


def matching(activity: Activity, detectors: Sequence[int], sets: Sequence[Sequence[int]]) -> pd.DataFrame:
    """How well sets are matched to the detectors, a row each: mean frequency, what a token has of the set's latents
    together, and the factor by which a latent is off in frequency and in mean activation (median and worst)."""
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
    detectors: Sequence[int], randoms: Sequence[Sequence[int]], halves: Sequence[tuple[Sequence[str], Sequence[int]]]
) -> list[AblationSet]:
    """What the conditions of the ablation experiment ablate. `halves`: two times prompts and the detectors found on
    them; a trial of `held_out` loses those found on the half that its prompt is not in."""
    sets = [AblationSet(condition="detectors", latents=list(detectors))]
    sets += [AblationSet(condition=f"random_{k}", latents=list(latents)) for k, latents in enumerate(randoms, start=1)]
    for (_, found), (prompts, _) in zip(halves, reversed(halves), strict=True):
        sets.append(AblationSet(condition="held_out", latents=list(found), prompts=list(prompts)))
    return sets


def ablated(sets: Sequence[AblationSet], condition: str, prompt_id: str) -> tuple[int, ...]:
    """The latents a trial of `condition` loses. Raises ValueError when the sets do not say."""
    for row in sets:
        if row.condition == condition and (not row.prompts or prompt_id in row.prompts):
            return tuple(row.latents)
    raise ValueError(
        f"No set of latents to ablate in condition {condition!r} for prompt {prompt_id!r}: find them first."
    )
