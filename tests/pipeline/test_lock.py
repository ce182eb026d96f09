"""dvc.lock is of this pipeline, and of the SAEs that are shipped for other models."""

import pytest
import yaml
from dvc.repo import Repo

from esr.config.registry import load_registry
from esr.config.study import derive
from esr.paths import ROOT

LOCK = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
TRAINED = [
    model for model, entry in load_registry().items()
    if entry.tuned_from is None and entry.steerable and model in derive([model])["trained"]
]  # fmt: skip


def test_the_lock_knows_no_stage_that_is_gone():
    with Repo(ROOT) as repo:
        known = {stage.addressing for stage in repo.index.stages}
    assert set(LOCK) - known - {f"train_sae@{model}" for model in TRAINED} == set()


@pytest.mark.parametrize("model", TRAINED)
def test_a_shipped_sae_is_in_the_lock(model):
    """Else `dvc repro` of its model would stop at the frozen stage, before the model is fetched."""
    assert (ROOT / "data" / "train_sae" / model / "training.json").exists()
    assert [out["path"] for out in LOCK[f"train_sae@{model}"]["outs"]] == [
        f"data/train_sae/{model}",
        f"notebooks/executed/03_train_sae-{model}.ipynb",
    ]
