"""How long the stages took, from what each run leaves in the cache, to paper/numbers/times.json.

    python -m esr.pipeline.times

Run it after a study that ran from scratch: a stage that finds finished chunks takes less. Of runs with the same
parameters the longest counts, so that a repeat from finished chunks does not hide the first.
"""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

import joblib
from filelock import FileLock

from esr import paths
from esr.config.schema import load_yaml
from esr.config.stages import PARAMS, stage_parameters
from esr.reporting.numbers import write_numbers
from esr.storage.digests import digest
from esr.storage.files import write_json

FILE = paths.CACHE / "times.json"


def record(stage: str, model: str | None, parameters: dict[str, Any], seconds: float) -> None:
    """Keep the time of a stage that ended well; another run's with these parameters only if this one took longer."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(FILE.with_suffix(".lock")):
        kept = recorded()
        entry, key = kept.setdefault(stage, {}).get(model or "", {}), digest(parameters)
        longest = max(seconds, entry["seconds"]) if entry.get("parameters") == key else seconds
        kept[stage][model or ""] = {"seconds": round(longest, 1), "parameters": key}
        write_json(FILE, kept)


def recorded() -> dict[str, dict[str, dict[str, Any]]]:
    """What `record` kept, by stage and model; "" stands for all models together."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def summary() -> dict[str, Any]:
    """The content of paper/numbers/times.json: of runs with the parameters that the stages have now.

    Raises FileNotFoundError without such a run.
    """
    seconds: dict[str, dict[str, float]] = {}
    for stage, models in recorded().items():
        for model, entry in models.items():
            if entry["parameters"] == digest(stage_parameters(stage, model or None)):
                seconds.setdefault(stage, {})[model] = entry["seconds"]
    if not seconds:
        raise FileNotFoundError(
            f"{FILE} has no run with the present parameters: no stage has run here yet (dvc repro)."
        )
    machine = {"cores": joblib.cpu_count(), "architecture": platform.machine()}
    return {"machine": machine, "scale": load_yaml(PARAMS)["scale"], "seconds": seconds}


def main() -> int:
    try:
        times = summary()
    except (FileNotFoundError, ValueError) as error:
        print(paths.from_root(str(error)), file=sys.stderr)
        return 1
    write_numbers("times", times)
    total = sum(sum(models.values()) for models in times["seconds"].values())
    print(f"paper/numbers/times.json: {len(times['seconds'])} stages, {total / 60:.0f} min together")
    return 0


if __name__ == "__main__":
    sys.exit(main())
