// The page of a job: asks the job once a second, and shows the answers.

import { by, bytes, count, duration, html, keepRows, setText } from "./dom.js";
import { chooseNode, drawGraph, updateGraph } from "./graph.js";
import { chooseLane, laneName, partitionsOf, showLanes } from "./lanes.js";
import { drawCharts, Figures, updateCharts } from "./figures.js";
import { showLeftOut, showWindows } from "./windows.js";
import { request } from "./fetch.js";
import { isViewOpen, listViews, openView, startViews } from "./views.js";

const EVERY_MS = 1000, PATIENCE_MS = 4000, SAMPLES = 600;

const figures = new Figures();
let started = null;
let samples = [];
let windowEnd = "";
let unreachableSince = null;
let shownCauses = "";

async function ask(path) {
  const answer = await request(path, () => AbortSignal.timeout(PATIENCE_MS));
  return { ok: answer.ok, text: await answer.text() };
}

async function json(path) {
  const { ok, text } = await ask(path);
  if (!ok) throw new Error(text);
  return JSON.parse(text);
}

function showConnection(reachable) {
  const line = by("connection");
  if (reachable) {
    unreachableSince = null;
    setText(line, "Connected");
  } else {
    unreachableSince ??= new Date();
    setText(line, `Not reachable since ${unreachableSince.toLocaleTimeString()}`);
  }
  line.classList.toggle("unreachable", !reachable);
  document.documentElement.classList.toggle("unreachable-job", !reachable);
}

// Leads to the culprit of a cause: its lane, its node, or its worker.
function lead(cause) {
  if (cause.cause === "partition" && chooseLane(cause.name)) return;
  const named = cause.name.replace(/^(step|sink|source) /, "");
  const kinds = { step: ["window", "table"], sink: ["sink"], source: ["source"] }[cause.cause];
  if (kinds && chooseNode((node) => kinds.includes(node.kind) && node.name === named)) return;
  const place = { snapshot: "history", source: "lanes" }[cause.cause] ?? "workers";
  by(place).setAttribute("tabindex", "-1");
  by(place).focus();
}

function showWhy({ ok, text }) {
  if (!ok) {
    setText(by("why-sentence"), text.trim());
    setText(by("why-watermark"), "");
    by("causes").replaceChildren();
    shownCauses = "";
    return [];
  }
  const why = JSON.parse(text);
  // The watermark moves all the time: it is no part of the sentence that is read out.
  const at = why.summary.indexOf("; the watermark is ");
  const [sentence, watermark] = at < 0 ? [why.summary, ""] : [why.summary.slice(0, at), why.summary.slice(at + 2)];
  setText(by("why-sentence"), sentence);
  setText(by("why-watermark"), watermark);
  const form = JSON.stringify(why.holds.map((hold) => [hold.cause, hold.name]));
  if (form !== shownCauses) {
    shownCauses = form;
    by("causes").replaceChildren(...why.holds.map((hold) => {
      const button = html("button", { type: "button" }, hold.name);
      button.addEventListener("click", () => lead(hold));
      return html("li", {}, button, " ", html("span", {}));
    }));
  }
  why.holds.forEach((hold, place) => {
    const since = hold.since_ms === null ? "" : `, since ${duration(hold.since_ms)}`;
    setText(by("causes").children[place].lastElementChild, `${hold.says}${since}: ${hold.help}`);
  });
  return why.holds;
}

function showGraph(status, holds, views) {
  const partitions = partitionsOf(status);
  const perSecond = (name, label, value, unit) => {
    const rate = figures.rate(name, label, value);
    return rate === null ? "" : `${count(rate)} ${unit}/s`;
  };
  const lines = (node) => {
    if (node.kind === "source") {
      const own = partitions.filter((partition) => partition.source === node.name && partition.end !== null);
      const lag = own.reduce((sum, partition) => sum + Math.max(0, partition.end - partition.next), 0);
      const inBytes = own.some((partition) => partition.in_bytes);
      const stream = status.streams.find((known) => known.source === node.name);
      return [perSecond("tidegate_source_records_total", "source", node.name, "records"),
        own.length ? `lag ${inBytes ? bytes(lag) : `${count(lag)} records`}` : "", stream?.watermark ?? ""];
    }
    if (node.kind === "window") {
      const step = status.steps.find((known) => known.name === node.name);
      const late = figures.value("tidegate_step_late_total", "step", node.name);
      return [perSecond("tidegate_step_records_total", "step", node.name, "records"), late ? `${count(late)} late` : "", step?.watermark ?? ""];
    }
    if (node.kind === "table") {
      return [perSecond("tidegate_table_records_total", "table", node.name, "records"), perSecond("tidegate_table_changes_total", "table", node.name, "changes")];
    }
    if (node.kind === "sink") {
      const sink = status.processes.flatMap((process) => process.sinks).find((known) => known.name === node.name);
      const rows = figures.value("tidegate_sink_rows_total", "sink", node.name);
      return [perSecond("tidegate_sink_rows_total", "sink", node.name, "rows"), rows === null ? "" : `${count(rows)} rows`,
        sink && sink.waiting !== null ? `waits for ${duration(sink.since_ms)}` : ""];
    }
    const view = views.find((known) => known.view === node.name);
    return view ? [`${count(view.rows)} rows`, view.ready ? `epoch ${view.epoch}` : "not ready"] : [];
  };
  const blocking = holds[0];
  const busy = status.processes.flatMap((process) => process.workers);
  const marks = (node) => {
    const names = { source: [`source ${node.name}`], sink: [`sink ${node.name}`] }[node.kind] ?? [`step ${node.name}`];
    const ofSource = node.kind === "source" && blocking?.cause === "partition"
      && partitions.some((partition) => partition.source === node.name && laneName(partition) === blocking.name);
    if (blocking && node.kind !== "view" && (names.includes(blocking.name) || ofSource)) return ["blocking", "blocks"];
    const worker = busy.find((known) => known.step === node.name && node.kind !== "source" && node.kind !== "view");
    return worker ? ["busy", "busy"] : null;
  };
  updateGraph(lines, marks);
}

function showTables(status, graph) {
  const value = (name, label) => (item) => figures.value(name, label, item.name);
  const tables = graph.nodes.filter((node) => node.kind === "table");
  keepRows(by("step-rows"), [...status.steps.map((step) => ({ ...step, label: "step" })), ...tables.map((table) => ({ name: table.name, label: "table" }))],
    (item) => `${item.label} ${item.name}`, (item) => {
      if (item.label === "table") return [`${item.name} (table)`, "", "", count(value("tidegate_table_records_total", "table")(item)), "", "", ""];
      const late = value("tidegate_step_late_total", "step")(item);
      return [item.name, item.watermark, duration(item.lateness_ms), count(value("tidegate_step_records_total", "step")(item)),
        late ? { text: `${count(late)} late`, class: "late" } : { text: count(late), class: "none" }, count(item.late_after_idle),
        count(value("tidegate_step_closed_rows_total", "step")(item))];
    });
  keepRows(by("source-rows"), graph.nodes.filter((node) => node.kind === "source"), (source) => source.name, (source) => [source.name,
    ...["records", "rejected", "skipped", "expired"].map((name) => count(value(`tidegate_source_${name}_total`, "source")(source)))]);
  const workers = status.processes.flatMap((process) => [{ process }, ...process.workers.map((worker) => ({ process, worker }))]);
  keepRows(by("worker-rows"), workers, ({ process, worker }) => (worker ? `worker ${worker.worker}` : `process ${process.process}`), ({ process, worker }) => {
    if (!worker) {
      const silent = process.silent_ms >= 2000;
      const snapshot = process.snapshot ? `snapshot ${process.snapshot.committed}` : "";
      return [`process ${process.process}`, { text: silent ? "silent" : "runs", class: `word ${silent ? "silent" : "active"}` }, "", snapshot, "",
        `published ${duration(process.shown_ms)} ago`];
    }
    const stuck = worker.turned_ms >= 2000;
    const state = stuck ? ["stuck", "silent"] : worker.repeats ? ["replays", "waiting"] : worker.reads_first ? ["reads first", "waiting"]
      : worker.waits_for_sinks ? ["waits for sinks", "behind"] : ["runs", "active"];
    const front = worker.front ? `${worker.front.epoch}: ${worker.front.stage}, ${duration(worker.front.since_ms)}` : "none";
    return [`worker ${worker.worker}`, { text: state[0], class: `word ${state[1]}` }, worker.step ?? "", front,
      `${bytes(worker.in_flight_bytes)} in ${count(worker.in_flight_epochs)} epochs`, `${duration(worker.turned_ms)} ago`];
  });
}

let graph = { nodes: [], edges: [] };

async function turn() {
  const last = samples.length ? samples[samples.length - 1].number : "";
  const since = started === null ? "" : last;
  const window = windowEnd ? `&window=${encodeURIComponent(windowEnd)}` : "";
  const [history, status, why, metrics, views] = await Promise.all([json(`/history?since=${since}`), json("/status"),
    ask(`/why?format=json${window}`), ask("/metrics"), json("/views")]);
  const isNew = history.started_ms !== started;
  if (isNew) {
    // Another incarnation, perhaps of a changed query: its samples begin anew.
    graph = await json("/graph");
    drawGraph(graph);
    figures.forget();
    samples = (await json("/history")).samples;
    started = history.started_ms;
  } else {
    samples.push(...history.samples);
    samples.splice(0, Math.max(0, samples.length - SAMPLES));
  }
  figures.take(metrics.text, performance.now());
  setText(by("job"), status.job);
  document.title = `${status.job} – Tidegate`;
  setText(by("scope"), status.processes.length > 1 || history.process > 0
    ? `Rates, charts, steps and records read are of process ${history.process} alone; each process has a page of its own. ${
      history.process > 0 ? "The page of process 0 shows all" : "This page shows all"} watermarks, open windows, records left out and workers.` : "");
  showLanes(status);
  const holds = showWhy(why);
  showGraph(status, holds, views);
  showTables(status, graph);
  showWindows(status);
  showLeftOut(status);
  updateCharts(samples);
  listViews(views);
  if (isNew || !isViewOpen()) openView();
}

async function run() {
  for (;;) {
    if (!document.hidden) {
      try {
        await turn();
        showConnection(true);
      } catch (error) {
        console.debug(error);
        showConnection(false);
      }
    }
    await new Promise((done) => setTimeout(done, EVERY_MS));
  }
}

by("window-form").addEventListener("submit", (event) => {
  event.preventDefault();
  windowEnd = by("window").value.trim();
});
by("window-form").addEventListener("reset", () => {
  windowEnd = "";
});
drawCharts();
startViews();
run();
