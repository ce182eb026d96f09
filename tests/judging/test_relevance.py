import json

import numpy as np
import pytest

from esr.judging.mixtures import KINDS, hold_out, subject_of, training_pairs
from esr.judging.relevance import FEATURES, Scorer, calibrate, evaluate, features, fit, on_topic, score_pairs
from esr.judging.texts import (
    CLASS_NAMES,
    content_stems,
    split_pieces,
    unspaced_share,
    without_echo,
    words_of,
)

FORMS = ["Explain {} to a child.", "Write a poem about {}."]
SUBJECTS = {
    "bread": "flour dough yeast oven loaf crust baker knead salt wheat",
    "horses": "saddle gallop mane stable rider hoof bridle pony trot hay",
    "volcanoes": "lava magma crater eruption ash vent mantle basalt dome plume",
    "chess": "pawn bishop rook king queen knight board checkmate castle gambit",
    "violins": "bow string bridge tune orchestra wood melody note peg varnish",
    "sharks": "fin gill tooth ocean prey reef swim tail cartilage whale",
}


class BagOfStems:
    """Stands in for the sentence embeddings: texts that share words, or words of one subject, are near."""

    words = frozenset(w for words in SUBJECTS.values() for w in words.split()) | {"the", "and", "uses", "needs", "many"}

    def encode(self, texts):
        vectors = np.full((len(texts), len(SUBJECTS) + 1), 1e-3, dtype=np.float32)
        for row, text in enumerate(texts):
            for column, (subject, words) in enumerate(SUBJECTS.items()):
                vectors[row, column] += sum(w in words.split() or w == subject for w in words_of(text))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def documents(n=60):
    rng = np.random.default_rng(0)
    requests, responses = [], []
    for i in range(n):
        subject = list(SUBJECTS)[i % len(SUBJECTS)]
        nouns = rng.permutation(SUBJECTS[subject].split())
        requests.append(FORMS[i // len(SUBJECTS) % 2].format(subject))
        responses.append(
            " ".join(
                f"The {a} needs a {b} when it is old. Many of them are kept in the {a}."
                for a, b in zip(nouns, nouns[1:], strict=False)
            )
        )
    return requests, responses


@pytest.fixture(scope="module")
def scorer():
    return fit(training_pairs(*documents(), FORMS, 540, seed=0), BagOfStems())


def test_matched_beats_mismatched_and_gibberish(scorer):
    requests, responses = documents(12)
    matched = scorer.score(requests, responses, [""] * 12)
    mismatched = scorer.score(requests, responses[1:] + responses[:1], [""] * 12)
    garbled = scorer.score(requests, ["dough " * 40] * 12, [""] * 12)
    assert matched.min() > 60 and mismatched.max() < 30 and garbled.max() < 30
    half = [a[: len(a) // 2] + b[len(b) // 2 :] for a, b in zip(responses, responses[1:] + responses[:1], strict=True)]
    assert mismatched.mean() + 10 < scorer.score(requests, half, [""] * 12).mean() < matched.mean() - 10


def test_scores_stay_on_the_scale_and_wordless_text_scores_zero(scorer):
    texts = ["", " \n ", "!!! ###", "7 7 7", "x", "bread", "the " * 500, "é" * 900, "Dough.\n\n\n- salt\n- yeast"]
    scores = scorer.score(["Explain bread."] * len(texts), texts, ["", "horses, mane"] * 4 + [""])
    assert np.all((scores >= 0) & (scores <= 100)) and np.all(scores[:4] == 0)


def test_scores_do_not_depend_on_the_order_or_company_of_responses(scorer):
    requests, responses = documents(10)
    together = scorer.score(requests, responses, ["pawn, rook"] * 10)
    backwards = scorer.score(requests[::-1], responses[::-1], ["pawn, rook"] * 10)[::-1]
    alone = [scorer.score([r], [a], ["pawn, rook"])[0] for r, a in zip(requests, responses, strict=True)]
    np.testing.assert_allclose(together, backwards)
    np.testing.assert_allclose(together, alone)


def test_a_nearer_distractor_never_raises_a_score(scorer):
    requests, responses = documents(12)
    mixed = [a[:200] + b[:200] for a, b in zip(responses, responses[1:] + responses[:1], strict=True)]
    far = scorer.score(requests, mixed, ["violins, bow"] * 12)
    near = scorer.score(requests, mixed, [list(SUBJECTS)[(i + 1) % 6] for i in range(12)])
    assert np.all(near <= far + 1e-9)


def test_saved_parameters_give_the_same_scores_and_name(scorer, tmp_path):
    scorer.save(tmp_path / "scorer.json")
    loaded = Scorer.load(tmp_path / "scorer.json", scorer.embedder)
    requests, responses = documents(12)
    assert loaded.fingerprint == scorer.fingerprint
    inputs = (requests, responses, [""] * 12)
    np.testing.assert_array_equal(loaded.score(*inputs), scorer.score(*inputs))


def test_fitting_twice_gives_the_same_scorer(scorer):
    again = fit(training_pairs(*documents(), FORMS, 540, seed=0), BagOfStems())
    assert again.fingerprint == scorer.fingerprint


def test_exported_trees_predict_what_scikit_learn_predicts():
    from sklearn.ensemble import HistGradientBoostingRegressor

    from esr.judging import trees

    rng = np.random.default_rng(1)
    values = rng.normal(size=(400, len(FEATURES)))
    values[rng.random(values.shape) < 0.1] = np.nan
    shares = np.clip(np.nan_to_num(values[:, 0]) + 0.3 * np.isnan(values[:, 7]), 0, 1)
    fitted = {k: np.array(v) for k, v in trees.fit_trees(values, shares, list(FEATURES.values()), seed=0).items()}
    model = HistGradientBoostingRegressor(
        max_iter=trees.TREES, max_depth=trees.DEPTH, learning_rate=0.08, min_samples_leaf=30,
        l2_regularization=5.0, monotonic_cst=list(FEATURES.values()), early_stopping=False, random_state=0,
    ).fit(values, shares)  # fmt: skip
    np.testing.assert_allclose(trees.predict_trees(fitted, values), model.predict(values), atol=1e-4)


def test_a_file_fitted_on_other_features_is_refused(scorer, tmp_path):
    path = tmp_path / "scorer.json"
    path.write_text(json.dumps(scorer.parameters | {"features": ["something else"]}))
    with pytest.raises(ValueError, match="other features"):
        Scorer.load(path, scorer.embedder)
    with pytest.raises(FileNotFoundError, match="run the stage"):
        Scorer.load(tmp_path / "none.json", scorer.embedder)


def test_every_feature_has_a_value_and_a_name(scorer):
    text, prompt = "Dough is kneaded. Salt is added!", "Explain bread."
    vectors = dict(zip([prompt, *split_pieces(text)], BagOfStems().encode([prompt, *split_pieces(text)]), strict=True))
    values = features(prompt, text, "", vectors, scorer.likelihood, scorer._near, BagOfStems.words)
    assert len(values) == len(FEATURES)
    assert scorer.likelihood.shape == (len(CLASS_NAMES), len(CLASS_NAMES))


def test_on_topic_finds_the_response_to_another_subject():
    requests, responses = documents(12)
    subjects = [subject_of(r, FORMS) for r in requests]
    assert on_topic(subjects, responses, BagOfStems()).all()
    responses[3] = responses[4]
    assert list(np.flatnonzero(~on_topic(subjects, responses, BagOfStems()))) == [3]


def test_evaluation_reads_known_shares(scorer):
    known = training_pairs(*documents(), FORMS, 180, seed=1)
    report = evaluate(score_pairs(scorer, known), known)
    assert report["n"] == 180 and report["matched_auc"] > 0.95 and report["spearman"] > 0.7


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="too few"):
        fit(training_pairs(*documents(), FORMS, 20, seed=0), BagOfStems())


def test_pairs_have_their_kinds_and_shares():
    pairs = training_pairs(*documents(), FORMS, 900, seed=0)
    assert {p.kind for p in pairs} == set(KINDS)
    assert all(0 <= p.share <= 1 and p.text.strip() for p in pairs)
    assert all(p.share == 1 for p in pairs if p.kind == "matched")
    assert all(p.share == 0 for p in pairs if p.kind == "mismatched")
    matched = [p for p in pairs if p.kind == "matched"]
    assert all(set(SUBJECTS[p.subject].split()) & set(words_of(p.text)) for p in matched)
    other = [p for p in pairs if p.kind == "mismatched"]
    shared = {"bow", "bridge", "tail", "string"}
    assert not any((set(SUBJECTS[p.subject].split()) - shared) & set(words_of(p.text)) for p in other)
    assert pairs == training_pairs(*documents(), FORMS, 900, seed=0)


def test_spliced_share_is_the_share_of_words_before_the_splice():
    for pair in training_pairs(*documents(), FORMS, 900, seed=0):
        if pair.kind == "spliced":
            nouns = [i for i, w in enumerate(words_of(pair.text)) if w in SUBJECTS[pair.subject].split()]
            assert (max(nouns) + 1) / len(words_of(pair.text)) <= pair.share + 0.12


def test_held_out_subjects_are_a_random_share():
    subjects = [str(i) for i in range(100)] * 3
    assert len(hold_out(subjects, 0.3, 0)) == 30 and hold_out(subjects, 0.3, 0) != hold_out(subjects, 0.3, 1)


def test_a_request_of_another_form_is_refused():
    assert subject_of("Write a poem about the Moon.", FORMS) == "the Moon"
    with pytest.raises(ValueError, match="none of the 2 forms"):
        subject_of("Sing of the Moon.", FORMS)


def test_pieces_keep_every_word_in_order_and_lengths_in_bounds():
    text = "Hi. Mix it well with a spoon! 1. Bake\n\n" + "long " * 150 + "\nend"
    pieces = split_pieces(text)
    assert " ".join(pieces).split() == text.split()
    assert all(len(p.split()) <= 70 for p in pieces) and pieces[0].startswith("Hi. Mix")


def test_inflections_share_a_stem():
    assert len(set(content_stems("bake bakes baked baking"))) == 1
    assert content_stems("Explain how to do it, please") == []


def test_form_changes_no_score(scorer):
    prompt, text = (
        FORMS[0].format("bread"),
        "The flour needs a dough when it is old.\nMany of them are kept in the oven.",
    )
    formed = [
        text, f"  {text}\n\n ", text.upper(),
        "1. **The flour** needs a `dough` when it is old.\n> - Many of them are kept in the *oven*.\n",
        "## The flour needs a   dough when it is old.\n\n\nMany of them are kept in the oven.",
    ]  # fmt: skip
    scores = scorer.score([prompt] * len(formed), formed, ["horses"] * len(formed))
    assert scores[0] > 50 and (scores == scores[0]).all()


def test_repeating_the_prompt_earns_nothing(scorer):
    prompt = "Please explain to a child how bread is made at home."
    off = "The saddle needs a gallop when it is old. Many of them are kept in the saddle."
    texts = [off, f"{prompt} {off}", f"You asked: {prompt.upper()} {off} {prompt[7:]}", prompt, f"{prompt} {prompt}"]
    scores = scorer.score([prompt] * len(texts), texts, [""] * len(texts))
    assert scores[1] == scores[0] < 30 and scores[2] <= scores[0] + 10
    assert scores[3] == scores[4] == 0


def test_what_is_no_language_scores_nothing(scorer):
    texts = ["", " \n ", "( ( # 9 @@ --", "qzx vbn wrt plk fgh dsa", "12 34 56"]
    assert (scorer.score([FORMS[0].format("bread")] * len(texts), texts, [""] * len(texts)) == 0).all()


def test_only_a_copy_of_the_prompt_is_taken_out():
    prompt = "Explain how to bake a loaf of bread."
    assert without_echo("You asked to explain how to BAKE a loaf of bread! Mix it.", prompt).split() == [
        "You", "asked", "to", "!", "Mix", "it.",
    ]  # fmt: skip
    for text in ("To bake a loaf, mix flour and water.", "How to bake bread", "", "a loaf of rye and a loaf of bread"):
        assert without_echo(text, prompt) == text
    assert without_echo("Why? Because of rain.", "Why?") == "Why? Because of rain."
    assert without_echo("Name it! Ink.", "Name it!").strip() == "! Ink."


def test_calibrated_scores_are_on_the_scale_of_the_annotators(scorer):
    """Annotators who give a quarter of the scorer's score: the order stays, the scale is theirs."""
    pairs = [p for p in training_pairs(*documents(), FORMS, 540, seed=3) if words_of(p.text)]
    raw = score_pairs(scorer, pairs)
    labelled = [(p.prompt, p.text, p.distractor, score / 4) for p, score in zip(pairs, raw, strict=True)]
    theirs = calibrate(scorer, labelled[::2])
    found = score_pairs(theirs, pairs[1::2])
    assert np.abs(found - raw[1::2] / 4).mean() < 2 < np.abs(raw[1::2] - raw[1::2] / 4).mean()
    assert np.corrcoef(found, raw[1::2])[0, 1] > 0.95 and theirs.fingerprint != scorer.fingerprint
    with pytest.raises(ValueError, match="3 scored texts are too few"):
        calibrate(scorer, labelled[:3])


def test_whether_there_is_a_distractor_tells_nothing(scorer):
    """Of equal texts those with a distractor scored 0 and those without 100: a score does not follow its presence."""
    pairs = [p for p in training_pairs(*documents(), FORMS, 1080, seed=3) if p.kind == "matched"]
    labels = ["granite, lava" if i % 2 else "" for i in range(len(pairs))]
    labelled = [(p.prompt, p.text, label, 0.0 if label else 100.0) for p, label in zip(pairs, labels, strict=True)]
    theirs = calibrate(scorer, labelled)
    alone, beside = (
        theirs.score([p.prompt for p in pairs], [p.text for p in pairs], [label] * len(pairs))
        for label in ("", "granite, lava")
    )
    assert np.abs(alone - beside).mean() < 50  # 97 when fitted on one of the two


def test_a_calibrated_scorer_is_saved_whole(scorer, tmp_path):
    pairs = [p for p in training_pairs(*documents(), FORMS, 240, seed=3) if words_of(p.text)]
    theirs = calibrate(scorer, [(p.prompt, p.text, p.distractor, 50 * p.share) for p in pairs])
    theirs.save(tmp_path / "scorer.json")
    assert (
        score_pairs(Scorer.load(tmp_path / "scorer.json", scorer.embedder), pairs) == score_pairs(theirs, pairs)
    ).all()


def test_text_without_spaces_between_words_is_known_by_its_script():
    assert unspaced_share("パンの焼き方を説明してください。") == unspaced_share("如何烤面包?") == 1
    assert unspaced_share("Explain what 猫 means in Japanese.") < 0.1
    assert unspaced_share("Translate 'おはようございます' to English.") < 0.5
    assert unspaced_share("Expliquez où naît l'été.") == unspaced_share("12 + 3 = ?") == 0
