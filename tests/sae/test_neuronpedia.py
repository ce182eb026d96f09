"""Labels of Neuronpedia are read once, and refused when they are of another latent or out of reach."""

import pytest
import requests

from esr.config.registry import NeuronpediaLabels
from esr.sae import neuronpedia
from esr.sae.neuronpedia import LabelError, Neuronpedia

SOURCE = NeuronpediaLabels(kind="neuronpedia", model="gemma-2-2b", sae="16-gemmascope-res-16k")


class Reply:
    def __init__(self, content, status=200):
        self.content, self.status = content, status

    def raise_for_status(self):
        if self.status != 200:
            raise requests.HTTPError(f"{self.status} for this address")

    def json(self):
        return self.content


@pytest.fixture
def reply_with(monkeypatch):
    """`reply_with(reply)` to every request; the addresses requested are in the list it returns."""
    addresses = []

    def replies(reply):
        def get(address, timeout):
            addresses.append(address)
            if isinstance(reply, Exception):
                raise reply
            return reply

        monkeypatch.setattr(neuronpedia.requests, "get", get)
        return addresses

    return replies


def test_a_label_is_requested_once_and_kept(reply_with, tmp_path):
    addresses = reply_with(Reply({"index": "7", "explanations": [{"description": "ships at sea"}]}))
    assert [Neuronpedia(SOURCE, tmp_path).get(7) for _ in range(2)] == ["ships at sea"] * 2
    assert len(addresses) == 1 and addresses[0].endswith("/gemma-2-2b/16-gemmascope-res-16k/7")


def test_a_latent_without_explanation_has_no_label(reply_with, tmp_path):
    reply_with(Reply({"index": "7", "explanations": []}))
    assert Neuronpedia(SOURCE, tmp_path).get(7) == ""


@pytest.mark.parametrize(
    "reply",
    [
        Reply({}, status=404), Reply({"index": "8", "explanations": []}), Reply({"error": "no such model"}),
        requests.ConnectionError("no route"), requests.Timeout("30 s"),
    ],
)  # fmt: skip
def test_a_reply_that_is_none_is_refused_in_a_sentence_and_not_kept(reply_with, tmp_path, reply):
    reply_with(reply)
    with pytest.raises(
        LabelError, match="label of latent 7 of gemma-2-2b, 16-gemma.* or name a file of labels"
    ) as error:
        Neuronpedia(SOURCE, tmp_path).get(7)
    assert "\n" not in str(error.value) and not list(tmp_path.rglob("*.json"))
