"""Code that makes the responses of a playground again, with the pipeline's function for every condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from esr.engine.workers import Workers
from esr.steering.trials import Plan, Settings, generate_responses
from esr.storage.records import Trial

HEAD = '''"""Made by the playground. Run it in the repository, or paste it into a notebook: it prints both responses."""

from esr.engine.workers import Workers
from esr.steering.trials import Plan, Settings, generate_responses
'''
TAIL = """
if __name__ == "__main__":
    with Workers(0) as workers:
        trials = generate_responses(plans, settings, workers, "playground")
    for trial in trials:
        print(trial.condition, trial.id, trial.tokens, trial.text, sep="\\n", end="\\n\\n")
"""


def snippet(plans: Sequence[Plan], settings: Settings) -> str:
    """Python source that makes these responses through the pipeline: the same tokens on the same machine.

    Its batches hold one response each. In float32 other batches give the same tokens, too; in bfloat16 they may not.
    """
    written = ",\n".join(f"    {_call(plan)}" for plan in plans)
    return f"{HEAD}\nplans = [\n{written},\n]\nsettings = {_call(settings)}\n{TAIL}"


def regenerate(plans: Sequence[Plan], settings: Settings) -> list[Trial]:
    """What the snippet makes: responses of `generate_responses`, in this process."""
    with Workers(0) as workers:
        return generate_responses(plans, settings, workers, "playground")


def difference(shown: Trial, made: Trial, stopped: bool = False) -> str:
    """In one sentence how a response of the pipeline differs from the one that was shown; "" where it does not.

    stopped: the shown response was stopped, and only its tokens are compared.
    """
    n = len(shown.tokens) if stopped else max(len(shown.tokens), len(made.tokens))
    if shown.id != made.id:
        return f"The pipeline's response has the id {made.id} instead of {shown.id}: model or files have changed."
    if made.tokens[:n] != shown.tokens[:n]:
        pairs = zip(made.tokens, shown.tokens, strict=False)
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(made.tokens), len(shown.tokens)))
        return f"The pipeline's response differs from token {first + 1} on."
    return ""


def _call(record: Plan | Settings) -> str:
    """The call that makes a dataclass, without the arguments that have their default."""
    given = ((f.name, getattr(record, f.name)) for f in fields(record) if getattr(record, f.name) != f.default)
    return f"{type(record).__name__}({', '.join(f'{name}={value!r}' for name, value in given)})"
