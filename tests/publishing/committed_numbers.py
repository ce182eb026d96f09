"""Numbers of the last commit."""

import subprocess

from esr.paths import ROOT
from esr.reporting.numbers import parse_numbers


def committed(name):
    """A numbers file of the last commit: a run at scale smoke changes those of the working tree."""
    command = ["git", "show", f"HEAD:paper/numbers/{name}.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise FileNotFoundError(name)
    return parse_numbers(done.stdout)
