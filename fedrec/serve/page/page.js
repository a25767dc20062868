"use strict";
// Text of items, users and notes is written by others: it becomes text nodes only.
const $ = (id) => document.getElementById(id);
const NAMES = { query: "the words", "own layer": "bought together here", base: "what every item has" };
const HOW = { strong: 100, some: 60, slight: 25 };
let key = "", merchant = null, last = null;
const texts = new Map();

function make(tag, given = {}, ...children) {
  const node = Object.assign(document.createElement(tag), given);
  node.append(...children.filter((child) => child !== null));
  return node;
}

async function fetched(path, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const sent = body === undefined ? undefined : JSON.stringify({ ...(merchant && { merchant }), ...body });
  const answer = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: sent, credentials: "omit" });
  const said = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(said.error), { status: answer.status, kind: said.error_type, where: said.where });
  return said;
}

function tell(error) {
  $("said").hidden = error === null;
  $("said").textContent = error === null ? "" : [error.where, error.message].filter(Boolean).join(": ");
}

// What a form does: one request at a time, its fault where people look, and no navigation.
function on(id, event, action) {
  $(id).addEventListener(event, async (told) => {
    told.preventDefault();
    const buttons = $(id).querySelectorAll("button");
    buttons.forEach((button) => { button.disabled = true; });
    try {
      tell(null);
      await action();
    } catch (error) {
      tell(error);
    } finally {
      buttons.forEach((button) => { button.disabled = false; });
    }
  });
}

async function enter() {
  const [one] = (await fetched("/info")).merchants;
  merchant = one.merchant === "run" ? null : one.merchant;
  $("about").textContent = [one.merchant, one.model].filter(Boolean).join(", ");
  $("failure").hidden = one.up_to_date;
  $("failure").textContent = `What is on disk could not be loaded, so what was there before answers. ${one.failure ?? ""}`;
  // The version that answers is the untrained text where none was delivered.
  const others = one.versions ?? [];
  $("versions").hidden = !others.length;
  $("version").replaceChildren(make("option", { value: "", textContent: "none" }), ...others.map((name) => make("option", {
    value: name, textContent: name === one.model ? `${name} (this one)` : name,
  })));
  $("door").hidden = true;
  $("room").hidden = false;
}

const lines = (text) => text.split(/[\n,]/).map((one) => one.trim()).filter(Boolean);
const number = (id) => ($(id).value === "" ? null : Number($(id).value));

function question() {
  const history = lines($("history").value), user = $("user").value.trim(), query = $("query").value.trim();
  return {
    ...(history.length ? { history } : user && { user_id: user }), ...(query && { query }), repeats: $("repeats").checked,
  };
}

async function rank() {
  const asked = {
    ...question(), k: number("k"), diversity: number("diversity"), explore: number("explore"), explain: true,
    filter: {
      category: lines($("category").value), brand: lines($("brand").value),
      price_min: number("price-min"), price_max: number("price-max"),
    },
  };
  const before = last, version = $("version").value, found = await fetched("/v1/recommend", asked);
  const other = version ? await waited("/v1/compare", { ...asked, version }) : null;
  remember(found);
  if (other) remember(other);
  await nameAll(asked.history ?? []);
  last = { asked, found };
  const shown = [listed("Now", last, before)];
  if (other) shown.push(listed(`By ${other.model}`, { asked, found: other }, last, true));
  if (before && $("beside").checked) shown.push(listed("Before", before, null));
  $("answers").replaceChildren(...shown);
}

function remember(found) {
  found.items.forEach((item) => texts.set(item.item_id, item.text));
}

// A reason names an item of the history by its id; people know it by its text.
async function nameAll(history) {
  const unknown = history.filter((item) => !texts.has(item));
  if (unknown.length) remember(await fetched("/v1/rank", { history, candidates: [...new Set(unknown)], repeats: true }));
}

// Of another version places are held against those now, and no words are marked: the service explains words by the one that answers.
function listed(title, { asked, found }, before, other = false) {
  const places = new Map((before?.found.items ?? []).map((item, place) => [item.item_id, place + 1]));
  const list = make("ol");
  found.items.forEach((item, place) => list.append(row(item, place + 1, other ? null : asked,
    before ? moved(place + 1, places.get(item.item_id), other) : null)));
  return make("section", {}, make("h2", { textContent: title }),
    make("p", { className: "soft", textContent: `${settings(asked)}. Source: ${found.source}. ${found.notes.join(". ")}` }),
    found.items.length ? list : make("p", { textContent: "No item." }));
}

function settings(asked) {
  const { explain, ...told } = asked;
  const some = Object.entries(told.filter).filter(([, value]) => value !== null && String(value) !== "");
  const rest = Object.entries(told).filter(([name, value]) => name !== "filter" && value !== 0 && value !== false);
  return [...rest, ...some].map(([name, value]) => `${name} ${Array.isArray(value) ? value.join(", ") : value}`).join("; ");
}

// What became of an item that had the place `was` in the list that this one is held against, undefined where it was not there.
function moved(place, was, other) {
  if (was === undefined) return other ? "not there now" : "new";
  return was === place ? null : `${other ? "now" : "was"} ${was}`;
}

function row(item, place, asked, change) {
  const figures = [
    item.item_id, item.score !== null && `score ${item.score.toFixed(3)}`,
    item.propensity !== null && `chance ${item.propensity.toPrecision(2)}`, change,
  ];
  const text = make("span", { className: "text", textContent: `${place}. ${item.text}` });
  const found = make("li", {}, make("div", { className: "item" }, text, adder(item)),
    make("div", { className: "soft", textContent: figures.filter(Boolean).join(" · ") }));
  if (item.reasons) {
    const bars = make("div", { className: "bars" }), said = make("p", { className: "soft", hidden: true });
    bars.append(...item.reasons.shares.flatMap(barOf(item.reasons.shares)));
    const why = make("details", {}, make("summary", { textContent: "Why" }), bars, said);
    if (asked) why.addEventListener("toggle", () => words(item, asked, text, place, said), { once: true });
    if (item.reasons.because) found.append(make("p", { className: "because", textContent: item.reasons.because }));
    found.append(why);
  }
  return found;
}

function adder(item) {
  const button = make("button", { type: "button", textContent: "Add" });
  button.setAttribute("aria-label", `Add ${item.text} to the history`);
  button.addEventListener("click", () => { $("history").value = [...lines($("history").value), item.item_id].join("\n"); });
  return button;
}

// Zero is at the same place for all bars of an item. The base, which all items have, has no bar: it would dwarf the others.
function barOf(shares) {
  const values = shares.map((one) => (one.kind === "base" ? 0 : one.share ?? 0));
  const low = Math.min(0, ...values), width = Math.max(0, ...values) - low || 1;
  return (one) => {
    const name = one.kind === "history" ? texts.get(one.name) ?? one.name : one.kind === "search" ? `searched for ${one.name}`
      : one.kind === "popularity" ? (one.name === "own" ? "popular here" : "popular") : NAMES[one.kind] ?? one.kind;
    const track = make("span", { className: one.kind === "base" ? "" : "track" });
    if (one.kind !== "base") {
      const bar = make("i", { className: one.share < 0 ? "against" : one.kind === "own layer" ? "own" : one.kind });
      bar.style.left = one.how ? "0" : `${(100 * (Math.min(one.share, 0) - low)) / width}%`;
      bar.style.width = one.how ? `${HOW[one.how]}%` : `${(100 * Math.abs(one.share)) / width}%`;
      track.append(bar);
    }
    const value = one.how ?? (one.share < 0 ? "" : "+") + one.share.toFixed(3);
    return [make("span", { textContent: name }), track, make("span", { className: "value", textContent: value })];
  };
}

async function words(item, asked, text, place, said) {
  const { history, user_id, query, repeats } = asked;
  try {
    const found = await fetched("/v1/explain", { history, user_id, query, repeats, items: [item.item_id], words: true });
    const told = found.items[0]?.reasons?.words;
    if (told) text.replaceChildren(`${place}. `, ...marked(told));
  } catch (error) {
    said.hidden = false;
    said.textContent = `No words are marked: ${error.message}.`;
  }
}

// Places are counted in code points, as the service counts them.
function marked({ text, words }) {
  const points = [...text], most = Math.max(...words.map((word) => Math.abs(word.share ?? 1)), 1e-12), pieces = [];
  let end = 0;
  for (const word of words) {
    const share = word.share ?? 1, mark = make("mark", { textContent: points.slice(word.start, word.end).join("") });
    mark.style.backgroundColor = `rgba(var(--${share < 0 ? "anti" : "mark"}), ${(0.6 * Math.abs(share)) / most})`;
    if (word.share !== undefined) mark.title = word.share.toFixed(4);
    pieces.push(points.slice(end, word.start).join(""), mark);
    end = word.end;
  }
  return [...pieces, points.slice(end).join("")];
}

async function find() {
  const found = await fetched("/v1/search", { query: $("find").value, k: 10 });
  remember(found);
  $("found").replaceChildren(...found.items.map((item) => make("li", {}, make("span", { textContent: item.text }), adder(item))));
}

const ROUNDED = (value) => (value === null ? "-" : value.toFixed(3));

// What takes longer than an answer may is asked for again until it is there.
async function waited(path, asked) {
  const end = Date.now() + 120000;
  for (;;) {
    try {
      return await fetched(path, asked);
    } catch (error) {
      if (!["measuring", "computing", "loading", "busy"].includes(error.kind) || Date.now() > end) throw error;
      await new Promise((go) => { setTimeout(go, 1000); });
    }
  }
}

// A table that is scrolled and not the page, also by keys.
function table(name, heads, rows) {
  const cells = (tag, values) => make("tr", {}, ...values.map((value) => make(tag, { textContent: value })));
  const found = make("div", { className: "scroll", tabIndex: 0 }, make("table", {}, make("thead", {}, cells("th", heads)),
    make("tbody", {}, ...rows.map((row) => cells("td", row)))));
  found.setAttribute("role", "region");
  found.setAttribute("aria-label", name);
  return found;
}

async function measure() {
  const found = await waited("/v1/drift", { weeks: number("weeks") });
  const heads = ["to", "baskets", "buyers", `mix by ${found.by}`, "new since", "baskets before", `HR@${found.k} of the text`, "users"];
  const rows = found.windows.map(({ end, baskets, buyers, mix, unknown, history, hits }) => [
    end, baskets, buyers, ROUNDED(mix), ROUNDED(unknown), history,
    hits === null ? "-" : `${ROUNDED(hits.mean)} [${ROUNDED(hits.low)}, ${ROUNDED(hits.high)}]`, hits?.users ?? 0,
  ]);
  const windows = rows.length ? [table("Windows, the last against the others", heads, rows)] : [];
  $("measured").replaceChildren(make("p", { textContent: found.sentence ?? found.failure }), ...windows,
    make("h2", { textContent: "Privacy budget" }), make("p", { textContent: budget(found.ledger) }));
}

function budget(ledger) {
  if (ledger === null) return "Nothing was ever released here.";
  if (ledger.epsilon === null) return "The ledger is broken, so nothing is released until its owner has looked.";
  return `Epsilon ${ledger.epsilon.toFixed(3)} of ${ledger.budget} is spent, at delta ${ledger.delta}, in ${ledger.releases} releases. ${ledger.next_run ?? ""}`;
}

async function report() {
  const found = await waited("/v1/privacy", {});
  const said = make("dl", {}, ...found.summary.flatMap(({ label, text }) => [make("dt", { textContent: label }), make("dd", { textContent: text })]));
  const heads = ["run", "from", "to", "releases", "epsilon alone"];
  const tables = found.ledgers.filter(({ runs }) => runs.length).map(({ runs }) => table("Runs", heads, runs.map((run) => [
    run.name, run.first.slice(0, 10), run.last.slice(0, 10), run.releases, run.epsilon === null ? "no bound" : run.epsilon.toFixed(3),
  ])));
  $("reported").replaceChildren(found.failure === null ? said : make("p", { textContent: found.failure }), ...tables);
}

function select(tab) {
  for (const one of document.querySelectorAll("[role=tab]")) {
    one.setAttribute("aria-selected", String(one === tab));
    one.tabIndex = one === tab ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = one !== tab;
  }
  tell(null);
}

for (const tab of document.querySelectorAll("[role=tab]")) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (told) => {
    if (!["ArrowLeft", "ArrowRight"].includes(told.key)) return;
    const { firstElementChild: first, lastElementChild: end } = tab.parentElement;
    const other = told.key === "ArrowRight" ? tab.nextElementSibling ?? first : tab.previousElementSibling ?? end;
    select(other);
    other.focus();
  });
}
for (const range of document.querySelectorAll("[type=range]")) {
  range.addEventListener("input", () => { document.querySelector(`output[for=${range.id}]`).value = range.value; });
}
on("door", "submit", async () => {
  key = $("key").value.trim();
  $("key").value = "";
  await enter();
});
on("ask", "submit", rank);
on("measure", "submit", measure);
on("report", "submit", report);
on("search", "click", find);
if ($("door").hidden) enter().catch(tell);
$("find").addEventListener("keydown", (told) => {
  if (told.key !== "Enter") return;
  told.preventDefault();
  $("search").click();
});
