"""Messages between this process and vLLM's: a line of JSON and the tensors that go with it, over pipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, BinaryIO

from safetensors.torch import load, save
from torch import Tensor

from esr.engine.edits import LayerEdit
from esr.engine.interventions import LatentSubset

SUBSET = ("encoder", "bias", "threshold", "center", "decoder")  # tensors of a LatentSubset


def send(stream: BinaryIO, content: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
    body = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}) if tensors else b""
    stream.write(json.dumps(content | {"bytes": len(body)}).encode() + b"\n" + body)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The next message; None at the end of the stream."""
    line = stream.readline()
    if not line:
        return None
    content = json.loads(line)
    size = content.pop("bytes")
    return content, load(stream.read(size)) if size else {}


def pack(edits: Sequence[LayerEdit]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Edits as JSON and tensors."""
    fields: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for place, edit in enumerate(edits):
        norm = edit.median_norm if edit.median_norm < float("inf") else None  # JSON has no infinity
        fields.append({"layer": edit.layer, "response_only": edit.response_only, "part": edit.part})
        fields[-1]["median_norm"] = norm
        if edit.vectors is not None:
            tensors[f"{place}.vectors"] = edit.vectors
        if edit.subset is not None and edit.chosen is not None:
            fields[-1]["latents"] = list(edit.subset.latents)
            tensors |= {f"{place}.{name}": getattr(edit.subset, name) for name in SUBSET}
            tensors[f"{place}.chosen"] = edit.chosen
    return fields, tensors


def unpack(fields: Sequence[dict[str, Any]], tensors: dict[str, Tensor]) -> list[LayerEdit]:
    """Inverse of `pack`."""
    edits = []
    for place, given in enumerate(fields):
        subset, rest = None, dict(given)
        if latents := rest.pop("latents", None):
            subset = LatentSubset(tuple(latents), **{name: tensors[f"{place}.{name}"] for name in SUBSET})
        rest["median_norm"] = float("inf") if rest["median_norm"] is None else rest["median_norm"]
        vectors, chosen = (tensors.get(f"{place}.{name}") for name in ("vectors", "chosen"))
        edits.append(LayerEdit(vectors=vectors, subset=subset, chosen=chosen, **rest))
    return edits
