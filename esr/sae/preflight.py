"""Preflight: a model, its SAE and labels, the study and the machine fit together, found out before anything heavy.

Each check returns a row of a table; a failed one says what is wrong, where, what is allowed and what to do. Reads
headers, configurations and the tokenizer, no weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from esr.config.registry import model_entry
from esr.config.schema import ConfigError, load_yaml
from esr.config.stages import stage_parameters
from esr.models.preflight import MODEL_CHECKS, Check, ModelFiles, Subject, check_weights
from esr.paths import DATA, PROMPTS, data_dir
from esr.sae.fit import check_labels, check_sae
from esr.storage.prompts import read_prompts

MAX_RESIDUAL_NORMS = 10  # a larger boost replaces the residual stream


def preflight(model_id: str) -> list[Check]:
    """Rows of all checks of a model, in order, up to the first file that cannot be read. Takes seconds.

    Raises ConfigError for an unknown model and mistakes in params.yaml.
    """
    entry, files = model_entry(model_id), ModelFiles(model_id, data_dir("fetch", model_id))
    sizes = stage_parameters("steer", model_id)
    subject = Subject(entry, files, study_prompts(), sizes["max_new_tokens"], sizes["batch_size"])
    checks = CHECKS if entry.steerable else {"weights": check_weights}
    rows = []
    for name, check in checks.items():
        try:
            rows.append(check(subject))
        except ConfigError as error:
            return [*rows, Check(name, "unreadable", "", str(error))]
    return rows


def refuse(rows: Sequence[Check]) -> None:
    """Raise ConfigError with the sentences of the rows that failed, if any."""
    if problems := [row.problem for row in rows if row.problem]:
        raise ConfigError(" ".join(problems))


def study_prompts() -> list[str]:
    """Every user message of the study, the longest instruction added to each evaluation prompt."""
    variants = PROMPTS / "meta_prompts.yaml"
    longest = max(load_yaml(variants).values(), key=len, default="") if variants.exists() else ""
    plain = [prompt.text for split in ("held_out", "finetune") for prompt in read_prompts(split)]
    return plain + [f"{prompt.text}\n\n{longest}" for prompt in read_prompts("evaluation")]


def check_boost(subject: Subject) -> Check:
    """The search bounds make sense in their unit."""
    boost = subject.entry.boost
    assert boost is not None  # the registry requires it of a model that can be steered
    found, needed = (
        f"{boost.min:g} to {boost.max:g} {boost.unit}",
        f"at most {MAX_RESIDUAL_NORMS} residual norms, or raw",
    )
    problem = ""
    if boost.unit == "residual_norm" and boost.max > MAX_RESIDUAL_NORMS:
        problem = (
            f"data/models.yaml: boost.max of {subject.files.model} is {boost.max:g} median residual norms; at most "
            f"{MAX_RESIDUAL_NORMS} are allowed: write unit: raw if the bounds are in the residual stream's own units."
        )
    elif not boost.min <= boost.prior_mean <= boost.max:
        problem = (
            f"data/models.yaml: boost.prior_mean of {subject.files.model} is {boost.prior_mean:g}, outside its bounds "
            f"{boost.min:g} to {boost.max:g}: the search starts there; choose a value between."
        )
    return Check("boost", found, needed, problem)


def check_layout(subject: Subject) -> Check:
    """The model is built as the engine expects."""
    return Check(
        "architecture", subject.files.config.model_type, "layers as in Llama", check_architecture(subject.files.config)
    )


def check_architecture(config) -> str:
    """Why the engine cannot run a model of this configuration, in a sentence; "" if it can."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(config)
        except ValueError:
            return f"{config.model_type} is no causal language model of transformers: choose a Llama-like chat model."
    body = getattr(model, "model", None)
    parts = ("embed_tokens", "layers", "norm")
    missing = [part for part in parts if not hasattr(body, part)]
    if missing:
        return (
            f"A {config.model_type} model has no model.{missing[0]}: models laid out like Llama (Llama, Qwen, Gemma, "
            "Mistral) are supported; choose one of these."
        )
    return ""


def check_memory(subject: Subject) -> Check:
    """Weights in the compute dtype, the cache of a batch and the SAE fit into memory."""
    from esr.models.devices import compute_dtype, device

    need, room = memory_needed(subject), memory_there()
    found, needed = (
        f"{gigabytes(room)} on {device()}",
        f"{gigabytes(need)} ({str(compute_dtype()).removeprefix('torch.')})",
    )
    problem = ""
    if need > room:
        problem = (
            f"{subject.files.model} needs {gigabytes(need)} of memory with batches of {subject.batch_size}; {device()} "
            f"has {gigabytes(room)}: lower generation.batch_size in params.yaml, set ESR_WORKERS=1 or use a larger "
            "machine."
        )
    return Check("memory", found, needed, problem)


def memory_needed(subject: Subject) -> int:
    """Bytes: of every process its weights and the keys and values of a batch, and one SAE in float32."""
    from esr.engine.workers import default_count
    from esr.models.devices import compute_dtype, device

    width = compute_dtype().itemsize
    packed = 2 if device().type == "cpu" and width == 2 else 1  # esr.engine.linear keeps a second copy
    positions = subject.prompt_tokens + subject.max_new_tokens
    cache = subject.batch_size * positions * subject.files.cache_bytes_per_token(width)
    weights = subject.files.n_parameters * width * packed
    d_sae = subject.entry.d_sae or 0
    return max(1, default_count()) * (weights + cache) + 2 * d_sae * subject.files.config.hidden_size * 4


def memory_there() -> int:
    """Bytes of the GPU that are free; else of main memory, as far as this container may use it."""
    import psutil
    import torch

    from esr.models.devices import device

    if device().type == "cuda":
        return torch.cuda.mem_get_info()[0]
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.exists() else "max"
    total = psutil.virtual_memory().total
    return total if allowed == "max" else min(total, int(allowed))


def check_disk(subject: Subject) -> Check:
    """The disk has room for the copy of the model that DVC keeps."""
    need = sum(file.stat().st_size for file in subject.files.folder.glob("*.safetensors"))
    free = shutil.disk_usage(DATA).free
    problem = ""
    if need > free:
        problem = (
            f"DVC copies {subject.files.folder} into its cache, which takes {gigabytes(need)}, but the disk of {DATA} "
            f"has {gigabytes(free)} free: make room, or move the cache (`dvc cache dir`)."
        )
    return Check("disk", f"{gigabytes(free)} free", gigabytes(need), problem)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


CHECKS: dict[str, Callable[[Subject], Check]] = {
    "boost": check_boost,
    "architecture": check_layout,
    **MODEL_CHECKS,
    "SAE": check_sae,
    "labels": check_labels,
    "memory": check_memory,
    "disk": check_disk,
}
