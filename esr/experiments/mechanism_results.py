"""Results of the stage `mechanism` as tables, and the numbers made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit

from esr.experiments.edit_plans import DETECTORS, SILENT, TURNED, Sets, random_names
from esr.experiments.latent_edits import Edit
from esr.experiments.mechanism import Costs, Measured, Scan
from esr.experiments.propensity import Passage
from esr.statistics import intervals
from esr.statistics.estimates import NOTHING, Estimate
from esr.statistics.random_sets import BASE, beside_random, effect
from esr.statistics.unpaired import difference_of_means
from esr.steering.activations import Activity


@dataclass(frozen=True)
class Tables:
    """A row for each passage, a column for each condition. log_odds: mean over sentence ends. probability: mean over
    them of the probability that a restart begins. share: of the steering vector that the edit takes away. latents: of
    the passages' steering."""

    log_odds: pd.DataFrame
    probability: pd.DataFrame
    share: pd.DataFrame
    latents: list[int]

    @classmethod
    def of(cls, passages: Sequence[Passage], edits: Sequence[Sequence[Edit]], measured: Sequence[Measured]) -> Tables:
        rows: dict[str, list[dict]] = {"log_odds": [], "probability": [], "share": []}
        for chosen, found in zip(edits, measured, strict=True):
            names = [edit.condition for edit in chosen]
            columns = (found.log_odds.mean(1), expit(found.log_odds).mean(1), found.share)
            for key, values in zip(rows, columns, strict=True):
                rows[key].append(dict(zip(names, values.tolist(), strict=True)))
        frames = {key: pd.DataFrame(value) if value else pd.DataFrame({BASE: []}) for key, value in rows.items()}
        return cls(**frames, latents=_latents(passages))

    def effect(self, condition: str, **interval) -> dict[str, Estimate]:
        return effect(self.log_odds, self.probability, condition, self.latents, **interval)

    def beside(self, condition: str, sets: Sequence[str], **interval) -> dict:
        """The condition's effect, and what it is beside those of random sets, on the passages that have all of them."""
        names = [condition, BASE, *sets]
        complete = self.log_odds[names].notna().all(axis=1).to_numpy()
        log_odds, probability = self.log_odds[complete], self.probability[complete]
        latents = list(np.array(self.latents)[complete])
        whole = effect(log_odds, probability, condition, latents, **interval)
        return whole | beside_random(log_odds, probability, condition, sets, latents, **interval)

    def mean_share(self, names: Sequence[str]) -> float:
        return float(self.share[list(names)].mean(axis=None))

    def joined(self, other: Tables) -> Tables:
        """These and the conditions of another measurement on the first of the same passages."""
        tables = {
            key: pd.concat([getattr(self, key), getattr(other, key)], axis=1)
            for key in ("log_odds", "probability", "share")
        }
        return Tables(**tables, latents=self.latents)


def _latents(passages: Sequence[Passage]) -> list[int]:
    return [passage.trial.latent for passage in passages]


def by_size(tables: Tables, sizes: Sequence[int], n_detectors: int, n_sets: int, n_others: int, **interval) -> dict:
    """Relative reductions by the number of ablated latents: detectors and the mean of random sets, on the passages that
    have both, and the difference of log-odds between them."""
    found = {}
    for size in [*(k for k in sizes if k < n_detectors), n_detectors]:
        suffix = "" if size == n_detectors else f"_{size}"
        sets = random_names(n_sets if size == n_detectors else n_others, suffix)
        beside = tables.beside(f"{DETECTORS}{suffix}", sets, **interval)
        complete = tables.log_odds[sets].notna().all(axis=1)
        base, random = (float(tables.probability.loc[complete, names].mean(axis=None)) for names in ([BASE], sets))
        found[str(size)] = {
            "detectors": beside["relative_reduction"].estimate,
            "random": 1 - random / base if base else None,
            "minus_random": beside["minus_random"],
            "rank_p": beside["rank_p"],
        }
    return found


def end_table(
    passages: Sequence[Passage], scans: Sequence[Scan], scores: Mapping[str, float], restarting
) -> pd.DataFrame:
    """A row for each sentence end, as `esr.statistics.restart_prediction` reads it.

    scores: of first attempts, by trial id. restarting: ids of trials that restart.
    """
    rows = [
        {
            "response": p.trial.id, "latent": p.trial.latent, "position": end, "score": scores[p.trial.id],
            "log_odds": float(scan.log_odds[i]), "sampled": float(scan.sampled[i]),
            "restarts": p.restarts and end == p.ends[-1], "restarting": p.trial.id in restarting,
        }
        for p, scan in zip(passages, scans, strict=True)
        for i, end in enumerate(p.ends)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def attribution_error(
    scans: Sequence[Scan], edits: Sequence[Sequence[Edit]], measured: Sequence[Measured]
) -> dict[str, float | int | None]:
    """Attribution of sets, the sum over their latents, beside the effect of zero-ablating them, over passages and sets.

    correlation: Pearson's. slope: of measured on attributed effects, 1 where they agree. mean_error: mean absolute
    difference, log-odds; mean_effect: mean absolute effect, beside which it stands.
    """
    attributed, real = [], []
    for scan, chosen, found in zip(scans, edits, measured, strict=True):
        changes = found.log_odds.mean(1) - found.log_odds[0].mean()
        for edit, change in zip(chosen, changes, strict=True):
            if edit.latents and edit.kind == "zero" and edit.condition != SILENT:
                attributed.append(float(scan.attribution[list(edit.latents)].sum()))
                real.append(float(change))
    x, y = np.array(attributed), np.array(real)
    known = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
    return {
        "correlation": float(np.corrcoef(x, y)[0, 1]) if known else None,
        "slope": float(x @ y / (x @ x)) if known else None,
        "mean_error": float(np.abs(x - y).mean()) if len(x) else None,
        "mean_effect": float(np.abs(y).mean()) if len(x) else None,
        "n": len(x),
    }


def cost_table(
    passages: Sequence[Passage], edits: Sequence[Sequence[Edit]], found: Sequence[Costs], **interval
) -> dict[str, dict[str, Estimate]]:
    """Mean costs of the detectors and of random sets together, and of the first minus the second."""
    result: dict[str, dict[str, Estimate]] = {}
    for measure in ("kl", "cross_entropy_rise"):
        frame = pd.DataFrame(
            [
                dict(zip([e.condition for e in chosen], getattr(row, measure).tolist(), strict=True))
                for chosen, row in zip(edits, found, strict=True)
            ]
        )
        randoms = [name for name in frame if str(name).startswith("random_") and name != TURNED]
        values = {} if frame.empty else {DETECTORS: frame[DETECTORS], "random": frame[randoms].mean(axis=1)}
        if values:
            values["difference"] = values[DETECTORS] - values["random"]
        result[measure] = {
            name: intervals.mean(column, _latents(passages), **interval) for name, column in values.items()
        } or dict.fromkeys((DETECTORS, "random", "difference"), NOTHING)
    return result


def balance(
    activity: Activity, shares: np.ndarray, norms: np.ndarray, sets: Sequence[Sets]
) -> dict[str, dict[str, float]]:
    """What random sets are matched in: means over the latents of detectors and of random sets, over all parts."""
    ours = [latent for part in sets for latent in part.detectors]
    theirs = [latent for part in sets for latents in part.randoms for latent in latents]
    columns = {
        "frequency": activity.frequency,
        "mean_activity": activity.mean,
        "decoder_norm": norms,
        "share_of_vector": shares,
    }
    return {
        name: {DETECTORS: float(values[ours].mean()), "random": float(values[theirs].mean())}
        for name, values in columns.items()
    }


def two_by_two(cells: Mapping[str, Tables], **interval) -> dict:
    """Mean log-odds of unedited passages by cell, the effects of text and of steering, and their interaction.

    cells: off_steered, off_plain, on_steered, on_plain, off and on topic, under steering and without. Passages are
    paired between steering and none, and not between texts, whose shared latents are drawn together.
    """
    values = {name: table.log_odds[BASE].to_numpy() for name, table in cells.items()}
    latents = {name: table.latents for name, table in cells.items()}
    found: dict = {name: intervals.mean(values[name], latents[name], **interval) for name in cells}
    for text in ("off", "on"):
        change = values[f"{text}_steered"] - values[f"{text}_plain"]
        found[f"steering_{text}"] = intervals.mean(change, latents[f"{text}_plain"], **interval)
    for steering in ("steered", "plain"):
        found[f"text_{steering}"] = _unpaired(values, latents, steering, **interval)
    changes = {text: values[f"{text}_steered"] - values[f"{text}_plain"] for text in ("off", "on")}
    named = {text: latents[f"{text}_plain"] for text in ("off", "on")}
    found["interaction"] = difference_of_means(changes["on"], changes["off"], named["on"], named["off"], **interval)
    return found


def _unpaired(values, latents, steering: str, **interval) -> Estimate:
    on, off = f"on_{steering}", f"off_{steering}"
    return difference_of_means(values[on], values[off], latents[on], latents[off], **interval)
