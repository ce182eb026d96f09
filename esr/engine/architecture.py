"""Architectures that the engine runs, and what it refuses, told from the config alone.

The engine needs Llama's layout: `model.model.layers`, whose outputs are the residual stream, `model.model.norm` and an
output matrix. A model type is supported when tests/engine/test_architecture.py finds the engine equal to transformers
on it, at lengths beyond the sliding window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

FULL, SLIDING = "full_attention", "sliding_attention"
# Layers that transformers gives config.sliding_window, by model type
MODEL_TYPES = {
    "gemma": "none",
    "gemma2": "those of layer_types",
    "gemma3_text": "those of layer_types",
    "llama": "none",
    "mistral": "all",
    "olmo2": "none",
    "phi3": "all",
    "qwen2": "those of layer_types",
    "qwen3": "those of layer_types",
    "smollm3": "those of layer_types",
}


class UnsupportedArchitecture(ValueError):
    """The engine cannot run this model, or would compute something else than transformers."""


def check_architecture(config_or_model: PreTrainedConfig | nn.Module) -> None:
    """Raise UnsupportedArchitecture unless the engine runs models of this config; a model must have the layout, too."""
    is_model = isinstance(config_or_model, nn.Module)
    config: Any = config_or_model.config if is_model else config_or_model
    if config.model_type not in MODEL_TYPES:
        raise UnsupportedArchitecture(
            f"Models of type {config.model_type} are not supported: {_difference(config)}; choose a model of one of "
            f"the types {', '.join(MODEL_TYPES)}."
        )
    for feature, remedy in _unsupported_features(config):
        raise UnsupportedArchitecture(
            f"This {config.model_type} model has {feature}, which the engine does not support: {remedy}."
        )
    if is_model and not _has_layout(config_or_model):
        raise UnsupportedArchitecture(
            f"{type(config_or_model).__name__} lacks the layout of a {config.model_type} language model "
            f"(model.layers, model.norm, an output matrix): load it by AutoModelForCausalLM, with adapters merged."
        )


def attention_windows(config: PreTrainedConfig) -> dict[str, int | None]:
    """Sliding window of each layer type of the model: the keys a query sees, itself included; None for all before."""
    window = getattr(config, "sliding_window", None)
    sliding = MODEL_TYPES[config.model_type]
    if sliding == "those of layer_types":
        return {kind: window if kind == SLIDING else None for kind in sorted(set(config.layer_types))}
    return {SLIDING: window} if sliding == "all" and window is not None else {FULL: None}


def max_positions(config: PreTrainedConfig) -> int:
    """Tokens of prompt and response that the position embedding is made for.

    longrope changes its frequencies beyond `original_max_position_embeddings` for all rows of a pass, so that rows
    would depend on each other; the engine stays below.
    """
    limits = [config.max_position_embeddings]
    for rope in _ropes(config):
        if rope.get("rope_type") == "longrope":
            limits.append(rope["original_max_position_embeddings"])
    return min(limits)


def _difference(config: PreTrainedConfig) -> str:
    """Why the engine does not run models of an unknown type."""
    text_config = getattr(config, "text_config", None)
    if config.is_encoder_decoder:
        return "it is an encoder-decoder, and the engine runs decoders"
    if text_config is not None:
        return f"its text model ({text_config.model_type}) is one part of a multimodal model"
    if kinds := set(getattr(config, "layer_types", None) or ()) - {FULL, SLIDING}:
        return f"it has layers of the kind {', '.join(sorted(kinds))}"
    return "the layers are not known to have Llama's layout, with the residual stream as output of model.layers"


def _unsupported_features(config: PreTrainedConfig) -> Iterator[tuple[str, str]]:
    """What a config of a supported type has that the engine would get wrong, and what to do."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None) or ()
    sliding = MODEL_TYPES[config.model_type]
    if other := set(kinds) - {FULL, SLIDING}:
        yield f"layers of the kind {', '.join(sorted(other))}", f"choose a model with {FULL} and {SLIDING} alone"
    if sliding == "none" and window is not None:
        yield f"sliding_window {window}", "its type has no sliding windows; set it to null in config.json"
    if sliding != "those of layer_types" and set(kinds) - set(attention_windows(config)):
        yield "layer_types", "transformers ignores them for its type; remove them from config.json"
    if SLIDING in attention_windows(config) and not (isinstance(window, int) and window > 0):
        yield f"sliding layers with sliding_window {window}", "give config.json a window of at least 1 token"
    if getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        yield "bidirectional attention", "choose a causal language model"


def _ropes(config: PreTrainedConfig) -> list[dict]:
    """The parameters of each position embedding: one, or one per layer type."""
    ropes = getattr(config, "rope_parameters", None) or {}
    return [rope for rope in ropes.values() if isinstance(rope, dict)] or [ropes]


def _has_layout(model: Any) -> bool:
    inner = getattr(model, "model", None)
    layers = getattr(inner, "layers", None)
    complete = hasattr(inner, "norm") and model.get_output_embeddings() is not None
    return complete and layers is not None and len(layers) == model.config.num_hidden_layers
