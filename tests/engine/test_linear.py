"""Packed weights change how fast a linear map is, and nothing else."""

import pytest
import torch
from torch import nn

from esr.engine.linear import packed
from esr.models.devices import compute_dtype


@pytest.fixture
def maps():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(576, 1536, bias=False), nn.Linear(1536, 576)).bfloat16()


def forwards(model):
    return [m for m in model if "forward" in vars(m)]


@pytest.mark.skipif(compute_dtype() != torch.bfloat16, reason="this processor does not multiply bfloat16")
@pytest.mark.parametrize("shape", [(1,), (5, 7), (96, 1), (3, 300)])
def test_a_packed_map_gives_the_plain_ones_bits(maps, shape):
    values = torch.randn(*shape, 576, dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = maps(values)
        with packed(maps):
            assert len(forwards(maps)) == 2
            assert torch.equal(maps(values), expected)


@pytest.mark.skipif(compute_dtype() != torch.bfloat16, reason="this processor does not multiply bfloat16")
def test_weights_are_packed_anew_each_time(maps):
    """A copy that outlived its block would be a model before its adapter was merged."""
    values = torch.randn(4, 576, dtype=torch.bfloat16)
    with torch.inference_mode(), packed(maps):
        before = maps(values)
    maps[0].weight.data += 1
    with torch.inference_mode(), packed(maps):
        assert not torch.equal(maps(values), before)


def test_linear_maps_of_the_model_are_back_also_after_an_error(maps):
    with pytest.raises(RuntimeError, match="within"), packed(maps):
        raise RuntimeError("within")
    assert not forwards(maps)


def test_float32_is_left_alone(maps):
    with packed(maps.float()):
        assert not forwards(maps)


def test_a_processor_without_bfloat16_is_left_alone(maps, monkeypatch):
    monkeypatch.setattr("esr.engine.linear.compute_dtype", lambda: torch.float32)
    with packed(maps):
        assert not forwards(maps)
