"""Values that are not finite: the run ends and names the row, instead of sampling from them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


class NonFiniteError(ArithmeticError):
    """Residual stream or logits hold inf or nan. `row`: index in the list of rows or documents."""

    def __init__(self, message: str, row: int):
        super().__init__(message, row)  # both, so that the error can be sent between processes
        self.row = row

    def __str__(self) -> str:
        return self.args[0]


def non_finite(row: str, index: int, place: str, layer: int | None, dtype: torch.dtype) -> NonFiniteError:
    """The error for row or document `index`, called `row`; layer: None for the logits."""
    values = "the logits" if layer is None else f"the residual stream after layer {layer}"
    name = str(dtype).removeprefix("torch.")
    return NonFiniteError(
        f"{row} {index} has values that are not finite in {values}, {place}: usually a strong steering vector exceeds "
        f"the range of {name} (up to {torch.finfo(dtype).max:.3g}); lower the boost or load the model in float32.",
        index,
    )


def sums(values: Float[Tensor, "*tokens width"]) -> Float[Tensor, "*tokens"]:
    """One number per token, finite if its values are. On a CPU ten times faster than `isfinite` of each value."""
    return values.sum(dim=-1, dtype=torch.float32)


def first_layer(model, forward: Callable[[], object], is_finite: Callable[[Tensor], bool]) -> int | None:
    """The first layer whose output, edits included, is not finite when `forward` runs again; None if all are."""
    found: list[int] = []

    def hook_of(layer: int):
        def hook(_module, _inputs, output):
            if not found and not is_finite(output[0] if isinstance(output, tuple) else output):
                found.append(layer)

        return hook

    handles = [module.register_forward_hook(hook_of(layer)) for layer, module in enumerate(model.model.layers)]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
