"""Load and save SAEs; load decoder directions or a latent subset without the rest.

One convention whatever the source: decoder rows have unit norm, and their norms are in encoder, bias and threshold.
Activations are then in units of the residual stream.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

from esr.config.registry import SaeSource, model_entry
from esr.config.schema import ConfigError
from esr.engine.interventions import LatentSubset
from esr.models.devices import device
from esr.sae.facts import WEIGHTS_OF, SaeFacts, check_facts, read_facts
from esr.sae.formats import describe, map_weights, sae_config, sae_weights_path
from esr.storage.files import write_bytes, write_text

UNIT = 2**-9  # unit rows rounded to bfloat16 have norms this close to 1; they stay as they are


def load_sae(model_id: str):
    """The model's SAE in the registry, as a SAELens SAE in float32. Importing sae_lens takes seconds.

    Raises ConfigError for an SAE that the study cannot use, FetchError when the hub does not deliver it.
    """
    from sae_lens import SAE

    source = _source(model_id)
    config, facts, mapped = _open(source)
    weights = fold(_as_relu({name: _copy(tensor) for name, tensor in mapped.items()}), facts)
    kind = "standard" if facts.architecture == "standard" else "jumprelu"
    fields = {"architecture": kind, "d_in": facts.d_in, "d_sae": facts.d_sae, "dtype": "float32", "device": "meta"}
    sae = SAE.from_dict(config | fields | {"normalize_activations": "none"})
    sae.load_state_dict(weights, assign=True)
    return sae.to(device=device())


def load_directions(model_id: str, latents: Sequence[int]) -> Float[Tensor, "latents d_model"]:
    """Unit decoder rows of `latents`, float32: a boost is then a norm in the residual stream; reads these alone.

    Raises ConfigError for an SAE that the study cannot use and for a latent that it does not have or that is zero.
    """
    source = _source(model_id)
    _, facts, mapped = _open(source)
    decoder = mapped["W_dec"][_indices(source, facts, latents)].float()
    norms = decoder.norm(dim=-1, keepdim=True)
    for latent, norm in zip(latents, norms.flatten().tolist(), strict=True):
        if not 0 < norm < float("inf"):
            raise ConfigError(f"{describe(source)} has no direction for latent {latent} (norm {norm}): choose another.")
    return decoder / norms


def load_latent_subset(model_id: str, latents: Sequence[int]) -> LatentSubset:
    """Weights that compute and ablate `latents` without the others, on `device()`; reads these alone.

    Raises ConfigError for an SAE that the study cannot use and for a latent that it does not have.
    """
    source = _source(model_id)
    config, facts, mapped = _open(source)
    chosen = _indices(source, facts, latents)
    picked = {
        name: tensor if name == "b_dec" else tensor[..., chosen] for name, tensor in mapped.items() if name != "W_dec"
    }
    picked["W_dec"] = mapped["W_dec"][chosen]
    weights = fold(_as_relu({name: _copy(tensor) for name, tensor in picked.items()}), facts)
    tensors = {
        "encoder": weights["W_enc"],
        "bias": weights["b_enc"],
        "threshold": weights.get("threshold", torch.zeros_like(weights["b_enc"])),
        "center": weights["b_dec"] * float(config.get("apply_b_dec_to_input", True)),
        "decoder": weights["W_dec"],
    }
    return LatentSubset(tuple(chosen), **{name: tensor.to(device()) for name, tensor in tensors.items()})


def fold(weights: dict[str, Tensor], facts: SaeFacts | None = None) -> dict[str, Tensor]:
    """`weights` of some or all latents for unscaled residuals, in place, with the decoder's norms in the encoder.

    W_enc (d_in, latents), W_dec (latents, d_in), b_enc, b_dec and, for jumprelu, threshold.
    """
    if facts is not None and facts.input_scale != 1:
        weights["W_enc"].mul_(facts.input_scale)
        weights["W_dec"].div_(facts.input_scale)
        weights["b_dec"].div_(facts.input_scale)
    norms = weights["W_dec"].norm(dim=-1).clamp(min=1e-8)  # SAELens' bound
    norms[(norms - 1).abs() <= UNIT] = 1
    weights["W_dec"].div_(norms[:, None])
    for name in ("W_enc", "b_enc", "threshold"):
        if name in weights:
            weights[name].mul_(norms)
    return weights


def _as_relu(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A gated SAE as the jumprelu SAE that computes the same: its gate is a threshold on its magnitude."""
    if "r_mag" in weights:
        scale = weights.pop("r_mag").exp_()
        weights["b_enc"] = weights.pop("b_mag")
        weights["threshold"] = weights["b_enc"] - scale * weights.pop("b_gate")
        weights["W_enc"].mul_(scale)
    return weights


def _source(model_id: str) -> SaeSource:
    source = model_entry(model_id).sae
    if source is None:
        raise ConfigError(f"{model_id} cannot be steered, as it has no sae in data/models.yaml: add it.")
    return source


def _open(source: SaeSource) -> tuple[dict, SaeFacts, dict[str, Tensor]]:
    """Configuration, facts and memory-mapped weights of an SAE that the study can use. Raises ConfigError."""
    config = sae_config(source)
    mapped = map_weights(sae_weights_path(source), config)
    facts = read_facts(source, config, mapped)
    check_facts(source, facts)
    wanted = {"W_enc", "W_dec", "b_dec"} | WEIGHTS_OF[facts.architecture]
    if missing := sorted(wanted - set(mapped)):
        raise ConfigError(f"{describe(source)} is {facts.architecture} and has no {missing[0]}: write it again.")
    factor = mapped.get("scaling_factor")
    if factor is not None and not torch.allclose(factor.float(), torch.ones(())):
        raise ConfigError(f"{describe(source)} has a scaling_factor, which is not read here: fold it into W_dec first.")
    if mapped["W_enc"].shape != mapped["W_dec"].T.shape:
        shapes = f"{tuple(mapped['W_enc'].shape)} and {tuple(mapped['W_dec'].shape)}"
        raise ConfigError(f"{describe(source)} has W_enc and W_dec of shapes {shapes}: one transposes the other.")
    return config, facts, {name: mapped[name] for name in wanted}


def _indices(source: SaeSource, facts: SaeFacts, latents: Sequence[int]) -> list[int]:
    for latent in latents:
        if not 0 <= latent < facts.d_sae:
            raise ConfigError(f"{describe(source)} has latents 0 to {facts.d_sae - 1}, and no latent {latent}.")
    return list(latents)


def _copy(tensor: Tensor) -> Tensor:
    """A contiguous float32 copy in memory of a mapped tensor."""
    return torch.empty(tensor.shape, dtype=torch.float32).copy_(tensor)


def save_sae(sae, folder: Path) -> None:
    """Write a trained BatchTopK SAE as a SAELens JumpReLU SAE: bfloat16 weights, decoder rows of unit norm.

    `SAE.load_from_disk(folder)` loads it in float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights_path, config_path = sae.save_inference_model(folder)
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in load_file(weights_path).items()}
    write_bytes(Path(weights_path), save(weights))
    config = json.loads(Path(config_path).read_text())
    write_text(Path(config_path), json.dumps(config, indent=1, sort_keys=True) + "\n")
