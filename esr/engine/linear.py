"""Linear maps of a bfloat16 model on a CPU, their weights laid out once as the matrix kernels read them.

oneDNN reads bfloat16 weights in blocks and rearranges plain ones at every call, which a decoding step of a hundred rows
feels: SmolLM2-135M writes a tenth more tokens, the same to the bit (AMD Zen 4, 64 and 96 rows, medians of 4).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esr.models.devices import compute_dtype


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Within the block the linear maps of `model` multiply by packed copies of their weights; afterwards as before.

    For inference alone, and while no weight changes: the copies know nothing of gradients, nor of later edits. They
    take as much memory as the weights. On a GPU, in float32 or without bfloat16 instructions nothing is done.
    """
    maps = [m for m in model.modules() if type(m) is nn.Linear and _gains(m.weight)]
    try:
        for linear in maps:
            linear.forward = _forward(linear)
        yield
    finally:
        for linear in maps:
            vars(linear).pop("forward", None)


def _gains(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 == compute_dtype()


def _forward(linear: nn.Linear):
    # What torch.compile makes of a linear map on a CPU; without torch.compile there is no public way to it
    weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(values: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        return torch.ops.mkldnn._linear_pointwise(values, weight, linear.bias, "none", [], "")

    return forward
