// The status page: the reports of the replicas, refreshed, and figures of the store's snapshots.

import { ask, askForKey, byId, element } from "/page/ask.js";
import { drawBars, drawLines } from "/page/plots.js";

const LOOK_MS = 3000;
const GONE_MS = 60_000; // a replica that has been silent for this long is no longer shown
const SNAPSHOTS = 50;

const count = (value) => value.toLocaleString("en");
const percent = (value) => `${(value * 100).toFixed(1)} %`;
const fine = (value) => value.toFixed(3);

const replicas = new Map(); // name → its last answer, and when it came
let snapshots = []; // the oldest first
let damaged = ""; // what is wrong with those of them that cannot be read
let newest = null; // number of the newest listed snapshot
let selected = null;
let looking = false;

async function look() {
  if (looking) return;
  looking = true;
  try {
    const latest = await askReplicas();
    const unlisted = await listSnapshots(latest.health.live);
    showState(latest);
    showReplicas();
    showLatency();
    byId("error").textContent = unlisted;
    byId("error").hidden = !unlisted;
    byId("status").textContent = `as of ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    byId("error").textContent = error.message; // the old figures stay, with their time
    byId("error").hidden = false;
  }
  looking = false;
}

/** List the snapshots again if there is another one; return why some or all cannot be listed, which hides nothing else. */
async function listSnapshots(live) {
  if (newest === live && !damaged) return "";
  const before = damaged;
  try {
    const listed = await ask(`/v1/snapshots?limit=${SNAPSHOTS}`);
    snapshots = listed.snapshots.reverse();
    damaged = listed.damaged.map(({ problem }) => problem).join("; ");
  } catch (error) {
    return error.message;
  }
  if (newest !== live || damaged !== before) {
    newest = live;
    showSnapshots();
  }
  return damaged;
}

/** Ask for the status until each replica that runs has answered, or as often as makes that likely. */
async function askReplicas() {
  const begun = Date.now();
  let latest;
  for (let asked = 0, running = 1; asked < 3 * running && asked < 24; asked++) {
    latest = await ask("/v1/status");
    running = latest.replicas?.running ?? 1;
    replicas.set(latest.replica, { ...latest, at: Date.now() });
    if ([...replicas.values()].filter((each) => each.at >= begun).length >= running) break;
  }
  for (const [name, each] of replicas) if (Date.now() - each.at > GONE_MS) replicas.delete(name);
  return latest;
}

const added = (value) => [...replicas.values()].reduce((sum, each) => sum + value(each), 0);

/** Return the counts of all replicas by bucket: the upper bound in milliseconds, null for none, and how many. */
function buckets() {
  const [first] = replicas.values();
  return first.latency.map(({ up_to_ms }, at) => [up_to_ms, added((each) => each.latency[at]?.searches ?? 0)]);
}

function quantile(share) {
  const found = buckets(), all = found.reduce((sum, [, searches]) => sum + searches, 0);
  if (!all) return "–";
  let within = 0;
  const [bound] = found.find(([, searches]) => (within += searches) >= share * all);
  return bound === null ? `> ${time(found.at(-2)[0])}` : `≤ ${time(bound)}`;
}

const time = (ms) => (ms < 1000 ? `${ms} ms` : `${ms / 1000} s`);

function ago(moment) {
  const seconds = (Date.now() - new Date(moment)) / 1000;
  const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
  const [unit, size] = units.find(([, each]) => seconds >= each) ?? units.at(-1);
  return new Intl.RelativeTimeFormat("en").format(-Math.floor(seconds / size), unit);
}

function showState({ health, published_at: publishedAt, replicas: states, shards }) {
  const behind = health.snapshot !== health.live;
  const opening = health.loading ? `snapshot ${health.loading} is being opened` : "";
  const news = [health.problem || opening, health.keys_problem].filter(Boolean).join("; ");
  byId("state").className = health.problem || health.keys_problem ? "bad" : behind ? "" : "good";
  byId("state").textContent = `snapshot ${health.snapshot} is served${behind ? "" : ", the newest"}${news && `: ${news}`}`;
  const compared = added((each) => each.shadow.compared);
  const recall = added((each) => each.shadow.compared * (each.shadow.recall ?? 0)) / compared;
  const answered = added((each) => Object.values(each.requests).reduce((sum, one) => sum + one, 0));
  const failed = added((each) => each.requests["500"] ?? 0), refused = added((each) => each.requests["503"] ?? 0);
  const facts = [
    ["passages", count(health.passages)],
    ["published", ago(publishedAt), publishedAt.slice(0, 16).replace("T", " ") + " UTC"],
    ["served since", ago(health.since)],
    ["requests", count(answered), `${count(refused)} refused (503), ${count(failed)} failed (500)`],
    ["median of searches", quantile(0.5)],
    ["99 of 100 within", quantile(0.99)],
    ["questions that wait", count(added((each) => each.waiting))],
    ["recall of live questions", compared ? fine(recall) : "–", `${count(compared)} compared with exact search`],
    ["replicas", states ? Object.entries(states).map((each) => each.reverse().join(" ")).join(", ") : "1"],
    ...(shards ? [["shards", shards.map(({ number, answers }) => `${number} ${answers ? "answers" : "is silent"}`).join(", ")]] : []),
    ["encoder", "", health.encoder_id],
  ];
  byId("facts").replaceChildren(
    ...facts.map(([name, value, more]) => {
      const shown = element("dd", value, ...(more ? [element("small", more)] : []));
      return element("div", undefined, element("dt", name), shown);
    }),
  );
}

function table(id, columns, rows) {
  const cell = (name, text, at) => {
    const made = element(name, text ?? "–");
    if (columns[at][1]) made.className = "text";
    return made;
  };
  const head = element("tr", undefined, ...columns.map(([title], at) => cell("th", title, at)));
  const body = rows.map((row) => element("tr", undefined, ...row.map((text, at) => cell("td", text, at))));
  byId(id).replaceChildren(element("thead", undefined, head), element("tbody", undefined, ...body));
  return body;
}

function showReplicas() {
  const columns = [["replica", true], ["snapshot"], ["searches"], ["waiting"], ["recall"], ["compared"], ["skipped"],
    ["failed"], ["started", true]];
  const rows = [...replicas.values()].map((each) => [
    each.replica, each.health.snapshot, count(each.latency.reduce((sum, { searches }) => sum + searches, 0)),
    each.waiting, each.shadow.recall === null ? null : fine(each.shadow.recall), count(each.shadow.compared),
    count(each.shadow.skipped), count(each.shadow.failed), ago(each.started_at),
  ]);
  table("replicas", columns, rows);
}

const ranks = () => [...new Set(snapshots.flatMap(({ accuracy }) => Object.keys(accuracy)))].sort((a, b) => a - b);

function showSnapshots() {
  const columns = [["snapshot"], ["published", true], ["passages"], ["recall"], ["of new"],
    ...ranks().map((rank) => [`top-${rank}`]), ["note", true]];
  const rows = snapshots.map((each) => [
    each.number, each.published_at.slice(0, 16).replace("T", " "), count(each.passages), fine(each.recall),
    each.new_recall === null ? null : fine(each.new_recall),
    ...ranks().map((rank) => (rank in each.accuracy ? percent(each.accuracy[rank]) : null)), each.note,
  ]);
  table("snapshots", columns, rows.reverse()).forEach((row, at) => {
    row.tabIndex = -1;
    row.addEventListener("focus", () => select(snapshots.at(-1 - at).number));
  });
  showNights();
}

function showNights() {
  if (!snapshots.length) return;
  const numbers = snapshots.map(({ number }) => number);
  const line = (name, value) => ({ name, values: snapshots.map(value) });
  const plots = {
    accuracy: {
      title: "Share of the gate's questions that are answered", format: percent, most: 1,
      lines: ranks().map((rank) => line(`top-${rank}`, ({ accuracy }) => accuracy[rank] ?? null)),
    },
    recall: {
      title: "Recall of the index against exact search", format: fine, most: 1,
      lines: [line("all passages", ({ recall }) => recall), line("new passages", (each) => each.new_recall)],
    },
    passages: { title: "Passages", format: count, lines: [line("passages", ({ passages }) => passages)] },
  };
  plots.recall.lines = plots.recall.lines.filter(({ values }) => values.some((value) => value !== null));
  for (const [name, plot] of Object.entries(plots)) {
    byId(name).hidden = !plot.lines.length;
    if (plot.lines.length) drawLines(byId(name), { numbers, ...plot }, selected, select);
  }
}

function showLatency() {
  const found = buckets(), used = found.map(([, searches], at) => (searches ? at : -1)).filter((at) => at >= 0);
  const [first, last] = used.length ? [Math.max(0, used[0] - 1), used.at(-1) + 1] : [2, 8];
  const label = (ms) => (ms === null ? "more" : ms < 1000 ? `${ms}` : `${ms / 1000} s`);
  const bars = found.slice(first, last + 1).map(([bound, searches]) => [label(bound), searches]);
  const all = found.reduce((sum, [, searches]) => sum + searches, 0);
  const note = `${count(all)} since the replicas started, by milliseconds`;
  drawBars(byId("latency"), "Time from request to answer of searches", note, bars);
}

/** Show the values of one snapshot in all plots, and its row. */
function select(number) {
  if (number === selected) return;
  selected = number;
  const at = snapshots.findIndex((each) => each.number === number);
  const { published_at: publishedAt, note } = snapshots[at];
  byId("selected").textContent = `snapshot ${number}, ${publishedAt.slice(0, 16).replace("T", " ")}${note && `: ${note}`}`;
  [...byId("snapshots").tBodies[0].rows].forEach((row, place, rows) => {
    row.classList.toggle("at", rows.length - 1 - place === at);
  });
  showNights();
}

function move(step) {
  const rows = [...byId("snapshots").tBodies[0].rows];
  const at = rows.findIndex((row) => row.classList.contains("at"));
  rows[Math.min(rows.length - 1, Math.max(0, at + step))]?.focus();
}

askForKey(look);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
  if (event.key === "r") look();
  if (event.key === "/") {
    event.preventDefault();
    location.assign("/");
  }
  if ((event.key === "j" || event.key === "k") && snapshots.length) move(event.key === "j" ? 1 : -1);
});
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  showNights();
  if (replicas.size) showLatency();
});
setInterval(() => document.hidden || look(), LOOK_MS);
look();
