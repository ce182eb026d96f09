"""What the playground finds on disk: models, latents with their contexts, thresholds, detectors, saved responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from esr.config.registry import load_registry, model_entry
from esr.config.schema import ConfigError
from esr.paths import data_dir, from_root
from esr.steering.directions import read_latents
from esr.steering.strength import boost_bounds
from esr.storage.files import read_rows
from esr.storage.prompts import read_prompts
from esr.storage.records import Detector, Judgement, Latent, Prompt, Threshold, Trial

SPLITS = ("evaluation", "held_out")
LISTED = 200  # latents that a search lists


def available_models() -> tuple[list[str], list[str]]:
    """Ids of the fetched models that can be steered here, and of those that could be after `dvc repro fetch`.

    Raises ConfigError, in one sentence, when none is fetched.
    """
    steerable = [name for name, e in load_registry().items() if e.steerable and e.backend == "transformers"]
    fetched = [name for name in steerable if (data_dir("fetch", name) / "config.json").exists()]
    if not fetched:
        raise ConfigError("data/fetch holds no model that can be steered: run `dvc repro fetch` first.")
    return fetched, [name for name in steerable if name not in fetched]


def prompts() -> list[Prompt]:
    """The prompts of the splits that the study steers on."""
    return [prompt for split in SPLITS for prompt in read_prompts(split)]


def prompt_id(text: str, known: Sequence[Prompt]) -> str:
    """The id of a prompt of data/prompts; "typed" for any other."""
    return next((prompt.id for prompt in known if prompt.text == text.strip()), "typed")


@dataclass(frozen=True)
class Inputs:
    """What is known of one model. notes: one sentence about each thing that is missing.

    latents: those that have a label, the study's first; concepts where `of_sae` is False. thresholds: by latent.
    restarted: steered responses of the study with more than one attempt, with their judgement.
    """

    model: str
    latents: list[Latent]
    min_boost: float
    max_boost: float
    of_sae: bool = True
    thresholds: dict[int, Threshold] = field(default_factory=dict)
    detectors: tuple[int, ...] = ()
    restarted: list[tuple[Trial, Judgement]] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def by_index(self) -> dict[int, Latent]:
        return {latent.index: latent for latent in self.latents}


def read_inputs(model_id: str) -> Inputs:
    """Inputs of a model. Raises ConfigError, FileNotFoundError or ValueError without latents, norms or boost bounds."""
    bounds = boost_bounds(model_id)
    latents = sorted((x for x in read_latents(model_id) if x.label), key=lambda x: (not x.kept, x.label.lower()))
    if not latents:
        raise ValueError(f"No latent of {model_id} has a label: run the stage that labels them again.")
    thresholds, no_thresholds = _thresholds(model_id)
    detectors, no_detectors = _detectors(model_id)
    restarted, no_restarted = _restarted(model_id)
    highest = max([bounds.max, *(t.boost for t in thresholds.values())])
    notes = tuple(note for note in (no_thresholds, no_detectors, no_restarted) if note)
    of_sae = model_entry(model_id).sae is not None
    return Inputs(model_id, latents, bounds.min, highest, of_sae, thresholds, detectors, restarted, notes)


def search(latents: Sequence[Latent], wanted: str) -> list[Latent]:
    """Latents whose label holds every word of `wanted`, or whose number it is; at most `LISTED`, in order."""
    words = wanted.lower().split()
    found = (x for x in latents if all(w in x.label.lower() or w == str(x.index) for w in words))
    return [latent for latent, _ in zip(found, range(LISTED), strict=False)]


def _thresholds(model_id: str) -> tuple[dict[int, Threshold], str]:
    path = data_dir("calibrate", model_id) / "thresholds.jsonl"
    if not path.exists():
        return {}, _missing(path.parent, "no threshold is marked on the slider", f"calibrate@{model_id}")
    return {t.latent: t for t in read_rows(path, Threshold) if t.converged}, ""


def _detectors(model_id: str) -> tuple[tuple[int, ...], str]:
    if not model_entry(model_id).sae:
        return (), f"{model_id} has no SAE, so it has no detectors to ablate."
    path = data_dir("detectors", model_id) / "detectors.jsonl"
    if not path.exists():
        return (), _missing(path.parent, "no detectors can be ablated", f"detectors@{model_id}")
    return tuple(sorted(row.latent for row in read_rows(path, Detector))), ""


def _restarted(model_id: str) -> tuple[list[tuple[Trial, Judgement]], str]:
    responses = data_dir("steer", model_id) / "responses.jsonl"
    judgements = data_dir("judge", model_id) / "judgements.jsonl"
    for path in (responses, judgements):
        if not path.exists():
            return [], _missing(path.parent, "“Surprise me” has nothing to draw from", f"judge@{model_id}")
    judged = {j.trial_id: j for j in read_rows(judgements, Judgement) if len(j.attempts) > 1}
    pairs = [(t, judged[t.id]) for t in read_rows(responses, Trial) if t.id in judged and t.boost]
    return pairs, "" if pairs else f"No steered response of {model_id} restarted, so there is no surprise to draw."


def _missing(folder, what: str, stage: str) -> str:
    return f"{from_root(str(folder))} is not there yet, so {what}: `dvc repro {stage}` makes it."
