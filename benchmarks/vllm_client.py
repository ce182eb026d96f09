"""Client of vllm_process: starts it in its environment and requests timed runs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from benchmarks.results import Timing
from benchmarks.trials import TEMPERATURE, Workload
from esr.models.loading import model_folder
from esr.models.provenance import environment
from esr.paths import ROOT

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
KV_CACHE = "1"  # GiB; ten times what all trials of a run take


def available() -> bool:
    return PYTHON.exists()


class Vllm:
    """vLLM with vllm-lens in a separate process, alive within its `with` block; it starts while others load."""

    def __init__(self, workload: Workload, tokens: int, log: Path):
        cores = sorted(os.sched_getaffinity(0))
        settings = {
            "OMP_NUM_THREADS": str(len(cores)),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),  # the default leaves one core to a web server
            "VLLM_CPU_KVCACHE_SPACE": KV_CACHE,
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.log = log
        self.process = subprocess.Popen(
            [str(PYTHON), "-m", "benchmarks.vllm_process"], cwd=ROOT, env=os.environ | settings, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"),
        )  # fmt: skip
        trials = [
            {"prompt": list(prompt), "vector": vector}
            for prompt, vector in zip(workload.prompts, workload.vectors.tolist(), strict=True)
        ]
        job = {
            "folder": str(model_folder(workload.model)),
            "layer": workload.layer,
            "dtype": environment()["dtype"],
            "tokens": tokens,
            "temperature": TEMPERATURE,
            "repetition_penalty": workload.repetition_penalty,
            "trials": trials,
        }
        self._send(json.dumps(job))

    def __enter__(self) -> Vllm:
        return self

    def __exit__(self, *_error) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def wait(self) -> dict[str, str]:
        """Wait until it is loaded, warm and verified to steer; returns its versions."""
        return self._receive()["versions"]

    def write(self) -> Timing:
        self._send("run")
        return Timing(**self._receive())

    def _send(self, line: str) -> None:
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def _receive(self) -> dict:
        line = self.process.stdout.readline()
        return json.loads(line) if line else self._fail()

    def _fail(self):
        self.process.wait()
        last = (self.log.read_text(encoding="utf-8").strip().splitlines() or ["nothing"])[-1]
        raise RuntimeError(f"vLLM ended with status {self.process.returncode}; its log {self.log} ends: {last}")
