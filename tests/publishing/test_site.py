"""The site opens from disk: every link leads somewhere, nothing comes from elsewhere, everything is linked."""

import json
import re
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml

from esr.paths import ROOT
from esr.publishing import rendering, site
from esr.publishing.addresses import Addresses, document_page, documents, relative
from esr.publishing.pages import asset
from esr.reporting.rules import read_rules
from tests.publishing.html_checks import Elements
from tests.publishing.sample import MODEL, sampled, write_latents, write_stage
from tests.publishing.test_responses import HOSTILE

CITED = {"https://arxiv.org/abs/2602.06941"}  # the paper that is reproduced


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    pairs = sampled(60)
    write_stage(folder / "data", pairs)
    write_stage(folder / "data", pairs[:20], "ablate")
    write_latents(folder / "data", {trial.latent: trial.label for trial, _ in pairs})
    assert site.build(folder / "site", folder / "data") == len(list((folder / "site").rglob("*.html")))
    return folder / "site"


@pytest.fixture(scope="module")
def pages(built):
    return {p.relative_to(built).as_posix(): Elements(p.read_text(encoding="utf-8")) for p in built.rglob("*.html")}


def test_no_page_names_another_host_but_to_cite(pages):
    for name, page in pages.items():
        found = {(tag, to) for tag, to in page.addresses() if not to.startswith("data:")}
        outside = {(tag, to) for tag, to in found if rendering.ELSEWHERE.match(to)}
        assert {tag for tag, _ in outside} <= {"a"} and {to for _, to in outside} <= CITED, name
        assert "default-src 'none'" in page.policy and "http" not in page.policy


def test_scripts_run_on_the_pages_of_responses_alone(pages):
    for name, page in pages.items():
        assert len(page.all("script")) == (2 if name.startswith("responses/") else 0), name
        assert ("script-src 'none'" in page.policy) == (not name.startswith("responses/"))
        assert not any(attribute.startswith("on") for _, a in page.tags for attribute in a), name


def test_every_link_leads_to_a_file_and_a_place_in_it(built, pages):
    for name, page in pages.items():
        for _, to in page.addresses():
            parts = urlsplit(to)
            if parts.scheme:
                continue
            file = (built / name).parent / unquote(parts.path) if parts.path else built / name
            assert file.is_file(), f"{name} links to {to}"
            target = file.resolve().relative_to(built.resolve()).as_posix()
            if parts.fragment and target in pages and not target.startswith("responses/"):
                assert unquote(parts.fragment) in pages[target].ids, f"{name} links to {to}"
            assert file.resolve().is_relative_to(built.resolve())


def test_every_figure_notebook_and_claim_is_linked_from_the_index(pages):
    linked = {to for _, to in pages["index.html"].addresses()}
    executed = [*(ROOT / "notebooks/executed").glob("*.ipynb"), ROOT / "benchmarks/executed/bench.ipynb"]
    assert {f"notebooks/{path.stem}.html" for path in executed} <= linked
    assert {f"figures/{path.name}" for path in (ROOT / "paper/figures").glob("*.svg")} <= linked
    assert {f"numbers/{path.name}" for path in (ROOT / "paper/numbers").glob("*.json")} <= linked
    rows = json.loads((ROOT / "paper/numbers/claims.json").read_text())
    assert {f"claims.html#{row['id']}" for row in rows} <= linked
    assert {f"responses/{MODEL}-{stage}.html" for stage in ("steer", "ablate")} <= linked
    assert {document_page(name) for name in documents(ROOT)} | {"paper.pdf"} <= linked


def test_a_claim_leads_to_its_experiment_notebook_and_numbers(pages, built):
    text = (built / "claims.html").read_text(encoding="utf-8")
    for rule in read_rules().rules:
        section = re.search(rf'<section id="{rule.id}">.*?</section>', text, re.DOTALL)
        if section is None:
            assert rule.id not in (ROOT / "paper/numbers/claims.json").read_text()
            continue
        assert f"index.html#experiment-{rule.experiment}" in section[0]
        if (ROOT / f"paper/numbers/{rule.outcome[0]}.json").exists():
            assert f"numbers/{rule.outcome[0]}.json" in section[0]
    assert text.count('<a href="notebooks/') > len(read_rules().rules) / 2


def test_a_notebook_leads_to_its_experiments_figures_and_numbers(pages):
    linked = {to for _, to in pages[f"notebooks/14_ablate-{MODEL}.html"].addresses()}
    assert {"../index.html#experiment-3b", "../index.html#figure-ablation", "../numbers/ablate.json"} <= linked
    assert "../files/notebooks/14_ablate.ipynb" in linked


def test_pages_are_accessible(pages):
    """What Lighthouse looks at: language, title, viewport, headings in order, names of images and fields."""
    for name, page in pages.items():
        assert page.all("html") == [{"lang": "en"}] and len(page.all("title")) == 1
        assert any(a.get("name") == "viewport" for a in page.all("meta"))
        assert page.headings[0] == 1, name
        if not name.startswith(("notebooks/", "documents/")):  # those have headings that others wrote
            assert page.headings.count(1) == 1, name
            steps = zip(page.headings, page.headings[1:], strict=False)
            assert all(below - above <= 1 for above, below in steps), name
        assert all(len(image.get("alt", "")) > 15 for image in page.all("img")), name
        assert len(page.ids) == len(set(page.ids)), name


def test_images_of_notebooks_are_in_their_pages(pages):
    for path in (ROOT / "notebooks" / "executed").glob("*.ipynb"):
        outputs = [o for cell in nbformat.read(path, 4).cells for o in cell.get("outputs", [])]
        images = [kind for o in outputs for kind in o.get("data", {}) if kind.startswith("image/")]
        shown = pages[f"notebooks/{path.stem}.html"].all("img")
        assert len(shown) == len(images) and all(image["src"].startswith("data:image/") for image in shown), path.stem


def hostile_notebook():
    v4 = nbformat.v4
    data = [
        {"text/markdown": f"**{HOSTILE}** [a](javascript:alert) ![b](https://example.org/i.png) [c](//example.org)"},
        {"text/html": f"{HOSTILE}<iframe src=x></iframe><p style='background:url(https://example.org/x)'>kept</p>"},
        {"application/javascript": "alert(1)", "text/plain": "plain"},
        {"image/svg+xml": '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'},
    ]
    outputs = [v4.new_output("display_data", entry) for entry in data]
    outputs.append(v4.new_output("stream", name="stdout", text=HOSTILE))
    return v4.new_notebook(cells=[v4.new_markdown_cell("# 1. Title"), v4.new_code_cell(HOSTILE, outputs=outputs)])


def test_no_text_of_a_model_becomes_markup_in_a_notebook():
    page = Elements(rendering.notebook_body(hostile_notebook(), "title"))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "svg", "object", "form", "input", "textarea", "link", "meta"}
    assert not any(attribute.startswith("on") for _, a in page.tags for attribute in a)
    assert all(to.startswith("data:image/") for _, to in page.addresses())
    assert "example.org/x)" not in str([a.get("style") for _, a in page.tags])


def test_markdown_has_the_anchors_of_github_and_addresses_of_the_site():
    text = rendering.markdown("## Another `model`: which?\n\n[a](../README.md#run-it) [b](esr/) ![c d e](x.svg)\n")
    assert '<h2 id="another-model-which">' in text
    addresses = Addresses(ROOT)
    assert addresses.link("documents/log.html", "../README.md#run-it", "paper") == "readme.html#run-it"
    assert addresses.link("index.html", "esr/") is None and addresses.link("index.html", "no/such.file") is None
    assert addresses.link("index.html", "../outside.md") is None
    assert addresses.link("notebooks/a.html", "params.yaml") == "../files/params.yaml"
    assert addresses.copied["files/params.yaml"] == ROOT / "params.yaml"
    assert rendering.readdressed('<a class="k" href="esr/">text</a>', lambda _: None) == '<a class="k">text</a>'
    assert relative("a/b.html", "index.html#x") == "../index.html#x"


def luminance(colour):
    full = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(full[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def brightness_ratio(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_as_wcag_asks(theme):
    block = re.findall(r":root \{(.*?)\}", asset("style.css"), re.DOTALL)[theme]
    colour = dict(re.findall(r"--([\w]+): (#[0-9a-f]+)", block))
    pairs = [("ink", "ground"), ("soft", "ground"), ("accent", "ground"), ("soft", "raised"), ("ink", "mark")]
    pairs += [("b0", "ground"), ("b4", "ground"), *((name, f"t{i}") for i in range(5) for name in ("ink", "soft"))]
    assert {pair: round(brightness_ratio(*(colour[n] for n in pair)), 1) for pair in pairs
            if brightness_ratio(*(colour[n] for n in pair)) < 4.5} == {}  # fmt: skip
    bands = [luminance(colour[f"b{i}"]) for i in range(5)]
    assert min(brightness_ratio(colour[f"b{i}"], colour["ground"]) for i in (0, 2, 4)) > 3 and len(set(bands)) == 5


def test_a_folder_with_something_else_is_not_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else than a site"):
        site.build(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert site.main([str(tmp_path)]) == 1


def test_without_responses_the_index_says_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(site.notebooks, "all_executed", lambda: [])
    site.build(tmp_path / "site", tmp_path)
    assert "made without the responses" in (tmp_path / "site/index.html").read_text()
    assert not (tmp_path / "site/responses").exists()
    site.build(tmp_path / "site", tmp_path)


def test_github_pages_serves_what_make_site_makes():
    workflow = yaml.safe_load((ROOT / ".github/workflows/pages.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert any("make site" in step.get("run", "") for step in steps)
    (upload,) = [step for step in steps if "upload-pages-artifact" in step.get("uses", "")]
    assert upload["with"]["path"] == "site" == site.FOLDER
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    assert workflow["permissions"] == {"contents": "read"}
    assert re.search(r"^site:.*\n\t\$\(BIN\)/python -m esr\.publishing\.site$", (ROOT / "Makefile").read_text(), re.M)
