"""Whether an SAE and labels belong to a model: what their files and published names say is what the registry says."""

from __future__ import annotations

import json
import re

from esr.config.registry import FolderSae
from esr.config.schema import ConfigError
from esr.models.files import read_header
from esr.models.preflight import Found, Subject
from esr.paths import ROOT
from esr.sae.labels import read_labels

ARCHITECTURES = ("standard", "jumprelu")
RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_post|(?:.*\.)?layers\.(\d+)(?:\.output)?")
PUBLISHED_LAYER = re.compile(r"(?:^|layer_|blocks\.)(\d+)(?=[-/._]|$)")  # in ids of releases and of Neuronpedia
PUBLISHED_WIDTH = re.compile(r"(?:width_|-)(\d+)([km])(?=[-/]|$)")


def check_sae(subject: Subject) -> Found:
    """The SAE was made for this width and layer, has the stated number of latents, and can be read."""
    source, width = subject.entry.sae, subject.files.config.hidden_size
    assert source is not None
    needed = f"layer {source.layer}, {width} x {source.d_sae}"
    if source.kind != "folder":
        _check_published("sae.id", source.id, subject)
        return source.id, needed
    if source.path.startswith("data/train_sae/") and not (ROOT / source.path / "cfg.json").exists():
        return "not trained yet", needed
    return _check_folder(source, width), needed


def _check_folder(source: FolderSae, width: int) -> str:
    """The SAE in a few words. Raises ConfigError."""
    folder = ROOT / source.path
    where, path, weights = f"The SAE in {source.path}", folder / "cfg.json", folder / "sae_weights.safetensors"
    for file in (path, weights):
        if not file.exists():
            raise ConfigError(f"{where} has no {file.name}: name the folder that SAELens' save_model wrote.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON ({error}): write the SAE again with SAELens.") from None
    decoder = read_header(weights, "write the SAE again with SAELens").get("W_dec")
    if decoder is None:
        raise ConfigError(f"{weights} has no decoder W_dec: write the SAE again with SAELens.")
    shape, stated = decoder.shape, (config.get("d_sae"), config.get("d_in"))
    hook = config.get("metadata", {}).get("hook_name") or ""
    matched = RESIDUAL.fullmatch(hook)
    architecture, scaling = config.get("architecture"), config.get("normalize_activations", "none")
    if shape != stated:
        raise ConfigError(f"{where} has a decoder of shape {shape}, but cfg.json states {stated}: they differ.")
    if architecture not in ARCHITECTURES or scaling != "none":
        raise ConfigError(
            f"{where} is {architecture} with normalize_activations {scaling}; {' and '.join(ARCHITECTURES)} with none "
            "are allowed: convert it with SAELens."
        )
    if hook and not matched:
        raise ConfigError(f"{where} reads {hook}; the residual stream after a layer is allowed: choose another.")
    if matched and (layer := int(matched[1] or matched[2])) != source.layer:
        raise ConfigError(f"{where} has layer {layer}, and the registry says {source.layer}: correct sae.layer.")
    if shape[0] != source.d_sae:
        raise ConfigError(f"{where} has d_sae {shape[0]}, and the registry says {source.d_sae}: correct sae.d_sae.")
    if shape[1] != width:
        raise ConfigError(f"{where} reads residuals of width {shape[1]}, and the model has {width}: choose another.")
    return f"{hook or 'no hook named'}, {shape[1]} x {shape[0]}, {architecture}"


def check_labels(subject: Subject) -> Found:
    """Labels are of this SAE: each of one of its latents, none twice."""
    labels, source = subject.entry.labels, subject.entry.sae
    assert source is not None
    if labels.kind == "neuronpedia":
        _check_published("labels.sae", labels.sae, subject)
    found = len(read_labels(subject.files.model))
    return (
        f"{found:,} in {labels.path}" if labels.kind == "file" else "made here",
        f"of latents 0 to {source.d_sae - 1}",
    )


def _check_published(field: str, published: str, subject: Subject) -> None:
    """Raise ConfigError unless layer and width that a published id spells are those of the entry's SAE."""
    source, where = subject.entry.sae, f"data/models.yaml: {field} of {subject.files.model} is {published}"
    assert source is not None
    layers, width = {int(number) for number in PUBLISHED_LAYER.findall(published)}, PUBLISHED_WIDTH.search(published)
    if layers and source.layer not in layers:
        raise ConfigError(
            f"{where}, of layer {min(layers)}, but sae.layer is {source.layer}: name the one of layer {source.layer}, "
            "or correct sae.layer."
        )
    if width and not 0.9 < source.d_sae / (int(width[1]) * {"k": 1e3, "m": 1e6}[width[2]]) < 1.1:
        raise ConfigError(
            f"{where}, of about {width[1]}{width[2]} latents, but sae.d_sae is {source.d_sae}: name the one of this "
            "width, or correct sae.d_sae."
        )
