"""Quality of an SAE: explained variance, L0, dead latents, and cross-entropy with its reconstruction spliced in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from esr.engine.interventions import Capture, Captured, Intervention, Step, apply
from esr.progress import Progress
from esr.sae.corpus import Corpus
from esr.sae.encoding import encoded, non_outlier


def explained_variance(sae, residuals: Float[Tensor, "n d_model"]) -> float:
    """1 - sum |x - reconstruction|^2 / sum |x - mean(x)|^2 over all tokens."""
    mean = residuals.float().mean(0)
    missed = total = 0.0
    for x, acts in encoded(sae, residuals):
        missed += float((x - sae.decode(acts).float()).pow(2).sum())
        total += float((x - mean.to(x.device)).pow(2).sum())
    return 1 - missed / total


def l0(sae, residuals: Float[Tensor, "n d_model"]) -> float:
    """Mean number of active latents per token."""
    return sum(int((acts > 0).sum()) for _, acts in encoded(sae, residuals)) / len(residuals)


def dead_fraction(sae, residuals: Float[Tensor, "n d_model"]) -> float:
    """Share of latents that fire on none of the tokens. Rare latents look dead when there are few tokens."""
    fires = torch.zeros(sae.W_dec.shape[0], dtype=torch.bool, device=sae.W_dec.device)
    for _, acts in encoded(sae, residuals):
        fires |= (acts > 0).any(0)
    return 1 - float(fires.float().mean())


@dataclass
class Rewrite:
    """Replaces the residual of each real token by `function(residual)`."""

    layer: int
    function: Callable[[Float[Tensor, "n d_model"]], Float[Tensor, "n d_model"]]

    def edit(self, hidden, step):
        edited = hidden.clone()
        edited[step.real] = self.function(hidden[step.real]).to(hidden.dtype)
        return edited

    def prompt_key(self, trial):
        return None


def spliced_cross_entropy(
    model, sae, layer: int, documents: list[list[int]], prefix: int, first: int, batch_size: int = 16
) -> dict[str, float]:
    """Mean cross-entropy (nats per token) of the model with and without the SAE at `layer`.

    clean: the model; spliced: the layer's output replaced by the SAE's reconstruction; zeroed: replaced by zeros;
    recovered: (zeroed - spliced) / (zeroed - clean). The first token and the shared `prefix` tokens are neither edited
    nor counted, as in training. documents: token ids, without `first`, the first of each.
    """

    def reconstruct(residuals):
        with torch.autocast(residuals.device.type, enabled=False):
            return sae(residuals.float())

    conditions: dict[str, list[Rewrite]] = {
        "clean": [],
        "spliced": [Rewrite(layer, reconstruct)],
        "zeroed": [Rewrite(layer, torch.zeros_like)],
    }
    progress = Progress("cross-entropy", len(documents) * len(conditions), "documents")
    losses = {}
    done = tokens = 0
    for name, interventions in conditions.items():
        total, n = 0.0, 0
        for begin in range(0, len(documents), batch_size):
            part = documents[begin : begin + batch_size]
            loss, count = _cross_entropy(model, part, prefix, first, interventions)
            total, n, done, tokens = total + loss, n + count, done + len(part), tokens + count
            progress.update(done, tokens, force=done == len(documents) * len(conditions))
        losses[name] = total / n
    losses["recovered"] = (losses["zeroed"] - losses["spliced"]) / (losses["zeroed"] - losses["clean"])
    return losses


def _cross_entropy(
    model, documents, prefix: int, first: int, interventions: Sequence[Intervention]
) -> tuple[float, int]:
    """Summed loss and number of tokens after the prefix whose predecessor is edited too."""
    ids, mask = _padded(model, documents, prefix, first)
    step = _step(mask)
    with torch.inference_mode(), apply(model, interventions, step):
        logits = model(input_ids=ids).logits[:, :-1]
    counted = mask[:, 1:] & mask[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits[counted].float(), ids[:, 1:][counted], reduction="sum")
    return float(loss), int(counted.sum())


def _step(mask: Bool[Tensor, "rows seq"]) -> Step:
    """The pass over documents with this mask of tokens after the prefix."""
    positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    return Step(trials=torch.arange(len(mask)), real=mask, response=mask, positions=positions)


def _padded(model, documents, prefix: int, first: int):
    """Token ids with `first` first and right padding (causal attention ignores it); mask of tokens after the prefix."""
    width = 1 + max(map(len, documents))
    ids = torch.full((len(documents), width), first, device=model.device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, document in enumerate(documents):
        ids[row, 1 : 1 + len(document)] = torch.tensor(document)
        mask[row, 1 + prefix : 1 + len(document)] = True
    return ids, mask


def document_residuals(
    model, layer: int, documents: list[list[int]], prefix: int, first: int, batch_size: int = 16
) -> Float[Tensor, "n d_model"]:
    """Residuals of the non-outlier tokens after the prefix, as `read_corpus` gives them, without shards."""
    residuals = _residuals(model, layer, documents, prefix, first, batch_size)
    return residuals[non_outlier(residuals)]


def with_residuals(corpus: Corpus, model, layer: int, first: int) -> Corpus:
    """`corpus` with the residuals at `layer` that it was read without (bfloat16, in memory)."""
    documents = [corpus.document(i) for i in range(len(corpus.starts))]
    residuals = _residuals(model, layer, documents, corpus.prefix, first, 16).bfloat16()
    regular = non_outlier(residuals)
    return replace(corpus, residuals=residuals[regular], where=corpus.where[regular])


def _residuals(model, layer: int, documents, prefix: int, first: int, batch_size: int) -> Float[Tensor, "n d_model"]:
    pieces: list[Tensor] = []
    progress = Progress("residuals", len(documents), "documents")
    for begin in range(0, len(documents), batch_size):
        ids, mask = _padded(model, documents[begin : begin + batch_size], prefix, first)
        step = _step(mask)
        capture = Capture(layer, leave=True)
        with torch.inference_mode(), suppress(Captured), apply(model, [capture], step):
            model.model(input_ids=ids)
        pieces += [capture.residuals(row).cpu() for row in sorted(capture.pieces)]
        progress.update(min(begin + batch_size, len(documents)), int(mask.sum()))
    return torch.cat(pieces)


def quality(sae, model, layer: int, test: Corpus, first: int, seen: Float[Tensor, "n d_model"]) -> dict[str, float]:
    """Reported metrics on the held-out documents `test`; dead latents on the training residuals `seen`."""
    documents = [test.document(i) for i in range(len(test.starts))]
    losses = spliced_cross_entropy(model, sae, layer, documents, test.prefix, first)
    return {
        "explained_variance": explained_variance(sae, test.residuals),
        "l0": l0(sae, test.residuals),
        "dead_fraction": dead_fraction(sae, seen),
        "cross_entropy_clean": losses["clean"],
        "cross_entropy_spliced": losses["spliced"],
        "cross_entropy_zeroed": losses["zeroed"],
        "recovered": losses["recovered"],
    }
