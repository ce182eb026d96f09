"""Parts of the vLLM backend that need no vLLM: messages, hooks of one request, and how the server counts."""

import io
import math
from types import SimpleNamespace

import contract
import pytest
import torch

from esr.engine.activations import Document
from esr.engine.backend import TransformersBackend, backend_of
from esr.engine.edits import LayerEdit
from esr.engine.rows import Row
from esr.engine.vllm import backend as client
from esr.engine.vllm.hooks import RowHooks
from esr.engine.vllm.server import Refused, check, hooks_of
from esr.engine.vllm.wire import pack, receive, send, unpack
from esr.models.vllm import VllmModel


def edit():
    return contract.ablate(vectors=contract.vectors(), response_only=True, part="response without sinks")


def equal(one: LayerEdit, other: LayerEdit) -> bool:
    tensors = [(one.vectors, other.vectors), (one.chosen, other.chosen)]
    tensors += [(getattr(one.subset, name), getattr(other.subset, name)) for name in ("encoder", "bias", "decoder")]
    fields = ("layer", "response_only", "median_norm", "part")
    return all(torch.equal(*pair) for pair in tensors) and all(getattr(one, f) == getattr(other, f) for f in fields)


def test_messages_arrive_whole_and_the_end_of_a_stream_is_none():
    stream = io.BytesIO()
    fields, tensors = pack([edit(), contract.steer(median_norm=5.0)])
    send(stream, {"edits": fields}, tensors)
    send(stream, {"error": "x"})
    stream.seek(0)
    content, found = receive(stream)
    first, second = unpack(content["edits"], found)
    assert equal(first, edit()) and math.isinf(first.median_norm)
    assert second.median_norm == 5.0 and second.subset is None and torch.equal(second.vectors, contract.vectors())
    assert receive(stream) == ({"error": "x"}, {}) and receive(stream) is None


def test_the_edit_of_a_trial_has_its_latents_alone():
    whole = contract.ablate(vectors=contract.vectors())
    one, none = whole.of_trial(3), whole.of_trial(2)
    assert one.subset.latents == (1, 5) and one.chosen.all() and torch.equal(one.vectors, contract.vectors()[3:4])
    assert none.subset is None and none.chosen is None
    assert torch.equal(whole.of_trials(slice(1, 3)).chosen, whole.chosen[1:3])


def context():
    return SimpleNamespace(saved={})


def passes(hooks: RowHooks, hidden: torch.Tensor, sizes, change=lambda x: x):
    """Send `hidden` through the hooks, `sizes` tokens a pass; what came out and what both hooks saved."""
    behind, following, out = context(), context(), []
    for piece in hidden.split(sizes):
        edited = hooks.behind(behind, piece)
        out.append(piece if edited is None else edited)
        if hooks.edit is not None:
            hooks.before_next(following, change(out[-1]))
    return torch.cat(out), behind.saved, following.saved


def hidden():
    return torch.randn(9, 64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("sizes", [[9], [4, 1, 1, 1, 1, 1], [2, 2, 3, 1, 1]])
def test_a_request_is_edited_at_its_places_however_it_is_cut(sizes):
    """Steered from the last prompt token on, and never ablated at the first."""
    whole = contract.ablate(vectors=contract.vectors(), response_only=True).of_trial(0)
    out, behind, following = passes(RowHooks(1, whole, prompt=4), hidden(), sizes)
    assert (behind["seen"], following["checked"]) == (9, 9)
    assert torch.equal(out[0], hidden()[0])  # a sink by its place
    steered = hidden()[3:] + whole.vectors
    activations = contract.subset().activations(steered)
    torch.testing.assert_close(out[3:], steered - activations @ contract.subset().decoder)
    assert (contract.subset().activations(out[1:]) == 0).all()


def test_what_is_collected_is_the_edited_stream_and_its_sinks_from_a_token_on():
    hooks = RowHooks(1, contract.steer().of_trial(0), prompt=4, collect=True, begin=4, median_norm=1.0)
    out, behind, _ = passes(hooks, hidden(), [5, 4])
    assert torch.equal(torch.cat([behind["hidden 0"], behind["hidden 1"]]), out[4:])
    assert torch.equal(torch.cat([behind["sinks 0"], behind["sinks 1"]]), hidden()[4:].norm(dim=-1) > 4.0)


def test_a_request_without_an_edit_is_left_alone():
    out, behind, following = passes(RowHooks(1, None, prompt=4), hidden(), [9])
    assert torch.equal(out, hidden()) and behind["seen"] == 9 and following == {}


@pytest.mark.parametrize("change", [lambda x: x + 1e-3, lambda x: x - contract.vectors()[0], lambda x: x[:-1]])
def test_another_stream_before_the_next_layer_is_reported_and_not_counted(change):
    hooks = RowHooks(1, contract.steer().of_trial(0), prompt=4)
    behind, following = context(), context()
    edited = hooks.behind(behind, hidden())
    with pytest.raises(RuntimeError, match="Steering check failed"):
        hooks.before_next(following, change(edited))
    assert "checked" not in following.saved and "Steering check failed" in following.saved["error"]


ROW = {"prompt": [1, 5, 6], "prompt_length": 3, "begin": 0, "max_tokens": 4, "seed": 0}


def output(behind, following, tokens=(7, 8, 9), logprob=-1.0, finish_reason="stop"):
    entries = [{token: SimpleNamespace(logprob=logprob)} for token in tokens]
    generated = SimpleNamespace(token_ids=list(tokens), logprobs=entries, finish_reason=finish_reason)
    return SimpleNamespace(outputs=[generated], hook_results={"0": behind, "1": following})


def checked(behind, following, **options):
    hooks = [hooks_of(ROW, 0, [contract.steer()], [], None)]
    check([ROW], hooks, [output(behind, following, **options)], score=False)


def test_a_request_whose_tokens_all_passed_both_hooks_is_right():
    checked({"seen": 5}, {"checked": 5})


@pytest.mark.parametrize(
    ("behind", "following", "message"),
    [
        ({}, {}, "of 5 tokens 0 passed the hooks of vllm-lens and 0 reached"),  # no hooks, or a request used twice
        ({"seen": 4}, {"checked": 4}, "of 5 tokens 4 passed"),  # a hook raised
        ({"seen": 5}, {"checked": 4}, "5 passed the hooks of vllm-lens and 4 reached the next layer"),  # a wrong edit
        ({"seen": 8}, {"checked": 8}, "of 5 tokens 8 passed"),  # a request that was preempted and run again
        ({"seen": 5, "error": "RuntimeError: out of memory"}, {"checked": 5}, r"\(RuntimeError: out of memory\)"),
    ],
)
def test_a_request_that_vllm_lens_passed_over_is_refused(behind, following, message):
    with pytest.raises(Refused, match=message) as refusal:
        checked(behind, following)
    assert refusal.value.kind == "SteeringError"


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(Refused, match="not finite in the logits") as refusal:
        checked({"seen": 5}, {"checked": 5}, logprob=math.nan)
    assert refusal.value.kind == "NonFiniteError" and refusal.value.row == 0


def test_a_response_that_vllm_cut_short_is_refused():
    with pytest.raises(Refused, match="ended the response of row 0 at 3 of 4 tokens"):
        checked({"seen": 5}, {"checked": 5}, finish_reason="length")


def test_every_request_of_an_edited_batch_is_watched_an_unsteered_one_too():
    hooks = hooks_of(ROW, 4, [contract.steer()], [0], 5.0)
    assert [(h.layer, h.edit is None, h.collect) for h in hooks] == [(0, True, True), (1, False, False)]
    assert not hooks[1].edit.vectors.any()


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """A backend whose process must not start."""
    contract.make_model("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(client, "interpreter", lambda: pytest.fail("started"))
    return client.VllmBackend(VllmModel(tmp_path, "float32", {"max_model_len": 64}))


def test_what_vllm_would_cut_or_cannot_check_is_refused_before_it_starts(vllm):
    with pytest.raises(ValueError, match=r"Row 1 needs 65 positions, and vLLM has 64 \(max_model_len\): raise"):
        vllm.generate([Row((1, 2), 0, 3), Row((1,), 0, 64)], **contract.GREEDY)
    with pytest.raises(ValueError, match="with vLLM layers 0 to 1 can be edited"):
        vllm.score([Document((1,), (2,))], [contract.steer(), LayerEdit(2, contract.vectors())])
    with pytest.raises(ValueError, match="The collected layer is 3; the model has layers 0 to 2"):
        list(vllm.collect([Document((1,), (2,))], 3))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        vllm.generate([Row((1, 97), 0, 3)], **contract.GREEDY)
    assert vllm.generate([], **contract.GREEDY) == [] == vllm.score([])


def test_what_was_loaded_decides_the_backend(vllm):
    assert backend_of(vllm.model) is backend_of(vllm.model) and isinstance(backend_of(vllm.model), client.VllmBackend)
    assert isinstance(backend_of(contract.make_model("llama")), TransformersBackend)


def test_a_process_that_dies_says_where_its_log_is(vllm, monkeypatch, tmp_path):
    monkeypatch.setattr(client, "CACHE", tmp_path)
    monkeypatch.setattr(client, "interpreter", lambda: "/bin/false")
    with pytest.raises(RuntimeError, match="vLLM ended with status 1; its log .*vllm.*log ends: nothing"):
        vllm.score([Document((1,), (2,))])
    assert vllm.process is None
