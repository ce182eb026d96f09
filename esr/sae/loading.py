"""Load and save SAEs; load decoder directions or a latent subset without the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from esr.config.registry import SaeSource, model_entry
from esr.config.schema import ConfigError
from esr.engine.interventions import LatentSubset
from esr.models.devices import device
from esr.paths import ROOT
from esr.storage.files import write_bytes, write_text


def load_sae(model_id: str):
    """The model's SAE in the registry, as a SAELens SAE. Importing sae_lens takes seconds."""
    from sae_lens import SAE

    source = _source(model_id)
    if source.kind == "folder":
        return SAE.load_from_disk(ROOT / source.path, device=str(device()))
    sae = SAE.from_pretrained(source.release, source.id, device=str(device()))
    sae.fold_W_dec_norm()
    return sae


def _source(model_id: str) -> SaeSource:
    source = model_entry(model_id).sae
    if source is None:
        raise ConfigError(f"{model_id} cannot be steered: it has no sae in models.yaml.")
    return source


def load_directions(model_id: str, latents: Sequence[int]) -> Float[Tensor, "latents d_model"]:
    """Unit decoder directions of `latents`, float32; a boost is then a norm in the residual stream."""
    weights, _ = _sae_weights(model_id)
    decoder = weights("W_dec")[list(latents)].float()
    return decoder / decoder.norm(dim=-1, keepdim=True)


def load_latent_subset(model_id: str, latents: Sequence[int]) -> LatentSubset:
    """Weights that compute and ablate `latents` without the others, on `device()`.

    Raises ConfigError for an SAE whose latents depend on each other (top-k) or that rescales its input.
    """
    weights, config = _sae_weights(model_id)
    kind, scaling = config["architecture"], config.get("normalize_activations", "none")
    if kind not in ("standard", "jumprelu") or scaling != "none":
        raise ConfigError(
            f"The SAE of {model_id} is {kind} with normalize_activations {scaling}: a latent subset needs a "
            "standard or jumprelu SAE with normalize_activations none: convert it with SAELens first."
        )
    chosen = list(latents)
    bias = weights("b_enc")[chosen]
    tensors = {
        "encoder": weights("W_enc")[:, chosen],
        "bias": bias,
        "threshold": weights("threshold")[chosen] if kind == "jumprelu" else torch.zeros_like(bias),
        "center": weights("b_dec") * float(config.get("apply_b_dec_to_input", True)),
        "decoder": weights("W_dec")[chosen],
    }
    return LatentSubset(tuple(chosen), **{name: t.float().contiguous().to(device()) for name, t in tensors.items()})


def _sae_weights(model_id: str) -> tuple[Callable[[str], Tensor], dict]:
    """A function from weight name to weight, and the SAE's configuration; a folder source needs no sae_lens."""
    source = _source(model_id)
    if source.kind == "folder":
        folder = ROOT / source.path
        file = safe_open(folder / "sae_weights.safetensors", framework="pt")
        return file.get_tensor, json.loads((folder / "cfg.json").read_text())
    sae = load_sae(model_id)
    state = {name: weight.detach().cpu() for name, weight in sae.state_dict().items()}
    return state.__getitem__, sae.cfg.to_dict()


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
