"""Device and dtype of the models."""

from __future__ import annotations

import os

import torch

CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # x86, x86, ARM; names of torch.cpu.get_capabilities


def device() -> torch.device:
    """The GPU if there is one, else the CPU; ESR_DEVICE overrides."""
    return torch.device(os.environ.get("ESR_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))


def compute_dtype() -> torch.dtype:
    """bfloat16 where `device()` multiplies it, else float32; weights on disk are bfloat16 either way.

    A CPU without bfloat16 instructions (x86 without AVX512_BF16 or AMX) emulates them. With AVX2, PyTorch reaches
    1.3 GFLOP/s in bfloat16 and 100 in float32 (AMD Zen 3, two cores).
    """
    here = device().type
    if here == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif here == "cpu":
        able = torch.cpu.get_capabilities()
        fast = torch.backends.mkldnn.is_available() and any(able.get(name) for name in CPU_BFLOAT16)
    else:
        fast = True
    return torch.bfloat16 if fast else torch.float32
