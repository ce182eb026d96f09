"""A language model on this machine as a judge: llama.cpp's OpenAI-compatible server, with a GGUF file of the registry.

A judge of params.yaml with `serve` runs one for as long as it has requests; `python -m esr.judging.server
qwen25-coder-15b` serves until it is interrupted. The system prompt is evaluated once and kept, so a verdict costs
little more than reading the response.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esr.config.judges import LlmJudge
from esr.config.registry import model_entry
from esr.config.sources import shared_digest
from esr.judging.providers import JudgeError
from esr.models.fetch import gguf_file
from esr.paths import CACHE
from esr.storage.digests import file_digest

CONTEXT = 8192  # tokens of rubric, prompt, response and reply, for each request at a time
START_S = 120.0  # until a server answers
HOST = "127.0.0.1"  # of this machine alone


def weights_of(model_id: str) -> str:
    """SHA-256 of the served file, as the registry or the file says. Raises FetchError without a file of its own."""
    entry = model_entry(model_id)
    return shared_digest(entry.source) or file_digest(gguf_file(entry))


@contextmanager
def serving(judge: LlmJudge) -> Iterator[LlmJudge]:
    """The entry of a judge with `serve`, with the address of a server that runs within the block.

    Raises JudgeError when it cannot start, or when the model has no GGUF file.
    """
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    log = CACHE / "judgements" / f"server-{judge.serve}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "esr.judging.server", str(judge.serve), "--port", str(port)]
    command += ["--parallel", str(judge.max_connections)]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            _wait(process, port, log)
            yield judge.model_copy(
                update={"model": f"openai-api/local/{judge.serve}", "base_url": f"http://{HOST}:{port}/v1"}
            )
        finally:
            process.terminate()


def _wait(process: subprocess.Popen, port: int, log: Path) -> None:
    """Until the server answers. Raises JudgeError when it ends or takes longer than `START_S`."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no message"]
            raise JudgeError(f"The server ended with status {process.returncode} ({last[0]}): see {log}.")
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=1) as reply:
                if reply.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise JudgeError(f"The server did not answer within {START_S:.0f} s: see {log}.")


def server_parameters(file: Path, port: int, parallel: int):
    """Parameters of llama.cpp's server. Raises JudgeError without xllamacpp."""
    try:
        import xllamacpp
    except ImportError:
        raise JudgeError(
            "A judge on this machine needs the packages of the extra `judges`: pip install -e '.[judges]'."
        ) from None
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.hostnames, parameters.port = str(file), [HOST], port
    parameters.n_ctx, parameters.n_parallel = CONTEXT * parallel, parallel
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    return parameters


def serve(file: Path, port: int, parallel: int) -> None:
    """Serve a GGUF file until the process is terminated. Raises JudgeError without xllamacpp."""
    parameters = server_parameters(file, port, parallel)
    import xllamacpp

    server = xllamacpp.Server(parameters)
    print(f"{file.name}: {server.listening_address}", flush=True)
    while True:
        time.sleep(3600)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m esr.judging.server", description="Serve a model as a judge.")
    parser.add_argument("model", help="id in data/models.yaml, from a GGUF file")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--parallel", type=int, default=1, help="requests at a time")
    given = parser.parse_args(arguments)
    try:
        serve(gguf_file(model_entry(given.model)), given.port, given.parallel)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
