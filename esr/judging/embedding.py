"""Offline sentence embeddings, for relevance scores and concreteness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from esr.judging.texts import plain
from esr.paths import data_dir

EMBEDDER = "minilm-l6"  # id in data/models.yaml
MAX_TOKENS = 24  # of a text: its beginning tells its subject; 128 are slower and no nearer to annotators


def load_embedder() -> Embedder:
    """The sentence-embedding model that the stage `fetch_embedder` wrote. Raises FileNotFoundError."""
    folder = data_dir("fetch", EMBEDDER)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} holds no sentence-embedding model: run `dvc repro fetch_embedder` first.")
    return Embedder(folder)


class RememberingEmbedder:
    """An embedder that computes no text twice while it remembers it: restarts and relevance share pieces.

    Texts are embedded in plain form (`texts.plain`): case and Markdown mean nothing to the model.
    """

    def __init__(self, embedder: Embedder, capacity: int = 20_000):
        self.embedder, self.capacity, self.words = embedder, capacity, embedder.words
        self.known: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dimension"]:
        """One unit vector per text."""
        keys = [plain(text) for text in texts]
        if missing := sorted(set(keys) - self.known.keys()):
            if len(self.known) + len(missing) > self.capacity:
                self.known = {key: self.known[key] for key in set(keys) & self.known.keys()}
            self.known |= zip(missing, self.embedder.encode(missing), strict=True)
        return np.stack([self.known[key] for key in keys]) if keys else self.embedder.encode([])


class Embedder:
    """all-MiniLM-L6-v2, or another encoder with mean pooling: unit sentence embeddings."""

    def __init__(self, folder: Path, max_tokens: int = MAX_TOKENS, batch_tokens: int = 4096):
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        from esr.models.devices import compute_dtype

        logging.disable_progress_bar()
        self.torch, self.max_tokens, self.batch_tokens = torch, max_tokens, batch_tokens
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=compute_dtype()).eval()
        self.words = {w for w in self.tokenizer.get_vocab() if w.isalpha()}  # single tokens, hence common words

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dimension"]:
        """One unit vector per text. Texts are batched by length, which saves padding."""
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens).input_ids
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        result = np.zeros((len(ids), self.model.config.hidden_size), dtype=np.float32)
        while order:
            rows = max(1, self.batch_tokens // len(ids[order[-1]]))
            batch, order = order[-rows:], order[:-rows]
            result[batch] = self._embed([ids[i] for i in batch])
        return result

    def _embed(self, ids: list[list[int]]) -> np.ndarray:
        torch = self.torch
        width = max(map(len, ids))
        tokens = torch.zeros(len(ids), width, dtype=torch.long)
        mask = torch.zeros(len(ids), width, dtype=torch.long)
        for row, row_ids in enumerate(ids):
            tokens[row, : len(row_ids)], mask[row, : len(row_ids)] = torch.tensor(row_ids), 1
        with torch.inference_mode():
            hidden = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
            pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(pooled, dim=1).numpy()
