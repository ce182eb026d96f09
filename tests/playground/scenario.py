"""What a user does, without a browser, on the study of study.py; prints what came of it as JSON."""

import contextlib
import io
import json
import time
from threading import Event

from esr.config.registry import base_of
from esr.engine.interventions import AddVector
from esr.paths import data_dir
from esr.playground import export, inputs
from esr.playground.page import Page, open_page
from esr.playground.session import Choice, Session
from esr.steering.trials import Plan
from tests.pipeline.replica import MODEL
from tests.playground.study import DETECTORS, LABELS

GIVEN = {"model": MODEL, "prompt": "", "boost": 0.4, "seed": 7, "max_new_tokens": 12}


def choice(**changes) -> Choice:
    fields = {
        "latent": 3, "label": LABELS[3], "prompt_id": "typed", "prompt": "Describe a boat.", "seed": 5, "boost": 0.4,
        "condition": "",
    }  # fmt: skip
    max_new_tokens = changes.pop("max_new_tokens", 20)
    return Choice(Plan(**fields | changes), max_new_tokens)


def differences(session, chosen, pair, stopped=False) -> list[str]:
    made = export.regenerate([side.plan for side in pair.sides], session.settings(chosen))
    shown = session.trials(pair, chosen)
    return [export.difference(a, b, stopped) for a, b in zip(shown, made, strict=True)]


def steps(session) -> dict:
    """Each change of the pair while it is generated, and what the pipeline makes of the same choice."""
    chosen, seen = choice(ablate=DETECTORS), []
    pair = session.generate(chosen, seen.append, Event())
    return {
        "counts": [[len(side.tokens) for side in step.sides] for step in seen],
        "seen": [step.edited.seen for step in seen],
        "plain": pair.plain.tokens,
        "edited": pair.edited.tokens,
        "difference": differences(session, chosen, pair),
        "conditions": [side.plan.condition for side in pair.sides],
        "activations": [values.shape for values in session.activations(session.trials(pair, chosen), [3, 8])],
    }


def stopped(session) -> dict:
    stop, counts = Event(), []

    def on_step(pair):
        counts.append([len(side.tokens) for side in pair.sides])
        if len(counts) == 3:
            stop.set()

    chosen = choice(max_new_tokens=200)
    pair = session.generate(chosen, on_step, stop)
    return {
        "tokens": [len(side.tokens) for side in pair.sides],
        "difference": differences(session, chosen, pair, stopped=True),
    }


def unedited(session) -> dict:
    pair = session.generate(choice(boost=0.0), lambda _: None, Event())
    return {"edited": pair.edited, "seen": pair.plain.seen}


def pasted(session) -> dict:
    """The snippet of another choice, run as a user would, and the tokens of the session."""
    chosen, printed = choice(prompt='Say "it\'s\nfine" in 3 words', seed=11), io.StringIO()
    pair = session.generate(chosen, lambda _: None, Event())
    source = export.snippet(session.plans(chosen), session.settings(chosen))
    with contextlib.redirect_stdout(printed):
        exec(source, {"__name__": "__main__"})
    blocks = printed.getvalue().strip().split("\n\n")
    return {"printed": [list(side.tokens) == _tokens(blocks, side.plan.condition) for side in pair.sides]}


def _tokens(blocks, condition) -> list[int]:
    (found,) = [block.splitlines()[2] for block in blocks if block.startswith(f"{condition}\n")]
    return json.loads(found)


def wait(page: Page, until) -> None:
    """Until a condition of the page holds and nothing is being computed; five minutes at most."""
    end = time.monotonic() + 300
    while not (until() and not page.lock.locked()):
        assert time.monotonic() < end, [page.controls.status.value, page.controls.message.value]
        time.sleep(0.01)


def opened(**changes) -> Page:
    from esr.playground import page

    view = open_page(GIVEN | changes)
    assert "esr-page" in view._dom_classes
    (found,) = page._open
    wait(found, lambda: not found.controls.run.disabled)
    return found


def pressed() -> dict:
    """The page's buttons, one after the other."""
    page = opened()
    c, out = page.controls, {}
    c.search.value = "ships"
    out["listed"], out["chosen"] = [value for _, value in c.latents.options], c.latents.value
    c.search.value, c.latents.value = "snow", 40
    out["contexts"], out["unmarked"] = c.contexts.value, c.scale.value
    c.latents.value = 3
    out["marked"] = c.scale.value
    c.run.click()
    wait(page, lambda: not c.run.disabled)
    out["plain"], out["edited"], out["status"], out["key"] = c.plain.value, c.edited.value, c.status.value, c.key.value
    c.check.click()
    wait(page, lambda: "generating" not in c.checked.value and c.checked.value)
    out["checked"] = c.checked.value
    c.shade.value = "3, 9999"
    c.recolour.click()
    wait(page, lambda: c.message.value)
    out["no_latent"] = c.message.value
    c.surprise.click()
    out["surprise"] = c.edited.value
    out["boost"], out["seed"], out["latent"] = c.boost.value, c.seed.value, c.latents.value
    c.prompt.value = "  "
    c.run.click()
    wait(page, lambda: c.message.value and not c.run.disabled)
    out["empty"] = c.message.value
    return out


def broken() -> dict:
    """The page while the steering hook does nothing."""
    page, edit = opened(), AddVector.edit
    AddVector.edit = lambda self, hidden, step: hidden
    try:
        page.controls.run.click()
        wait(page, lambda: page.controls.message.value and not page.controls.run.disabled)
    finally:
        AddVector.edit = edit
    return {"message": page.controls.message.value, "edited": page.controls.edited.value}


def refused() -> dict:
    given = {name: value for name, value in GIVEN.items() if name != "seed"}
    out = {
        "order": open_page({}).value, "part": open_page(given).value, "kind": open_page(GIVEN | {"seed": "x"}).value,
        "unknown": open_page(GIVEN | {"model": "tinny"}).value,
    }  # fmt: skip
    for stage in ("calibrate", "detectors", "judge"):
        for file in data_dir(stage, MODEL).glob("*"):
            file.unlink()
    out["missing"] = inputs.read_inputs(MODEL).notes
    (data_dir("corpus", base_of(MODEL)) / "summary.json").unlink()
    open_page(GIVEN)
    from esr.playground import page

    (found,) = page._open
    wait(found, lambda: found.controls.message.value)
    out["norms"], out["run"] = found.controls.message.value, found.controls.run.disabled
    return out


if __name__ == "__main__":
    session = Session(MODEL)
    parts = {part.__name__: part(session) for part in (steps, stopped, unedited, pasted)}
    print(json.dumps(parts | {part.__name__: part() for part in (pressed, broken, refused)}))
