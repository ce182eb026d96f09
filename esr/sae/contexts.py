"""The strongest contexts of each latent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save
from torch import Tensor

from esr.config.registry import model_entry
from esr.paths import ROOT
from esr.progress import Progress
from esr.sae.corpus import Corpus
from esr.sae.encoding import encoded, median_norm
from esr.storage.files import write_bytes

ACTIVATIONS = 64 * 256 * 4608  # held at once, 300 MB: 64 documents of 256 tokens with 4,608 latents


@dataclass(frozen=True)
class Contexts:
    """Row j of each array holds latent j's strongest tokens, strongest first, at most one per document.

    activation: 0 where the latent has fewer tokens. document: index of the document. position: token index within it.
    density: share of the corpus residuals on which the latent fires. median_norm, tokens: of these residuals.
    """

    activation: Float[Tensor, "d_sae per_latent"]
    document: Int[Tensor, "d_sae per_latent"]
    position: Int[Tensor, "d_sae per_latent"]
    density: Float[Tensor, " d_sae"]
    median_norm: float
    tokens: int


def strongest_contexts(sae, corpus: Corpus, per_latent: int = 24, documents_at_once: int | None = None) -> Contexts:
    """Strongest tokens of each latent, at most one per document.

    documents_at_once bounds the memory; by default as many as make `ACTIVATIONS` of documents of 256 tokens.
    """
    d_sae, n_documents = sae.W_dec.shape[0], len(corpus.starts)
    documents_at_once = documents_at_once or max(1, ACTIVATIONS // (256 * d_sae))
    best = [torch.zeros(0, d_sae), torch.zeros(0, d_sae, dtype=torch.long)]
    fired = torch.zeros(d_sae)
    progress = Progress("contexts", n_documents, "documents")
    owner = corpus.document_of(corpus.where)
    borders = torch.searchsorted(owner, torch.arange(n_documents + 1))
    for first in range(0, n_documents, documents_at_once):
        begin, end = int(borders[first]), int(borders[min(first + documents_at_once, n_documents)])
        if begin < end:
            acts = torch.cat([a.float().cpu() for _, a in encoded(sae, corpus.residuals[begin:end])])
            fired += (acts > 0).sum(0)
            counts = [n for n in borders[first : first + documents_at_once + 1].diff().tolist() if n]
            peaks = [piece.max(0) for piece in acts.split(counts)]
            offsets = torch.tensor([0, *counts]).cumsum(0)[:-1] + begin
            found = [torch.stack([p.values for p in peaks]), torch.stack([p.indices for p in peaks]) + offsets[:, None]]
            both = [torch.cat(pair) for pair in zip(best, found, strict=True)]
            top = both[0].topk(min(per_latent, len(both[0])), dim=0)
            best = [top.values, both[1].gather(0, top.indices)]
        done = min(first + documents_at_once, n_documents)
        progress.update(done, end, force=done == n_documents)
    activation, place = best[0].T.contiguous(), corpus.where[best[1].T]
    document = corpus.document_of(place.flatten()).reshape(place.shape)
    n = len(corpus.residuals)
    position = place - corpus.starts[document]
    return Contexts(activation, document, position, fired / n, median_norm(corpus.residuals), n)


def trained_folder(model_id: str) -> Path | None:
    """Folder of an SAE that was trained here, with its contexts and training.json; None for another SAE.

    Its contexts are places in the corpus it was trained on: they serve an entry whose `corpus` is that one alone.
    """
    entry = model_entry(model_id)
    folder = ROOT / entry.sae.path if entry.sae and entry.sae.kind == "folder" else None
    if folder is None or entry.corpus is None or ROOT / entry.corpus != folder / "corpus.safetensors":
        return None
    return folder if (folder / "contexts.safetensors").exists() else None


def write_contexts(contexts: Contexts, path: Path) -> None:
    """Write one safetensors file, arrays in small dtypes.

    Scalars are tensors, too: safetensors writes its metadata in another order each time, and DVC goes by bytes.
    """
    arrays = {
        # float16 ends at 65,504; an infinity beyond it would make NaN of what is computed from activations
        "activation": contexts.activation.clamp(max=torch.finfo(torch.float16).max).half(),
        "document": contexts.document.int(),
        "position": contexts.position.short(),
        "density": contexts.density.float(),
        "median_norm": torch.tensor(contexts.median_norm, dtype=torch.float64),
        "tokens": torch.tensor(contexts.tokens),
    }
    write_bytes(path, save({k: v.contiguous() for k, v in arrays.items()}))


def read_contexts(path: Path) -> Contexts:
    """Contexts that `write_contexts` wrote. Raises FileNotFoundError, or ValueError for an earlier version's file."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: the stage sae writes it.")
    arrays = load_file(path)
    if "median_norm" not in arrays:
        raise ValueError(
            f"{path} was written by an earlier version: run the stage that writes it again, sae or train_sae."
        )
    return Contexts(
        arrays["activation"].float(),
        arrays["document"].long(),
        arrays["position"].long(),
        arrays["density"],
        float(arrays["median_norm"]),
        int(arrays["tokens"]),
    )
