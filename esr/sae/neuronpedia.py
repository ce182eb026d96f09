"""Labels of Neuronpedia, one latent at a time, kept on disk."""

from __future__ import annotations

import json
from pathlib import Path

import requests

from esr.config.registry import NeuronpediaLabels
from esr.paths import CACHE
from esr.storage.digests import digest
from esr.storage.files import write_text

ADDRESS = "https://www.neuronpedia.org/api/feature/{model}/{sae}/{index}"
TIMEOUT_S = 30


class LabelError(RuntimeError):
    """A label could not be read; the message says in one sentence what to do."""


class Neuronpedia:
    """Labels of one SAE's latents: `get(index)`. A label is requested once, then read from `.cache/esr/labels`."""

    def __init__(self, source: NeuronpediaLabels, cache: Path | None = None):
        self.source = source
        self.folder = (cache or CACHE / "labels") / digest(source.model, source.sae)

    def get(self, index: int, default: str = "") -> str:
        """The first explanation of a latent; `default` for one without. Raises LabelError."""
        path = self.folder / f"{index}.json"
        if not path.exists():
            write_text(path, json.dumps(self._request(index)))
        return json.loads(path.read_text(encoding="utf-8")) or default

    def _request(self, index: int) -> str:
        address = ADDRESS.format(model=self.source.model, sae=self.source.sae, index=index)
        try:
            reply = requests.get(address, timeout=TIMEOUT_S)
            reply.raise_for_status()
            content = reply.json()
            if str(content["index"]) != str(index):
                raise ValueError(f"the reply is about latent {content['index']}")
            return next((x["description"] for x in content.get("explanations") or [] if x.get("description")), "")
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise LabelError(
                f"The label of latent {index} of {self.source.model}, {self.source.sae} could not be read from "
                f"Neuronpedia ({type(error).__name__}: {str(error).rstrip('.')}): connect to the network, check the "
                "two ids, or name a file of labels (kind file)."
            ) from None
