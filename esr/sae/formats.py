"""Files of SAEs: folders of SAELens, folders on the hub, and published releases in the formats of their authors.

SAELens' list says where a release is and how it is configured. Weights are memory-mapped, so that a few latents of an
SAE are read without the others.
"""

from __future__ import annotations

import json
import zipfile
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor

from esr.config.registry import HubSae, ReleaseSae, SaeSource
from esr.config.schema import ConfigError
from esr.models.fetch import FetchError
from esr.paths import ROOT

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
# Weights of a release below its path in the repository, by the name that SAELens' list gives its format
RELEASES = {
    "sae_lens": WEIGHTS,
    "gemma_2": "params.npz",
    "gemma_3": "params.safetensors",
    "dictionary_learning_1": "ae.pt",
    "goodfire": "",
    "deepseek_r1": "",
    "llama_scope": "checkpoints/final.safetensors",
    "llama_scope_r1_distill": WEIGHTS,
}
# Names in files -> SAELens' name; T: saved as a linear layer, which holds the transposed matrix
NAMES = {
    "w_enc": "W_enc", "w_dec": "W_dec",
    "encoder.weight": "W_enc T", "encoder_linear.weight": "W_enc T",
    "decoder.weight": "W_dec T", "decoder_linear.weight": "W_dec T",
    "encoder.bias": "b_enc", "encoder_linear.bias": "b_enc",
    "decoder.bias": "b_dec", "decoder_linear.bias": "b_dec", "bias": "b_dec", "decoder_bias": "b_dec",
    "mag_bias": "b_mag", "gate_bias": "b_gate",
}  # fmt: skip
KEPT = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold", "b_mag", "b_gate", "r_mag", "scaling_factor"}


def describe(source: SaeSource) -> str:
    """The SAE as errors name it."""
    if source.kind == "release":
        return f"The SAE {source.id} of the release {source.release}"
    return f"The SAE in the folder {source.path}" + (f" of {source.id} on the hub" if source.kind == "hub" else "")


def sae_config(source: SaeSource) -> dict:
    """The configuration as SAELens reads it, with defaults filled in; downloads no weights.

    Raises ConfigError for a release that SAELens does not list or a damaged file, FetchError when the hub does not
    deliver.
    """
    if source.kind == "release":
        return dict(_release_config(source))
    path = ROOT / source.path / CONFIG
    if source.kind == "hub":
        path = _download(source.id, PurePosixPath(source.path, CONFIG).as_posix(), source.revision)
    try:
        return _with_defaults(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(
            f"{describe(source)} has no {CONFIG}: name a folder that SAELens' save_model wrote."
        ) from None
    except (ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no configuration of an SAE ({type(error).__name__}: {error}): write it again with SAELens."
        ) from None


def sae_weights_path(source: SaeSource) -> Path:
    """The file of the weights, downloaded if the hub's cache lacks it. Raises ConfigError and FetchError."""
    if source.kind == "folder":
        return ROOT / source.path / WEIGHTS
    return _download(*_place(source))


def local_weights_path(source: SaeSource) -> Path | None:
    """The file of the weights where it is on this machine, else None."""
    if source.kind == "folder":
        path = ROOT / source.path / WEIGHTS
        return path if path.exists() else None
    repository, name, revision = _place(source)
    found = try_to_load_from_cache(repository, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def map_weights(path: Path, config: dict) -> dict[str, Tensor]:
    """Weights by SAELens' names and in its orientation, memory-mapped: W_enc (d_in, d_sae), W_dec (d_sae, d_in).

    Raises ConfigError for a file that is damaged or lacks weights.
    """
    try:
        stored = {".npz": _map_npz, ".safetensors": _map_safetensors}.get(path.suffix, _map_pickle)(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: fetch or train the SAE first.") from None
    except Exception as error:  # of safetensors, zipfile, numpy, torch or pickle, each with types of its own
        reason = " ".join(str(error).split())[:120].rstrip(".:")
        raise ConfigError(
            f"{path} cannot be read ({reason}): it is damaged or a Git LFS pointer; delete it and fetch it again."
        ) from None
    weights = {}
    for name, tensor in stored.items():
        known, _, transposed = NAMES.get(name, name).partition(" ")
        if known in KEPT:
            weights[known] = tensor.T if transposed else tensor
    if "log_jumprelu_threshold" in stored:
        weights["threshold"] = stored["log_jumprelu_threshold"].float().exp()
    elif "jump_relu_threshold" in config:
        weights["threshold"] = torch.tensor(config["jump_relu_threshold"])
    if missing := [name for name in ("W_enc", "W_dec", "b_dec") if name not in weights]:
        raise ConfigError(
            f"{path} has no {missing[0]} but {', '.join(sorted(stored)[:8])}: save it again with SAELens, "
            "or choose another SAE."
        )
    if "threshold" in weights and weights["threshold"].ndim == 0:
        weights["threshold"] = weights["threshold"].expand(len(weights["W_dec"]))
    return weights


def _map_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)


def _map_pickle(path: Path) -> dict[str, Tensor]:
    stored = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    return {name: value for name, value in stored.items() if isinstance(value, Tensor)}


def _map_npz(path: Path) -> dict[str, Tensor]:
    """Arrays of an .npz file, which numpy itself does not map; a compressed one is loaded."""
    arrays = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type != zipfile.ZIP_STORED:
                arrays[name] = torch.from_numpy(np.load(path)[name])
                continue
            file.seek(member.header_offset + 26)  # a local header is 30 bytes, the file's name and an extra field
            lengths = file.read(4)
            file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), 1)
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = read[np.lib.format.read_magic(file)[0]](file)
            order: Literal["F", "C"] = "F" if fortran else "C"
            mapped = np.memmap(path, dtype, mode="c", offset=file.tell(), shape=shape or (1,), order=order)
            arrays[name] = torch.from_numpy(mapped).reshape(shape)
    return arrays


def _with_defaults(config: dict) -> dict:
    """The configuration in SAELens' present form; `import sae_lens` takes seconds, and only an older form needs it."""
    major = str(config.get("metadata", {}).get("sae_lens_version", "")).partition(".")[0]
    if major.isdigit() and int(major) >= 6 and "architecture" in config:
        return config
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    return handle_config_defaulting(config)


@cache
def _release_config(source: ReleaseSae) -> dict:
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.loading.pretrained_saes_directory import get_config_overrides

    repository, folder, converter = _release(source)
    local = local_weights_path(source) if converter == "gemma_3" else None
    if local and "resid_post" in folder:  # SAELens asks the network for the shapes, also of a cached file
        layer = folder.partition("layer_")[2].partition("_")[0]
        shape = map_weights(local, {})["W_enc"].shape
        metadata = {"hook_name": f"blocks.{layer}.hook_resid_post"}
        return {"architecture": "jumprelu", "d_in": shape[0], "d_sae": shape[1], "apply_b_dec_to_input": False,
                "normalize_activations": "none", "metadata": metadata}  # fmt: skip
    overrides = get_config_overrides(source.release, source.id)
    try:
        getter = loaders.NAMED_PRETRAINED_SAE_CONFIG_GETTERS[converter]
        written = getter(repository, folder, "cpu", False, overrides)
    except Exception as error:  # of SAELens, the hub's client, httpx, requests or the system
        raise _unavailable(repository, folder, error) from error
    kept = {name: written[name] for name in ("jump_relu_threshold",) if name in written}
    return loaders.handle_config_defaulting(written) | kept


def _release(source: ReleaseSae) -> tuple[str, str, str]:
    """Repository, path in it and format of a release. Raises ConfigError for one that SAELens does not list."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    listed = get_pretrained_saes_directory()
    release = listed.get(source.release)
    if release is None:
        raise ConfigError(
            f"The SAE release {source.release!r} is not in the list of sae-lens {version('sae-lens')}"
            f"{_near(source.release, listed)}: name one of it, or use kind hub."
        )
    if source.id not in release.saes_map:
        raise ConfigError(
            f"The release {source.release} has no SAE {source.id!r}{_near(source.id, release.saes_map)}: "
            "name an id of sae-lens' list."
        )
    return release.repo_id, release.saes_map[source.id], release.conversion_func or "sae_lens"


def listed_neuronpedia_id(source: ReleaseSae) -> str | None:
    """Ids of model and SAE on Neuronpedia as `model/sae`, by SAELens' list; None where it gives none."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release = get_pretrained_saes_directory().get(source.release)
    return release.neuronpedia_id.get(source.id) if release else None


def _near(name: str, known) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.5) or list(known)[:3]
    return f" (it has {', '.join(near)})"


def _place(source: ReleaseSae | HubSae) -> tuple[str, str, str | None]:
    """Repository, file and revision of the weights."""
    if source.kind == "hub":
        return source.id, PurePosixPath(source.path, WEIGHTS).as_posix(), source.revision
    repository, folder, converter = _release(source)
    if converter not in RELEASES:
        raise ConfigError(
            f"{describe(source)} is in the format {converter}, which is not read here: "
            f"allowed are {', '.join(RELEASES)}: choose another SAE."
        )
    return repository, PurePosixPath(folder, RELEASES[converter]).as_posix(), None


@cache
def _download(repository: str, name: str, revision: str | None) -> Path:
    """The file in the hub's cache; asked for once a process, since each time the hub is asked what is newest."""
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except Exception as error:  # of the hub's client, httpx or the system
        raise _unavailable(repository, name, error) from error


def _unavailable(repository: str, name: str, error: Exception) -> FetchError:
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    return FetchError(
        f"{name} of {repository} could not be downloaded from the hub ({type(error).__name__}: {reason}): check the "
        "name, log in if it is gated, or connect to the network."
    )
