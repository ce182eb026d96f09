"""The command `esr`: choose models, check them, see what a run takes; label responses, and validate judges on them.

esr select MODEL ...    esr check [MODEL ...]    esr plan [MODEL ...]    esr label draw|annotate    esr judge validate
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence

from pydantic import TypeAdapter
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from esr.config import stages, study
from esr.config.registry import model_entry
from esr.config.schema import ConfigError, load_yaml, validate
from esr.paths import PIPELINE, data_dir, from_root
from esr.storage.files import write_text


def select(models: list[str]) -> None:
    """Write `models` into params.yaml, if any are given, and data/study.yaml for the models there.

    Raises ConfigError for a model that cannot be studied; nothing is then written.
    """
    chosen = known(models) or selected()
    if not chosen:
        raise ConfigError(f"{stages.PARAMS} has no models: name one or more, as in `esr select smollm2-135m`.")
    study.derive(chosen)
    if models:
        _write_models(chosen)
    study.write_study(chosen)
    print(from_root(f"{stages.PARAMS} and {study.STUDY}: {', '.join(chosen)}"))


def _write_models(models: list[str]) -> None:
    """Replace `models` in params.yaml; comments and everything else stay."""
    before, text, yaml = load_yaml(stages.PARAMS), io.StringIO(), YAML()
    yaml.preserve_quotes, yaml.width = True, 10**6
    content = yaml.load(stages.PARAMS)
    listed = content.get("models")
    if not isinstance(listed, list):
        listed = content["models"] = CommentedSeq()
    listed.fa.set_flow_style()
    listed[:] = models
    yaml.dump(content, text)
    after = YAML(typ="safe", pure=True).load(text.getvalue())
    if after != before | {"models": models}:
        raise ConfigError(f"{stages.PARAMS} could not be edited without other changes: write models: {models} by hand.")
    write_text(stages.PARAMS, text.getvalue())


def known(models: list[str], where: str = " on the command line") -> list[str]:
    """`models`, each an id of the registry, none twice. Raises ConfigError with the id that was probably meant."""
    for model in models:
        model_entry(model, where)
        if models.count(model) > 1:
            raise ConfigError(f"{model} is named twice{where}: remove one.")
    return list(models)


def selected() -> list[str]:
    """The models of params.yaml. Raises ConfigError."""
    written = load_yaml(stages.PARAMS).get("models") or []
    models = validate(TypeAdapter(list[str]), written, f"{stages.PARAMS}: models")
    return known(models, f" under models in {stages.PARAMS}")


def studied() -> list[str]:
    """The models of params.yaml and those they were fine-tuned from."""
    models = selected()
    return list(dict.fromkeys([*study.bases_of(models), *models]))


def check(models: list[str]) -> int:
    """Print the table of each model's checks; returns 1 when one fails, else 0."""
    from transformers.utils import logging

    from esr.pipeline.preflight import preflight

    logging.set_verbosity_error()
    failed = False
    for model in known(models) or studied():
        rows = preflight(model)
        failed |= any(row.problem for row in rows)
        print(f"\n{model}\n" + table([("check", "found", "needed", "")] + [
            (row.name, row.found, row.needed, row.problem or "ok") for row in rows
        ]))  # fmt: skip
    return int(failed)


def plan(given: argparse.Namespace) -> None:
    """Print what a run of the models takes, unless it takes less than `over` minutes."""
    from esr.pipeline import plan as plans

    changed = plans.changed_stages() if given.changed else None
    costs = plans.costs(known(given.models) or studied(), given.tokens_per_second, changed, given.scale)
    if given.over and not plans.is_longer(costs, given.over * 60):
        return
    print(table(plans.rows(costs)))
    print(plans.basis(given.tokens_per_second))
    if given.hosts:
        print(plans.on_hosts(costs, given.hosts, given.usd_per_hour))


def label(given: argparse.Namespace) -> None:
    """Draw responses to annotate, or ask for annotations of those drawn."""
    from esr.judging import labelling
    from esr.storage.files import read_rows, write_rows
    from esr.storage.records import SampledResponse, Trial

    before = read_rows(labelling.SAMPLE, SampledResponse) if labelling.SAMPLE.exists() else []
    if given.step == "annotate":
        if not before:
            raise ConfigError(f"{labelling.SAMPLE} does not exist: draw responses first, with `esr label draw`.")
        added = labelling.annotate(before, given.annotator, labelling.ANNOTATIONS)
        print(from_root(f"{added} annotations added to {labelling.ANNOTATIONS}"))
        return
    trials = read_rows(data_dir("steer", *known([given.model])) / "responses.jsonl", Trial)
    drawn = labelling.draw(trials, given.per_condition, given.seed, given.model, given.part)
    new = [row for row in drawn if row.id not in {row.id for row in before}]
    write_rows(labelling.SAMPLE, [*before, *new])
    print(from_root(f"{len(new)} responses added to {labelling.SAMPLE}"))


def validate_judge(given: argparse.Namespace) -> None:
    """Print how a judge agrees with the labels, beside the annotators' agreement with each other."""
    from esr.config.judges import LlmJudge
    from esr.judging.labels import read_labelled
    from esr.judging.llm import REPLIES, ModelJudge
    from esr.judging.offline import load_judge
    from esr.judging.validation import FIGURES, as_trials, ceiling, measure, subset

    parameters = stages.stage_parameters("cross_judge")
    entries = {entry["name"]: entry for entry in (*parameters["judges"], *parameters["validated"])}
    if given.judge != "offline" and given.judge not in entries:
        listed = ", ".join(["offline", *entries])
        raise ConfigError(
            f"{stages.PARAMS}: judge.judges and cross_judge.validated have no {given.judge!r}: "
            f"name one of {listed}, or add an entry to judge.judges."
        )
    labelled = read_labelled(given.part)
    if given.judge != "offline":
        labelled = subset(labelled, parameters["n_validated"])
    judge = load_judge(given.model) if given.judge == "offline" else ModelJudge(LlmJudge(**entries[given.judge]))
    interval = {"confidence": 0.95, "n_bootstrap": 4000, "seed": 0}
    trials = as_trials(labelled)
    judged = measure(labelled, judge.judge(trials), **interval)
    if given.ship and isinstance(judge, ModelJudge):
        print(from_root(f"{judge.ship(trials)} replies added to {REPLIES}"))
    annotators = ceiling(labelled, **interval)
    counts = f"{judged['n_scored']} of {judged['n']} labelled responses, {judged['n_restarts']} restarts"
    print(f"Part {given.part}: {counts}")
    print(table([("", given.judge, "annotators")] + [
        (name, *(_shown(figures[name]) for figures in (judged, annotators))) for name in FIGURES
    ]))  # fmt: skip


def _shown(value) -> str:
    """A number or an Estimate with its interval."""
    if value is None or (hasattr(value, "estimate") and value.estimate is None):
        return "-"
    if not hasattr(value, "estimate"):
        return f"{value:.2f}"
    bounds = value.bounds
    return f"{value.estimate:.2f}" + (f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else "")


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as aligned columns; the first is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a mistake ends it with one sentence and exit status 1."""
    given = parser().parse_args(arguments)
    os.environ.setdefault(PIPELINE, "1")  # results are read where the pipeline writes them
    try:
        if given.command == "select":
            select(given.models)
        elif given.command == "check":
            raise SystemExit(check(given.models))
        elif given.command == "label":
            label(given)
        elif given.command == "judge":
            validate_judge(given)
        else:
            plan(given)
    except (ConfigError, FileNotFoundError, ValueError, RuntimeError) as error:  # RuntimeError: of a judge
        if given.traceback:
            raise
        raise SystemExit(f"error: {from_root(str(error))}") from None


def positive(text: str) -> int:
    """The number of hosts. Raises ValueError, which argparse reports."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="esr", description="Choose, check and plan the models of the study.")
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "select": "write the models of the study into params.yaml, and data/study.yaml, which dvc.yaml reads",
        "check": "check models, SAEs, labels and this machine in seconds, before anything heavy",
        "plan": "print trials, tokens, memory, hours, dollars and disk of every stage; loads nothing",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("models", nargs="*", metavar="MODEL", help="ids in data/models.yaml")
        command.add_argument("--traceback", action="store_true", help="show where an error was raised")
        if name == "plan":
            command.add_argument("--tokens-per-second", type=float, metavar="X", help="throughput to assume")
            command.add_argument(
                "--over", type=float, default=0, metavar="MINUTES", help="print only what takes longer"
            )
            command.add_argument("--changed", action="store_true", help="only stages that `dvc repro` would run")
            command.add_argument("--scale", help="a scale of params.yaml in place of the chosen one, as in paper")
            command.add_argument("--hosts", type=positive, metavar="N", help="also the command and hours of each host")
            command.add_argument("--usd-per-hour", type=float, metavar="X", help="price of a host, with --hosts")
    _add_label(commands)
    _add_judge(commands)
    return parser


def _add_judge(commands) -> None:
    text = "measure a judge against the labelled responses of data/judge"
    validate = commands.add_parser("judge", help=text, description=text).add_subparsers(dest="step", required=True)
    step = validate.add_parser("validate", help="print agreement with the annotators, and theirs with each other")
    step.add_argument(
        "--judge",
        default="offline",
        help="name of a judge in params.yaml, or offline",
    )
    step.add_argument("--model", default="smollm2-135m", help="whose scorer the offline judge uses")
    step.add_argument("--part", choices=("develop", "report"), default="develop", help="labels to measure on")
    step.add_argument("--ship", action="store_true", help="keep a language model's replies in data/judge/replies.jsonl")
    step.add_argument("--traceback", action="store_true", help="show where an error was raised")


def _add_label(commands) -> None:
    text = "draw responses at random and annotate them without seeing their condition (data/judge/RUBRIC.md)"
    steps = commands.add_parser("label", help=text, description=text).add_subparsers(dest="step", required=True)
    draw = steps.add_parser("draw", help="add a random sample of a model's responses to data/judge/sample.jsonl")
    draw.add_argument("--model", required=True, help="id in data/models.yaml, with responses of the stage steer")
    draw.add_argument("--per-condition", type=int, default=60, help="responses of each condition")
    draw.add_argument("--seed", type=int, default=0, help="of the draw")
    draw.add_argument(
        "--part", choices=["develop", "report"], default="develop", help="to make a judge, or to measure one"
    )
    annotate = steps.add_parser("annotate", help="ask for annotations; Enter at the first score ends the session")
    annotate.add_argument("--annotator", required=True, help="name that the annotations are kept under")
    for step in (draw, annotate):
        step.add_argument("--traceback", action="store_true", help="show where an error was raised")


if __name__ == "__main__":
    main()
