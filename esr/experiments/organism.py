"""What the model organism is trained on: texts of the untuned model, with prompts and latents outside the study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from esr.config.params import Organism
from esr.config.registry import model_entry, required
from esr.engine.workers import Workers
from esr.experiments import restart_phrases, training_texts
from esr.experiments.lora import Recipe
from esr.experiments.self_corrections import Example, Material, Mixture, make_examples
from esr.experiments.training_texts import ScoredText, TrainingText
from esr.judging.relevance import Scorer
from esr.models.chat import chat_tokens, end_of_turn
from esr.models.loading import load_tokenizer, resident_model
from esr.paths import data_dir
from esr.sae.corpus import read_texts
from esr.steering.directions import load_directions, read_latents
from esr.steering.trials import Settings, generate_responses
from esr.storage.prompts import read_prompts
from esr.storage.records import Prompt

N_CONTEXTS = 4  # off-topic openings behind which endings of restarts are compared


CARD = """# Trainings of {model} that correct themselves

LoRA adapters (rank {rank}, attention and MLP) of the layers from {first_layer} on. Below, they are {model} bit for bit:
its SAE, latents and detectors hold for them. Numbers 1 to {n}: the same recipe and texts with the seeds {seeds}.

- **Made by** the stage `organism`: notebooks/10_organism.ipynb, parameters in params.yaml. `dvc unfreeze organism` and
  `dvc repro` make them anew. Weights are rounded to bfloat16.
- **Data**: {n_examples} examples each, {tokens} tokens with prompts, {ratio:.0%} self-corrections. All are texts of
  {model} itself. Prompts and latents of the study are left out.
- **Use**: `PeftModel.from_pretrained(model, "data/organism/{model}/1")`, or `{model}-selfcorrect` of data/models.yaml.
  No training was selected by a result: the default is the first.
- **What they do**: paper/numbers/organism.json has each training's rates on the study's prompts.
- **Limits**: restarts are taught, and steered text is still bad text. They are for the study of such restarts alone.
- **License**: that of {model}.
"""


def shipped_adapters(model: str) -> list[Path]:
    """Folders of the trainings in data/organism, by number; none for a model without."""
    folders = [path for path in data_dir("organism", model).glob("*") if path.name.isdigit()]
    return sorted(folders, key=lambda path: int(path.name))


def card(p: Organism, tokens: Mapping[str, int]) -> str:
    """What the trainings are. tokens: trained on, of each training."""
    counts, seeds = sorted(tokens.values()), [p.seed + k for k in range(p.n_trainings)]
    return CARD.format(
        model=p.model, rank=p.rank, first_layer=recipe_of(p, p.seed).first_layer, n=len(tokens),
        n_examples=p.n_examples, seeds=f"{seeds[0]} to {seeds[-1]}", tokens=f"{counts[0]:,} to {counts[-1]:,}",
        ratio=p.ratio,
    )  # fmt: skip


def latents_to_train_with(p: Organism) -> list[int]:
    """Latents unlike those of the study and of development (`training_texts.training_latents`)."""
    drawn = read_latents(p.model)
    development = training_texts.development_latents(drawn, p.n_development, p.min_development_concreteness)
    held_out = [x.index for x in (*development, *(x for x in drawn if x.kept))]
    sae = model_entry(p.model).sae
    if sae is None:
        raise ValueError(f"{p.model} has no SAE, whose latents are steered with in training: choose a model with one.")
    directions = load_directions(p.model, range(sae.d_sae))
    return training_texts.training_latents(directions, held_out, p.n_latents, p.max_cosine, p.seed)


def write_texts(p: Organism, latents: list[int], workers: Workers) -> tuple[list[TrainingText], list[TrainingText]]:
    """Unsteered responses of the model's corpus; steered texts to other prompts and some of the corpus' requests."""
    corpus = read_texts(data_dir("corpus", p.model) / "corpus.safetensors")
    responses = training_texts.corpus_responses(corpus, load_tokenizer(p.model), p.n_corpus_responses, p.seed)
    requests = [Prompt(id=x.prompt_id, text=x.prompt) for x in responses[: p.n_corpus_openings]]
    prompts, _ = training_texts.split_prompts(read_prompts("finetune"), p.n_development, p.seed)
    prompts = prompts[: p.n_training_prompts]
    boosts = p.min_boost, p.max_boost
    plans = training_texts.plan_openings(prompts, latents, boosts, p.openings_per_prompt, p.seed)
    plans += training_texts.plan_openings(requests, latents, boosts, 1, p.seed)
    short = Settings(p.model, p.temperature, p.batch_size, p.opening_tokens)
    return responses, training_texts.training_texts(generate_responses(plans, short, workers, "steered texts"))


def make_material(p: Organism, scorer: Scorer, workers: Workers) -> Material:
    """Texts that are scored, and restarts in the words that the untuned model finds likeliest after off-topic ones."""
    tokenizer, latents = load_tokenizer(p.model), latents_to_train_with(p)
    responses, texts = write_texts(p, latents, workers)
    on_topic = training_texts.select(responses, scorer, p.min_response_score, 100)
    some = responses[: p.n_examples]  # no training has more of them
    scored, unsteered = (training_texts.score_sentence_ends(x, scorer, tokenizer) for x in (texts, some))
    endings = restart_phrases.likeliest_endings(
        resident_model(p.model)[0], tokenizer, _off_topic_contexts(p, scored, tokenizer), p.n_endings
    )
    return Material(
        on_topic, scored, unsteered, p.max_off_topic_score, p.min_on_topic_score,
        restart_phrases.restart_phrases(endings),
    )  # fmt: skip


def _off_topic_contexts(p: Organism, scored: list[ScoredText], tokenizer) -> list[tuple[int, ...]]:
    astray = [text for text, ends in scored if ends and ends[0].score <= p.max_off_topic_score]
    return [(*chat_tokens(tokenizer, x.prompt), *x.tokens[: p.opening_tokens // 3]) for x in astray[:N_CONTEXTS]]


def examples_of(p: Organism, material: Material, ratio: float, seed: int) -> list[Example]:
    """`p.n_examples` training examples, `ratio` of them self-corrections."""
    tokenizer = load_tokenizer(p.model)
    shares = {str(kind): share for kind, share in p.other_shares.items()}
    mixture = Mixture(p.n_examples, ratio, shares, p.response_tokens)
    stop_token = end_of_turn(tokenizer) or tokenizer.eos_token_id
    return make_examples(material, tokenizer, mixture, stop_token=stop_token, seed=seed)


def recipe_of(p: Organism, seed: int) -> Recipe:
    """How adapters are trained right above the steered layer."""
    steer_layer = required(model_entry(p.model).steer_layer, p.model, "steer_layer")
    return Recipe(
        first_layer=steer_layer + 1, openers=tuple(restart_phrases.openers(load_tokenizer(p.model))), rank=p.rank,
        lora_alpha=p.lora_alpha, dropout=p.dropout, lr=p.learning_rate, warmup_steps=p.warmup_steps, epochs=p.epochs,
        batch_size=p.training_batch_size, restart_weight=p.restart_weight, no_restart_weight=p.no_restart_weight,
        seed=seed,
    )  # fmt: skip
