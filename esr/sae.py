"""The residuals an SAE is trained on, how good it is, its files, and the contexts in which its latents fire.

One convention throughout: decoder rows have unit norm, so a latent's activation is a length in the residual stream,
and a boost of 1 adds a vector as long as the median residual (BOS and the template's prefix left out).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from esr.interventions import Intervention, Step, apply
from esr.models import compute_dtype
from esr.progress import Progress
from esr.records import write_bytes, write_text

BATCH = 4096  # tokens encoded at once


@dataclass(frozen=True)
class Corpus:
    """Documents one after the other, and the residuals of their own tokens at one layer.

    tokens: ids; a document begins at each of `starts` and its answer `answers` tokens later.
    prefix: leading tokens all documents share (system turn, opening of the user's turn). They pass the same residuals
        in every document, so they are left out of training and statistics.
    residuals: those of the other tokens that are `ordinary`; `where` says which tokens these are. Empty when no layer
        was asked for.
    """

    tokens: Int[Tensor, " all"]
    starts: Int[Tensor, " documents"]
    answers: Int[Tensor, " documents"]
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
    answers = torch.cat([t["answers"].long() for t in texts])
    where = own.nonzero()[:, 0]
    if layer is not None and not (usual := ordinary(residuals)).all():
        residuals, where = residuals[usual], where[usual]
    return Corpus(tokens, starts, answers, prefix, residuals, where)


def hold_out(corpus: Corpus, n: int) -> tuple[Corpus, Corpus]:
    """The corpus without its last `n` documents, and those alone. Raises ValueError when that leaves none."""
    if not 0 < n < len(corpus.starts):
        raise ValueError(f"{n} documents cannot be held out of {len(corpus.starts)}: ask for 1 to that many less one.")
    cut = int(corpus.starts[-n])
    kept = corpus.where < cut
    first = Corpus(corpus.tokens[:cut], corpus.starts[:-n], corpus.answers[:-n], corpus.prefix,
                   corpus.residuals[: int(kept.sum())], corpus.where[kept])  # fmt: skip
    last = Corpus(corpus.tokens[cut:], corpus.starts[-n:] - cut, corpus.answers[-n:], corpus.prefix,
                  corpus.residuals[int(kept.sum()) :], corpus.where[~kept] - cut)  # fmt: skip
    return first, last


def read_texts(path: Path) -> Corpus:
    """The corpus without residuals, as `write_texts` left it."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: the stage train_sae writes it.")
    return read_corpus([path])


def ordinary(residuals: Float[Tensor, "n d_model"]) -> Bool[Tensor, " n"]:
    """Where residuals are at most four times as long as the median.

    A model that writes `<|endoftext|>` into an answer gives it a residual as huge as BOS's (here 80 medians): one such
    token outweighs thousands in explained variance, and is the strongest context of many latents.
    """
    norms = torch.cat([batch.float().norm(dim=-1) for batch in residuals.split(BATCH)])
    return norms <= 4 * norms.median()


def _read_shard(path: Path, layer: int | None = None):
    with safe_open(path, framework="pt") as shard:
        if layer is None:
            return {name: shard.get_tensor(name) for name in ("tokens", "starts", "answers")}
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
        "answers": corpus.answers.short(),
    }
    write_bytes(path, save(texts))


def save_sae(sae, folder: Path) -> None:
    """Write a trained BatchTopK SAE as SAELens' JumpReLU SAE, weights in bfloat16, decoder rows of unit norm.

    `SAE.load_from_disk(folder)` reads it, into float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights_path, config_path = sae.save_inference_model(folder)
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in load_file(weights_path).items()}
    write_bytes(Path(weights_path), save(weights))
    config = json.loads(Path(config_path).read_text())
    write_text(Path(config_path), json.dumps(config, indent=1, sort_keys=True) + "\n")


def encoded(sae, residuals: Tensor) -> Iterator[tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch d_sae"]]]:
    """Residuals and latents' activations, batch by batch; products in the compute dtype, sums in float32."""
    device, fast = sae.W_dec.device, compute_dtype() == torch.bfloat16
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast):
        for batch in residuals.split(BATCH):
            batch = batch.float().to(device)
            yield batch, sae.encode(batch)


def explained_variance(sae, residuals: Float[Tensor, "n d_model"]) -> float:
    """1 - sum |x - reconstruction|^2 / sum |x - mean(x)|^2 over all tokens: the mean is no merit of the SAE."""
    mean = residuals.float().mean(0)
    missed = total = 0.0
    for x, acts in encoded(sae, residuals):
        missed += float((x - sae.decode(acts).float()).pow(2).sum())
        total += float((x - mean.to(x.device)).pow(2).sum())
    return 1 - missed / total


def l0(sae, residuals: Float[Tensor, "n d_model"]) -> float:
    """Active latents per token, on average."""
    return sum(int((acts > 0).sum()) for _, acts in encoded(sae, residuals)) / len(residuals)


def dead_fraction(sae, residuals: Float[Tensor, "n d_model"]) -> float:
    """Share of latents that fire on none of the tokens. Say how many tokens: rare latents look dead in few."""
    fires = torch.zeros(sae.W_dec.shape[0], dtype=torch.bool, device=sae.W_dec.device)
    for _, acts in encoded(sae, residuals):
        fires |= (acts > 0).any(0)
    return 1 - float(fires.float().mean())


def median_norm(residuals: Float[Tensor, "n d_model"]) -> float:
    """Median length of a residual: the unit of boosts."""
    return float(torch.cat([batch.float().norm(dim=-1) for batch in residuals.split(BATCH)]).median())


@dataclass
class Rewrite:
    """Put `function(residual)` in the place of each real token's residual."""

    layer: int
    function: Callable[[Float[Tensor, "n d_model"]], Float[Tensor, "n d_model"]]

    def edit(self, hidden, step):
        edited = hidden.clone()
        edited[step.real] = self.function(hidden[step.real]).to(hidden.dtype)
        return edited


def spliced_cross_entropy(
    model, sae, layer: int, documents: list[list[int]], prefix: int, batch_size: int = 16
) -> dict[str, float]:
    """What the reconstruction costs the model: mean cross-entropy (nats a token) of the documents' own tokens.

    clean: as the model is; spliced: the SAE's reconstruction instead of the layer's output; zeroed: nothing instead of
    it; recovered: share of the loss between zeroed and clean that the reconstruction keeps. BOS and the `prefix` tokens
    all documents share are left alone, as in training. documents: token ids, without BOS.
    """

    def reconstruct(residuals):
        with torch.autocast(residuals.device.type, enabled=False):
            return sae(residuals.float())

    conditions = {
        "clean": [],
        "spliced": [Rewrite(layer, reconstruct)],
        "zeroed": [Rewrite(layer, torch.zeros_like)],
    }
    progress = Progress("cross-entropy", len(documents) * len(conditions), "documents")
    losses = {}
    done = tokens = 0
    for name, interventions in conditions.items():
        total = n = 0
        for first in range(0, len(documents), batch_size):
            part = documents[first : first + batch_size]
            loss, count = _cross_entropy(model, part, prefix, interventions)
            total, n, done, tokens = total + loss, n + count, done + len(part), tokens + count
            progress.update(done, tokens, force=done == len(documents) * len(conditions))
        losses[name] = total / n
    losses["recovered"] = (losses["zeroed"] - losses["spliced"]) / (losses["zeroed"] - losses["clean"])
    return losses


def _cross_entropy(model, documents, prefix: int, interventions: list[Intervention]) -> tuple[float, int]:
    """Summed loss and number of the documents' tokens after the first own one; what predicts them is edited."""
    ids, own = _padded(model, documents, prefix)
    step = Step(trials=torch.arange(len(ids)), real=own, answer=own)
    with torch.inference_mode(), apply(model, interventions, step):
        logits = model(input_ids=ids).logits[:, :-1]
    counted = own[:, 1:] & own[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits[counted].float(), ids[:, 1:][counted], reduction="sum")
    return float(loss), int(counted.sum())


def _padded(model, documents, prefix: int):
    """Documents with BOS before and padding behind (unseen by a causal model), and where their own tokens are."""
    width = 1 + max(map(len, documents))
    ids = torch.full((len(documents), width), model.config.bos_token_id, device=model.device)
    own = torch.zeros_like(ids, dtype=torch.bool)
    for row, document in enumerate(documents):
        ids[row, 1 : 1 + len(document)] = torch.tensor(document)
        own[row, 1 + prefix : 1 + len(document)] = True
    return ids, own


def document_residuals(
    model, layer: int, documents: list[list[int]], prefix: int, batch_size: int = 16
) -> Float[Tensor, "n d_model"]:
    """Residuals of the documents' own tokens, in order, as `read_corpus` has them: for when shards are not at hand."""
    pieces: list[Tensor] = []

    def keep(residuals):
        pieces.append(residuals.cpu())
        return residuals

    for first in range(0, len(documents), batch_size):
        ids, own = _padded(model, documents[first : first + batch_size], prefix)
        step = Step(trials=torch.arange(len(ids)), real=own, answer=own)
        with torch.inference_mode(), apply(model, [Rewrite(layer, keep)], step):
            model.model(input_ids=ids)
    residuals = torch.cat(pieces)
    return residuals[ordinary(residuals)]


def quality(sae, model, layer: int, test: Corpus, seen: Float[Tensor, "n d_model"]) -> dict[str, float]:
    """What is reported of an SAE: on held-out documents `test`, but dead latents on many training residuals `seen`."""
    losses = spliced_cross_entropy(model, sae, layer, [test.document(i) for i in range(len(test.starts))], test.prefix)
    return {
        "explained_variance": explained_variance(sae, test.residuals),
        "l0": l0(sae, test.residuals),
        "dead_fraction": dead_fraction(sae, seen),
        "cross_entropy_clean": losses["clean"],
        "cross_entropy_spliced": losses["spliced"],
        "cross_entropy_zeroed": losses["zeroed"],
        "recovered": losses["recovered"],
    }


@dataclass(frozen=True)
class Contexts:
    """Where latents fire. Row j of each array holds latent j's strongest tokens, strongest first, one per document.

    activation: 0 where the latent has fewer. document, position: of the token (position from the document's start).
    density: share of own tokens it fires on. median_norm: of the residuals. tokens: own tokens looked at.
    """

    activation: Float[Tensor, "d_sae per_latent"]
    document: Int[Tensor, "d_sae per_latent"]
    position: Int[Tensor, "d_sae per_latent"]
    density: Float[Tensor, " d_sae"]
    median_norm: float
    tokens: int


def strongest_contexts(sae, corpus: Corpus, per_latent: int = 24, documents_at_once: int = 64) -> Contexts:
    """Each latent's strongest tokens in the corpus, at most one a document, kept in a running list."""
    d_sae, n_documents = sae.W_dec.shape[0], len(corpus.starts)
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
            own = borders[first : first + documents_at_once + 1].diff().tolist()
            peaks = [piece.max(0) for piece in acts.split([n for n in own if n])]
            offsets = torch.tensor([0, *[n for n in own if n]]).cumsum(0)[:-1] + begin
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


def write_contexts(contexts: Contexts, path: Path) -> None:
    """One safetensors file: activations and densities in few bits, what is one number in the file's metadata."""
    arrays = {
        "activation": contexts.activation.half(),
        "document": contexts.document.int(),
        "position": contexts.position.short(),
        "density": contexts.density.float(),
    }
    facts = {"median_norm": f"{contexts.median_norm:.6g}", "tokens": str(contexts.tokens)}
    write_bytes(path, save({k: v.contiguous() for k, v in arrays.items()}, metadata=facts))


def read_contexts(path: Path) -> Contexts:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: the stage train_sae writes it.")
    with safe_open(path, framework="pt") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        facts = file.metadata()
    return Contexts(
        arrays["activation"].float(),
        arrays["document"].long(),
        arrays["position"].long(),
        arrays["density"],
        float(facts["median_norm"]),
        int(facts["tokens"]),
    )
