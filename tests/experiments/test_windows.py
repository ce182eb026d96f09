"""Windows lie where their names say, counted from the restart, the prefilled opening or the start."""

from bread_texts import GOOD, RESTART, TOKENIZER, WRONG, Bread, pieces, trial
from conftest import ListedRestarts

from esr.experiments import windows
from esr.experiments.windows import find_episodes, find_spans, plan_on_topic_openings, sustained_rates, window_scores
from esr.judging.offline import OfflineJudge
from esr.statistics.estimates import NOTHING, Estimate

JUDGE = OfflineJudge(Bread(), ListedRestarts())


def restarted(latent=0):
    return trial(f"{WRONG}{RESTART} {GOOD}", latent=latent)


def test_an_episode_knows_its_places_in_tokens():
    steered = restarted()
    judgements = JUDGE.judge([steered, trial(WRONG)])
    (episode,) = find_episodes([steered, trial(WRONG)], judgements, TOKENIZER, min_tokens=5)
    assert pieces(steered.tokens[: episode.first_end]) == WRONG
    assert pieces(steered.tokens[episode.first_end : episode.restart]) == RESTART
    assert pieces(steered.tokens[episode.restart : episode.end]) == " " + GOOD
    assert find_episodes([steered], judgements[:1], TOKENIZER, min_tokens=len(TOKENIZER.encode(" " + GOOD)) + 1) == []


def test_an_episode_ends_with_the_next_restart():
    again = trial(f"{WRONG}{RESTART} {GOOD} Oops, I made a mistake. Let me try again. {GOOD}")
    (episode,) = find_episodes([again], JUDGE.judge([again]), TOKENIZER, min_tokens=5)
    assert pieces(again.tokens[episode.restart : episode.end]) == " " + GOOD


def test_windows_are_counted_from_where_the_text_begins_and_must_be_full():
    steered, plain = restarted(), trial(GOOD, "unsteered")
    prefilled = trial(" ".join(WRONG.split()[:6]), "prefilled_on_topic", prefill=plain.tokens[:4])
    episodes = find_episodes([steered], JUDGE.judge([steered]), TOKENIZER, min_tokens=5)
    spans = find_spans(episodes, [prefilled], [plain, trial(GOOD, "unsteered", latent=5)], opening_tokens=4)
    assert [span.condition for span in spans] == list(windows.CONDITIONS)

    class Remembering(Bread):
        def score(self, prompts, texts, distractors):
            self.texts = texts
            return super().score(prompts, texts, distractors)

    scorer = Remembering()
    frame = window_scores(spans, [[0, 4], [4, 8], [8, 12]], TOKENIZER, scorer)
    texts = dict(zip(zip(frame.condition, frame.window, strict=True), scorer.texts, strict=True))
    after, wrong = TOKENIZER.encode(" " + GOOD), TOKENIZER.encode(WRONG)
    assert len(after) == 13 and len(wrong) == 12
    assert texts["after_restart", "0-4"] == pieces(after[:4]) and texts["after_restart", "8-12"] == pieces(after[8:12])
    assert texts["after_restart_matched", "0-4"] == pieces(after[4:8])
    assert ("after_restart_matched", "8-12") not in texts  # 4 + 12 tokens are more than there are
    assert texts["first_attempt", "4-8"] == pieces(wrong[4:8]) and ("first_attempt", "8-12") in texts
    assert texts["prefilled_on_topic", "0-4"] == "The horses eat hay." and ("prefilled_on_topic", "4-8") not in texts
    rates = sustained_rates(frame, [[0, 4], [4, 8]])
    assert rates["after_restart"]["0-4"] == Estimate(100.0, None, None, 1)
    assert rates["first_attempt"]["4-8"].estimate == 0.0
    assert rates["matched_difference"]["0-4"].estimate == 100.0
    assert rates["matched_difference"]["4-8"].n == 0


def test_the_prefilled_opening_is_unsteered_and_continued_under_the_same_steering_vector():
    steered, plain = restarted(), trial(GOOD, "unsteered")
    episodes = find_episodes([steered], JUDGE.judge([steered]), TOKENIZER, min_tokens=5)
    (plan,) = plan_on_topic_openings(episodes, [plain], 4, TOKENIZER)
    assert plan.prefill == tuple(plain.tokens[:4]) and (plan.boost, plan.seed, plan.layer) == (0.4, 7, 2)
    assert plan_on_topic_openings(episodes, [plain], 99, TOKENIZER) == []
    assert plan_on_topic_openings(episodes, [trial(GOOD, "unsteered", latent=3)], 4, TOKENIZER) == []


def test_a_model_that_never_restarts_has_nulls_for_every_window():
    frame = window_scores([], [[0, 4]], TOKENIZER, Bread())
    rates = sustained_rates(frame, [[0, 4]])
    assert list(rates) == [*windows.CONDITIONS, "matched_difference"]
    assert all(r["0-4"] == NOTHING for r in rates.values())
