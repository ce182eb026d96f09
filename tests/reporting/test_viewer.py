"""The episode viewer shows text, never markup of the response's own, and marks exactly the restart."""

import re
from html import unescape

import pytest

from esr.models.alignment import Alignment
from esr.publishing.rendering import markdown
from esr.reporting.viewer import show_response, verbatim


def aligned(text, *starts):
    return Alignment(text, (*starts, len(text)))


def spans(shown):
    """(style, title, text) of each token."""
    found = re.findall(r'<span style="([^"]*)" title="([^"]*)">(.*?)</span>', shown, re.DOTALL)
    return [(style, title, unescape(text)) for style, title, text in found]


def test_tags_and_quotes_of_a_response_are_escaped():
    text = '<script>alert("x")</script> & <b>bold</b>'
    shown = show_response(aligned(text, 0, 8, 20), [0.1, 0.2, 0.3], largest=0.3, heading="<i>why</i>")
    assert "<script" not in shown and "<b>" not in shown and "<i>" not in shown
    assert "".join(piece for *_, piece in spans(shown)) == text


def test_depth_follows_the_value_and_values_are_titles():
    shown = spans(show_response(aligned("abc", 0, 1, 2), [0.0, 1.0, 2.0], largest=2.0))
    assert [title for _, title, _ in shown] == ["0", "1", "2"]
    depths = [float(re.search(r"rgba\(\d+,\d+,\d+,([\d.]+)\)", style)[1]) for style, *_ in shown]
    assert depths[0] == 0 < depths[1] < depths[2] <= 1


def test_the_restart_is_marked_from_its_first_to_its_last_character():
    text = "So far. Wait, no. Good."
    shown = spans(show_response(aligned(text, 0, 7, 12, 17), [1, 1, 1, 1], largest=1, restart=(8, 17)))
    marked = "".join(piece for style, _, piece in shown if "border-bottom" in style)
    assert marked == "⟲ Wait, no." and "".join(piece for *_, piece in shown).replace("⟲ ", "") == text


def test_tokens_of_one_character_are_one_piece_with_their_largest_value():
    shown = spans(show_response(aligned("a🥖b", 0, 1, 1, 1, 2), [0.0, 1.0, 4.0, 2.0, 0.5], largest=4.0))
    assert [(title, text) for _, title, text in shown] == [("0", "a"), ("4", "🥖"), ("0.5", "b")]


def test_it_needs_no_script_and_prints_on_white():
    shown = show_response(aligned("a\nb", 0, 1), [0.0, 0.0], largest=0.0)
    assert "<script" not in shown and "background:#fff" in shown and "print-color-adjust:exact" in shown
    assert show_response(aligned(""), [], largest=1.0).count("<span") == 0


def test_a_token_without_a_value_is_an_error():
    with pytest.raises(ValueError, match="2 tokens with 1 values"):
        show_response(aligned("ab", 0, 1), [1.0], largest=1.0)


def test_what_a_model_writes_formats_nothing_in_a_notebook():
    text = "**Bold** _it_ `code` [a](http://b) ![c](d) <b>e</b> # f | g ~h~ $i$ &amp; 2 * 3 \\ end"
    shown = markdown(f"> [40] {verbatim(text)}")
    assert unescape(re.sub(r"</?(blockquote|p)>", "", shown)).split() == f"[40] {text}".split()
