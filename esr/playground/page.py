"""The page: controls joined to a session; whatever needs the model runs in one background thread at a time."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Any

import ipywidgets as w
import numpy as np

from esr.config.registry import model_entry
from esr.config.schema import ConfigError
from esr.paths import from_root
from esr.playground import export, rendering
from esr.playground.controls import Controls
from esr.playground.inputs import available_models, prompts, read_inputs
from esr.playground.session import Choice, Pair, Session
from esr.storage.records import Judgement, Trial

PARAMETERS: dict[str, type | tuple[type, ...]] = {
    "model": str, "prompt": str, "boost": (int, float), "seed": int, "max_new_tokens": int,
}  # fmt: skip
UPDATE_S = 0.1  # shortest time between two updates of the page, seconds
EXPLAINED = (ConfigError, ValueError, OSError, RuntimeError)  # their messages are sentences for users
_open: list = []  # the last page of this kernel


def open_page(names: dict[str, Any]) -> w.Widget:
    """The playground with the parameters in `names`, a notebook's `globals()`; a sentence where it cannot open."""
    for page in _open:
        page.stopped.set()
    _open.clear()
    try:
        given = _parameters(names)
        page = Page(given["model"])
    except EXPLAINED as problem:
        return w.HTML(rendering.style() + rendering.error(sentence(problem)))
    page.fill(given)
    _open.append(page)
    return page.view


def _parameters(names: dict[str, Any]) -> dict[str, Any]:
    if missing := [name for name in PARAMETERS if name not in names]:
        raise ValueError(f"Run the cell with the parameters first, then this one: it sets {', '.join(missing)}.")
    for name, kind in PARAMETERS.items():
        if not isinstance(names[name], kind):
            raise ValueError(f"{name} is {names[name]!r}: correct it in the cell with the parameters.")
    return {name: names[name] for name in PARAMETERS}


def sentence(problem: BaseException) -> str:
    """What a user reads of an error, files named from the repository's root."""
    text = from_root(str(problem)).strip()
    if isinstance(problem, EXPLAINED) and text:
        return text
    return f"That failed with {type(problem).__name__} ({text or 'no message'}); details are in the kernel's log."


class Shown:
    """Shows a pair of responses while they are generated, at most once every `UPDATE_S` seconds."""

    def __init__(self, controls: Controls):
        self.controls, self.began, self.last = controls, time.monotonic(), 0.0
        self.first_tokens: float | None = None  # seconds from the start to the first tokens on the page

    def __call__(self, pair: Pair) -> None:
        now = time.monotonic()
        if now - self.last < UPDATE_S:
            return
        self.last = now
        self.controls.plain.value = rendering.growing(pair.plain)
        if pair.edited:
            self.controls.edited.value = rendering.growing(pair.edited)
        if self.first_tokens is None:
            self.first_tokens = now - self.began
        n = max(len(side.tokens) for side in pair.sides)
        self.controls.status.value = rendering.status(f"Writing: {n} tokens.")

    def summary(self, pair: Pair, stopped: bool) -> str:
        seconds, n = time.monotonic() - self.began, sum(len(side.tokens) for side in pair.sides)
        end = "Stopped" if stopped else "Done"
        first = "" if self.first_tokens is None else f", the first after {self.first_tokens:.1f} s"
        return f"{end}: {n} tokens in {seconds:.1f} s{first}."


class Page:
    """Raises ConfigError or ValueError for a model that cannot be opened."""

    def __init__(self, model: str):
        fetched, self.others = available_models()
        if model not in fetched:
            model_entry(model)  # an unknown id has its message
            raise ConfigError(
                f"{model} is not fetched, or cannot be steered here: run `dvc repro fetch`, or set model to "
                f"{' or '.join(fetched)}."
            )
        self.controls = Controls(fetched, prompts())
        self.session: Session | None = None
        self.result: tuple[Choice, Pair, bool] | None = None  # the last responses, and whether they were stopped
        self.judgements: list[Judgement] = []
        self.stopped, self.lock = Event(), Lock()
        self.view = self.controls.page()
        c = self.controls
        c.model.value = model
        c.model.observe(lambda _: self.load(), "value")
        c.run.on_click(lambda _: self.run())
        c.stop.on_click(lambda _: self.stopped.set())
        c.surprise.on_click(lambda _: self._explained(self.surprise))
        c.recolour.on_click(lambda _: self._start(self._colour))
        c.check.on_click(lambda _: self._start(self._check))

    def fill(self, given: dict[str, Any]) -> None:
        """Set the controls to a notebook's parameters and load the model."""
        c = self.controls
        c.prompt.value = given["prompt"] or c.known[0].text
        c.seed.value, c.length.value = given["seed"], given["max_new_tokens"]
        self.load(given["boost"])

    def load(self, boost: float | None = None) -> None:
        self._start(lambda: self._load(self.controls.model.value, boost))

    def run(self) -> None:
        """Generate the chosen pair in the background."""
        self.stopped.clear()
        self._explained(lambda: self._begin(self.controls.choice()))

    def _begin(self, choice: Choice) -> None:
        self._start(lambda: self._run(choice), running=True)

    def _start(self, work: Callable[[], None], running: bool = False) -> None:
        self.controls.message.value = ""
        self.controls.set_busy(running, busy=True)
        Thread(target=self._work, args=(work,), daemon=True).start()

    def _work(self, work: Callable[[], None]) -> None:
        with self.lock:
            try:
                self._explained(work)
            finally:
                self.controls.set_busy(running=False, busy=self.session is None)
                self.controls.model.disabled = False  # another may be chosen where this one cannot be loaded
                for button in (self.controls.recolour, self.controls.check):
                    button.disabled = self.result is None
                if self.session and self.session.steering.sae_layer is None:
                    self.controls.recolour.disabled = True

    def _explained(self, work: Callable[[], None]) -> None:
        """Do `work`; an error becomes a sentence on the page."""
        try:
            work()
        except Exception as problem:
            if not isinstance(problem, EXPLAINED):
                logging.getLogger(__name__).exception("playground")
            self.controls.message.value = rendering.error(sentence(problem))
            self.controls.status.value = ""

    def _load(self, model: str, boost: float | None) -> None:
        c = self.controls
        self.session = self.result = None
        c.plain.value = c.edited.value = c.key.value = c.export.value = c.checked.value = ""
        c.status.value = rendering.status(f"Loading {model} …")
        c.take(read_inputs(model), self.others)
        if boost is not None:
            c.boost.value = min(max(boost, c.boost.min), c.boost.max)
        self.session = Session(model)
        c.status.value = rendering.status(f"{model} is loaded. Press Run.")

    def _run(self, choice: Choice) -> None:
        c, session = self.controls, self._loaded()
        self.result, self.judgements = None, []
        c.key.value = c.export.value = c.checked.value = ""
        c.plain.value = rendering.card("Unsteered", "Reading the prompt …", "", False)
        nothing = "Boost is 0 and nothing is ablated: there is nothing to compare. Move the slider."
        c.edited.value = rendering.card(
            "No response yet", "Reading the prompt …" if choice.edited else nothing, "", True
        )
        shown = Shown(c)
        try:
            pair = session.generate(choice, shown, self.stopped)
        except Exception:
            c.edited.value = rendering.card("No response", "The run ended with an error.", "", True)
            raise
        stopped = not all(side.finished for side in pair.sides)
        self.result = choice, pair, stopped
        summary = shown.summary(pair, stopped)
        self._show(None)
        c.export.value = rendering.code(export.snippet([s.plan for s in pair.sides], session.settings(choice)))
        c.status.value = rendering.status(f"{summary} Judging …")
        problem = self._judge(session.trials(pair, choice))
        self._show(None)
        if session.steering.sae_layer is not None:
            c.shade.value = c.shade.value or str(choice.plan.latent)
            self._colour()
        c.status.value = rendering.status(f"{summary} {problem}")

    def _judge(self, trials: list[Trial]) -> str:
        """Judge the responses; a sentence where the offline judge is missing."""
        try:
            self.judgements = self._loaded().judgements(trials)
        except OSError as problem:
            return f"Attempts are not scored: {sentence(problem)}"
        return ""

    def _colour(self) -> None:
        """Colour the tokens of the last responses by the latents that the user names."""
        if self.result is None:
            raise ValueError("There is no response yet: press Run first.")
        choice, pair, _ = self.result
        session, latents = self._loaded(), self.controls.shaded()
        trials = session.trials(pair, choice)
        values = session.activations(trials, latents)
        largest = max(float(v.max(initial=0.0)) for v in values)
        shades = [
            rendering.Shades(session.alignment(trial), v.max(1), _titles(v, latents), largest)
            for trial, v in zip(trials, values, strict=True)
        ]
        self._show(shades)
        known = self.controls.inputs.by_index if self.controls.inputs else {}
        names = [f"latent {x}" + (f" “{known[x].label}”" if x in known else "") for x in latents]
        self.controls.key.value = rendering.key(names, largest)

    def _show(self, shades: list[rendering.Shades] | None) -> None:
        """The last responses in full."""
        assert self.result is not None
        _, pair, stopped = self.result
        places = [self.controls.plain, self.controls.edited]
        for i, (side, place) in enumerate(zip(pair.sides, places, strict=False)):
            attempts = self.judgements[i].attempts if self.judgements else []
            place.value = rendering.finished(side, attempts, shades[i] if shades else None, stopped)

    def _check(self) -> None:
        """Make the last responses again in the pipeline and compare their tokens."""
        if self.result is None:
            raise ValueError("There is no response yet: press Run first.")
        choice, pair, stopped = self.result
        session = self._loaded()
        self.controls.checked.value = rendering.note("The pipeline is generating …")
        made = export.regenerate([side.plan for side in pair.sides], session.settings(choice))
        trials = session.trials(pair, choice)
        found = [export.difference(t, m, stopped) for t, m in zip(trials, made, strict=True)]
        same = "The pipeline made the same tokens." + (" They go on where you stopped." if stopped else "")
        self.controls.checked.value = rendering.note(next(filter(None, found), same))

    def surprise(self) -> None:
        """Show a saved steered response of the study that restarted, and set the controls to what made it."""
        c = self.controls
        if c.inputs is None or not c.inputs.restarted:
            raise ValueError("There is no saved response with a restart to draw from.")
        trial, judgement = random.choice(c.inputs.restarted)
        c.choose_latent(trial.latent)
        c.prompt.value, c.seed.value, c.length.value = trial.prompt, trial.seed, trial.max_new_tokens
        c.boost.value, c.ablate.value = trial.boost, False
        hint = "Saved by the study, where the guard saw the edit. Press Run to generate it here."
        title = rendering.steered(trial.latent, trial.label, trial.boost)
        c.edited.value = rendering.card(title, hint, rendering.response(trial.text, judgement.attempts, None), True)
        c.plain.value = rendering.card("Unsteered", "Press Run to generate it.", "", False)
        c.key.value = c.export.value = c.checked.value = c.message.value = ""
        self.result = None

    def _loaded(self) -> Session:
        if self.session is None:
            raise ValueError("The model is not loaded: choose it again.")
        return self.session


def _titles(values: np.ndarray, latents: list[int]) -> list[str]:
    return [", ".join(f"{x}: {v:.3g}" for x, v in zip(latents, row, strict=True)) for row in values]
