// The search page. Texts of passages are put into the page as text, never as HTML.

import { ask, askForKey, byId, element } from "/page/ask.js";

const fields = ["query", "mode", "k", "filter"].map(byId);
const checks = ["exact", "rerank"].map(byId);
let latest = 0; // of several concurrent searches, only the last one is shown

/** Return what the form asks for, as the address has it: what is as it was at first is left out. */
function formAddress() {
  const address = new URLSearchParams();
  for (const field of fields) {
    if (field.value && field.value !== field.defaultValue) address.set(field.id, field.value);
  }
  for (const check of checks) {
    if (check.checked) address.set(check.id, "1");
  }
  return `?${address}`;
}

function fillForm() {
  const address = new URLSearchParams(location.search);
  for (const field of fields) field.value = address.get(field.id) ?? field.defaultValue ?? "";
  for (const check of checks) check.checked = address.has(check.id);
}

function requestBody() {
  const [query, mode, k, filter] = fields.map((field) => field.value);
  const body = { query, k: Number(k) };
  if (mode) body.mode = mode;
  if (filter.trim()) {
    try {
      body.filter = JSON.parse(filter);
    } catch (error) {
      throw new Error(`the filter is not JSON (${error.message}); write one such as ${byId("filter").placeholder}`);
    }
  }
  for (const check of checks) {
    if (check.checked) body[check.id] = true;
  }
  return body;
}

function post(body) {
  const headers = { "Content-Type": "application/json" };
  return ask("/v1/search", { method: "POST", headers, body: JSON.stringify(body) });
}

async function search() {
  const mine = ++latest;
  byId("error").hidden = true;
  byId("status").textContent = "searching…";
  try {
    const body = requestBody();
    const answer = await post(body);
    if (mine === latest) show(answer, body);
  } catch (error) {
    if (mine !== latest) return;
    byId("hits").replaceChildren();
    byId("status").textContent = "";
    byId("error").textContent = error.message;
    byId("error").hidden = false;
  }
}

function show(answer, body) {
  const [{ hits, lost_tokens: lost }] = answer.results;
  const times = Object.entries(answer.timings_ms).filter(([step, ms]) => ms > 0 || step === "total");
  byId("status").textContent = [
    `${hits.length} hits`,
    ...(answer.partial ? [`partial: shards ${answer.missing_shards.join(", ")} did not answer`] : []),
    `snapshot ${answer.snapshot}`,
    `encoder ${answer.encoder_id}`,
    ...times.map(([step, ms]) => `${step} ${ms.toFixed(1)} ms`),
    ...(lost ? [`${lost} tokens of the question were cut off`] : []),
  ].join(" · ");
  byId("hits").replaceChildren(...hits.map((hit) => hitItem(hit, words(body.query))));
  document.title = `${body.query} – dpr`;
}

function hitItem(hit, asked) {
  const title = element("h2", undefined, `${hit.rank}. ${hit.title} `, element("small", hit.id));
  const text = element("p", undefined, ...highlighted(hit.text, asked));
  const item = element("li", undefined, title, text, scores(hit), values(hit.extra));
  item.tabIndex = -1;
  return item;
}

/** Return a table of rank and score by each kind of search that took part. */
function scores(hit) {
  const both = hit.dense && hit.bm25;
  const sides = [["dense", hit.dense], ["bm25", hit.bm25]];
  if (both) sides.push(["hybrid", hit.before ?? hit]);
  if (hit.before) sides.push(["re-ranked", hit]);
  const shown = sides.filter(([, side]) => side);
  const row = (name, cell) =>
    element("tr", undefined, element("th", name), ...shown.map(([, side]) => element("td", cell(side))));
  return element(
    "table",
    undefined,
    element("tr", undefined, element("td"), ...shown.map(([name]) => element("th", name))),
    row("rank", (side) => side.rank ?? "–"),
    row("score", (side) => side.score.toFixed(3)),
  );
}

/** Return a button for each value, which adds it to the filter. */
function values(extra) {
  const made = element("div");
  made.className = "values";
  for (const [name, value] of Object.entries(extra)) {
    if (value === null) continue;
    const button = element("button", `${name}: ${value}`);
    button.type = "button";
    button.addEventListener("click", () => narrow(name, value));
    made.append(button);
  }
  return made;
}

function narrow(name, value) {
  const filter = byId("filter");
  let before = {};
  try {
    before = JSON.parse(filter.value || "{}");
  } catch {
    // an invalid filter is replaced
  }
  filter.value = JSON.stringify({ ...before, [name]: value });
  submit();
}

function words(query) {
  return [...new Set(query.toLowerCase().match(/[\p{L}\p{N}]{2,}/gu) ?? [])];
}

function highlighted(text, asked) {
  if (!asked.length) return [text];
  const longestFirst = [...asked].sort((one, other) => other.length - one.length);
  const pattern = new RegExp(`(?<![\\p{L}\\p{N}])(${longestFirst.join("|")})(?![\\p{L}\\p{N}])`, "giu");
  return text.split(pattern).map((part, place) => (place % 2 ? element("mark", part) : part));
}

function submit() {
  history.pushState(null, "", formAddress());
  search();
}

function searchAsTheAddressSays() {
  fillForm();
  if (byId("query").value) search();
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
askForKey(search);
addEventListener("popstate", searchAsTheAddressSays);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    event.preventDefault(); // otherwise the search field is cleared
    document.activeElement.blur();
  }
  if (event.target.matches("input, select, textarea")) return;
  if (event.key === "/") {
    event.preventDefault();
    byId("query").focus();
    byId("query").select();
  }
  if (event.key === "j" || event.key === "k") {
    const hits = [...byId("hits").children];
    const at = hits.findIndex((hit) => hit.contains(document.activeElement));
    hits[Math.min(hits.length - 1, Math.max(0, at + (event.key === "j" ? 1 : -1)))]?.focus();
  }
});
searchAsTheAddressSays();
