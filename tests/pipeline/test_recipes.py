"""The three recipes of docs/models.md, section "Another model", word by word."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from esr.paths import ROOT
from tests.pipeline.clones import edit, make_clone, repro, run
from tests.pipeline.families import WIDTH, write_model
from tests.sae.releases import hub_file, tiny_sae, write_folder, write_release

TEXT = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
SECTION = TEXT[TEXT.index("## Another model") : TEXT.index("## Another judge")]
RECIPES = re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
FRENCH = {
    "evaluation.txt": [f"Explique comment {x}." for x in ("cuire un œuf", "réparer un vélo", "planter un arbre")],
    "held_out.txt": ["Explique comment laver un pull."],
    "corpus_forms.txt": [
        "Explique {}.", "Parle-moi de {}.", "Écris un poème sur {}.", "Donne trois conseils sur {}.",
        "Raconte l'histoire de {}.",
    ],
    "corpus_subjects.txt": [
        "les volcans, les glaciers, les marées, les fossiles, les déserts, les nuages, les éclairs, les planètes",
        "les abeilles, les baleines, les chevaux, les hiboux, les fourmis, les chats, les saumons, les escargots",
        "le pain, le fromage, le chocolat, les champignons, la soupe, le miel, le café, les pommes, le riz, le sel",
        "les ponts, les phares, les moulins, les cathédrales, les tunnels, les barrages, les serres, les gares",
        "le violon, le piano, la danse, le théâtre, la poterie, la gravure, la broderie, le cinéma, les contes",
        "la médecine, les vaccins, le sommeil, la vue, les dents, les os, le cœur, la mémoire, les allergies",
        "les vélos, les trains, les bateaux, les fusées, les ascenseurs, les horloges, les batteries, les miroirs",
        "les impôts, les élections, les tribunaux, les écoles, les bibliothèques, les musées, les marchés, la poste",
    ],
}  # fmt: skip


@pytest.fixture
def clone(tmp_path):
    """A clone whose filters let latents of a random model pass."""
    folder = make_clone(tmp_path / "esr")
    for old, new in (
        ("min_concreteness: 0.5 #", "min_concreteness: 0.0 #"),
        ("max_density: 0.02 #", "max_density: 1.0 #"),
    ):
        edit(folder / "params.yaml", old, new)
    return folder


def texts_of(folder: Path) -> list[str]:
    return [line for file in sorted((folder / "data" / "prompts").glob("*.txt")) for line in file.open()]


def rare(weights: dict) -> dict:
    """Latents that fire from often to never, so that some fire as rarely as a trained SAE's do, and on no prompt."""
    weights["b_enc"] -= torch.linspace(1.0, 10.0, len(weights["b_enc"]))
    return weights


def follow(folder: Path, recipe: str, **variables: str) -> dict:
    """Do what the recipe says; returns the rates of the new model."""
    (model,) = YAML(typ="safe", pure=True).load(recipe)
    with (folder / "data" / "models.yaml").open("a") as registry:
        registry.write(f"\n{recipe}")
    run(folder, sys.executable, "-m", "esr.pipeline.cli", "select", model, **variables)
    repro(folder, f"fetch@{model}" if "HF_HUB_CACHE" in variables else f"fetch_folder@{model}", **variables)
    run(folder, sys.executable, "-m", "esr.pipeline.cli", "check", **variables)
    repro(folder, "figures", "claims", **variables)
    assert (folder / f"paper/figures/calibration_{model}.svg").exists()
    return json.loads((folder / "paper/numbers/esr.json").read_text())[model]


def test_there_are_three():
    assert len(RECIPES) == 3


def test_a_fine_tune_and_an_sae_in_folders(clone):
    entry = YAML(typ="safe", pure=True).load(RECIPES[0])["mine"]
    write_model(clone / "models" / "mine", "llama-31-8b", entry["n_layers"], texts_of(clone))
    sae = entry["sae"]
    write_folder(
        clone / "models" / "mine-sae",
        rare(tiny_sae(WIDTH, sae["d_sae"])),
        hook=f"blocks.{sae['layer']}.hook_resid_post",
    )
    assert follow(clone, RECIPES[0])["steered"]["n_trials"] > 0


def test_a_model_of_the_hub_with_a_release(clone, tmp_path):
    entry = YAML(typ="safe", pure=True).load(RECIPES[1])["hub-model"]
    place = tmp_path / "hub"
    folder = hub_file(place, entry["source"]["id"], "config.json").parent
    write_model(folder, "gemma-2-2b", entry["n_layers"], texts_of(clone))
    write_release(place, entry["sae"]["release"], entry["sae"]["id"], rare(tiny_sae(WIDTH, entry["sae"]["d_sae"])))
    rates = follow(clone, RECIPES[1], HF_HUB_CACHE=str(place), HF_HUB_OFFLINE="1")
    assert rates["steered"]["n_trials"] > 0


def test_concepts_and_prompts_in_another_language(clone):
    entry = YAML(typ="safe", pure=True).load(RECIPES[2])["concept-model"]
    for name, lines in FRENCH.items():
        (clone / "data" / "prompts" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    concepts = {
        "request": "Écris deux phrases.",
        "others": [f"La réunion numéro {i} commence à neuf heures." for i in range(6)],
        "concepts": [
            {"name": name, "texts": [f"{name} : phrase {i}, encore {name}." for i in range(4)]}
            for name in ("la mer", "la cuisine", "le jardin")
        ],
    }
    YAML().dump(concepts, clone / entry["concepts"]["path"])
    write_model(clone / "models" / "mine", "llama-31-8b", entry["n_layers"], texts_of(clone))
    assert follow(clone, RECIPES[2])["steered"]["n_trials"] > 0
    rows = [json.loads(x) for x in (clone / "data/steer/concept-model/responses.jsonl").read_text().splitlines()]
    assert {row["label"] for row in rows} <= {"la mer", "la cuisine", "le jardin"}
    assert {row["prompt"] for row in rows} <= set(FRENCH["evaluation.txt"])
