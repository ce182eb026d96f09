"""The experiments of data/experiments.yaml with what the study has of each: notebooks, figures, verdicts, times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, TypeAdapter

from esr import paths
from esr.config.schema import Section, load_yaml, validate
from esr.reporting.claims import Row

FILE = paths.DATA / "experiments.yaml"
BENCH = "bench"  # its notebook is in benchmarks/
# In the order of a tally: what held, what did not, what is open
VERDICTS = (
    "reproduced", "manipulation check passed", "contradicted", "manipulation check failed", "undecided at this n",
    "cannot be decided at this size", "not interpretable", "not measured",
)  # fmt: skip


class Experiment(Section):
    """One experiment; fields as the head of data/experiments.yaml says."""

    id: str = Field(pattern=r"^[1-9]\d?b?$")
    title: str
    stage: str
    numbers: list[str] = Field(min_length=1)
    figures: dict[str, str] = {}
    responses: str | None = None


class Experiments(Section):
    """The content of data/experiments.yaml. methods: figures of no experiment, by stage."""

    experiments: list[Experiment] = Field(min_length=1)
    methods: dict[str, dict[str, str]]


def read_experiments(path: Path = FILE) -> Experiments:
    """The experiments. Raises ConfigError for a mistake in the file."""
    return validate(TypeAdapter(Experiments), load_yaml(path), str(path))


def executed_notebooks(stage: str, root: Path | None = None) -> list[Path]:
    """Executed copies of a stage's notebook, one for each model where it runs on each; sorted by name."""
    root = root or paths.ROOT
    if stage == BENCH:
        return sorted((root / "benchmarks" / "executed").glob("bench.ipynb"))
    folder = root / "notebooks" / "executed"
    found = [*folder.glob(f"[0-9][0-9]_{stage}.ipynb"), *folder.glob(f"[0-9][0-9]_{stage}-*.ipynb")]
    return sorted(found, key=lambda path: path.stem)


def model_of(notebook: Path) -> str:
    """The model of an executed copy; "" for a notebook of all models together."""
    return notebook.stem.partition("-")[2]


def figure_files(named: Mapping[str, str], root: Path | None = None) -> dict[Path, str]:
    """Files of figures with what they draw, `{file: description}`; a * in a name stands for each model drawn."""
    folder = (root or paths.ROOT) / "paper" / "figures"
    return {file: f"{text} ({file.stem.partition('_')[2]})" if "*" in name else text
            for name, text in named.items() for file in sorted(folder.glob(f"{name}.svg"))}  # fmt: skip


def verdicts_of(experiment: str, claims: Sequence[Row]) -> dict[str, int]:
    """How many of an experiment's claims have each verdict, in the order of `VERDICTS`."""
    counts: Counter[str] = Counter(row.verdict for row in claims if row.experiment == experiment)
    return {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}


def seconds_of(stage: str, times: Mapping) -> float | None:
    """What a stage took on all its models together; None where it was not timed."""
    measured = (times.get("seconds") or {}).get(stage)
    return sum(measured.values()) if measured else None
