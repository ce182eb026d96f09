"""What the entry of a fine-tuned model shares with that of its base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from esr.config.schema import ConfigError, mapping, meant, shown

# Shared with the base and never given: latents, labels, corpus, scorer and unit of boosts are the base's
OF_BASE = ("sae", "concepts", "labels", "corpus", "steer_layer", "n_layers")
OF_BASE_STAGES = ("corpus", "train_sae", "sae", "latents", "concepts")  # sections that a fine-tuned model cannot change
NOT_SHARED = ("source", "license", "experiments", "tuned_from")  # what a fine-tuned model does not share with its base


def with_base(model_id: str, written: dict, names: Sequence[str], where: str, seen: Sequence[str] = ()) -> dict:
    """Fields of an entry, with those it shares with the model it was fine-tuned from.

    written: the registry, the file `where`, as it is in YAML. names: of an entry's fields. Raises ConfigError.
    """
    fields = mapping(written[model_id], f"{where}: {model_id}", names)
    base = fields.get("tuned_from")
    if base is None:
        return fields
    others = [other for other in written if isinstance(other, str) and other not in [*seen, model_id]]
    if base not in others:
        problem = "a list" if isinstance(base, list) else f"not the id of another entry{meant(base, others)}"
        raise ConfigError(
            f"{where}: {model_id}: tuned_from is {shown(base)}, which is {problem}: write one id, as in "
            f"`tuned_from: {(others or ['id'])[0]}`; other entries are {', '.join(others) or 'none'}."
        )
    shared = with_base(base, written, names, where, [*seen, model_id])
    for name in OF_BASE:
        if name in fields and fields[name] != shared.get(name):
            raise ConfigError(
                f"{where}: {model_id}: {name} is not that of {base}, whose latents and unit of boosts it shares: "
                f"remove {name}, or remove tuned_from."
            )
    settings = fields.get("params")
    if isinstance(settings, dict):
        for section in sorted(sections_of(settings) & set(OF_BASE_STAGES)):
            raise ConfigError(
                f"{where}: {model_id}: params: the stage {section} runs on {base} alone, which this model was "
                f"fine-tuned from: write {section} under params of {base}."
            )
        fields = fields | {"params": _merged(shared.get("params") or {}, settings)}
    return {name: value for name, value in shared.items() if name not in NOT_SHARED} | fields


def sections_of(settings: dict) -> set[str]:
    """Names of the sections that an entry's `params` has, at any scale; mistakes in their form are passed over."""
    scales = settings.get("scales")
    sizes = [part for part in scales.values() if isinstance(part, dict)] if isinstance(scales, dict) else []
    return {name for part in (settings, *sizes) for name in part} - {"scales"}


def _merged(one: Any, other: Any) -> Any:
    """`other` over `one`, key by key in nested mappings."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return other
    return one | {key: _merged(one.get(key), value) for key, value in other.items()}
