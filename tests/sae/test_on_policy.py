"""Requests are drawn from forms and subjects as users write them."""

import pytest

from esr.sae.on_policy import draw_requests, read_forms


def test_requests_are_distinct_and_of_the_forms(tmp_path):
    forms, subjects = tmp_path / "forms.txt", tmp_path / "subjects.txt"
    forms.write_bytes("\ufeffExplain {}. \r\n\r\nWhat is {}?\r\n".encode())
    subjects.write_text("bread, tea\nsnow\n")
    assert read_forms(forms) == ["Explain {}.", "What is {}?"]
    drawn = draw_requests(subjects, forms, 6, seed=1)
    assert sorted(drawn) == sorted(f.format(s) for f in read_forms(forms) for s in ("bread", "tea", "snow"))
    with pytest.raises(ValueError, match="7 requests are needed, but subjects.txt x forms.txt allow 6"):
        draw_requests(subjects, forms, 7, seed=1)


@pytest.mark.parametrize("form", ["Explain it.", "Compare {} and {}."])
def test_a_form_without_one_place_for_its_subject_is_refused(tmp_path, form):
    """Else every subject would give the same request."""
    (tmp_path / "forms.txt").write_text(f"Explain {{}}.\n{form}\n")
    with pytest.raises(ValueError, match="needs {} once, where the subject goes"):
        read_forms(tmp_path / "forms.txt")
