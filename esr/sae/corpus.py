"""The corpus an SAE is trained and labelled on: documents one after the other, and their residuals."""

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
    """Documents one after the other, and the residuals of their own tokens at one layer.

    tokens: ids; a document begins at each of `starts` and its answer `answers` tokens later.
    prefix: leading tokens all documents share (system turn, opening of the user's turn). They pass the same residuals
        in every document, so they are left out of training and statistics.
    residuals: those of the other `non_outlier` tokens; `where` says which tokens these are. Empty when no layer
        was asked for.
    """

    tokens: Int[Tensor, " all"]
    starts: Int[Tensor, " documents"]
    responses: Int[Tensor, " documents"]
    prefix: int
    residuals: Float[Tensor, "own d_model"]
    where: Int[Tensor, " own"]

    def document_of(self, tokens: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Index of the document each token (an index into `tokens`) belongs to."""
        return torch.searchsorted(self.starts, tokens, right=True) - 1

    def document(self, i: int) -> list[int]:
        """Token ids of document `i`, without BOS."""
        end = self.starts[i + 1] if i + 1 < len(self.starts) else len(self.tokens)
        return self.tokens[self.starts[i] : end].tolist()


def read_corpus(shards: list[Path], layer: int | None = None) -> Corpus:
    """Read shards as `corpus.write_documents` left them; with `layer`, the residuals at that layer (bf16, in memory).

    Raises ValueError when there is no shard, or none of that layer.
    """
    if not shards:
        raise ValueError("The corpus has no shard: write it first, or check its folder.")
    texts = [_read_shard(path) for path in shards]
    sizes = torch.tensor([0] + [len(t["tokens"]) for t in texts]).cumsum(0)
    tokens = torch.cat([t["tokens"].long() for t in texts])
    starts = torch.cat([t["starts"].long() + offset for t, offset in zip(texts, sizes[:-1], strict=True)])
    prefix = _shared_prefix(tokens, starts)
    position = torch.arange(len(tokens)) - torch.repeat_interleave(starts, starts.diff(append=sizes[-1:]))
    own = position >= prefix
    residuals = torch.empty(0, 0, dtype=torch.bfloat16)
    if layer is not None:
        for path, begin, end in zip(shards, sizes, sizes[1:], strict=False):
            piece = _read_shard(path, layer)[own[begin:end]]
            if not residuals.numel():
                residuals = torch.empty(int(own.sum()), piece.shape[1], dtype=piece.dtype)
            first = int(own[:begin].sum())
            residuals[first : first + len(piece)] = piece
    responses = torch.cat([t["responses"].long() for t in texts])
    where = own.nonzero()[:, 0]
    if layer is not None and not (usual := non_outlier(residuals)).all():
        residuals, where = residuals[usual], where[usual]
    return Corpus(tokens, starts, responses, prefix, residuals, where)


def hold_out(corpus: Corpus, n: int) -> tuple[Corpus, Corpus]:
    """The corpus without its last `n` documents, and those alone. Raises ValueError when that leaves none."""
    if not 0 < n < len(corpus.starts):
        raise ValueError(f"{n} documents cannot be held out of {len(corpus.starts)}: ask for 1 to that many less one.")
    cut = int(corpus.starts[-n])
    kept = corpus.where < cut
    first = Corpus(corpus.tokens[:cut], corpus.starts[:-n], corpus.responses[:-n], corpus.prefix,
                   corpus.residuals[: int(kept.sum())], corpus.where[kept])  # fmt: skip
    last = Corpus(corpus.tokens[cut:], corpus.starts[-n:] - cut, corpus.responses[-n:], corpus.prefix,
                  corpus.residuals[int(kept.sum()) :], corpus.where[~kept] - cut)  # fmt: skip
    return first, last


def read_texts(path: Path) -> Corpus:
    """The corpus without residuals, as `write_texts` left it."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: the stage train_sae writes it.")
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
    """Number of leading tokens that are the same in all documents."""
    n = 0
    while len(starts) > 1 and int(starts.max()) + n < len(tokens) and len(tokens[starts + n].unique()) == 1:
        n += 1
    return n


def batches(
    residuals: Float[Tensor, "n d_model"], batch_size: int, seed: int, first: int = 0
) -> Iterator[Float[Tensor, "batch d_model"]]:
    """Shuffled residuals without end, every epoch in a new order; batch i is the same in a resumed run."""
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
    """Write the corpus without its residuals, two bytes a token: the text that contexts refer to."""
    if int(corpus.tokens.max()) >= 2**16:
        raise ValueError("A token id needs more than two bytes: a vocabulary of at most 65,536 is supported here.")
    texts = {
        "tokens": corpus.tokens.to(torch.uint16),
        "starts": corpus.starts.int(),
        "responses": corpus.responses.short(),
    }
    write_bytes(path, save(texts))
