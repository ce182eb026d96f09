"""Pages of responses hold every response as text, never as markup, with its attempts, and say how it was made."""

import base64
import hashlib
import json
import re

import pytest

from esr.config.stages import stage_parameters
from esr.paths import DATA
from esr.publishing import responses
from esr.publishing.pages import embedded, page
from esr.storage.files import read_rows
from esr.storage.records import Attempt, SampledResponse
from tests.publishing.html_checks import Elements
from tests.publishing.sample import MODEL, judgement_of, sampled, trial_of, write_latents, write_stage

HOSTILE = (
    '</script><script>alert(1)</script><img src=x onerror="alert(2)"> <!-- & &lt;b&gt; "\'` \u2028 ]]> </textarea>'
    "<style>@import url(//example.org/x)</style>"
)


def pages_of(tmp_path, pairs, stage="steer", **more):
    write_stage(tmp_path / "data", pairs, stage, **more)
    return {path.name: path.read_text() for path in responses.write_pages(tmp_path / "site", tmp_path / "data")}


def data_of(text):
    return json.loads(Elements(text).texts["data"])


def in_javascript(text, start, end):
    """text.slice(start, end) as JavaScript has it."""
    return text.encode("utf-16-le")[2 * start : 2 * end].decode("utf-16-le")


def hostile_pair():
    text = f"{HOSTILE} Wait, {HOSTILE}"
    trial = trial_of(sampled_row(), text=text, prompt=HOSTILE, label=HOSTILE, condition="</option><script>")
    return trial, judgement_of(trial, [text.index("Wait,")], [10.0, 90.0])


def sampled_row():
    return read_rows(DATA / "judge" / "sample.jsonl", SampledResponse)[0]


def test_no_text_of_a_model_becomes_markup(tmp_path):
    trial, judgement = hostile_pair()
    write_latents(tmp_path / "data", {trial.latent: HOSTILE})
    (text,) = pages_of(tmp_path, [(trial, judgement)]).values()
    found = Elements(text)
    assert [tag for tag, _ in found.tags if tag in ("img", "textarea", "iframe")] == []
    assert [attributes for tag, attributes in found.tags if tag == "script"] == [
        {"type": "application/json", "id": "data"}, {},
    ]  # fmt: skip
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    (row,) = data_of(text)["rows"]
    assert (row["text"], row["prompt"], row["label"]) == (trial.text, HOSTILE, HOSTILE)
    assert HOSTILE in data_of(text)["contexts"][str(trial.latent)][0]


def test_the_policy_allows_the_pages_script_alone_and_no_address(tmp_path):
    (text,) = pages_of(tmp_path, sampled(3)).values()
    found = Elements(text)
    digest = base64.b64encode(hashlib.sha256(found.texts["script"].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in found.policy and "default-src 'none'" in found.policy
    assert "innerHTML" not in found.texts["script"] and "http" not in found.policy
    assert "script-src 'none'" in page("a page without a script", "")


def test_embedded_json_is_the_data_and_ends_no_element():
    assert json.loads(embedded([HOSTILE])) == [HOSTILE]
    assert not set("<>&\u2028") & set(embedded({HOSTILE: HOSTILE}))


def test_every_response_is_there_with_its_attempts_and_restart_words(tmp_path):
    pairs = sampled(40)
    rows = data_of(*pages_of(tmp_path, pairs).values())["rows"]
    assert [(row["id"], row["text"], row["seed"]) for row in rows] == [(t.id, t.text, t.seed) for t, _ in pairs]
    for row, (trial, judgement) in zip(rows, pairs, strict=True):
        spans = [in_javascript(trial.text, start, end) for start, end, *_ in row["attempts"]]
        assert "".join(spans) == trial.text and len(spans) == len(judgement.attempts)
        assert [score for *_, score in row["attempts"]] == [a.score for a in judgement.attempts]
        words = [in_javascript(trial.text, start, start + length) for start, _, length, _ in row["attempts"]]
        assert words == [a.restart for a in judgement.attempts]
    assert any(len(row["attempts"]) > 2 for row in rows)


def test_places_are_counted_as_javascript_counts():
    text = "So 🥖🥖 far. Wait, no 🥖. Good."
    trial = trial_of(sampled_row(), text=text)
    judgement = judgement_of(trial, [text.index("Wait")], [10.0, 60.0])
    (row,) = responses.entries([trial], {trial.id: judgement}, {})
    start, end, length, _ = row["attempts"][1]
    assert in_javascript(text, start, start + length) == "Wait, no 🥖."
    assert in_javascript(text, start, end) == "Wait, no 🥖. Good."


def test_a_judgement_of_another_text_is_refused(tmp_path):
    (trial, judgement), *_ = sampled(1)
    far = Attempt(start=0, end=len(trial.text) + 1, restart="", score=1.0)
    other = Attempt(start=3, end=9, restart="Wait, no", score=1.0)
    for attempts in ([far], [judgement.attempts[0], other]):
        with pytest.raises(ValueError, match="is not of its text"):
            pages_of(tmp_path, [(trial, judgement.model_copy(update={"attempts": attempts}))])


def test_each_stage_and_model_has_a_page_with_the_command_that_makes_it(tmp_path):
    write_stage(tmp_path / "data", sampled(2), "ablate")
    pages = pages_of(tmp_path, sampled(2))
    assert list(pages) == [f"{MODEL}-steer.html", f"{MODEL}-ablate.html"]
    for name, text in pages.items():
        stage = name.removesuffix(".html").rpartition("-")[2]
        words = data_of(text)["command"].split()
        assert words == ["python", "-m", "esr.pipeline.run", stage, "--model", MODEL]
        assert "seed" in stage_parameters(stage, MODEL)  # the stage exists and runs on the model
        assert data_of(text)["file"] == f"data/{stage}/{MODEL}/responses.jsonl"
        others = [attributes["href"] for tag, attributes in Elements(text).tags if tag == "a"]
        assert others == [other for other in pages if other != name]


def test_what_is_not_judged_or_has_no_text_says_so(tmp_path):
    empty = trial_of(sampled_row(), id="empty", text="")
    pairs = [(empty, judgement_of(empty).model_copy(update={"attempts": [], "outcome": "empty"}))]
    rows = data_of(*pages_of(tmp_path, pairs).values())["rows"]
    assert (rows[0]["outcome"], rows[0]["attempts"]) == ("empty", [])
    assert responses.entries([empty], {}, {})[0]["outcome"] == "not judged"


def test_a_prefilled_opening_is_a_part_of_what_the_judge_read():
    trial = trial_of(sampled_row(), text=" Wait, no. A reply.", prefill=[5, 6])
    whole = "The opening." + trial.text
    judgement = judgement_of(trial.model_copy(update={"text": whole}), [12], [10.0, 60.0])
    (row,) = responses.entries([trial], {trial.id: judgement}, {trial.id: (whole, 12)})
    assert row["text"] == whole and in_javascript(whole, 0, row["opening"]) == "The opening."
    with pytest.raises(ValueError, match="is not of its text"):
        responses.entries([trial], {trial.id: judgement}, {})


def test_without_responses_the_command_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(responses.paths, "DATA", tmp_path)
    assert responses.main([str(tmp_path / "site")]) == 1
    assert "run dvc repro, or unpack an archive" in capsys.readouterr().err
    write_stage(tmp_path, sampled(2))
    assert responses.main([str(tmp_path / "site")]) == 0
    assert re.search(rf"{MODEL}-steer.html: [\d.]+ MB", capsys.readouterr().out)


def test_prefilled_openings_are_decoded_as_the_judge_reads_them(monkeypatch):
    from esr.models import loading
    from tests.pipeline.replica import byte_tokenizer

    texts = ["The ships sail north. ", "Wait, no. A reply 🥖."]
    tokenizer = byte_tokenizer(texts)
    opening, reply = (tokenizer(text, add_special_tokens=False).input_ids for text in texts)
    trial = trial_of(sampled_row(), prefill=opening, tokens=reply, text=texts[1], max_new_tokens=500)
    monkeypatch.setattr(loading, "load_tokenizer", lambda model: {"smollm2-135m": tokenizer}[model])
    assert responses.opened_texts([trial]) == {trial.id: ("".join(texts), len(texts[0]))}
    cut = trial.model_copy(update={"max_new_tokens": len(opening) + 1})
    assert responses.opened_texts([cut])[trial.id][1] == len(texts[0])
    assert responses.opened_texts([trial.model_copy(update={"prefill": []})]) == {}
