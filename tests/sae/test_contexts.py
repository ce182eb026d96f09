"""The file of contexts."""

import pytest
import torch
from safetensors.torch import save_file

from esr.sae.contexts import Contexts, read_contexts, write_contexts


def test_contexts_are_written_as_the_same_bytes_and_read_as_they_were(tmp_path):
    """Other bytes would make DVC run every stage that reads them."""
    activation = torch.tensor([[3.5, 1.0], [0.0, 0.0]])
    place = torch.tensor([[70_000, 1], [0, 0]])
    density = torch.tensor([0.25, 0.0])
    contexts = Contexts(activation, place, place.clamp(max=255), density, median_norm=186.4651, tokens=1_555_374)
    written = set()
    for _ in range(12):
        write_contexts(contexts, tmp_path / "contexts.safetensors")
        written.add((tmp_path / "contexts.safetensors").read_bytes())
    assert len(written) == 1
    save_file({"activation": activation}, tmp_path / "old.safetensors", metadata={"tokens": "1", "median_norm": "2"})
    with pytest.raises(ValueError, match="old.safetensors was written by an earlier version: run the stage"):
        read_contexts(tmp_path / "old.safetensors")
    found = read_contexts(tmp_path / "contexts.safetensors")
    for name in ("activation", "document", "position", "density"):
        assert torch.equal(getattr(found, name), getattr(contexts, name))
    assert (found.median_norm, found.tokens) == (186.4651, 1_555_374)
