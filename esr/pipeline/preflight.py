"""Preflight: whether a model, its SAE and labels, the study and this machine fit together, before anything heavy.

Takes seconds: reads headers, configurations and the tokenizer, no weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from esr.config.registry import model_entry
from esr.config.schema import ConfigError, load_texts, shown
from esr.config.stages import stage_parameters
from esr.engine.architecture import UnsupportedArchitecture, check_architecture, max_positions
from esr.judging.texts import unspaced_share
from esr.models.failures import FetchError
from esr.models.files import ModelFiles
from esr.models.preflight import MODEL_CHECKS, Found, Subject, check_files
from esr.paths import DATA, PROMPTS, ROOT, data_dir, from_root
from esr.sae.preflight import check_labels, check_sae
from esr.storage.prompts import read_prompts

MAX_RESIDUAL_NORMS = 10  # a larger boost replaces the residual stream
MAX_UNSPACED = 0.5  # share of a prompt's letters: a name or a sentence to translate may be in another script
GROUND = ("files", "architecture", "vocabulary", "chat template")  # where one fails, later ones make no sense


@dataclass(frozen=True)
class Check:
    """A row of the table. problem: what is wrong, where, what is allowed and what to do, in a sentence; "" if right."""

    name: str
    found: str
    needed: str
    problem: str = ""


def preflight(model_id: str) -> list[Check]:
    """Rows of the checks of a fetched model. Raises ConfigError for an unknown model and mistakes in params.yaml."""
    entry, sizes = model_entry(model_id), stage_parameters("steer", model_id)
    files = ModelFiles(model_id, data_dir("fetch", model_id))
    subject = Subject(entry, files, study_prompts(), sizes["max_new_tokens"], sizes["batch_size"])
    rows: list[Check] = []
    for name, check in checks_of(subject).items():
        try:
            rows.append(Check(name, *check(subject)))
        except (ValueError, FileNotFoundError, FetchError) as error:
            rows.append(Check(name, "-", "-", from_root(str(error))))
            if name in GROUND:
                break
    return rows


def refuse(rows: Sequence[Check]) -> None:
    """Raise ConfigError with the sentences of the rows that failed, if any."""
    if problems := [row.problem for row in rows if row.problem]:
        raise ConfigError(" ".join(problems))


def study_prompts() -> list[str]:
    """Every user message of the study; evaluation prompts with the longest instruction that is added to them."""
    longest = max(load_texts(PROMPTS / "meta_prompts.yaml", ["distractor"]).values(), key=len)
    plain = [prompt.text for split in ("held_out", "finetune") for prompt in read_prompts(split)]
    return plain + [f"{prompt.text}\n\n{longest}" for prompt in read_prompts("evaluation")]


def check_boost(subject: Subject) -> Found:
    """The search bounds make sense in their unit."""
    boost = subject.entry.boost
    assert boost is not None  # the registry requires it of a model that can be steered
    if boost.unit == "residual_norm" and boost.max > MAX_RESIDUAL_NORMS:
        raise ConfigError(
            f"data/models.yaml: boost.max of {subject.files.model} is {boost.max:g} median residual norms; at most "
            f"{MAX_RESIDUAL_NORMS} are allowed: lower it to {MAX_RESIDUAL_NORMS} or less, or write unit: raw under "
            "boost if it is a length in units of the residual stream."
        )
    if not boost.min <= boost.prior_mean <= boost.max:
        raise ConfigError(
            f"data/models.yaml: boost.prior_mean of {subject.files.model} is {boost.prior_mean:g}, outside its bounds "
            f"{boost.min:g} to {boost.max:g}: the search starts there; choose a value between."
        )
    return f"{boost.min:g} to {boost.max:g}", f"in unit {boost.unit}"


def check_concepts(subject: Subject) -> Found:
    """The file of concepts can be read. That its layer is in range is checked with the registry."""
    from esr.steering.directions import read_concepts

    concepts, n_layers = subject.entry.concepts, subject.files.config.num_hidden_layers
    assert concepts is not None
    if not (ROOT / concepts.path).is_file():
        raise ConfigError(
            f"data/models.yaml: concepts.path of {subject.files.model} is {concepts.path}, which does not exist: write "
            "that file, or correct the path."
        )
    found = read_concepts(ROOT / concepts.path)
    return f"{len(found.concepts)} in {concepts.path}", f"texts, and a layer from 0 to {n_layers - 1}"


def check_model_type(subject: Subject) -> Found:
    """The engine runs models of this architecture."""
    try:
        check_architecture(subject.files.config)
    except UnsupportedArchitecture as error:
        raise ConfigError(f"{subject.files.folder / 'config.json'}: {error}") from None
    return subject.files.config.model_type, "known to the engine"


def check_positions(subject: Subject) -> Found:
    """Prompt and response fit into the positions that the model knows."""
    room, prompt, new = max_positions(subject.files.config), subject.prompt_tokens, subject.max_new_tokens
    if prompt + new > room:
        raise ConfigError(
            f"{subject.files.model} has {room} positions (max_position_embeddings), the longest prompt {prompt} tokens "
            f"and params.yaml max_new_tokens {new}: lower max_new_tokens to {max(0, room - prompt)} or less."
        )
    return f"{room:,}", f"{prompt} of the longest prompt + {new} new"


def check_prompts(subject: Subject) -> Found:
    """The offline judge, which counts words between spaces, can read the prompts."""
    splits = ("evaluation", "held_out", "finetune")
    prompts = [prompt.text for split in splits for prompt in read_prompts(split)]  # without instructions after them
    for prompt in prompts:
        if unspaced_share(prompt) > MAX_UNSPACED:
            raise ConfigError(
                f"data/prompts has {shown(prompt)}, in a script without spaces between words, in which the offline "
                "judge cannot tell words apart: write prompts in a language that separates them."
            )
    return f"{len(prompts)} prompts", "words between spaces; restarts are known in English"


def check_memory(subject: Subject) -> Found:
    """Weights in the compute dtype, the cache of a batch and the SAE fit into memory."""
    from esr.models.devices import compute_dtype, device

    need, room = needed_memory(subject), available_memory()
    if need > room:
        raise ConfigError(
            f"{subject.files.model} needs {gigabytes(need)} of memory with batches of {subject.batch_size}; {device()} "
            f"has {gigabytes(room)}: lower generation.batch_size in params.yaml, set ESR_WORKERS=1 or use a larger "
            "machine."
        )
    dtype = str(compute_dtype()).removeprefix("torch.")
    return f"{gigabytes(room)} on {device()}", f"{gigabytes(need)} in {dtype}, batches of {subject.batch_size}"


def needed_memory(subject: Subject) -> int:
    """Bytes: in each process the weights and the keys and values of a batch; and the SAE in float32."""
    from esr.engine.workers import default_count
    from esr.models.devices import compute_dtype, device

    width = compute_dtype().itemsize
    packed = 2 if device().type == "cpu" and width == 2 else 1  # esr.engine.linear keeps a second copy
    positions = subject.prompt_tokens + subject.max_new_tokens
    cache = subject.batch_size * positions * subject.files.cache_bytes_per_token(width)
    weights = subject.files.n_parameters * width * packed
    sae = 2 * (subject.entry.d_sae or 0) * subject.files.config.hidden_size * 4
    return max(1, default_count()) * (weights + cache) + sae


def available_memory() -> int:
    """Bytes of the GPU that are free; else of main memory, as far as this container may use it."""
    import psutil
    import torch

    from esr.models.devices import device

    if device().type == "cuda":
        return torch.cuda.mem_get_info()[0]
    limit, total = Path("/sys/fs/cgroup/memory.max"), psutil.virtual_memory().total
    allowed = limit.read_text().strip() if limit.exists() else "max"
    return total if allowed == "max" else min(total, int(allowed))


def check_disk(subject: Subject) -> Found:
    """The disk has room for the copy of the model that DVC keeps."""
    need = sum(file.stat().st_size for file in subject.files.folder.glob("*.safetensors"))
    free = shutil.disk_usage(DATA).free
    if need > free:
        raise ConfigError(
            f"DVC copies {subject.files.folder} into its cache, which takes {gigabytes(need)}; the disk of {DATA} has "
            f"{gigabytes(free)} free: make room, or move the cache (`dvc cache dir`)."
        )
    return f"{gigabytes(free)} free", gigabytes(need)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def checks_of(subject: Subject) -> dict[str, Callable[[Subject], Found]]:
    """Checks of the model, in order; of one that is not steered its files alone."""
    if not subject.entry.steerable:
        return {"files": check_files}
    of_vectors = {"SAE": check_sae, "labels": check_labels} if subject.entry.sae else {"concepts": check_concepts}
    ground = {"boost": check_boost, "files": check_files, "architecture": check_model_type}
    machine = {"prompts": check_prompts, "positions": check_positions, "memory": check_memory, "disk": check_disk}
    return {**ground, **MODEL_CHECKS, **of_vectors, **machine}
