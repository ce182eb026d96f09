"""Cross-fitted detectors: found on one half of prompts and of steering latents, measured on the other half of both.

Rule b: latents that fire more on the model's own steered responses that are off topic than on those that are on topic,
read without steering. Unlike the paper's rule (responses to another prompt), it cannot find detectors of another style.
Rule c: latents whose zero-ablation lowers propensity most by attribution. Rule d: a linear probe and a difference of
means on the residual stream at sentence ends, as upper bounds on what can be read there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from esr.engine.activations import Document
from esr.engine.backend import Backend
from esr.engine.interventions import LatentSubset
from esr.experiments.detectors import Pair, find, separation, split_halves
from esr.sae.encoding import ACTIVATIONS
from esr.statistics.estimates import Estimate
from esr.statistics.unpaired import auc

N_PARTS = 4


def parts_of(prompts: Sequence[str], latents: Sequence[int], seed: int) -> Int[np.ndarray, " trials"]:
    """The part of each trial, 0 to 3, by the half of its prompt and that of its latent; 3 - part shares neither."""
    first = set(split_halves(sorted(set(prompts)), seed)[0])
    few = {int(x) for x in split_halves([str(x) for x in sorted(set(latents))], seed)[0]}
    return np.array([2 * (p in first) + (x in few) for p, x in zip(prompts, latents, strict=True)], dtype=int)


def training_part(
    parts: Int[np.ndarray, " responses"], topic: Int[np.ndarray, " responses"], part: int
) -> Bool[np.ndarray, " responses"]:
    """The responses on which the detectors of `part` are found: the part that shares neither its prompts nor its
    latents; in a study so small that it lacks off- or on-topic responses, all outside `part`."""
    for mask in (parts == N_PARTS - 1 - part, parts != part):
        if {-1, 1} <= set(topic[mask].tolist()):
            return mask
    raise ValueError(f"Outside part {part} no response is off topic, or none on topic: raise n_found, or steer more.")


def topics(
    scores: Sequence[float], max_off_topic: float, min_on_topic: float, n_min: int
) -> Int[np.ndarray, " responses"]:
    """-1 off topic, 1 on topic, 0 neither, by first-attempt score.

    Where fewer than `n_min` responses are off or on topic by the limits, the lower and the higher half of the scores.
    """
    values = np.asarray(scores, dtype=float)
    found = np.where(values <= max_off_topic, -1, np.where(values >= min_on_topic, 1, 0))
    if min((found == -1).sum(), (found == 1).sum()) >= n_min:
        return found
    order = np.argsort(values, kind="stable")
    found = np.ones(len(values), dtype=int)
    found[order[: len(order) // 2]] = -1
    return found


@torch.no_grad()
def read_plain(
    backend: Backend,
    subset: LatentSubset,
    documents: Sequence[Document],
    ends: Sequence[Sequence[int]],
    layer: int,
    median_norm: float,
) -> tuple[Float[np.ndarray, "documents d_sae"], list[Float[np.ndarray, "ends d_model"]]]:
    """Each latent's largest activation on each response's tokens but sinks, and the residual stream at its ends."""
    maxima = np.zeros((len(documents), len(subset.latents)), dtype=np.float32)
    streams: list = [None] * len(documents)
    at_once = max(1, ACTIVATIONS // len(subset.latents))
    for i, hidden, sinks in backend.collect(documents, layer, median_norm=median_norm, what="responses, read plainly"):
        streams[i] = hidden[[end - 1 for end in ends[i]]].float().cpu().numpy()
        if not sinks.all():
            pieces = [subset.activations(piece).amax(0) for piece in hidden[~sinks].split(at_once)]
            maxima[i] = torch.stack(pieces).amax(0).cpu().numpy()
    return maxima, streams


def off_topic_detectors(
    maxima: Float[np.ndarray, "responses d_sae"],
    topic: Int[np.ndarray, " responses"],
    chosen: Bool[np.ndarray, " responses"],
    n: int,
    excluded: Collection[int],
) -> list[int]:
    """Rule b on the `chosen` responses: up to `n` latents, best AUC of their maxima first.

    Raises ValueError where no chosen response is off topic, or none on topic.
    """
    rows = chosen & (topic != 0)
    pairs = [Pair(0, "on", "on" if t > 0 else "off") for t in topic[rows]]  # off topic: "mismatched"
    return [found.latent for found in find(separation(maxima[rows], pairs), "auc", n, excluded)]


def attributed_detectors(
    attributions: Float[np.ndarray, "passages d_sae"], chosen: Bool[np.ndarray, " passages"], n: int,
    excluded: Collection[int],
) -> list[int]:  # fmt: skip
    """Rule c on the `chosen` passages: the `n` latents with the lowest mean attribution below 0."""
    means = attributions[chosen].mean(0)
    taken = set(excluded)
    return [int(i) for i in np.argsort(means, kind="stable") if means[i] < 0 and int(i) not in taken][:n]


def held_out_auc(
    values: Sequence[float], topic: Int[np.ndarray, " n"], latents: Sequence[int], parts: Int[np.ndarray, " n"],
    **interval,
) -> Estimate:  # fmt: skip
    """Probability that a value of an off-topic response lies above one of an on-topic response of the same part."""
    kept = topic != 0
    columns = (np.asarray(values)[kept], topic[kept] < 0, np.asarray(latents)[kept], parts[kept])
    return auc(*columns, **interval)


def probe_scores(
    streams: Sequence[Float[np.ndarray, "ends d_model"]],
    topic: Int[np.ndarray, " responses"],
    parts: Int[np.ndarray, " responses"],
) -> dict[str, Float[np.ndarray, " responses"]]:
    """Rule d: by probe, each response's mean score over its sentence ends, fitted on the part that shares neither
    its prompt nor its latent; NaN where that part has responses of one kind alone."""
    found = {name: np.full(len(streams), np.nan) for name in ("logistic", "difference_of_means")}
    for part in range(N_PARTS):
        train = np.flatnonzero((parts == N_PARTS - 1 - part) & (topic != 0)).tolist()
        if len(set(topic[train])) < 2:
            continue
        rows = np.concatenate([streams[i] for i in train])
        labels = np.repeat(topic[train] < 0, [len(streams[i]) for i in train])
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200)).fit(rows, labels)
        direction = rows[labels].mean(0) - rows[~labels].mean(0)
        for i in np.flatnonzero(parts == part).tolist():
            found["logistic"][i] = probe.decision_function(streams[i]).mean()
            found["difference_of_means"][i] = (streams[i] @ direction).mean()
    return found
