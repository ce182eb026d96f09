"""Speed of the model's matrix products on this machine, an upper bound on tokens per second.

One token step of a batch puts [rows, in] through every linear layer, the output layer included. The bound is the rate
of these products alone, with the model's weights, in as many single-threaded processes as the engine has. The engine
also spends time on attention, sampling, norms and Python.
"""

from __future__ import annotations

import json
import time
from statistics import median

import torch

from esr.engine.workers import Report
from esr.models.loading import resident_model


def linear_layers(model) -> list[torch.nn.Linear]:
    return [module for module in model.modules() if isinstance(module, torch.nn.Linear)]


def step_flops(layers: list[torch.nn.Linear], rows: int) -> int:
    """Floating-point operations of one token step."""
    return sum(2 * rows * layer.in_features * layer.out_features for layer in layers)


def prompt_cost(model) -> float:
    """Operations of a prompt token as a share of a new token's: prompt tokens need no output layer."""
    output = step_flops([model.get_output_embeddings()], 1)
    return 1 - output / step_flops(linear_layers(model), 1)


@torch.inference_mode()
def step_seconds(layers: list[torch.nn.Linear], rows: int, seconds: float) -> list[float]:
    """Durations of token steps at `rows`, repeated for `seconds`."""
    draw = torch.Generator().manual_seed(0)
    weights = [layer.weight for layer in layers]
    widths = sorted({weight.shape[1] for weight in weights})
    inputs = {width: torch.randn(rows, width, generator=draw).to(weights[0].dtype) for width in widths}
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)
        times.append(time.perf_counter() - start)
    return times


def time_matmuls(chunk: dict, report: Report) -> bytes:
    """Median seconds of a token step and its operations, as JSON. Runs in a worker, on one thread."""
    model, _ = resident_model(chunk["model"])
    layers = linear_layers(model)
    step_seconds(layers, chunk["rows"], 0.0)  # the first step fills caches
    seconds = median(step_seconds(layers, chunk["rows"], chunk["seconds"]))
    report(1, chunk["rows"])
    flops = step_flops(layers, chunk["rows"])
    return json.dumps({"seconds": seconds, "flops": flops, "prompt_cost": prompt_cost(model)}).encode()
