"""data/experiments.yaml names what is there, and everything that is there."""

import json

import pytest
import yaml

from esr.config.params import STAGES
from esr.config.schema import ConfigError
from esr.paths import ROOT
from esr.publishing.experiments import BENCH, VERDICTS, executed_notebooks, figure_files, model_of, read_experiments
from esr.reporting.rules import read_rules
from esr.statistics.verdicts import Outcome

FILE = read_experiments()
WRITTEN = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_experiments_are_those_of_the_rules():
    assert {experiment.id for experiment in FILE.experiments} == {rule.experiment for rule in read_rules().rules}
    assert len({experiment.id for experiment in FILE.experiments}) == len(FILE.experiments)


@pytest.mark.parametrize("experiment", FILE.experiments, ids=lambda experiment: experiment.id)
def test_an_experiment_has_a_stage_and_the_numbers_that_its_rules_read(experiment):
    assert experiment.stage in STAGES and experiment.responses in {None, *STAGES}
    assert executed_notebooks(experiment.stage)
    read = {rule.outcome[0] for rule in read_rules().rules if rule.experiment == experiment.id}
    assert set(experiment.numbers) <= read
    assert all((ROOT / "paper" / "numbers" / f"{name}.json").exists() for name in experiment.numbers)


def test_every_figure_is_of_an_experiment_or_a_method_and_described():
    named = {}
    for figures in (*(e.figures for e in FILE.experiments), *FILE.methods.values()):
        drawn = {name: text for name, text in figures.items() if name != "example"}  # where a response improves
        assert all(figure_files({name: text}) for name, text in drawn.items())
        named |= figure_files(figures)
    assert set(named) == set((ROOT / "paper" / "figures").glob("*.svg"))
    assert min(map(len, named.values())) > 40
    assert set(FILE.methods) <= {*STAGES, BENCH}


def test_every_verdict_has_its_place_in_a_tally():
    assert set(VERDICTS) == set(Outcome.__args__)
    assert {row["verdict"] for row in json.loads((ROOT / "paper/numbers/claims.json").read_text())} <= set(VERDICTS)


def test_executed_copies_are_found_by_stage_and_model():
    every = {path for stage in STAGES for path in executed_notebooks(stage)}
    assert every == set((ROOT / "notebooks" / "executed").glob("*.ipynb"))
    assert [model_of(path) for path in executed_notebooks("steer")] == ["smollm2-135m", "smollm2-135m-selfcorrect"]
    assert [model_of(path) for path in executed_notebooks("claims")] == [""]


def test_mistakes_in_the_file_are_named(tmp_path):
    text = (ROOT / "data" / "experiments.yaml").read_text()
    for old, new, message in (("stage: measure", "stag: measure", "stag"), ('id: "1"', 'id: "one"', "id is 'one'")):
        (tmp_path / "experiments.yaml").write_text(text.replace(old, new, 1))
        with pytest.raises(ConfigError, match=message):
            read_experiments(tmp_path / "experiments.yaml")
