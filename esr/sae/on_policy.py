"""On-policy corpus: responses sampled from the model to requests on many subjects, with their residuals.

Residuals are captured during generation, which saves a second forward pass.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from safetensors.torch import save

from esr.config.registry import model_entry
from esr.engine.backend import backend_of
from esr.engine.rows import Row
from esr.engine.workers import Report, Workers
from esr.models.chat import chat_tokens, control_tokens
from esr.models.loading import resident_model, stop_tokens
from esr.models.provenance import corpus_provenance
from esr.sae.corpus import Corpus
from esr.storage.files import read_lines

SHARD = 384  # documents per shard, the unit of resumption
BATCH = 192  # responses generated together
# 0.8 gives more varied text than the 0.6 of steered responses; the penalty keeps a small model out of loops.
TEMPERATURE, REPETITION_PENALTY = 0.8, 1.1


def read_forms(file: Path) -> list[str]:
    """Request forms, one a line, each with {} where its subject goes. Raises ValueError for another line."""
    forms = [line.strip() for line in read_lines(file) if line.strip()]
    for form in forms:
        if form.count("{}") != 1:
            raise ValueError(f"{file}: the form {form!r} needs {{}} once, where the subject goes.")
    return forms


def draw_requests(subjects_file: Path, forms_file: Path, n: int, seed: int) -> list[str]:
    """`n` distinct requests with subjects about equally frequent. Raises ValueError when the files allow fewer."""
    subjects = [s.strip() for line in read_lines(subjects_file) for s in line.split(",") if s.strip()]
    forms = read_forms(forms_file)
    if n > len(subjects) * len(forms):
        raise ValueError(
            f"{n} requests are needed, but {subjects_file.name} x {forms_file.name} "
            f"allow {len(subjects) * len(forms)}: add subjects or lower the number."
        )
    rng = random.Random(seed)
    orders = [rng.sample(forms, len(forms)) for _ in subjects]
    rounds = [rng.sample(range(len(subjects)), len(subjects)) for _ in forms]
    return [orders[s][r].format(subjects[s]) for r, order in enumerate(rounds) for s in order][:n]


def requests_and_responses(texts: Corpus, tokenizer, n: int) -> tuple[list[str], list[str]]:
    """User messages and responses of the first `n` documents, as text."""
    control = control_tokens(tokenizer)
    requests, responses = [], []
    for i, begin in enumerate(texts.responses[:n].tolist()):
        document = texts.document(i)
        turn = document[texts.prefix : begin]
        end = next((n for n, token in enumerate(turn) if token in control), len(turn))
        requests.append(turn[:end])
        responses.append(document[begin:])
    return tokenizer.batch_decode(requests), tokenizer.batch_decode(responses, skip_special_tokens=True)


def write_corpus(model_id: str, requests: list[str], layers: list[int], max_new_tokens: int, workers: Workers):
    """Generate responses to `requests` with residuals at `layers`; returns the shard files in order."""
    shared: dict = {
        "model": model_id,
        "layers": layers,
        "max_new_tokens": max_new_tokens,
        "batch_size": BATCH,
        "temperature": TEMPERATURE,
        "repetition_penalty": REPETITION_PENALTY,
        "provenance": corpus_provenance(model_id),
    }
    chunks = [shared | {"requests": requests[i : i + SHARD], "seed": i} for i in range(0, len(requests), SHARD)]
    sizes = [len(chunk["requests"]) for chunk in chunks]
    return workers.map(
        write_shard, chunks, what="corpus", items=sizes, item="documents", units_per_item=max_new_tokens,
        alone=model_entry(model_id).backend == "vllm",
    )  # fmt: skip


def write_shard(chunk: dict, report: Report) -> bytes:
    """Generate responses to the chunk's requests; returns a safetensors file.

    tokens: ids of requests and responses, documents concatenated. starts: index of each document's first token.
    responses: tokens from there to the response. residual.{layer}: output of that layer at each token, bfloat16.
    A document leaves out its first token, whose norm is huge, and the last, which is never run.
    """
    model, tokenizer = resident_model(chunk["model"])
    rows = [
        Row(chat_tokens(tokenizer, request), chunk["seed"] + i, chunk["max_new_tokens"])
        for i, request in enumerate(chunk["requests"])
    ]
    written = backend_of(model).generate(
        rows,
        batch_size=chunk["batch_size"],
        temperature=chunk["temperature"],
        repetition_penalty=chunk["repetition_penalty"],
        stop_tokens=stop_tokens(model, tokenizer),
        collect=chunk["layers"],
        on_progress=lambda new, finished: report(finished, new),
    )
    documents = [list(row.prompt)[1:] + response.tokens for row, response in zip(rows, written, strict=True)]
    residuals = [[response.residuals[layer][1:] for layer in chunk["layers"]] for response in written]
    # The last token of a response cut by the length limit is never run: keep the tokens that residuals cover.
    lengths = [min([len(d), *map(len, r)]) for d, r in zip(documents, residuals, strict=True)]
    tensors = {
        "tokens": torch.tensor([t for d, n in zip(documents, lengths, strict=True) for t in d[:n]], dtype=torch.int32),
        "starts": torch.tensor([0, *lengths]).cumsum(0)[:-1],
        "responses": torch.tensor([len(row.prompt) - 1 for row in rows]),
    }
    for place, layer in enumerate(chunk["layers"]):
        captured = torch.cat([r[place][:n] for r, n in zip(residuals, lengths, strict=True)])
        tensors[f"residual.{layer}"] = captured.bfloat16()  # half the disk of float32
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})
