"""Clones of the repository that tests run the pipeline in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from esr.paths import CACHE, PIPELINE, ROOT


def make_clone(folder: Path) -> Path:
    """The working tree in `folder`, as git would hand it to a newcomer, at scale smoke."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for wheel in (CACHE / "wheels").glob("*.whl"):  # downloaded before: the network is not what is tested here
        (folder / ".cache/esr/wheels").mkdir(parents=True, exist_ok=True)
        shutil.copy2(wheel, folder / ".cache/esr/wheels" / wheel.name)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    subprocess.run([*git, "commit", "-qm", "clone"], cwd=folder, check=True)
    edit(folder / "params.yaml", "scale: laptop", "scale: smoke")
    return folder


def repro(folder: Path, *targets: str, **variables: str) -> str:
    """As `make repro` runs it: kernels are forks."""
    return run(folder, sys.executable, "-m", "esr.pipeline.kernels", "dvc", "repro", *targets, **variables)


def run(folder: Path, *command: str, check: bool = True, **variables: str) -> str:
    environment = os.environ | variables
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(folder),
        "DVC_NO_ANALYTICS": "1",
    }
    for name in ("ESR_ROOT", "ESR_CACHE", PIPELINE):
        environment.pop(name, None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace")
    output = done.stdout + done.stderr
    assert not check or done.returncode == 0, output
    return output


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def stages_run(output: str) -> set[str]:
    return {line.split("'")[1].split("@")[0] for line in output.splitlines() if line.startswith("Running stage")}
