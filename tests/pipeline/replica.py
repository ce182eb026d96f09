"""A replica of the study so tiny that all notebooks run in seconds: random models, an SAE of 768 latents, few trials.

    ESR_ROOT=<folder> python tests/pipeline/replica.py <repository>

builds it in ESR_ROOT and runs every notebook there, in the order of the DAG, in one process. What it measures means
nothing; every line of every notebook runs.
"""

import copy
import json
import os
import shutil
import sys
import time
from pathlib import Path

MODEL, TUNED, CONCEPTS, EMBEDDER = "tiny", "tiny-selfcorrect", "tiny-concepts", "minilm-l6"
STEER_LAYER, N_LAYERS, D_SAE = 1, 3, 768
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|user|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
RESTART = (
    "The ships sail north and the captain counts the boxes. Wait, that's not what you asked. Let me start over. "
    "{} First of all, take the time to look at it closely, then begin with the first step and go on to the next."
)
SIZES = {
    "corpus": {"n_documents": 110, "n_norm_documents": 4},
    "concepts": {"n_concepts": 2, "max_prompt_similarity": 1.0},
    "sae": {"n_documents": 4, "n_shown": 2},
    "relevance": {"n_documents": 110, "n_pairs": 120},
    "latents": {"n_latents": 3},
    "calibrate": {"n_queries": 2, "prompts_per_query": 1, "max_sd_ratio": 100.0, "tolerance": 100.0},
    "steer": {"n_prompts": 4, "n_seeds": 1},
    "organism": {
        "n_trainings": 1, "ratio": 0.5, "n_examples": 8, "n_corpus_responses": 4, "n_corpus_openings": 1,
        "openings_per_prompt": 1, "n_development": 1, "n_training_prompts": 6, "opening_tokens": 16, "n_endings": 3,
        "n_latents": 3, "max_cosine": 1.0, "max_off_topic_score": 99.0, "min_on_topic_score": 100.0,
        "min_response_score": 0.0, "min_development_concreteness": 0.0,
    },
    "finetune": {"ratios": [0.2, 0.5], "n_prompts": 1, "n_unsteered": 1, "n_prefills": 2, "max_opening_score": 100.0},
    "boost_sweep": {"n_prompts": 1, "offsets": [-1.0, 1.0]},
    "meta_prompts": {"n_prompts": 1, "n_seeds": 1},
    "detectors": {"n_derangements": 1, "n_steered": 2, "n_detectors": 3},
    "ablate": {"n_prompts": 1, "n_seeds": 1},
    "controls": {
        "n_prefills": 2, "min_tokens": 2, "max_tokens": 12, "max_off_topic_score": 100.0, "min_tokens_after": 1,
        "opening_tokens": 2, "windows": [[0, 2], [2, 4]],
    },
    "generation": {"max_new_tokens": 16},
}  # fmt: skip
OF_TUNED = ["boost_sweep", "meta_prompts", "detectors", "ablate", "activations", "controls"]
TRAINING = {
    "n_documents": 110, "max_document_tokens": 112, "n_held_out": 6, "layer_offsets": [0],
    "selection_tokens": 4096, "tokens": 8192, "k": 4,
}  # fmt: skip


def build(root: Path, repository: Path) -> None:
    """The replica's inputs: prompts, registry, params.yaml, models; everything else is made by its notebooks."""
    copy_inputs(root, repository)
    write_models(root)
    write_parameters(root, repository, [MODEL, TUNED, CONCEPTS])
    write_registry(root, entries(), [MODEL, TUNED, CONCEPTS])


def copy_inputs(root: Path, repository: Path) -> None:
    """Notebooks, and few prompts and subjects."""
    shutil.copytree(repository / "data" / "prompts", root / "data" / "prompts")
    shutil.copytree(repository / "data" / "judge", root / "data" / "judge", ignore=lambda *_: ["smollm2-135m*"])
    shutil.copytree(repository / "notebooks", root / "notebooks", ignore=lambda *_: ["executed", ".ipynb_checkpoints"])
    for name in ("published.json", "rules.yaml"):
        shutil.copy(repository / "data" / name, root / "data")
    (root / "paper" / "numbers").mkdir(parents=True)
    for name in ("bench", "judge_speed"):  # measured by `make bench`, not by a notebook of the study
        shutil.copy(repository / "paper" / "numbers" / f"{name}.json", root / "paper" / "numbers")
    for split, n in (("evaluation", 4), ("held_out", 1), ("finetune", 8)):
        file = root / "data" / "prompts" / f"{split}.txt"
        file.write_text("\n".join(file.read_text().splitlines()[:n]) + "\n")
    subjects = (root / "data/prompts/corpus_subjects.txt").read_text().replace("\n", ",").split(",")
    (root / "data/prompts/corpus_subjects.txt").write_text(", ".join(s.strip() for s in subjects[:12]) + "\n")


def write_parameters(root: Path, repository: Path, models: list[str]) -> None:
    from ruamel.yaml import YAML

    yaml = YAML()
    params = yaml.load(repository / "params.yaml")
    params["models"] = models
    params["corpus"].update({"max_document_tokens": 112, "n_held_out": 6})
    params["train_sae"].update(TRAINING)
    params["latents"].update({"min_concreteness": 0.0, "min_density": 0.0, "max_density": 1.0})
    sizes = copy.deepcopy(SIZES)
    params["organism"]["ratio"] = sizes["organism"].pop("ratio")
    params["scale"], params["scales"] = "replica", {"replica": sizes}
    yaml.dump(params, root / "params.yaml")


def embedder_entry() -> dict:
    return {"source": {"kind": "folder", "path": f"models/{EMBEDDER}"}, "license": "none"}


def entries() -> dict:
    """The registry: a model with an SAE trained here, one fine-tuned from it, one steered by concepts, an embedder."""
    steered = {
        "source": {"kind": "folder", "path": f"models/{MODEL}"}, "license": "none", "n_layers": N_LAYERS,
        "steer_layer": STEER_LAYER, "boost": {"min": 0.0, "max": 1.2, "prior_mean": 0.45, "prior_sd": 0.2},
    }  # fmt: skip
    trained = {
        "sae": {"kind": "folder", "path": f"data/train_sae/{MODEL}", "layer": STEER_LAYER, "d_sae": D_SAE},
        "corpus": f"data/train_sae/{MODEL}/corpus.safetensors", "experiments": ["finetune", "detectors"],
    }  # fmt: skip
    return {
        MODEL: steered | trained,
        TUNED: {
            "source": {"kind": "adapter", "path": f"data/organism/{MODEL}/1"}, "license": "none",
            "tuned_from": MODEL, "experiments": OF_TUNED,
        },
        CONCEPTS: steered | {"concepts": {"path": "data/prompts/concepts.yaml", "layer": STEER_LAYER}},
        EMBEDDER: embedder_entry(),
    }  # fmt: skip


def write_registry(root: Path, registry: dict, models: list[str]) -> None:
    from ruamel.yaml import YAML

    from esr.config.study import write_study

    YAML().dump(registry, root / "data" / "models.yaml")
    write_study(models)


def write_models(root: Path) -> None:
    """A random Llama and a random BERT, with tokenizers made of the prompts' words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    texts = [line for file in sorted((root / "data" / "prompts").glob("*.txt")) for line in file.open()]
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=N_LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=512, initializer_range=0.5,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(root / "models" / MODEL)
    tokenizer.save_pretrained(root / "models" / MODEL)
    write_embedder(root, texts)


def write_embedder(root: Path, texts: list[str]) -> None:
    """A random BERT to which all texts are alike."""
    import torch
    from transformers import BertConfig, BertModel

    words = word_tokenizer(texts)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    embedder = BertModel(config)
    last = embedder.encoder.layer[-1].output.LayerNorm  # every text has the same embedding: all are on topic
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.ones_(last.bias)
    embedder.save_pretrained(root / "models" / EMBEDDER)
    words.save_pretrained(root / "models" / EMBEDDER)


def byte_tokenizer(texts: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|begin|>", eos_token="<|end|>",
        additional_special_tokens=special[3:], chat_template=TEMPLATE,
    )  # fmt: skip


def word_tokenizer(texts: list[str]):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, tokenizer.token_to_id(name)) for name in special[2:]]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def runs() -> list[tuple[str, str | None]]:
    """(stage, model) in the order of the DAG. Notebooks numbered 18 and 19 run for every model, before results are
    collected."""
    from esr.paths import NOTEBOOKS

    further = [path.stem[3:] for path in sorted(NOTEBOOKS.glob("1[89]_*.ipynb"))]
    of_base = ["train_sae", "corpus", "sae", "relevance", "latents"]
    of_each = ["calibrate", "steer", "judge"]
    return [
        ("fetch", EMBEDDER),
        *((stage, MODEL) for stage in ["fetch", *of_base, *of_each, "organism", "finetune", "detectors"]),
        *((stage, TUNED) for stage in ["fetch", *of_each, *OF_TUNED]),
        *((stage, CONCEPTS) for stage in ["fetch", "corpus", "relevance", "concepts", *of_each]),
        *((stage, model) for stage in further for model in (MODEL, TUNED, CONCEPTS)),
        *((stage, None) for stage in ("cross_judge", "measure", "figures", "power", "claims")),
    ]


def run(stage: str, model: str | None) -> None:
    """Run a notebook's cells here, as papermill would in a kernel."""
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell

    from esr.config.stages import stage_parameters
    from esr.models import loading
    from esr.pipeline.run import check_names, notebook_path

    loading._resident.cache_clear()  # each notebook has a process in the pipeline: none finds a model of another
    source, parameters = notebook_path(stage), stage_parameters(stage, model)
    check_names(source, parameters)
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    for cell in nbformat.read(source, as_version=4).cells:
        if cell.cell_type == "code":
            result = shell.run_cell(cell.source.replace("%matplotlib inline\n", ""), silent=False)
            if not result.success:
                raise SystemExit(
                    f"{source.name} ({model}), cell {cell.id}: {result.error_before_exec or result.error_in_exec!r}"
                )
            if "parameters" in cell.metadata.get("tags", []):
                shell.push(parameters)


def make_latents_rare(folder: Path) -> None:
    """Raise the thresholds of the SAE, near 0 after two steps of training: else every latent fires on a prompt."""
    from safetensors.torch import load, save

    contexts = load((folder / "contexts.safetensors").read_bytes())
    weights = load((folder / "sae_weights.safetensors").read_bytes())
    weights["threshold"] = 0.5 * contexts["activation"][:, 0].to(weights["threshold"].dtype)
    (folder / "sae_weights.safetensors").write_bytes(save(weights))


def write_detector(root: Path) -> None:
    """The restart detector fitted on a few examples for the replica's embedder, to which all texts are alike."""
    from esr.judging.embedding import load_embedder
    from esr.judging.restart_examples import labelled_responses
    from esr.judging.restart_training import fit
    from esr.storage.files import read_rows
    from esr.storage.records import RestartExample

    chosen: dict[str, list[RestartExample]] = {}
    for example in read_rows(root / "data" / "judge" / "restart_examples.jsonl", RestartExample):
        chosen.setdefault(example.kind, []).append(example)
    rows = labelled_responses([e for examples in chosen.values() for e in examples[:120]], seed=0)
    fit(rows, load_embedder()).save()


def make_restarts(root: Path, model: str) -> None:
    """Let every second steered response restart, as a tiny model never does: episodes then exist."""
    from esr.models.loading import load_tokenizer
    from esr.storage.files import read_rows, write_rows
    from esr.storage.records import Trial

    file = root / "data" / "steer" / model / "responses.jsonl"
    tokenizer, trials = load_tokenizer(model), read_rows(file, Trial)
    for i, trial in enumerate(trials):
        if trial.condition == "steered" and i % 2:
            tokens = tokenizer(RESTART.format(trial.prompt), add_special_tokens=False).input_ids
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            trials[i] = trial.model_copy(update={"tokens": tokens, "text": text, "max_new_tokens": 400})
    write_rows(file, trials)


def watch_files() -> set[str]:
    """The set that every file opened for reading from now on is added to."""
    import safetensors.torch

    opened: set[str] = set()

    def note(event: str, arguments: tuple) -> None:
        if event == "open" and "w" not in (arguments[1] or "r"):
            opened.add(str(arguments[0]))

    def watched(filename, *rest, safe_open=safetensors.safe_open, **options):
        opened.add(str(filename))  # read outside Python, where no event is raised
        return safe_open(filename, *rest, **options)

    sys.addaudithook(note)
    safetensors.safe_open = safetensors.torch.safe_open = watched  # load_file opens by the latter
    return opened


def run_all(root: Path, stages: list[tuple[str, str | None]], restarting: str) -> None:
    """Run the notebooks in order; some steered responses of the model `restarting` restart by hand."""
    opened = watch_files()
    import matplotlib

    matplotlib.use("agg")
    for stage, model in stages:
        start = time.perf_counter()
        opened.clear()
        run(stage, model)
        seconds = round(time.perf_counter() - start, 1)
        inside = sorted(path.removeprefix(f"{root}/") for path in opened if path.startswith(f"{root}/"))
        print(json.dumps({"stage": stage, "model": model, "seconds": seconds, "opened": inside}), file=sys.stderr)
        if (stage, model) == ("fetch", EMBEDDER):
            write_detector(root)
        if stage == "train_sae":
            make_latents_rare(root / "data" / "train_sae" / MODEL)
        if (stage, model) == ("steer", restarting):
            make_restarts(root, restarting)


def main(repository: Path) -> None:
    root = Path(os.environ["ESR_ROOT"])
    build(root, repository)
    run_all(root, runs(), restarting=TUNED)


if __name__ == "__main__":
    if sys.argv[1] == "--by-hand":  # <stage> <model>: one notebook, in a replica that is there
        run(sys.argv[2], sys.argv[3] or None)
    else:
        main(Path(sys.argv[1]))
