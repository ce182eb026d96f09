"""Device and dtype the models compute in."""

from __future__ import annotations

import os

import torch

CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # x86, x86, ARM: as torch.cpu.get_capabilities names them


def device() -> torch.device:
    """The GPU where there is one, else the CPU; ESR_DEVICE overrides."""
    return torch.device(os.environ.get("ESR_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))


def compute_dtype() -> torch.dtype:
    """bfloat16 where `device()` multiplies it, else float32.

    Without instructions for it (x86 without AVX512_BF16 or AMX) a CPU emulates it; with AVX2 alone PyTorch multiplies
    bfloat16 element by element: 1.3 GFLOP/s, where float32 reaches 100 (AMD Zen 3, two cores). Weights are kept as
    bfloat16 on disk either way.
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
