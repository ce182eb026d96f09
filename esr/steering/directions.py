"""Steering directions: decoder directions of SAE latents, or differences of means of concepts.

A concept takes the place of a latent in an entry without an SAE: its index is its place in the file of concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from pydantic import AfterValidator, Field, TypeAdapter
from safetensors import safe_open
from safetensors.torch import load_file, save
from sklearn.metrics import roc_auc_score
from torch import Tensor

from esr.config.registry import base_of, check_latents, model_entry
from esr.config.schema import ConfigError, Section, load_yaml, validate
from esr.engine.activations import Document
from esr.engine.backend import Backend
from esr.models.chat import chat_tokens
from esr.paths import data_dir
from esr.sae import loading
from esr.sae.encoding import non_outlier
from esr.storage.files import read_rows, write_bytes
from esr.storage.records import Latent


def _not_blank(text: str) -> str:
    if not text.strip():  # a text without tokens has the mean NaN
        raise ValueError("it must hold words: write a text, or remove it")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]


class Concept(Section):
    """A subject to steer towards: its name and short texts about it."""

    name: str = Field(min_length=1)
    texts: list[Text] = Field(min_length=2)


class ConceptFile(Section):
    """Concepts, and `others`: texts of the same kind about none of them. request: what all texts respond to."""

    request: str = Field(min_length=1)
    others: list[Text] = Field(min_length=2)
    concepts: list[Concept] = Field(min_length=1)


def read_concepts(path: Path) -> ConceptFile:
    """The concepts in a YAML file. Raises ConfigError."""
    concepts = validate(TypeAdapter(ConceptFile), load_yaml(path), str(path))
    names = [concept.name for concept in concepts.concepts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: the concept {twice[0]!r} is there twice: merge its texts.")
    return concepts


def mean_residuals(
    backend: Backend, tokenizer, layer: int, request: str, texts: Sequence[str]
) -> Float[Tensor, "texts d_model"]:
    """Mean residual at `layer` over each text's tokens as a response to `request`, without outlier tokens."""
    prompt = chat_tokens(tokenizer, request)
    documents = [Document(prompt, tuple(tokenizer(text, add_special_tokens=False).input_ids)) for text in texts]
    found = {i: hidden for i, hidden, _ in backend.collect(documents, layer, what="concepts")}
    together = torch.cat([found[i] for i in range(len(texts))])
    regular = non_outlier(together).split([len(found[i]) for i in range(len(texts))])
    return torch.stack([found[i][regular[i]].float().mean(0).cpu() for i in range(len(texts))])


def difference_of_means(
    concept: Float[Tensor, "texts d_model"], others: Float[Tensor, "others d_model"]
) -> Float[Tensor, " d_model"]:
    """Unit vector from the mean of `others` to that of `concept`."""
    difference = concept.mean(0) - others.mean(0)
    return difference / difference.norm()


def separation(concept: Float[Tensor, "texts d_model"], others: Float[Tensor, "others d_model"]) -> float:
    """AUC of the projection on a direction made without the text projected, one text at a time."""

    def without(rows: Tensor, i: int) -> Tensor:
        return torch.cat([rows[:i], rows[i + 1 :]])

    scores = [float(row @ difference_of_means(without(concept, i), others)) for i, row in enumerate(concept)]
    scores += [float(row @ difference_of_means(concept, without(others, i))) for i, row in enumerate(others)]
    return float(roc_auc_score([1] * len(concept) + [0] * len(others), scores))


def choose_concepts(
    prompt_similarity: Float[np.ndarray, " concepts"], n: int, seed: int, max_prompt_similarity: float
) -> list[str]:
    """Why each concept is steered with or not: up to `n` that no prompt is about are "kept", drawn by `seed`.

    prompt_similarity: of each concept's name with the prompt most like it, cosine. Raises ValueError when none is kept.
    """
    reasons = [
        "a prompt is about it" if s > max_prompt_similarity else "not drawn" for s in prompt_similarity.clip(-1, 1)
    ]
    order = np.random.default_rng(seed).permutation(len(reasons)).tolist()
    for i in [i for i in order if reasons[i] == "not drawn"][:n]:
        reasons[i] = "kept"
    if "kept" not in reasons:
        raise ValueError(
            f"Every concept's name is like a prompt: their cosines are {prompt_similarity.min():.2f} or more, and "
            f"concepts.max_prompt_similarity is {max_prompt_similarity:g}. Choose other concepts, or raise it where "
            "prompts are in another language than English, which is all that the sentence embeddings know."
        )
    return reasons


def save_directions(directions: Float[Tensor, "concepts d_model"], path: Path) -> None:
    write_bytes(path, save({"directions": directions.float().contiguous()}))


def load_directions(model_id: str, latents: Sequence[int]) -> Float[Tensor, "latents d_model"]:
    """Unit steering directions of latents or concepts, float32: a boost is then a norm in the residual stream."""
    if model_entry(model_id).sae:
        return loading.load_directions(model_id, latents)
    check_directions(model_id, latents)
    return load_file(directions_file(model_id))["directions"][list(latents)]


def check_directions(model_id: str, latents: Sequence[int]) -> None:
    """Raise ConfigError unless every index is a latent of the model's SAE or a concept of its file; loads no model."""
    if model_entry(model_id).sae:
        return check_latents(model_id, list(latents))
    with safe_open(directions_file(model_id), framework="pt") as file:
        count = file.get_slice("directions").get_shape()[0]
    for latent in latents:
        if not 0 <= latent < count:
            raise ConfigError(f"{model_id} has no concept {latent}: its file has concepts 0 to {count - 1}.")


def directions_file(model_id: str) -> Path:
    """The file of a model's concept directions. Raises FileNotFoundError."""
    path = data_dir("concepts", base_of(model_id)) / "directions.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run `dvc repro concepts` first.")
    return path


def read_latents(model_id: str) -> list[Latent]:
    """The latents drawn by the stage `latents`, or the concepts of the stage `concepts`, of the model's base."""
    stage = "latents" if model_entry(model_id).sae else "concepts"
    return read_rows(data_dir(stage, base_of(model_id)) / "latents.jsonl", Latent)
