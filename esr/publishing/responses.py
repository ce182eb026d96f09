"""Pages to browse a study's responses: search, filters, attempts with their scores, how each response was made.

    python -m esr.publishing.responses [FOLDER]

writes one page for each model and stage that has responses and judgements in data/ to FOLDER (site/responses).
"""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esr import paths
from esr.config.registry import base_of, load_registry
from esr.publishing.pages import page
from esr.storage.files import read_rows, write_text
from esr.storage.records import Judgement, Latent, Trial

SHOWN_CONTEXTS = 3  # strongest contexts of a latent on its page
DECIMALS = 1  # of scores


@dataclass(frozen=True)
class Source:
    """Responses of one stage and model, and the file of their judgements."""

    stage: str
    model: str
    responses: Path
    judgements: Path

    @property
    def page(self) -> str:
        return f"{self.model}-{self.stage}.html"

    @property
    def command(self) -> str:
        """What makes these responses again: equal batches give equal tokens, so a stage is made as a whole."""
        return f"python -m esr.pipeline.run {self.stage} --model {self.model}"


def sources(data: Path) -> list[Source]:
    """Stages and models with responses and judgements, by model; those of the stage `steer` are in data/judge."""
    order, found = list(load_registry()), []
    for responses in data.glob("*/*/responses.jsonl"):
        stage, model = responses.parts[-3:-1]
        judgements = data / ("judge" if stage == "steer" else stage) / model / "judgements.jsonl"
        if judgements.exists() and model in order:
            found.append(Source(stage, model, responses, judgements))
    return sorted(found, key=lambda source: (order.index(source.model), source.stage != "steer", source.stage))


def read_contexts(model: str, data: Path) -> dict[int, list[str]]:
    """The strongest contexts of the latents that a model was steered with; empty where its base has none."""
    for stage in ("latents", "concepts"):
        file = data / stage / base_of(model) / "latents.jsonl"
        if file.exists():
            return {row.index: row.contexts[:SHOWN_CONTEXTS] for row in read_rows(file, Latent)}
    return {}


def entries(
    trials: Sequence[Trial], judgements: Mapping[str, Judgement], opened: Mapping[str, tuple[str, int]]
) -> list[dict]:
    """What a page holds of each response, in the order of `trials`.

    judgements: by trial. opened: by trial, opening and continuation as the judge read them, and the character where the
    continuation begins; without an entry the judge read the trial's text. Raises ValueError for a judgement that is not
    of that text.
    """
    return [_entry(trial, judgements.get(trial.id), *opened.get(trial.id, (trial.text, 0))) for trial in trials]


def _entry(trial: Trial, judgement: Judgement | None, text: str, opening: int) -> dict[str, Any]:
    made = trial.model_dump(include={"id", "condition", "latent", "label", "prompt", "seed", "layer", "instruction"})
    attempts = judgement.attempts if judgement else []
    for attempt in attempts:
        if attempt.end > len(text) or not text.startswith(attempt.restart, attempt.start):
            raise ValueError(
                f"The judgement of {trial.id} is not of its text (attempt at {attempt.start}): run its stages again."
            )
    return (
        made
        | {
            "key": f"{trial.latent} {trial.prompt_id} {trial.seed}",  # shared by the conditions that are compared
            "boost": round(trial.boost, 3),
            "ablated": len(trial.ablate),
            "tokens": len(trial.tokens),
            "finish": trial.finish_reason,
            "adapter": trial.adapter,
            "opening": _units(text[:opening]),
            "text": text,
            "outcome": judgement.outcome if judgement else "not judged",
            "attempts": [
                [_units(text[: a.start]), _units(text[: a.end]), _units(a.restart), _rounded(a.score)] for a in attempts
            ],
            "thirds": [_rounded(score) for score in judgement.thirds] if judgement else [],
        }
    )


def _units(text: str) -> int:
    """The length of a text as JavaScript counts it, in UTF-16 units: places in a page's rows are in these."""
    return len(text.encode("utf-16-le")) // 2


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, DECIMALS)


def response_page(
    source: Source, rows: Sequence[dict], contexts: Mapping[int, list[str]], judge: str, nav: Sequence[tuple[str, str]]
) -> str:
    """The page of one model and stage; its script fills the list from the embedded rows."""
    used = {row["latent"] for row in rows}
    data = {
        "command": source.command,
        "file": f"data/{source.stage}/{source.model}/responses.jsonl",
        "judge": judge,
        "contexts": {str(latent): contexts[latent] for latent in sorted(used) if latent in contexts},
        "rows": list(rows),
    }
    title = f"Responses of {source.model}, {source.stage}"
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    intro = (
        f"<h1>{html.escape(title)}</h1>"
        f"<p>{len(rows)} responses in {len(conditions)} conditions. Each block is an attempt with its score, "
        "0 (orange) to 100 (blue). ⟲ marks the words of a restart. Conditions share latent, prompt and seed.</p>"
    )
    return page(title, intro + _form(conditions), nav=nav, script="responses.js", data=data)


def _form(conditions: Sequence[str]) -> str:
    """Search and filters, and the empty list."""
    options = "".join(f"<option>{html.escape(name)}</option>" for name in conditions)
    return f"""
<form id="filters" role="search" aria-label="Responses">
<label class="wide">Search <input type="search" name="q" placeholder="words of prompt, response or label"></label>
<label>Condition <select name="condition"><option value="">all</option>{options}</select></label>
<label>Restarts <select name="restart"><option value="">any</option><option value="yes">with a restart</option>
<option value="no">without</option></select></label>
<label>Change <select name="change"><option value="">any</option><option value="better">last attempt better</option>
<option value="worse">last attempt worse</option></select></label>
<label>First score, min <input type="number" name="min" min="0" max="100" step="1" placeholder="0"></label>
<label>max <input type="number" name="max" min="0" max="100" step="1" placeholder="100"></label>
<label>Order <select name="sort"><option value="">as generated</option><option value="low">lowest first score</option>
<option value="high">highest first score</option><option value="gain">largest gain</option></select></label>
<button type="reset">Clear</button>
</form>
<p id="count" role="status" aria-live="polite"></p>
<noscript><p>This page needs JavaScript to list its responses. It loads nothing from anywhere else.</p></noscript>
<ol id="list"></ol>
<button id="more" type="button" hidden>Show more</button>"""


def opened_texts(trials: Sequence[Trial]) -> dict[str, tuple[str, int]]:
    """Of the trials that have a prefill: prefill and continuation as the judge reads them, and where the latter begins.

    Raises ConfigError when their model's tokenizer is not fetched.
    """
    opened = [trial for trial in trials if trial.prefill]
    if not opened:
        return {}
    from esr.experiments.prefill import whole
    from esr.models.loading import load_tokenizer

    tokenizer = load_tokenizer(base_of(opened[0].model))
    found = ((trial.id, *whole(trial, tokenizer)) for trial in opened)
    return {trial_id: (response.text, start) for trial_id, response, start in found}


def write_pages(folder: Path, data: Path, home: str = "") -> Iterator[Path]:
    """Write a page for each of the `sources` of the folder `data`. home: address of the site's index, "" for none."""
    found = sources(data)
    for source in found:
        trials = read_rows(source.responses, Trial)
        judgements = {row.trial_id: row for row in read_rows(source.judgements, Judgement)}
        rows = entries(trials, judgements, opened_texts(trials))
        nav = [("Home", home)] if home else []
        nav += [(f"{other.model}: {other.stage}", "" if other == source else other.page) for other in found]
        judge = next((row.judge for row in judgements.values()), "")
        text = response_page(source, rows, read_contexts(source.model, data), judge, nav)
        write_text(folder / source.page, text)
        yield folder / source.page


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m esr.publishing.responses", description="Pages of responses.")
    parser.add_argument("folder", nargs="?", type=Path, default=paths.ROOT / "site" / "responses")
    given = parser.parse_args(arguments)
    try:
        written = list(write_pages(given.folder, paths.DATA))
    except (FileNotFoundError, ValueError) as error:
        print(paths.from_root(str(error)), file=sys.stderr)
        return 1
    print("\n".join(f"{path}: {path.stat().st_size / 1e6:.1f} MB" for path in written))
    if not written:
        print("data/ has no responses with judgements: run dvc repro, or unpack an archive.", file=sys.stderr)
    return int(not written)


if __name__ == "__main__":
    sys.exit(main())
