"""Run a stage: its notebook, with the parameters of params.yaml, through papermill.

    python -m esr.pipeline.run steer --model smollm2-135m
    python -m esr.pipeline.run steer --model smollm2-135m --shard 2/5    # one of five hosts: docs/hosts.md

The executed copy goes to notebooks/executed/, free of times and random ids, so that it changes only when results do.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import nbformat

from esr.config.schema import ConfigError, refuse_unknown
from esr.config.stages import stage_parameters
from esr.engine.shards import MERGE, SHARD, WAIT, Shard, ShardEnd
from esr.paths import CACHE, EXECUTED, NOTEBOOKS, PIPELINE, ROOT, from_root
from esr.pipeline import times
from esr.pipeline.kernels import kernel_manager
from esr.pipeline.sizes import TRIALS
from esr.storage.files import write_text

# nbformat imports jsonschema, which compiles a grammar of IRIs: 3 s of every stage, for a check not used here.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # typeshed omits None, which blocks an import


# Errors whose message says in a sentence what to do; others are mistakes of a program, and their kind matters.
REFUSALS = {
    "ConfigError", "FetchError", "JudgeError", "PaperError", "SteeringError", "FileNotFoundError", "ValueError",
}  # fmt: skip


class NotebookError(RuntimeError):
    """A notebook failed; the message is for the terminal."""


def notebook_path(stage: str) -> Path:
    """The one notebook `notebooks/NN_<stage>.ipynb`."""
    found = sorted(NOTEBOOKS.glob(f"[0-9][0-9]_{stage}.ipynb"))
    if len(found) != 1:
        raise ConfigError(f"{NOTEBOOKS} holds {len(found)} notebooks named NN_{stage}.ipynb; one is expected.")
    return found[0]


def check_names(path: Path, parameters: dict[str, Any]) -> None:
    """Raises ConfigError unless the parameters cell declares exactly these names: papermill itself would only warn."""
    from papermill import inspect_notebook

    declared = set(inspect_notebook(str(path)))
    for name in sorted(set(parameters) - declared):
        raise ConfigError(f"{path.name} has no parameter {name!r}; it has {', '.join(sorted(declared))}.")
    for name in sorted(declared - set(parameters)):
        raise ConfigError(f"{path.name} declares the parameter {name!r}, which its stage does not have.")


def run(stage: str, model: str | None = None) -> Path:
    """Execute the stage's notebook; returns the executed copy. Raises ConfigError for a wrong stage or model.

    A model that fails a check of the preflight stops here, right after it is fetched.
    """
    parameters = stage_parameters(stage, model)
    if "model" in parameters and model is None:
        raise ConfigError(f"{stage} runs on one model: name it, as in --model {parameters['model']}.")
    if "model" not in parameters and model is not None:
        raise ConfigError(f"{stage} runs on all models of params.yaml together: leave out --model {model}.")
    source = notebook_path(stage)
    name = f"{source.stem}-{model}.ipynb" if model else source.name
    start = time.monotonic()
    executed = execute(source, parameters, EXECUTED / name)
    times.record(stage, model, parameters, time.monotonic() - start)
    if stage == "fetch":
        from esr.pipeline.preflight import preflight, refuse

        refuse(preflight(parameters["model"]))
    return executed


def execute(source: Path, parameters: dict[str, Any], executed: Path) -> Path:
    """Execute a notebook and write its copy `executed`, normalized.

    Raises NotebookError when it fails; the notebook so far is kept under .cache.
    """
    import papermill

    check_names(source, parameters)
    (CACHE / "running").mkdir(parents=True, exist_ok=True)
    working = Path(mkdtemp(prefix=f"{executed.stem}-", dir=CACHE / "running"), executed.name)  # of this run alone
    start = time.monotonic()
    os.environ[PIPELINE] = source.stem
    print(f"{source.stem}: begins ({', '.join(f'{k}={v}' for k, v in parameters.items())})", file=sys.stderr)
    try:
        with show_progress(working.with_suffix(".log")):
            papermill.execute_notebook(
                str(source), str(working), parameters=parameters, kernel_name="python3", cwd=str(ROOT),
                progress_bar=False, log_output=False,
                kernel_manager_class=kernel_manager(), start_timeout=START_S,
            )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        if error.ename == ShardEnd.__name__:
            shutil.rmtree(working.parent)
            raise ShardEnd(error.evalue) from None
        raise NotebookError(_failure(error, source, working)) from error
    notebook = nbformat.read(working, as_version=4)
    for warning in stderr_of(notebook):
        print(warning, end="", file=sys.stderr)
    write_text(executed, nbformat.writes(normalize(notebook)) + "\n")
    shutil.rmtree(working.parent)
    print(f"{source.stem}: done in {time.monotonic() - start:.0f} s -> {executed.relative_to(ROOT)}", file=sys.stderr)
    return executed


def _failure(error, source: Path, working: Path) -> str:
    """The bare sentence of an error that says what to do; otherwise its kind and where the notebook so far is."""
    sentence = str(error.evalue).strip()
    if error.ename in REFUSALS and sentence.endswith(".") and "\n" not in sentence:
        return sentence
    return f"{source.name} failed: {error.ename}: {sentence}\nThe notebook so far: {working}"


def stderr_of(notebook: nbformat.NotebookNode) -> list[str]:
    """Warnings of the notebook's code and libraries: for the terminal, not for the executed copy."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.text for output in outputs if output.get("name") == "stderr"]


def normalize(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what differs between two equal runs: times, the injected cell's id, kernel details, progress
    bars (widgets with random ids), names of styled tables, addresses of objects, and stderr, which holds paths."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for number, cell in enumerate(notebook.cells):
        tags = [tag for tag in cell.metadata.get("tags", [])]
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if "injected-parameters" in tags:
            cell.id = "injected-parameters"
        elif not cell.get("id"):
            cell.id = f"cell-{number:02d}"
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and WIDGET not in o.get("data", {})]
        for place, output in enumerate(cell.get("outputs", [])):
            output.pop("metadata", None)
            if output.output_type in ("display_data", "execute_result"):
                output.metadata = {}
                for kind in ("text/html", "text/plain"):
                    if kind in output.data:
                        output.data[kind] = _without_identity(output.data[kind], f"{number:02d}-{place}")
    return notebook


def _without_identity(text: str, place: str) -> str:
    """`text` of the output at `place` without pandas' random names of styled tables and addresses of objects."""
    return ADDRESS.sub("at 0x0", STYLED.sub(f"T_{place}", text))


START_S = 600  # a kernel may take to start: the first fork waits until the libraries are imported
WIDGET = "application/vnd.jupyter.widget-view+json"
STYLED = re.compile(r"\bT_[0-9a-f]{5}(?=[_\" ])")
ADDRESS = re.compile(r"\bat 0x[0-9a-f]+")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


@contextmanager
def show_progress(log: Path) -> Iterator[None]:
    """Repeat on stderr the kernel's progress (esr.progress) while the block runs."""
    log.unlink(missing_ok=True)
    log.touch()
    done = threading.Event()

    def follow() -> None:
        with log.open(encoding="utf-8") as lines:
            while True:
                last = done.is_set()
                for line in lines:
                    print(f"  {line}", end="", file=sys.stderr, flush=True)
                if last:
                    return
                done.wait(0.5)

    thread = threading.Thread(target=follow, daemon=True)
    os.environ["ESR_PROGRESS"] = str(log)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        del os.environ["ESR_PROGRESS"]
        log.unlink(missing_ok=True)


def share(stage: str, shard: str | None, wait: float | None, merge: int | None) -> None:
    """Have the stage run as a shard, or put shards together. Raises ConfigError for what cannot be shared."""
    if shard and merge:
        raise ConfigError("--shard computes and --merge puts together: give one of them.")
    if wait is not None and not shard:
        raise ConfigError("--wait is for shards: add --shard, or leave it out.")
    if merge is not None and merge < 1:
        raise ConfigError(f"--merge is {merge}: give the number of shards, 1 or more.")
    if shard or merge:
        refuse_unknown(stage, TRIALS, "Hosts cannot share the stage")  # of others each host would run all
    if shard:
        Shard.parse(shard)
        os.environ[SHARD], os.environ[WAIT] = shard, str(wait or 0)
    if merge:
        os.environ[MERGE] = str(merge)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the notebook of a stage with the parameters of params.yaml.")
    parser.add_argument("stage")
    parser.add_argument("--model", help="id in data/models.yaml; stages over all models take none")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="run every N-th chunk, from the I-th, and end there unless the others are finished",
    )
    parser.add_argument("--wait", metavar="S", type=float, help="seconds that a shard waits for chunks of other shards")
    parser.add_argument("--merge", metavar="N", type=int, help="write the outputs that N shards computed, or refuse")
    arguments = parser.parse_args()
    try:
        share(arguments.stage, arguments.shard, arguments.wait, arguments.merge)
        run(arguments.stage, arguments.model)
    except ShardEnd as end:
        print(end)
    except (ConfigError, FileNotFoundError, ValueError, NotebookError) as error:
        if arguments.traceback:
            raise
        raise SystemExit(f"error: {from_root(str(error))}") from None


if __name__ == "__main__":
    main()
