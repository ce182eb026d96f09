"""What an SAE is, from its configuration and the shape of its weights, and whether the study can use it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from esr.config.registry import SaeSource
from esr.config.schema import ConfigError
from esr.sae.formats import CONFIG, WEIGHTS, describe, local_weights_path, map_weights, sae_config

# Architectures whose latents are computed one by one; BatchTopK and Matryoshka SAEs are saved as jumprelu
WEIGHTS_OF = {
    "standard": {"b_enc"},
    "jumprelu": {"b_enc", "threshold"},
    "gated": {"b_gate", "b_mag", "r_mag"},
}
WHY_NOT = {
    "topk": "whether a latent fires depends on all the others",
    "abstopk": "whether a latent fires depends on all the others",
    "matching_pursuit": "whether a latent fires depends on all the others",
    "temporal": "a latent depends on earlier tokens",
    "batchtopk": "it was saved for training; save_inference_model writes it as jumprelu",
    "matryoshka_batchtopk": "it was saved for training; save_inference_model writes it as jumprelu",
}


@dataclass(frozen=True)
class SaeFacts:
    """architecture: SAELens' name. d_in: width of the residual stream it reads. d_sae: number of latents.

    hook: place in the model that it was trained on; None where its files do not say. layer: the layer whose output
    that is; None for another place. normalize: normalization of its input. input_scale: factor on the residual stream
    that its encoder expects, 1 unless a release states one. dtype: of its weights on disk; None before the download.
    """

    architecture: str
    d_in: int
    d_sae: int
    hook: str | None
    layer: int | None
    normalize: str
    input_scale: float
    dtype: torch.dtype | None


def sae_facts(source: SaeSource) -> SaeFacts:
    """Facts of an SAE; reads no weights and downloads none.

    Raises ConfigError for missing or damaged files, FetchError when the hub does not deliver the configuration.
    """
    config, path = sae_config(source), local_weights_path(source)
    return read_facts(source, config, map_weights(path, config) if path else None)


def read_facts(source: SaeSource, config: dict, weights: dict[str, Tensor] | None) -> SaeFacts:
    """Facts of an SAE with this configuration and these weights. Raises ConfigError when the two differ in shape."""
    d_sae, d_in = config.get("d_sae"), config.get("d_in")
    dtype = None
    if weights is not None:
        shape, dtype = tuple(weights["W_dec"].shape), weights["W_dec"].dtype
        if source.kind != "release" and shape != (d_sae, d_in):  # of releases, SAELens' list repeats what it was told
            raise ConfigError(
                f"{describe(source)} has a decoder of shape {shape}, but its configuration states d_sae {d_sae} and "
                f"d_in {d_in}: take configuration and weights ({CONFIG} and {WEIGHTS}) from one SAE."
            )
        d_sae, d_in = shape
    if not isinstance(d_sae, int) or not isinstance(d_in, int):
        raise ConfigError(f"{describe(source)} states d_sae {d_sae} and d_in {d_in}: write both to its configuration.")
    hook = (config.get("metadata") or {}).get("hook_name") or config.get("hook_name")
    normalize, scale = config.get("normalize_activations") or "none", None
    if source.kind == "release" and normalize == "expected_average_only_in":
        from sae_lens.loading.pretrained_saes_directory import get_norm_scaling_factor

        scale = get_norm_scaling_factor(source.release, source.id)
    if scale is not None:
        normalize = "none"
    layer = hook_layer(hook) if hook else None
    return SaeFacts(str(config.get("architecture")), d_in, d_sae, hook, layer, normalize, scale or 1.0, dtype)


def hook_layer(hook: str) -> int | None:
    """The layer whose output the hook reads, by its name in TransformerLens or transformers; None for another place."""
    if found := re.fullmatch(r"blocks\.(\d+)\.hook_resid_post|(?:.*\.)?layers\.(\d+)(?:\.output)?", hook):
        return int(found[1] or found[2])
    before = re.fullmatch(r"blocks\.([1-9]\d*)\.hook_resid_pre", hook)
    return int(before[1]) - 1 if before else None


def check_sae(source: SaeSource, d_model: int | None = None) -> SaeFacts:
    """Facts of an SAE that fits its registry entry and a model of width `d_model`; reads no weights.

    Raises ConfigError in one sentence for an SAE that the study cannot use or that is not the one the entry says.
    """
    facts = sae_facts(source)
    check_facts(source, facts, d_model)
    return facts


def check_facts(source: SaeSource, facts: SaeFacts, d_model: int | None = None) -> None:
    """Raises ConfigError for an SAE that the study cannot use or that is not the one the entry says."""
    name = describe(source)
    if facts.architecture not in WEIGHTS_OF:
        reads_another = (
            "it writes elsewhere than it reads" if "transcoder" in facts.architecture else "it is unknown here"
        )
        raise ConfigError(
            f"{name} is {facts.architecture} ({WHY_NOT.get(facts.architecture, reads_another)}): choose an SAE of "
            f"architecture {' or '.join(WEIGHTS_OF)} (BatchTopK and Matryoshka SAEs are saved as jumprelu)."
        )
    if facts.normalize != "none":
        advice = (
            "fold its factor into the weights with fold_activation_norm_scaling_factor and save it again"
            if facts.normalize == "expected_average_only_in"
            else "choose another SAE"
        )
        raise ConfigError(f"{name} has normalize_activations {facts.normalize}; only 'none' is supported: {advice}.")
    if facts.hook and facts.layer is None:
        raise ConfigError(
            f"{name} reads {facts.hook}; only the residual stream after a layer is allowed: choose another SAE."
        )
    stated = {"layer": (facts.layer, source.layer), "d_sae": (facts.d_sae, source.d_sae)}
    for field, (found, written) in stated.items():
        if found is not None and found != written:
            raise ConfigError(
                f"{name} has {field} {found}, but sae.{field} in data/models.yaml is {written}: write {field}: {found}"
                ", or choose another SAE."
            )
    if d_model is not None and facts.d_in != d_model:
        raise ConfigError(
            f"{name} reads residuals of width {facts.d_in}, and the model's have {d_model}: choose an SAE that was "
            "trained on this model."
        )
