"""Self-corrections by token: the off-topic, restart and later regions of a response and latents' activations there.

Paper, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import wilcoxon

from esr.experiments.detectors import cohens_d
from esr.models.alignment import Alignment
from esr.statistics import intervals
from esr.statistics.effects import holm, ratio
from esr.statistics.estimates import Estimate
from esr.statistics.unpaired import difference_of_means, scaled_mean
from esr.storage.records import Judgement, Trial

REGIONS = ("off_topic", "restart", "after")
WHOLE = "whole"  # a response that never restarts
COLUMNS = ["kind", "trial_id", "latent", "prompt_id", "region", "means"]


def regions(alignment: Alignment, judgement: Judgement) -> list[str]:
    """Region of each token, given by its first non-space character; all `WHOLE` with fewer than two attempts.

    off_topic: before the second attempt; restart: its restart phrase; after: until the third attempt or the end; later:
    from there.
    """
    n_tokens = len(alignment.starts) - 1
    if len(judgement.attempts) < 2:
        return [WHOLE] * n_tokens
    second = judgement.attempts[1]
    borders = (second.start, second.start + len(second.restart), second.end)
    return [
        (*REGIONS, "later")[np.searchsorted(borders, _visible(alignment.text, start, end), side="right")]
        for start, end in pairwise(alignment.starts)
    ]


def _visible(text: str, start: int, end: int) -> int:
    """Index of the first non-space character of text[start:end]; `start` without one."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()) if piece.strip() else start


def region_rows(
    kind: str, trial: Trial, activations: Float[np.ndarray, "tokens latents"], names: Sequence[str]
) -> list[dict]:
    """One row of `COLUMNS` per region of a response: mean activation of every latent over its tokens.

    names: region of each token. A response that is no episode has one region, `WHOLE`, also where it restarts.
    """
    names = names if kind == "episode" else [WHOLE] * len(names)
    region = np.asarray(names)
    shared = {"kind": kind, "trial_id": trial.id, "latent": trial.latent, "prompt_id": trial.prompt_id}
    return [shared | {"region": name, "means": activations[region == name].mean(0)} for name in dict.fromkeys(names)]


def aligned(values: Float[np.ndarray, " tokens"], names: Sequence[str], bins: int) -> Float[np.ndarray, " bins"] | None:
    """Mean value in `bins` bins, half over the off-topic tokens, half from the restart to the second attempt's end.

    Aligns the restarts of episodes of all lengths. None when a half is empty.
    """
    region = np.asarray(names)
    before, since = values[region == "off_topic"], values[(region == "restart") | (region == "after")]
    if not len(before) or not len(since):
        return None
    return np.concatenate([_binned(before, bins // 2), _binned(since, bins - bins // 2)])


def _binned(values: Float[np.ndarray, " n"], bins: int) -> Float[np.ndarray, " bins"]:
    """Means over `bins` equal parts of a sequence; a part shorter than a token has the token's value."""
    summed = np.concatenate([[0.0], np.cumsum(values)])
    borders = np.linspace(0, len(values), bins + 1)
    return np.diff(np.interp(borders, np.arange(len(summed)), summed)) / np.diff(borders)


def summarize(frame: pd.DataFrame, curves: pd.DataFrame, latents: Sequence[int], **interval) -> dict:
    """The entry of one model in paper/numbers/activations.json.

    frame: rows of `region_rows`, their kind "episode", "never_restarted" or "baseline". curves: one row per episode,
    columns latent (that steered) and curve (`aligned`).

    Means weigh responses equally. Ratios are to unsteered responses; episodes cluster by steering latent, unsteered
    responses by prompt. off_topic_to_never is the ratio to steered responses that never restart, episodes_minus_never
    the difference. decrease: before minus after the restart of the same episode, over the mean of unsteered responses.
    Without episodes all but `n` is null. `interval`: confidence, n_bootstrap, seed.
    """
    frame = frame.assign(value=np.array([np.mean(m) for m in frame.means], dtype=float))
    kinds = {
        "off_topic": frame[frame.region == "off_topic"],
        "after": frame[frame.region == "after"],
        "never_restarted": frame[frame.kind == "never_restarted"],
        "baseline": frame[frame.kind == "baseline"],
    }
    base, never = kinds["baseline"], kinds["never_restarted"]
    result: dict = {
        f"{name}_mean": intervals.mean(rows.value, rows.prompt_id if name == "baseline" else rows.latent, **interval)
        for name, rows in kinds.items()
    }
    for name in ("off_topic", "after", "never_restarted"):
        rows = kinds[name]
        result[f"{name}_ratio"] = ratio(rows.value, base.value, rows.latent, base.prompt_id, **interval)
    off = kinds["off_topic"]
    result["off_topic_to_never_ratio"] = ratio(off.value, never.value, off.latent, never.latent, **interval)
    result["episodes_minus_never"] = difference_of_means(never.value, off.value, never.latent, off.latent, **interval)
    both = off.merge(kinds["after"], on=["trial_id", "latent"], suffixes=("", "_after"))
    result["decrease"] = scaled_mean(both.value - both.value_after, base.value, both.latent, base.prompt_id, **interval)
    for name, kind in (("episodes", "episode"), ("baselines", "baseline"), ("never_restarted", "never_restarted")):
        result[name] = int(frame[frame.kind == kind].trial_id.nunique())
    return result | {"bins": bin_means(curves, **interval), "latents": by_latent(frame, latents)}


def bin_means(curves: pd.DataFrame, **interval) -> list[Estimate]:
    """Mean over episodes in each aligned bin, with intervals clustered by latent; empty without episodes."""
    if not len(curves):
        return []
    return [intervals.mean(values, curves.latent, **interval) for values in np.stack(curves.curve).T]


def by_latent(frame: pd.DataFrame, latents: Sequence[int]) -> list[dict]:
    """Each detector's off_topic and after means in the episodes that have both, with tests of their difference.

    Cohen's d (positive: more active off-topic), Wilcoxon's signed-rank p, Holm-adjusted p; null but n for fewer than
    two episodes.
    """
    episodes = frame[frame.kind == "episode"]
    sides = [episodes[episodes.region == name].set_index("trial_id").means for name in ("off_topic", "after")]
    shared = sides[0].index.intersection(sides[1].index)
    if len(shared) < 2:
        names = ("off_topic", "after", "cohens_d", "p_value", "p_value_holm")
        return [{"latent": latent} | dict.fromkeys(names) | {"n": len(shared)} for latent in latents]
    off, after = (np.stack(side.loc[shared].tolist()).astype(float) for side in sides)
    p_values = [_signed_rank(a - b) for a, b in zip(off.T, after.T, strict=True)]
    columns = (off.mean(0), after.mean(0), cohens_d(off, after), p_values, holm(p_values))
    names = ("off_topic", "after", "cohens_d", "p_value", "p_value_holm")
    return [
        {"latent": latent} | dict(zip(names, map(float, values), strict=True)) | {"n": len(shared)}
        for latent, *values in zip(latents, *columns, strict=True)
    ]


def _signed_rank(differences: Float[np.ndarray, " n"]) -> float:
    """Wilcoxon's p; 1 where all differences are 0, which scipy rejects."""
    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0
