"""Whether an SAE and labels belong to a model, from configurations and the headers of weights."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from esr.config.registry import OF_SAES
from esr.config.schema import ConfigError
from esr.models.files import read_header
from esr.models.preflight import Check, Subject
from esr.paths import ROOT

BY_LATENT = {"standard", "jumprelu"}  # each latent is computed without the others
WHOLE = {"topk", "batchtopk", "gated", "matryoshka_batchtopk"}  # latents depend on each other, or on two encoders
RESIDUAL = re.compile(r"(?:blocks\.(\d+)\.hook_resid_post|(?:model\.)+(?:language_model\.)?layers\.(\d+))(?:\.output)?")
PUBLISHED_LAYER = re.compile(r"(?:^|layer_|blocks\.)(\d+)(?=[-/._]|$)")  # in ids of releases and Neuronpedia
PUBLISHED_WIDTH = re.compile(r"(?:width_|-)(\d+)([km])(?=[-/]|$)")


@dataclass(frozen=True)
class SaeFacts:
    """What an SAE's configuration says. layer: None where it names none; problem: why it cannot be used, or ""."""

    architecture: str
    d_in: int
    d_sae: int
    hook: str
    normalize_activations: str


def sae_facts(folder: Path) -> SaeFacts:
    """Facts of a SAELens SAE in a folder, from cfg.json and the header of its weights. Raises ConfigError."""
    path, weights = folder / "cfg.json", folder / "sae_weights.safetensors"
    for file in (path, weights):
        if not file.exists():
            raise ConfigError(
                f"{folder} holds no SAE of SAELens: {file.name} is missing; give the folder that save_inference_model "
                "writes, in sae.path of data/models.yaml."
            )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON ({error}): write the SAE again with SAELens.") from None
    tensors = read_header(weights, "write the SAE again with SAELens")
    decoder = tensors.get("W_dec")
    if decoder is None or len(decoder.shape) != 2:
        raise ConfigError(
            f"{weights} has no decoder W_dec of two dimensions, but {', '.join(sorted(tensors)) or 'nothing'}: "
            "an SAE in the layout of SAELens is needed; convert it first."
        )
    hook = config.get("metadata", {}).get("hook_name") or config.get("hook_name") or ""
    d_sae, d_in = decoder.shape
    if (named := (config.get("d_in"), config.get("d_sae"))) != (d_in, d_sae):
        raise ConfigError(
            f"{path} names d_in {named[0]} and d_sae {named[1]}, but the weights beside it have {d_in} and {d_sae}: "
            "take both files from one SAE."
        )
    return SaeFacts(
        config.get("architecture", "standard"), d_in, d_sae, hook, config.get("normalize_activations", "none")
    )


def check_sae(subject: Subject) -> Check:
    """The SAE was made for this width and layer, has the stated number of latents and can be read."""
    entry, files = subject.entry, subject.files
    source = entry.sae
    if source is None:
        return Check("SAE", "none: difference of means", "none")
    needed = f"layer {source.layer}, {files.config.hidden_size} x {source.d_sae}"
    if source.kind != "folder":
        return _check_published_name("SAE", source.id, subject, needed)
    if _is_trained_here(source.path) and not (ROOT / source.path / "cfg.json").exists():
        return Check("SAE", "not trained yet", needed)  # by the stage train_sae
    facts = sae_facts(ROOT / source.path)
    found = f"{facts.hook or 'no hook'}, {facts.d_in} x {facts.d_sae}, {facts.architecture}"
    return Check("SAE", found, needed, _misfit(facts, subject))


def _misfit(facts: SaeFacts, subject: Subject) -> str:
    """Why the SAE does not fit, in a sentence; "" if it does."""
    source, model, width = subject.entry.sae, subject.files.model, subject.files.config.hidden_size
    assert source is not None and source.kind == "folder"
    where, matched = f"The SAE in {source.path}", RESIDUAL.fullmatch(facts.hook)
    layer = int(matched[1] or matched[2]) if matched else None
    if facts.d_in != width:
        return (
            f"{where} reads {facts.d_in} values, but the residual stream of {model} has {width}: "
            "name an SAE of this model in data/models.yaml."
        )
    if facts.hook and layer is None:
        return (
            f"{where} is of {facts.hook}: an SAE of the residual stream after a layer (blocks.N.hook_resid_post) is "
            f"needed; name another one in data/models.yaml."
        )
    if layer not in (None, source.layer):
        return (
            f"{where} is of layer {layer}, but data/models.yaml says sae.layer {source.layer} for {model}: "
            f"write {layer}, or name the SAE of layer {source.layer}."
        )
    if facts.d_sae != source.d_sae:
        return (
            f"{where} has {facts.d_sae} latents, but data/models.yaml says sae.d_sae {source.d_sae} for {model}: "
            f"write {facts.d_sae}."
        )
    return _unreadable(facts, subject, where)


def _unreadable(facts: SaeFacts, subject: Subject, where: str) -> str:
    """Why latents cannot be computed, or not those of the experiments that read single ones; "" if they can."""
    allowed = f"{', '.join(sorted(BY_LATENT | WHOLE))} with normalize_activations none are allowed; convert it."
    if facts.architecture not in BY_LATENT | WHOLE or facts.normalize_activations != "none":
        return f"{where} is {facts.architecture} with normalize_activations {facts.normalize_activations}: {allowed}"
    single = sorted(OF_SAES & set(subject.entry.experiments))
    if facts.architecture in WHOLE and single:
        return (
            f"{where} is {facts.architecture}, whose latents are not computed one by one as {single[0]} needs: "
            f"use a {' or '.join(sorted(BY_LATENT))} SAE, or remove {', '.join(single)} from the experiments of "
            f"{subject.files.model}."
        )
    return ""


def _check_published_name(name: str, published: str, subject: Subject, needed: str) -> Check:
    """Layer and width that an id of a release or of Neuronpedia spells are those of the entry."""
    source, model, problem = subject.entry.sae, subject.files.model, ""
    assert source is not None
    layers, width = {int(n) for n in PUBLISHED_LAYER.findall(published)}, PUBLISHED_WIDTH.search(published)
    if layers and source.layer not in layers:
        problem = (
            f"data/models.yaml: {name} of {model} is {published}, of layer {min(layers)}, but sae.layer is "
            f"{source.layer}: name the one of layer {source.layer}, or correct sae.layer."
        )
    elif width:
        size = int(width[1]) * {"k": 1000, "m": 1_000_000}[width[2]]
        if not 0.9 < source.d_sae / size < 1.1:
            problem = (
                f"data/models.yaml: {name} of {model} is {published}, with about {width[0].strip('-')} latents, but "
                f"sae.d_sae is {source.d_sae}: name the one of this width, or correct sae.d_sae."
            )
    return Check(name, published, needed, problem)


def _is_trained_here(path: str) -> bool:
    return path.startswith("data/train_sae/")


def check_labels(subject: Subject) -> Check:
    """Labels are of this SAE: each of one of its latents, none twice."""
    labels, source = subject.entry.labels, subject.entry.sae
    if source is None or labels.kind == "made":
        return Check("labels", "made here" if source else "names of the concepts", "")
    needed = f"latents 0 to {source.d_sae - 1}, each once"
    if labels.kind == "neuronpedia":
        return _check_published_name("labels", labels.sae, subject, f"layer {source.layer}, {source.d_sae} latents")
    rows = read_labels(ROOT / labels.path)
    outside = [index for index in rows if not 0 <= index < source.d_sae]
    repeated = [index for index, count in Counter(rows).items() if count > 1]
    problem = ""
    if outside:
        problem = (
            f"{labels.path} labels latent {outside[0]}, but the SAE of {subject.files.model} has latents 0 to "
            f"{source.d_sae - 1}: these are labels of another SAE; name its own in data/models.yaml."
        )
    elif repeated:
        problem = f"{labels.path} labels latent {repeated[0]} twice: one row per latent is allowed; remove one."
    return Check("labels", f"{len(rows):,} rows", needed, problem)


def read_labels(path: Path) -> list[int]:
    """Indices of a file of labels, in order. Raises ConfigError naming the line that is no row."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist: write it, or name another file in labels.path of data/models.yaml.")
    indices = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            index, label = row["index"], row["label"]
            if type(index) is not int or not isinstance(label, str):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f'{path}, line {number}: {line[:60]!r} is no label; write {{"index": 12, "label": "coral"}}.'
            ) from None
        indices.append(index)
    return indices
