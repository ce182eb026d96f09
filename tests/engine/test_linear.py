"""Packed weights change how fast a linear map is, and nothing else."""

import pytest
import torch
from torch import nn

from esr.engine.linear import packed
from esr.models.devices import compute_dtype

BFLOAT16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(compute_dtype() != torch.bfloat16, reason="this processor does not multiply bfloat16"),
)


@pytest.fixture(params=[torch.float32, BFLOAT16])
def maps(request):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(576, 1536, bias=False), nn.Linear(1536, 576)).to(request.param)


def values_for(maps, *shape):
    return torch.randn(*shape, 576, dtype=maps[0].weight.dtype)


def forwards(model):
    return [m for m in model if "forward" in vars(m)]


@pytest.mark.parametrize("shape", [(1,), (5, 7), (96, 1), (3, 300)])
def test_a_packed_map_gives_what_the_plain_one_gives(maps, shape):
    """In bfloat16 bit for bit; in float32 another library adds up the products."""
    values = values_for(maps, *shape)
    with torch.inference_mode():
        expected = maps(values)
        with packed(maps):
            assert len(forwards(maps)) == 2
            torch.testing.assert_close(maps(values), expected, **({"rtol": 0, "atol": 0} if is_bfloat16(maps) else {}))


def is_bfloat16(maps):
    return maps[0].weight.dtype == torch.bfloat16


def test_weights_are_packed_anew_each_time(maps):
    """A copy that outlived its block would be a model before its adapter was merged."""
    values = values_for(maps, 4)
    with torch.inference_mode(), packed(maps):
        before = maps(values)
    maps[0].weight.data += 1
    with torch.inference_mode(), packed(maps):
        assert not torch.equal(maps(values), before)


def test_linear_maps_of_the_model_are_back_also_after_an_error(maps):
    with pytest.raises(RuntimeError, match="within"), packed(maps):
        raise RuntimeError("within")
    assert not forwards(maps)


def test_bfloat16_is_left_alone_where_the_processor_does_not_multiply_it(monkeypatch):
    monkeypatch.setattr("esr.engine.linear.compute_dtype", lambda: torch.float32)
    maps = nn.Sequential(nn.Linear(8, 8)).bfloat16()
    with packed(maps):
        assert not forwards(maps)
