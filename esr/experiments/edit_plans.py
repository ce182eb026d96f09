"""Which edits each passage of the stage `mechanism` gets: detectors, random sets, shams and further kinds, by name.

Conditions have the same names in all parts of the cross-fitting; the latents behind them differ.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from esr.experiments.detectors import match_random
from esr.experiments.latent_edits import Edit, Kind
from esr.experiments.mechanism import Scan
from esr.statistics.random_sets import BASE
from esr.steering.activations import Activity

DETECTORS, SILENT, TURNED = "detectors", "silent", "random_edit"
REPLACED: tuple[Kind, ...] = ("mean", "resample")


@dataclass(frozen=True)
class Sets:
    """Sets of latents of one part. detectors: best first, by rule b; random sets are matched to them place by place.

    further: sets by other rules, by condition. silent: latents that fire on none of the passages.
    """

    detectors: list[int]
    randoms: list[list[int]]
    silent: list[int]
    further: Mapping[str, Sequence[int]]


def random_names(n: int, suffix: str = "") -> list[str]:
    return [f"random_{i}{suffix}" for i in range(1, n + 1)]


def primary(sets: Sets, sizes: Sequence[int], kinds: Sequence[Kind]) -> list[Edit]:
    """The edits that every passage gets; the first is none. kinds: beside zero-ablation, of the detectors alone."""
    found = [Edit(BASE, ()), Edit(SILENT, tuple(sets.silent)), Edit(DETECTORS, tuple(sets.detectors))]
    found.append(Edit(TURNED, tuple(sets.detectors), "random"))
    found += [Edit(f"{DETECTORS}_{k}", tuple(sets.detectors[:k])) for k in sizes if k < len(sets.detectors)]
    found += [Edit(f"{DETECTORS}_{kind}", tuple(sets.detectors), kind) for kind in kinds]
    found += [Edit(name, tuple(latents)) for name, latents in sets.further.items()]
    return found + [Edit(name, tuple(x)) for name, x in zip(random_names(len(sets.randoms)), sets.randoms, strict=True)]


def others(sets: Sets, n_sets: int, sizes: Sequence[int], kinds: Sequence[Kind]) -> list[Edit]:
    """The first `n_sets` random sets in smaller sizes and under the further kinds of ablation."""
    chosen = list(zip(random_names(n_sets), sets.randoms[:n_sets], strict=False))
    found = [Edit(f"{name}_{k}", tuple(x[:k])) for k in sizes if k < len(sets.detectors) for name, x in chosen]
    return found + [Edit(f"{name}_{kind}", tuple(x), kind) for kind in kinds for name, x in chosen]


def additions(sets: Sets, n_sets: int, doses: Sequence[float]) -> list[Edit]:
    """Activity of off-topic text added to other text (sufficiency), in doses; random sets in the first dose."""
    found = [Edit(BASE, ())]
    found += [Edit(f"{DETECTORS}_add_{dose:g}", tuple(sets.detectors), "add", dose) for dose in doses]
    chosen = zip(random_names(n_sets), sets.randoms[:n_sets], strict=False)
    return found + [Edit(f"{name}_add", tuple(x), "add", doses[0]) for name, x in chosen]


def activity_of(scans: Sequence[Scan]) -> Activity:
    """How often and how strongly each latent fires on the response tokens of all these passages."""
    tokens = max(1, sum(scan.tokens for scan in scans))
    fired, summed = (np.sum([getattr(r, name) for r in scans], axis=0) / tokens for name in ("fired", "summed"))
    return Activity(fired, summed, tokens)


def shares_of(scans: Sequence[Scan]) -> Float[np.ndarray, " d_sae"]:
    """Mean share of the steering vector that zero-ablating each latent takes away."""
    return np.mean([scan.share for scan in scans], axis=0)


def matched_sets(
    scans: Sequence[Scan],
    norms: Float[np.ndarray, " d_sae"],
    detectors: Sequence[int],
    excluded: Collection[int],
    n_sets: int,
    seed: int,
) -> list[list[int]]:
    """Random sets matched to detectors in frequency, mean activity, decoder norm and share of the steering vector.

    norms: of the decoder's rows before they were made unit vectors. Shares, which may be negative, are on a scale that
    is linear below the detectors' median and logarithmic above. Sets may share latents.
    """
    shares = shares_of(scans)
    unit = float(np.median(np.abs(shares[list(detectors)]))) or 1.0
    columns = np.column_stack([np.log(np.maximum(norms, 1e-8)), np.arcsinh(shares / unit)])
    return match_random(activity_of(scans), detectors, excluded, n_sets, seed, columns=columns, disjoint=False)


def silent_latents(scans: Sequence[Scan], n: int, excluded: Collection[int], seed: int) -> list[int]:
    """Up to `n` latents that fire on no response token of the passages, drawn by seed; those that come nearest to
    taking nothing from prompts as well come first."""
    fired = np.sum([scan.fired for scan in scans], axis=0)
    shares = np.abs(shares_of(scans)) + np.abs(np.sum([scan.attribution for scan in scans], axis=0))
    free = [int(i) for i in np.random.default_rng(seed).permutation(len(fired)) if fired[i] == 0]
    taken = set(excluded)
    return sorted((i for i in free if i not in taken), key=lambda i: float(shares[i]))[:n]
