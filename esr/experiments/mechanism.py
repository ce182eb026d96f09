"""Propensity of many passages under many edits, in worker processes: a passage is read once for all of its edits.

Chunks are cached as those of generation are (esr.engine.workers).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from esr.config.registry import model_entry, required
from esr.engine.activations import Document
from esr.engine.interventions import LatentSubset
from esr.engine.workers import ChunkFunction, Report, Workers, split
from esr.experiments.attribution import attribution
from esr.experiments.latent_edits import Edit, Reference, edited, removed, share_of_vector
from esr.experiments.propensity import Cached, Passage, UpperLayers, plain_documents, sampled_probability
from esr.experiments.restart_phrases import openers
from esr.models.loading import resident_model
from esr.sae.loading import load_latent_subset
from esr.steering.activations import edits_of
from esr.steering.provenance import training_provenance
from esr.steering.strength import sae_norm

PER_CHUNK = 2  # passages: small enough that two workers finish together


@dataclass(frozen=True)
class Scan:
    """One passage without edits.

    log_odds: restart propensity at its sentence ends. sampled: the probability that sampling opens a restart there,
    with temperature and repetition penalty. attribution: `esr.experiments.attribution`. fired, summed: over `tokens`
    response tokens but sinks, on how many each latent fires and its summed activation. share: of the steering vector
    that zero-ablating each latent takes away, mean over all tokens but sinks.
    """

    log_odds: Float[np.ndarray, " ends"]
    sampled: Float[np.ndarray, " ends"]
    attribution: Float[np.ndarray, " d_sae"]
    fired: Float[np.ndarray, " d_sae"]
    summed: Float[np.ndarray, " d_sae"]
    share: Float[np.ndarray, " d_sae"]
    tokens: int


@dataclass(frozen=True)
class Measured:
    """One passage under its edits, in their order. share: of the steering vector that each takes away."""

    log_odds: Float[np.ndarray, "edits ends"]
    share: Float[np.ndarray, " edits"]


@dataclass(frozen=True)
class Costs:
    """One passage's means over response tokens under its edits: KL divergence of the next-token distribution from the
    unedited one, and the rise of the cross-entropy, nats."""

    kl: Float[np.ndarray, " edits"]
    cross_entropy_rise: Float[np.ndarray, " edits"]


@dataclass(frozen=True)
class References:
    """Mean activities by latent that edits of the kinds mean and add need, and for resampling each passage's donor."""

    on_topic: dict[int, float]
    off_topic: dict[int, float]
    donors: Sequence[Passage]

    @classmethod
    def of(cls, edits, on_topic, off_topic, donors: Sequence[Passage]) -> References:
        """Of the latents that `edits` (lists of edits) replace or add. on_topic, off_topic: means of all latents."""
        named = sorted({x for chosen in edits for e in chosen if e.kind in ("mean", "add") for x in e.latents})
        on, off = ({latent: float(values[latent]) for latent in named} for values in (on_topic, off_topic))
        return cls(on, off, donors)

    def content(self, index: int) -> dict[str, Any]:
        means = {name: {str(k): v for k, v in getattr(self, name).items()} for name in ("on_topic", "off_topic")}
        return means | {"donor": self.donors[index].as_json()}


def read(model_id: str, passages: Sequence[Passage], temperature: float, workers: Workers) -> list[Scan]:
    """The passages without edits. temperature: of sampling, for `Scan.sampled`."""
    penalty = model_entry(model_id).sampling.repetition_penalty
    rows = [{"passage": p.as_json(), "temperature": temperature, "penalty": penalty} for p in passages]
    found: list[Scan] = []
    for content in _run(read_chunk, model_id, rows, workers, "propensity"):
        tensors = load(content)
        for i in range(int(tensors["n"])):
            fields = {name: tensors[f"{i}.{name}"].numpy() for name in Scan.__dataclass_fields__ if name != "tokens"}
            found.append(Scan(**fields, tokens=int(tensors[f"{i}.tokens"])))
    return found


def measure(
    model_id: str,
    passages: Sequence[Passage],
    edits: Sequence[Sequence[Edit]],
    workers: Workers,
    references: References | None = None,
    what: str = "ablations",
) -> list[Measured]:
    """Each passage under its own list of edits. The model may be another than the one that wrote the passages."""
    contents = _run(measure_chunk, model_id, _rows(passages, edits, references), workers, what)
    found = [row for content in contents for row in json.loads(content)]
    return [Measured(np.array(row["log_odds"]), np.array(row["share"])) for row in found]


def costs(
    model_id: str,
    passages: Sequence[Passage],
    edits: Sequence[Sequence[Edit]],
    workers: Workers,
    references: References | None = None,
) -> list[Costs]:
    """What each passage's edits cost the model on it."""
    contents = _run(cost_chunk, model_id, _rows(passages, edits, references), workers, "costs")
    found = [row for content in contents for row in json.loads(content)]
    return [Costs(np.array(row["kl"]), np.array(row["cross_entropy_rise"])) for row in found]


def _rows(passages, edits, references: References | None) -> list[dict]:
    return [
        {"passage": p.as_json(), "edits": [asdict(e) for e in chosen]}
        | {"reference": references.content(i) if references else None}
        for i, (p, chosen) in enumerate(zip(passages, edits, strict=True))
    ]


def _run(function: ChunkFunction, model_id: str, rows: Sequence[dict], workers: Workers, what: str) -> list[bytes]:
    fixed = {"model": model_id, "provenance": training_provenance(model_id)}
    chunks = [fixed | {"rows": list(part)} for part in split(rows, PER_CHUNK)]
    files = workers.map(function, chunks, what=what, items=[len(c["rows"]) for c in chunks], item="passages")
    return [file.read_bytes() for file in files]


class PassageModel:
    """What a worker reads passages with."""

    def __init__(self, model_id: str):
        self.model, self.tokenizer = resident_model(model_id)
        layer = required(model_entry(model_id).sae_layer, model_id, "sae")
        norm = sae_norm(model_id)
        assert norm is not None  # a model with an SAE has one
        # A tokenizer that spells every word opens restarts with the first letters of the words
        tokens = openers(self.tokenizer) or openers(self.tokenizer, min_letters=1)
        self.upper = UpperLayers(self.model, tokens, layer, norm)

    def document(self, passage: Passage) -> Document:
        return plain_documents([passage], self.tokenizer)[0]

    def cache(self, passage: Passage) -> Cached:
        edits = edits_of([passage.trial], self.model.device)
        return self.upper.cache(self.document(passage), passage.ends, edits)

    def vector(self, passage: Passage) -> Float[Tensor, " d_model"]:
        """The passage's steering vector; 0 without steering."""
        vectors = [e.vectors[0] for e in edits_of([passage.trial], self.model.device) if e.vectors is not None]
        return vectors[0].float() if vectors else torch.zeros(self.model.config.hidden_size, device=self.model.device)


def read_chunk(content: dict, report: Report) -> bytes:
    """`Scan`s of a chunk as tensors. Runs in a worker, which keeps its model between chunks."""
    runner = PassageModel(content["model"])
    subset = _whole_sae(content["model"])
    tensors: dict[str, Tensor] = {"n": torch.tensor(len(content["rows"]))}
    for i, row in enumerate(content["rows"]):
        found = _read(runner, subset, Passage.of_json(row["passage"]), row["temperature"], row["penalty"])
        tensors |= {f"{i}.{name}": value.cpu().contiguous() for name, value in found.items()}
        report(1, len(row["passage"]["trial"]["tokens"]))
    return save(tensors)


def _read(runner: PassageModel, subset: LatentSubset, passage: Passage, temperature: float, penalty: float) -> dict:
    upper, document, cached = runner.upper, runner.document(passage), runner.cache(passage)
    tokens = [*document.prompt, *document.response]
    with torch.no_grad():
        logits = upper.logits(cached.hidden[None], cached.places)[0]
        seen = [tokens[: place + 1] for place in cached.places]
        sampled = sampled_probability(logits, upper.openers, seen, temperature, penalty)
        log_odds = upper.log_odds(cached.hidden[None], cached.places)[0]
        activity = subset.activations(cached.hidden) * ~cached.sinks[:, None]
        vector = runner.vector(passage)
        along = subset.decoder @ vector / vector.dot(vector) if bool(vector.any()) else torch.zeros(len(subset.latents))
        in_response = activity[len(document.prompt) :]
    return {
        "log_odds": log_odds, "sampled": sampled, "attribution": attribution(upper, cached, subset),
        "fired": (in_response > 0).sum(0).float(), "summed": in_response.sum(0),
        "share": activity.sum(0) * along.to(activity.device) / (~cached.sinks).sum().clamp(min=1),
        "tokens": (~cached.sinks[len(document.prompt) :]).sum(),
    }  # fmt: skip


def measure_chunk(content: dict, report: Report) -> bytes:
    """`Measured` of a chunk as JSON rows."""
    runner, subset = PassageModel(content["model"]), _subset_of(content)
    found = []
    for row in content["rows"]:
        passage, edits = Passage.of_json(row["passage"]), _edits(row)
        cached, vector = runner.cache(passage), runner.vector(passage)
        reference = _reference(runner, subset, row["reference"])
        with torch.no_grad():
            taken = [removed(edit, cached.hidden, cached.sinks, subset, reference) for edit in edits]
            rows = torch.stack([(cached.hidden.float() - part).to(cached.hidden.dtype) for part in taken])
            log_odds = runner.upper.log_odds(rows, cached.places)
            share = [share_of_vector(part, cached.sinks, vector) for part in taken]
        found.append({"log_odds": log_odds.tolist(), "share": share})
        report(1, len(edits) * len(cached.hidden))
    return json.dumps(found).encode()


def cost_chunk(content: dict, report: Report) -> bytes:
    """`Costs` of a chunk as JSON rows."""
    runner, subset = PassageModel(content["model"]), _subset_of(content)
    found = []
    for row in content["rows"]:
        passage, edits = Passage.of_json(row["passage"]), _edits(row)
        document, cached = runner.document(passage), runner.cache(passage)
        reference = _reference(runner, subset, row["reference"])
        places = range(len(document.prompt) - 1, len(document) - 1)
        targets = torch.tensor(document.response, device=runner.model.device)[:, None]
        with torch.no_grad():
            clean = runner.upper.logits(cached.hidden[None], places)[0].log_softmax(-1)
            kl, rise = [], []
            for edit in edits:
                rows = edited([edit], cached.hidden, cached.sinks, subset, reference)
                other = runner.upper.logits(rows, places)[0].log_softmax(-1)
                kl.append(float((clean.exp() * (clean - other)).sum(-1).mean()))
                rise.append(float((clean - other).gather(1, targets).mean()))
        found.append({"kl": kl, "cross_entropy_rise": rise})
        report(1, len(edits) * len(cached.hidden))
    return json.dumps(found).encode()


def _edits(row: dict) -> list[Edit]:
    return [Edit(**fields | {"latents": tuple(fields["latents"])}) for fields in row["edits"]]


def _subset_of(content: dict) -> LatentSubset:
    """Every latent that an edit of the chunk names."""
    named = {latent for row in content["rows"] for edit in row["edits"] for latent in edit["latents"]}
    return load_latent_subset(content["model"], sorted(named))


@lru_cache(maxsize=1)
def _whole_sae(model_id: str) -> LatentSubset:
    n_latents = required(model_entry(model_id).d_sae, model_id, "sae")
    return load_latent_subset(model_id, range(n_latents))


def _reference(runner: PassageModel, subset: LatentSubset, fields: dict | None) -> Reference | None:
    if fields is None:
        return None
    means = {
        name: torch.tensor([fields[name].get(str(latent), 0.0) for latent in subset.latents])
        for name in ("on_topic", "off_topic")
    }
    cached = runner.cache(Passage.of_json(fields["donor"]))
    donor = subset.activations(cached.hidden[~cached.sinks])
    return Reference(**{name: mean.to(donor.device) for name, mean in means.items()}, donor=donor)
