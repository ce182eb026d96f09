"""What cannot be generated is refused by one sentence that names the row."""

import pytest

from esr.engine.generation import Row, generate

GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0, "stop_tokens": [2]}


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        (Row((), 0, 5), {}, "Row 1 needs a prompt"),
        (Row((5,), 0, 0), {}, "Row 1 needs .* max_new_tokens of at least 1"),
        (Row((5,), 0, -1), {}, "Row 1 needs .* max_new_tokens of at least 1"),
        (Row((5, 97), 0, 5), {}, r"Row 1 has a prompt token outside the vocabulary \(ids 0 to 96\)"),
        (Row((-1, 5), 0, 5), {}, "Row 1 has a prompt token outside the vocabulary"),
        (
            Row((5,) * 200, 0, 57),
            {},
            r"Row 1 needs 257 positions \(200 for its prompt and max_new_tokens 57\), and the model has 256: .* by 1 ",
        ),
        (Row((5,), 0, 5), {"batch_size": 0}, "batch_size is 0"),
        (Row((5,), 0, 5), {"stop_tokens": [2, 97]}, "Stop token 97 is not in the vocabulary"),
        (Row((5,), 0, 5), {"stop_tokens": [-1]}, "Stop token -1"),
        (Row((5,), 0, 5), {"stop_tokens": [None]}, "Stop token None"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_any_work(model, row, settings, message):
    model.register_forward_pre_hook(lambda *_: pytest.fail("went on"))
    with pytest.raises(ValueError, match=message):
        generate(model, [Row((5, 6), 0, 3), row], **GREEDY | {"batch_size": 1} | settings)


def test_no_rows_have_no_responses_and_no_stop_token_runs_to_the_limit(model):
    assert generate(model, [], batch_size=1, **GREEDY) == []
    [response] = generate(model, [Row((5,) * 200, 0, 56)], batch_size=1, **GREEDY | {"stop_tokens": []})
    assert len(response.tokens) == 56 and response.finish_reason == "length"
