"""A study with a tiny random model, enough of it for the playground: made in ESR_ROOT by a process of its own.

ESR_ROOT=<folder> python -m tests.playground.study
"""

import json

from tests.pipeline.replica import (  # fmt: skip
    D_SAE,
    MODEL,
    N_LAYERS,
    STEER_LAYER,
    byte_tokenizer,
    copy_inputs,
    entries,
    write_parameters,
    write_registry,
)

LABELS = {3: "snow", 8: "ships, captain", 21: "bread", 40: "snow, <script>alert(1)</script>"}
THRESHOLD, DETECTORS = 0.4, (5, 9)
WIDTH, NORM = 32, 100.0
RESTARTED = "The ships sail north and back. Wait, let me start over. Look at it closely, then take the first step."
PHRASE = "Wait, let me start over."


def build(root, repository) -> None:
    copy_inputs(root, repository)
    write_parameters(root, repository, [MODEL])
    registry = {MODEL: entries()[MODEL] | {"sampling": {"repetition_penalty": 1.1}}}
    write_registry(root, registry, [MODEL])
    _write_model(root)
    _write_sae(root / "data" / "train_sae" / MODEL)
    _write_rows(root / "data")


def _write_model(root) -> None:
    """A random Llama that never ends a response: the row of its end token in the output layer is zero."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    texts = [line for file in sorted((root / "data" / "prompts").glob("*.txt")) for line in file.open()]
    tokenizer = byte_tokenizer(texts)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=N_LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=4096, initializer_range=0.5,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] = 0
    model.save_pretrained(root / "data" / "fetch" / MODEL)
    tokenizer.save_pretrained(root / "data" / "fetch" / MODEL)


def _write_sae(folder) -> None:
    import torch
    from safetensors.torch import save_file

    decoder = torch.nn.functional.normalize(torch.randn(D_SAE, WIDTH, generator=torch.manual_seed(1)), dim=-1)
    weights = {
        "W_dec": decoder, "W_enc": decoder.T.contiguous(), "b_dec": torch.zeros(WIDTH), "b_enc": torch.zeros(D_SAE),
        "threshold": torch.zeros(D_SAE),
    }  # fmt: skip
    folder.mkdir(parents=True)
    save_file(weights, folder / "sae_weights.safetensors")
    config = {
        "architecture": "jumprelu", "d_in": WIDTH, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none",
        "metadata": {"hook_name": f"model.layers.{STEER_LAYER}"},
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))


def _write_rows(data) -> None:
    """What the stages corpus, latents, calibrate, detectors, steer and judge leave."""
    from esr.storage.files import write_json, write_rows
    from esr.storage.prompts import read_prompts
    from esr.storage.records import Attempt, Detector, Judgement, Latent, Threshold, Trial

    write_json(data / "corpus" / MODEL / "summary.json", {"median_residual_norm": NORM, "median_sae_norm": NORM})
    facts = {"words": [], "concreteness": 1.0, "density": 0.01, "prompt_activation": 0.0}
    rows = [
        Latent(index=i, label=x, contexts=[f"before «{x}» after"], kept=i < 30, reason="kept", **facts)
        for i, x in LABELS.items()
    ]
    write_rows(data / "latents" / MODEL / "latents.jsonl", rows)
    found = {"sd": 0.05, "score": 30.0, "converged": True, "reason": "converged", "queries": []}
    write_rows(
        data / "calibrate" / MODEL / "thresholds.jsonl",
        [Threshold(latent=3, label=LABELS[3], boost=THRESHOLD, **found)],
    )
    shares = ("matched_share", "mismatched_share", "matched_mean", "mismatched_mean", "auc", "cohens_d")
    detectors = [Detector(latent=x, rank=x, rule="auc", **dict.fromkeys(shares, 0.5)) for x in DETECTORS]
    write_rows(data / "detectors" / MODEL / "detectors.jsonl", detectors)
    prompt = read_prompts("evaluation")[1]
    shared = {"model": MODEL, "condition": "steered", "latent": 8, "prompt_id": prompt.id, "seed": 77}
    trial = Trial(
        id="saved", label=LABELS[8], prompt=prompt.text, boost=0.375, layer=STEER_LAYER, max_new_tokens=24,
        temperature=0.6, repetition_penalty=1.1, tokens=[1], text=RESTARTED, finish_reason="stop", **shared,
    )  # fmt: skip
    write_rows(data / "steer" / MODEL / "responses.jsonl", [trial])
    at, end = RESTARTED.index(PHRASE), len(RESTARTED)
    attempts = [
        Attempt(start=0, end=at, restart="", score=5.0), Attempt(start=at, end=end, restart=PHRASE, score=70.0)
    ]  # fmt: skip
    judgement = Judgement(
        trial_id="saved", judge="offline", outcome="scored", attempts=attempts, degraded=False, **shared
    )
    write_rows(data / "judge" / MODEL / "judgements.jsonl", [judgement])


if __name__ == "__main__":
    from esr.paths import ROOT
    from tests.playground.repository import REPOSITORY

    build(ROOT, REPOSITORY)
