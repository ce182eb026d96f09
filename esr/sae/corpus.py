"""The corpus that trains and labels an SAE: concatenated documents and their residuals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from esr.sae.encoding import non_outlier
from esr.storage.files import write_bytes


@dataclass(frozen=True)
class Corpus:
    """Concatenated documents and the residuals of their kept tokens at one layer.

    tokens: ids, without each document's first token, an attention sink (BOS, where there is one).
    starts: index of each document's first token here.
    responses: number of tokens from there to the response.
    prefix: number of leading tokens that all documents share (system turn, opening of the user's turn). Their residuals
        are equal in every document; training and statistics leave them out.
    residuals: of the non-outlier tokens after the prefix; empty when read without a layer.
    where: index in `tokens` of each row of `residuals`; of every token after the prefix when read without a layer.
    """

    tokens: Int[Tensor, " all"]
    starts: Int[Tensor, " documents"]
    responses: Int[Tensor, " documents"]
    prefix: int
    residuals: Float[Tensor, "kept d_model"]
    where: Int[Tensor, " kept"]

    def document_of(self, tokens: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Document index of each token, which is given as an index in `tokens`."""
        return torch.searchsorted(self.starts, tokens, right=True) - 1

    def document(self, i: int) -> list[int]:
        """Token ids of document `i`, without its first."""
        end = self.starts[i + 1] if i + 1 < len(self.starts) else len(self.tokens)
        return self.tokens[self.starts[i] : end].tolist()


def read_corpus(shards: list[Path], layer: int | None = None) -> Corpus:
    """The corpus in shards of `on_policy.write_corpus`; with `layer`, residuals at that layer (bfloat16, in memory).

    Raises ValueError when there is no shard or a shard lacks the layer.
    """
    if not shards:
        raise ValueError("The corpus has no shard: write it first, or check its folder.")
    texts = [_read_shard(path) for path in shards]
    sizes = torch.tensor([0] + [len(t["tokens"]) for t in texts]).cumsum(0)
    tokens = torch.cat([t["tokens"].long() for t in texts])
    starts = torch.cat([t["starts"].long() + offset for t, offset in zip(texts, sizes[:-1], strict=True)])
    prefix = _shared_prefix(tokens, starts)
    position = torch.arange(len(tokens)) - torch.repeat_interleave(starts, starts.diff(append=sizes[-1:]))
    kept = position >= prefix
    residuals = torch.empty(0, 0, dtype=torch.bfloat16)
    if layer is not None:
        for path, begin, end in zip(shards, sizes, sizes[1:], strict=False):
            piece = _read_shard(path, layer)[kept[begin:end]]
            if not residuals.numel():
                residuals = torch.empty(int(kept.sum()), piece.shape[1], dtype=piece.dtype)
            first = int(kept[:begin].sum())
            residuals[first : first + len(piece)] = piece
    responses = torch.cat([t["responses"].long() for t in texts])
    where = kept.nonzero()[:, 0]
    if layer is not None and not (regular := non_outlier(residuals)).all():
        residuals, where = residuals[regular], where[regular]
    return Corpus(tokens, starts, responses, prefix, residuals, where)


def hold_out(corpus: Corpus, n: int) -> tuple[Corpus, Corpus]:
    """The corpus without its last `n` documents, and the last `n`. Raises ValueError when either is empty."""
    if not 0 < n < (total := len(corpus.starts)):
        raise ValueError(f"{n} documents cannot be held out of {total}: choose 1 to {total - 1}.")
    cut = int(corpus.starts[-n])
    kept = corpus.where < cut
    first = Corpus(corpus.tokens[:cut], corpus.starts[:-n], corpus.responses[:-n], corpus.prefix,
                   corpus.residuals[: int(kept.sum())], corpus.where[kept])  # fmt: skip
    last = Corpus(corpus.tokens[cut:], corpus.starts[-n:] - cut, corpus.responses[-n:], corpus.prefix,
                  corpus.residuals[int(kept.sum()) :], corpus.where[~kept] - cut)  # fmt: skip
    return first, last


def read_texts(path: Path) -> Corpus:
    """The corpus without residuals that `write_texts` wrote. Raises FileNotFoundError."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: the stage corpus writes it.")
    return read_corpus([path])


def _read_shard(path: Path, layer: int | None = None):
    with safe_open(path, framework="pt") as shard:
        if layer is None:
            return {name: shard.get_tensor(name) for name in ("tokens", "starts", "responses")}
        names = list(shard.keys())
        if f"residual.{layer}" not in names:
            held = ", ".join(n.removeprefix("residual.") for n in names if n.startswith("residual."))
            raise ValueError(f"{path} has no residuals of layer {layer}; it has layers {held or 'none'}.")
        return shard.get_tensor(f"residual.{layer}")


def _shared_prefix(tokens: Tensor, starts: Tensor) -> int:
    """Number of leading tokens that all documents share; 0 for a single document."""
    n = 0
    while len(starts) > 1 and int(starts.max()) + n < len(tokens) and len(tokens[starts + n].unique()) == 1:
        n += 1
    return n


def batches(
    residuals: Float[Tensor, "n d_model"], batch_size: int, seed: int, first: int = 0
) -> Iterator[Float[Tensor, "batch d_model"]]:
    """Yield shuffled batches without end, in a new order each epoch, from batch `first` on.

    Batch i does not depend on `first`, so a resumed run sees the same batches. Raises ValueError for too few residuals.
    """
    per_epoch = len(residuals) // batch_size
    if not per_epoch:
        raise ValueError(f"batch_size is {batch_size}, but there are only {len(residuals)} tokens to train on.")
    epoch, step = divmod(first, per_epoch)
    while True:
        order = torch.randperm(len(residuals), generator=torch.Generator().manual_seed(seed + epoch))
        for i in range(step, per_epoch):
            yield residuals[order[i * batch_size : (i + 1) * batch_size]].float()
        epoch, step = epoch + 1, 0


def write_texts(corpus: Corpus, path: Path) -> None:
    """Write the corpus without residuals: two bytes a token where they suffice, else four."""
    small = int(corpus.tokens.max()) < 2**16
    texts = {
        "tokens": corpus.tokens.to(torch.uint16 if small else torch.int32),
        "starts": corpus.starts.int(),
        "responses": corpus.responses.short(),
    }
    write_bytes(path, save(texts))
