"""Whether an SAE and labels belong to a model: what their files and published names say is what the registry says."""

from __future__ import annotations

import re

from esr.config.registry import ReleaseSae, Sae
from esr.config.schema import ConfigError
from esr.models.preflight import Found, Subject
from esr.paths import ROOT
from esr.sae import facts
from esr.sae.formats import listed_neuronpedia_id
from esr.sae.labels import read_labels

PUBLISHED_LAYER = re.compile(r"(?:^|layer_|blocks\.)(\d+)(?=[-/._]|$)")  # in ids of releases and of Neuronpedia
PUBLISHED_WIDTH = re.compile(r"(?:width_|-)(\d+)([km])(?=[-/_]|$)")
UNITS = {"k": 1e3, "m": 1e6}


def check_sae(subject: Subject) -> Found:
    """The SAE was made for this width and layer, has the stated number of latents, and can be read."""
    source, width = subject.entry.sae, subject.files.config.hidden_size
    assert source is not None
    needed = f"layer {source.layer}, {width} x {source.d_sae}"
    if source.kind == "folder" and source.path.startswith("data/train_sae/") and not (ROOT / source.path).exists():
        return "not trained yet", needed
    if source.kind == "release":
        check_published("sae.id", source.id, subject.files.model, source)
    try:
        found = facts.check_sae(source, width)
    except ConfigError as error:
        raise ConfigError(f"data/models.yaml: {subject.files.model}: sae: {error}") from None
    return f"{found.hook or 'no hook named'}, {found.d_in} x {found.d_sae}, {found.architecture}", needed


def check_labels(subject: Subject) -> Found:
    """Labels are of this SAE: of its page on Neuronpedia, or each of one of its latents, none twice."""
    labels, source = subject.entry.labels, subject.entry.sae
    assert source is not None
    needed = f"of latents 0 to {source.d_sae - 1}"
    if labels.kind == "neuronpedia":
        check_published("labels.sae", labels.sae, subject.files.model, source)
        check_listed(f"{labels.model}/{labels.sae}", subject.files.model, source)
        return f"{labels.model}/{labels.sae}", needed
    given = read_labels(subject.files.model)
    return f"{len(given)} in {labels.path}" if labels.kind == "file" and isinstance(given, dict) else "made", needed


def check_published(field: str, published: str, model: str, source: Sae) -> None:
    """Raise ConfigError unless layer and width that the id `published` spells are those of `source`."""
    where = f"data/models.yaml: {field} of {model} is {published}"
    layers, width = {int(number) for number in PUBLISHED_LAYER.findall(published)}, PUBLISHED_WIDTH.search(published)
    if layers and source.layer not in layers:
        raise ConfigError(
            f"{where}, of layer {min(layers)}, but sae.layer is {source.layer}: name the one of layer {source.layer}, "
            "or correct sae.layer."
        )
    if width and not 0.9 < source.d_sae / (int(width[1]) * UNITS[width[2]]) < 1.1:
        raise ConfigError(
            f"{where}, of about {width[1]}{width[2]} latents, but sae.d_sae is {source.d_sae}: name the one of this "
            "width, or correct sae.d_sae."
        )


def check_listed(written: str, model: str, source: Sae) -> None:
    """Raise ConfigError where SAELens' list gives a release's SAE other ids on Neuronpedia than `written`."""
    if not isinstance(source, ReleaseSae) or not (listed := listed_neuronpedia_id(source)) or written == listed:
        return
    needed_model, _, needed_sae = listed.partition("/")
    raise ConfigError(
        f"data/models.yaml: labels of {model} are of {written} on Neuronpedia, where {source.id} of the release "
        f"{source.release} is {listed}: write model: {needed_model} and sae: {needed_sae}, or choose other labels."
    )
