"""The playground's controls: what the user sets, and where what is made appears."""

from __future__ import annotations

import ipywidgets as w

from esr.playground import rendering
from esr.playground.inputs import Inputs, prompt_id, search
from esr.playground.session import Choice
from esr.steering.trials import Plan
from esr.storage.records import Latent, Prompt

FULL = {"width": "auto"}
TYPED = ""  # value of the prompt list when the text is the user's


def heading(text: str) -> w.HTML:
    return w.HTML(rendering.name(text))


def column(*children: w.Widget) -> w.VBox:
    return w.VBox(list(children), layout=w.Layout(overflow="visible"))


class Controls:
    """Every widget of the page. `Page` connects what needs the model; here is what needs none."""

    def __init__(self, models: list[str], known: list[Prompt]):
        self.known = known
        self.inputs: Inputs | None = None
        self.model = w.Dropdown(options=models, layout=w.Layout(**FULL))
        listed = [("Choose a prompt of the study …", TYPED), *((p.text, p.text) for p in known)]
        self.prompts = w.Dropdown(options=listed, value=TYPED, layout=w.Layout(**FULL))
        self.prompt = w.Textarea(placeholder="… or type one", rows=3, layout=w.Layout(**FULL))
        self.search = w.Text(placeholder="Search labels, or a latent's number", layout=w.Layout(**FULL))
        self.latents = w.Select(rows=7, layout=w.Layout(**FULL))
        self.found, self.contexts, self.scale = w.HTML(), w.HTML(), w.HTML()
        self.boost = w.FloatSlider(
            step=0.01, readout=False, continuous_update=True, layout=w.Layout(width="auto", margin="0")
        )
        self.boost_value = w.BoundedFloatText(step=0.01, layout=w.Layout(width="90px"))
        self.ablate = w.Checkbox(description="Ablate the off-topic detectors", indent=False)
        self.seed = w.IntText(layout=w.Layout(width="110px"))
        self.length = w.BoundedIntText(min=1, max=2048, layout=w.Layout(width="90px"))
        self.run = w.Button(description="Run", button_style="primary")
        self.stop = w.Button(description="Stop", disabled=True)
        self.surprise = w.Button(description="Surprise me", disabled=True)
        self.status, self.message = w.HTML(), w.HTML()
        self.plain, self.edited = w.HTML(), w.HTML()
        self.shade = w.Text(placeholder="12, 345", layout=w.Layout(width="220px"))
        self.recolour = w.Button(description="Colour tokens", disabled=True)
        self.key, self.export = w.HTML(), w.HTML()
        self.check = w.Button(
            description="Run it in the pipeline and compare",
            disabled=True,
            layout=w.Layout(width="290px"),
        )
        self.checked, self.notes = w.HTML(), w.HTML()
        self._name_for_accessibility()
        self._connect()

    def _name_for_accessibility(self) -> None:
        names = {
            "model": "Model", "prompts": "Prompts of the study", "prompt": "Prompt", "search": "Search latents",
            "latents": "Latents", "boost": "Boost", "boost_value": "Boost, as a number", "seed": "Seed",
            "length": "Length limit, tokens", "shade": "Latents that colour tokens",
        }  # fmt: skip
        for attribute, text in names.items():
            control = getattr(self, attribute)
            control.tooltip = text
            control.add_class(f"esr-{attribute.replace('_', '-')}")

    def _connect(self) -> None:
        w.link((self.boost, "value"), (self.boost_value, "value"))
        self.boost.observe(self._tidy, "value")
        self.prompts.observe(self._take_prompt, "value")
        self.search.observe(lambda _: self.list_latents(), "value")
        self.latents.observe(lambda _: self.show_latent(), "value")

    def page(self) -> w.VBox:
        """All controls, laid out: two columns where there is room, one on a phone."""
        above = column(heading("Model"), self.model, heading("Prompt"), self.prompts, self.prompt)
        steered = column(heading("Latent"), self.search, self.latents, self.found, self.contexts)
        norms = heading("Boost, in median residual norms")
        strength = column(self._row(norms, self.boost_value), self.boost, self.scale, self.ablate)
        sampling = self._row(heading("Seed"), self.seed, heading("Length limit, tokens"), self.length)
        left = column(above, strength, sampling)
        actions = self._row(self.run, self.stop, self.surprise)
        colours = self._row(heading("Colour tokens by latents"), self.shade, self.recolour)
        parts = [
            w.HTML(rendering.style()),
            self._columns(left, steered),
            actions, self.status, self.message, self._columns(self.plain, self.edited), colours, self.key,
            heading("Make the same responses in the pipeline"), self.export, self._row(self.check), self.checked,
            self.notes,
        ]  # fmt: skip
        box = w.VBox(parts)
        box.add_class("esr-page")
        return box

    def _row(self, *children: w.Widget) -> w.Box:
        return self._box("esr-row", *children)

    def _columns(self, *children: w.Widget) -> w.Box:
        return self._box("esr-columns", *children)

    def _box(self, kind: str, *children: w.Widget) -> w.Box:
        box = w.Box(list(children))
        box.add_class(kind)
        return box

    def take(self, inputs: Inputs, others: list[str]) -> None:
        """Show what is known of another model. others: models that are not fetched."""
        self.inputs = inputs
        for bounded in (self.boost, self.boost_value):
            bounded.min, bounded.max = 0.0, 1e9  # first wide: a minimum above the old maximum is an error
            bounded.max, bounded.min = inputs.max_boost, inputs.min_boost
        self.ablate.disabled, self.ablate.value = not inputs.detectors, False
        self.surprise.disabled = not inputs.restarted
        fetch = [f"Not fetched: {', '.join(others)}."] if others else []
        self.notes.value = "".join(rendering.note(text) for text in (*inputs.notes, *fetch))
        self.list_latents()

    def list_latents(self) -> None:
        """The latents that the search finds; the first of them is chosen unless the chosen one is among them."""
        if self.inputs is None:
            return
        chosen, found = self.latents.value, search(self.inputs.latents, self.search.value)
        self.latents.options = [(_line(latent, self.inputs.of_sae), latent.index) for latent in found]
        indices = [latent.index for latent in found]
        self.latents.value = chosen if chosen in indices else next(iter(indices), None)
        count = f"{len(found)} of {len(self.inputs.latents)} latents"
        self.found.value = rendering.note(count if found else "No label holds these words: search for others.")
        self.show_latent()

    def choose_latent(self, index: int) -> None:
        """Choose a latent whatever the search says."""
        self.search.value = ""
        if index not in [value for _, value in self.latents.options]:
            self.search.value = str(index)
        self.latents.value = index

    def show_latent(self) -> None:
        """Contexts and threshold of the chosen latent."""
        latent = self.latent
        if self.inputs is None or latent is None:
            self.contexts.value = self.scale.value = ""
            return
        self.contexts.value = rendering.contexts(latent, self.inputs.of_sae)
        threshold = self.inputs.thresholds.get(latent.index)
        self.scale.value = rendering.scale(threshold, self.inputs.min_boost, self.inputs.max_boost)

    @property
    def latent(self) -> Latent | None:
        return self.inputs.by_index.get(self.latents.value) if self.inputs else None

    def choice(self) -> Choice:
        """What the controls say. Raises ValueError when no latent is chosen."""
        latent = self.latent
        if self.inputs is None or latent is None:
            raise ValueError("No latent is chosen: search for another word and choose one from the list.")
        text = self.prompt.value.strip()
        ablated = self.inputs.detectors if self.ablate.value else ()
        chosen = (latent.index, latent.label, prompt_id(text, self.known), text, self.seed.value)
        return Choice(Plan("", *chosen, float(self.boost.value), ablate=ablated), self.length.value)

    def shaded(self) -> list[int]:
        """The latents to colour by. Raises ValueError for anything but numbers."""
        parts = self.shade.value.replace(",", " ").split()
        if not parts or not all(part.isdigit() for part in parts):
            raise ValueError("Write the numbers of latents to colour by, as in 12, 345.")
        return list(dict.fromkeys(map(int, parts)))

    def set_busy(self, running: bool, busy: bool) -> None:
        """running: responses are being generated, and Stop ends them. busy: something else is being computed."""
        idle = not (running or busy)
        self.run.disabled, self.stop.disabled, self.model.disabled = not idle, not running, not idle
        self.surprise.disabled = not idle or self.inputs is None or not self.inputs.restarted

    def _tidy(self, change) -> None:
        """A slider's steps add up to 0.47000000000000003; saved boosts have more digits and keep them."""
        near = round(change["new"], 2)
        if 0 < abs(change["new"] - near) < 1e-9:
            self.boost.value = near

    def _take_prompt(self, change) -> None:
        if change["new"] != TYPED:
            self.prompt.value = change["new"]


def _line(latent: Latent, of_sae: bool) -> str:
    density = f" · {100 * latent.density:.2g} % of tokens" if of_sae else ""
    return f"{latent.label} · {latent.index}{density}{' · study' if latent.kept else ''}"
