"use strict";
// Fills the list from the embedded rows. Text of a model only ever becomes a text node, never markup.
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("filters");
const list = document.getElementById("list");
const more = document.getElementById("more");
const PAGE = 30;
const FIELDS = ["q", "condition", "restart", "change", "min", "max", "sort"];
let shown = [];
let key = "";

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const first = (row) => (row.attempts.length ? row.attempts[0][3] : null);
const last = (row) => (row.attempts.length ? row.attempts[row.attempts.length - 1][3] : null);
const gain = (row) => (row.attempts.length > 1 && first(row) !== null && last(row) !== null ? last(row) - first(row) : null);
const conditions = new Map(); // of each trial
for (const row of data.rows) conditions.set(row.key, (conditions.get(row.key) ?? 0) + 1);

function found(row) { // what a search reads, made at the first one
  row.found ??= [row.id, row.prompt, row.label, `latent ${row.latent}`, row.condition, row.text].join("\n").toLowerCase();
  return row.found;
}

function matches(row, wanted) {
  const score = first(row);
  return (
    (!key || row.key === key) &&
    (!wanted.condition || row.condition === wanted.condition) &&
    (!wanted.restart || (wanted.restart === "yes") === row.attempts.length > 1) &&
    (!wanted.change || (wanted.change === "better" ? gain(row) > 0 : gain(row) < 0)) &&
    (wanted.min === "" || (score !== null && score >= Number(wanted.min))) &&
    (wanted.max === "" || (score !== null && score <= Number(wanted.max))) &&
    (!wanted.q || wanted.q.toLowerCase().split(/\s+/).every((word) => found(row).includes(word)))
  );
}

const ORDERS = {
  low: (a, b) => (first(a) ?? 101) - (first(b) ?? 101),
  high: (a, b) => (first(b) ?? -1) - (first(a) ?? -1),
  gain: (a, b) => (gain(b) ?? -101) - (gain(a) ?? -101),
};

function band(score) {
  return score === null ? "none" : String(Math.min(4, Math.floor(score / 20)));
}

function badge(score, name) {
  const text = score === null ? "–" : String(Math.round(score));
  return make("span", { class: "score", "data-band": band(score), title: `${name}: score ${score ?? "none"} of 100` },
    make("span", { class: "visually-hidden" }, `${name}, score `), text);
}

function pieces(row, start, end, restart) {
  // The span of an attempt: prefilled opening, words of its restart, the rest.
  const borders = [start, Math.min(end, Math.max(start, row.opening)), end];
  const parts = [];
  if (borders[1] > start) parts.push(make("span", { class: "opening", title: "prefilled opening" }, row.text.slice(start, borders[1])));
  if (restart) {
    parts.push(make("mark", {}, "⟲ ", row.text.slice(start, start + restart)), row.text.slice(start + restart, end));
  } else {
    parts.push(row.text.slice(borders[1], end));
  }
  return parts;
}

function attempts(row) {
  const found = row.attempts.length ? row.attempts : [[0, row.text.length, 0, null]];
  return found.map(([start, end, restart, score], place) =>
    make("div", { class: "attempt", "data-band": band(score) },
      badge(score, `Attempt ${place + 1}`),
      make("p", {}, ...pieces(row, start, end, restart))));
}

function facts(row) {
  const parts = [row.condition, `latent ${row.latent} “${row.label}”`, row.boost ? `boost ${row.boost}` : "not steered"];
  if (row.ablated) parts.push(`${row.ablated} latents ablated`);
  if (row.attempts.length > 1) parts.push(`${row.attempts.length} attempts`);
  if (row.outcome !== "scored") parts.push(row.outcome.replace("_", " "));
  return parts.join(" · ");
}

function how(row) {
  const terms = [
    ["Seed", row.seed], ["Boost", `${row.boost} median residual norms at layer ${row.layer}`],
    ["Length", `${row.tokens} tokens${row.finish === "length" ? ", cut by the limit" : ""}`],
    ["Scores of the thirds", row.thirds.length ? row.thirds.join(", ") : "–"], ["Judge", data.judge || "–"],
    ["Instruction", row.instruction], ["Adapter", row.adapter], ["Row", `${row.id} of ${data.file}`],
  ].filter(([, value]) => value !== "");
  const details = make("details", {}, make("summary", {}, "How it was made"),
    make("dl", {}, ...terms.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))])),
    make("p", {}, "This makes it again, with all responses of its stage:"),
    make("pre", { tabindex: "0" }, make("code", {}, data.command)));
  const contexts = data.contexts[row.latent] || [];
  if (contexts.length) {
    details.append(make("p", {}, `Where latent ${row.latent} fires most, the token between « and »:`),
      make("ul", {}, ...contexts.map((text) => make("li", {}, text))));
  }
  return details;
}

function article(row) {
  const others = conditions.get(row.key) - 1;
  const links = make("p", { class: "links" }, make("a", { href: `#id=${row.id}` }, "link to this response"));
  if (others) links.append(" · ", make("a", { href: `#key=${encodeURIComponent(row.key)}` },
    `the same trial in ${others} other condition${others > 1 ? "s" : ""}`));
  return make("li", {}, make("article", { id: row.id }, make("h2", {}, row.prompt),
    make("p", { class: "facts" }, facts(row)), ...attempts(row), how(row), links));
}

function grow() {
  const begin = list.children.length;
  const end = Math.min(shown.length, begin + PAGE);
  list.append(...shown.slice(begin, end).map(article));
  more.hidden = end === shown.length;
  more.textContent = `Show ${Math.min(PAGE, shown.length - end)} more of ${shown.length}`;
}

function update() {
  const wanted = Object.fromEntries(FIELDS.map((name) => [name, form.elements[name].value.trim()]));
  shown = data.rows.filter((row) => matches(row, wanted));
  if (wanted.sort) shown.sort(ORDERS[wanted.sort]);
  const restarts = shown.filter((row) => row.attempts.length > 1).length;
  document.getElementById("count").textContent =
    `${shown.length} of ${data.rows.length} responses, ${restarts} with a restart` + (key ? ", one trial in its conditions" : "");
  list.replaceChildren();
  grow();
}

function save() {
  const wanted = FIELDS.map((name) => [name, form.elements[name].value]).filter(([, value]) => value);
  history.replaceState(null, "", `#${new URLSearchParams(wanted)}`);
}

function load() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of FIELDS) form.elements[name].value = given.get(name) ?? "";
  if (given.has("id")) form.elements.q.value = given.get("id");
  key = given.get("key") ?? "";
  update();
}

let waiting = 0;
form.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { key = ""; save(); update(); }, 80);
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(() => { key = ""; save(); update(); }));
more.addEventListener("click", () => {
  const begin = list.children.length;
  grow();
  list.children[begin]?.querySelector("a, summary")?.focus({ preventScroll: true });
});
window.addEventListener("hashchange", load);
load();
