"""A row that overflows ends the run by name; its neighbours never inherit its values."""

import pickle

import pytest
import torch
from conftest import tiny_llama

from esr.engine.activations import Document, residuals
from esr.engine.finite import NonFiniteError
from esr.engine.generation import Row, generate
from esr.engine.guard import Guard, watched
from esr.engine.interventions import AddVector

ROWS = [Row((5, 6, 7), 0, 6), Row((5, 6, 7), 1, 6), Row((8, 9), 2, 6), Row((10,), 3, 6)]
SETTINGS = {"batch_size": 4, "temperature": 0.8, "repetition_penalty": 1.1, "stop_tokens": []}


def overflowing(row, layer=1, response_only=False):
    """Steers one row beyond the range of float16, 65504."""
    vectors = torch.zeros(4, 32)
    vectors[row, 3] = 1e5
    return AddVector(layer, vectors, response_only)


def error_of(model, edits, rows=ROWS, **settings):
    with pytest.raises(NonFiniteError) as error:
        generate(model, rows, edits, **SETTINGS | settings)
    return error.value


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_row_that_overflows_in_its_prompt_is_named_with_its_layer(batch_size, temperature):
    error = error_of(tiny_llama().half(), [overflowing(2)], batch_size=batch_size, temperature=temperature)
    assert error.row == 2
    assert str(error) == (
        "Row 2 has values that are not finite in the residual stream after layer 1, in its prompt: usually a strong "
        "steering vector exceeds the range of float16 (up to 6.55e+04); lower the boost or load the model in float32."
    )


def test_a_row_that_overflows_in_its_response_is_named_with_its_token():
    assert "layer 2, at token 1 of its response" in str(error_of(tiny_llama().half(), [overflowing(1, 2, True)]))

    class Late(AddVector):
        def edit(self, hidden, step):
            self.passes = getattr(self, "passes", 0) + bool(step.response.any())
            return super().edit(hidden, step) if self.passes >= 3 else hidden

    late = Late(0, overflowing(3).vectors)
    error = error_of(tiny_llama().half(), [late])
    assert error.row == 3 and "after layer 0, at token 3 of its response" in str(error)


def test_prompts_that_share_a_pass_below_the_first_edit_are_distinguished():
    model = tiny_llama()
    model.model.embed_tokens.weight.data[8] = torch.nan
    error = error_of(model, [AddVector(2, torch.zeros(4, 32))])
    assert error.row == 2 and "after layer 0, in its prompt" in str(error)


def test_logits_that_overflow_are_named_without_a_layer():
    model = tiny_llama().half()
    model.lm_head.weight.data[50] = 6e4
    assert "not finite in the logits, at token 1 of its response" in str(error_of(model, []))


def test_strong_steering_within_the_range_runs():
    steered = AddVector(1, overflowing(2).vectors / 10)
    assert len(generate(tiny_llama().half(), ROWS, [steered], **SETTINGS)) == 4
    assert len(generate(tiny_llama(), ROWS, [overflowing(2)], **SETTINGS)) == 4


def test_the_guard_tells_an_overflow_from_a_missing_edit():
    edit = overflowing(2, layer=0)
    model, guards = tiny_llama().half(), [Guard(0, edit.vectors), Guard(2)]
    with pytest.raises(NonFiniteError, match="Row 2 .* after layer 2, in its prompt"), watched(model, guards):
        generate(model, ROWS, [guards[0], edit, guards[1]], **SETTINGS)


def test_documents_that_overflow_are_named():
    documents = [Document(row.prompt, (11, 12)) for row in ROWS]
    with pytest.raises(NonFiniteError, match="Document 2 .* after layer 2") as error:
        list(residuals(tiny_llama().half(), documents, 2, [overflowing(2)]))
    assert error.value.row == 2


def test_the_error_survives_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(NonFiniteError("Row 2 overflows.", 2)))
    assert (str(error), error.row) == ("Row 2 overflows.", 2)
