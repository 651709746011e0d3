// Views: rows of a view, or of a key, kept up to date by server-sent events.

import { by, count, html, setText } from "./dom.js";
import { EventStream } from "./fetch.js";

// Rows that are shown, and rows of a view above which a key is asked for.
const SHOWN = 500, WITHOUT_KEY = 20000;

let stream = null;
let wanted = null;
let rows = new Map();
let columns = [];
let epoch = null;
let changed = new Set();
let scheduled = false;

// Numbers that a script cannot hold exactly stay texts.
function exact(key, value, context) {
  return typeof value === "number" && context?.source !== undefined && String(value) !== context.source ? context.source : value;
}

function take(text, isState) {
  const answer = JSON.parse(text, exact);
  if (isState) rows = new Map();
  changed = new Set();
  for (const { diff, ...row } of answer.rows) {
    const key = JSON.stringify(row);
    const copies = (rows.get(key)?.copies ?? 0) + Number(diff);
    if (copies === 0) rows.delete(key);
    else rows.set(key, { row, copies });
    if (!isState) changed.add(key);
  }
  epoch = answer.epoch;
  schedule();
}

function schedule() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    show();
  });
}

function say(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

function show() {
  const shown = [...rows.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).slice(0, SHOWN);
  const names = [...new Set(shown.flatMap(([, { row }]) => Object.keys(row)))];
  if (JSON.stringify(names) !== JSON.stringify(columns) || !by("view-head").firstChild) {
    columns = names;
    const heads = [...names, "copies"].map((name) => html("th", { scope: "col" }, name));
    by("view-head").replaceChildren(html("tr", {}, ...heads));
  }
  by("view-rows").replaceChildren(...shown.map(([key, { row, copies }]) =>
    html("tr", { class: changed.has(key) ? "changed" : "" },
      ...columns.map((name) => html("td", {}, row[name] === undefined ? "" : say(row[name]))), html("td", {}, copies))));
  const key = wanted?.key ? ` of key ${wanted.key}` : "";
  const part = rows.size > SHOWN ? `, the first ${count(SHOWN)} are shown` : "";
  setText(by("view-state"), `${wanted?.view ?? ""}: ${count(rows.size)} rows${key}${part}`);
  by("view-state").dataset.epoch = epoch;
  setText(by("view-epoch"), `Epoch ${epoch}`);
}

function close() {
  stream?.close();
  stream = null;
}

// Opens the stream of what is wanted; after a job has come back it is opened again.
export function openView() {
  close();
  if (!wanted) return;
  const query = wanted.key ? `?key=${encodeURIComponent(wanted.key)}` : "";
  stream = new EventStream(`/views/${encodeURIComponent(wanted.view)}/changes${query}`);
  stream.addEventListener("state", (event) => take(event.data, true));
  stream.addEventListener("changes", (event) => take(event.data, false));
  stream.addEventListener("progress", (event) => {
    epoch = JSON.parse(event.data).epoch;
    setText(by("view-epoch"), `Epoch ${epoch}`);
  });
  stream.addEventListener("end", (event) => {
    close();
    setText(by("view-state"), `${wanted?.view}: the stream has ended: ${JSON.parse(event.data).reason}`);
  });
  stream.addEventListener("error", () => {
    if (stream?.isClosed) {
      close();
      setText(by("view-state"), `${wanted?.view}: no rows: the job does not answer for it now`);
    }
  });
}

export function isViewOpen() {
  return !wanted || stream !== null;
}

export function listViews(views) {
  const select = by("view");
  const names = views.map((view) => view.view);
  if (JSON.stringify(names) !== JSON.stringify([...select.options].map((option) => option.value))) {
    const chosen = select.value;
    select.replaceChildren(...names.map((name) => html("option", { value: name }, name)));
    if (names.includes(chosen)) select.value = chosen;
  }
  for (const option of select.options) {
    const view = views.find((known) => known.view === option.value);
    option.dataset.rows = view.rows;
    setText(option, view.ready ? `${view.view} (${count(view.rows)} rows)` : `${view.view} (not ready)`);
  }
  if (!views.length && !wanted) setText(by("view-state"), "The query has no views.");
}

export function startViews() {
  by("view-state").after(html("p", { class: "quiet", id: "view-epoch" }));
  by("view-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const [view, key] = [by("view").value, by("key").value];
    if (!view) return;
    const all = Number(by("view").selectedOptions[0]?.dataset.rows ?? 0);
    if (!key && all > WITHOUT_KEY) {
      setText(by("view-state"), `${view} has ${count(all)} rows: enter a key`);
      return;
    }
    [wanted, rows, changed] = [{ view, key }, new Map(), new Set()];
    show();
    openView();
  });
  by("view-stop").addEventListener("click", () => {
    wanted = null;
    close();
    setText(by("view-state"), "No view is shown.");
  });
}
