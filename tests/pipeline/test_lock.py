"""dvc.lock is of this pipeline."""

import yaml
from dvc.repo import Repo

from esr.paths import ROOT


def test_the_lock_knows_no_stage_that_is_gone():
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    with Repo(ROOT) as repo:
        assert set(lock) - {stage.addressing for stage in repo.index.stages} == set()
