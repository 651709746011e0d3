// Watermark lanes: one for each partition, against event time and the watermark of its stream.

import { by, count, bytes, duration, html, keepRows, setClass, setText, svg } from "./dom.js";

// Milliseconds without a record after which a partition that holds the watermark is called silent.
const SILENT_MS = 2000;
// Milliseconds of event time behind the first partition after which one is called behind.
const BEHIND_MS = 1000;

export function timeOf(text) {
  const time = Date.parse(text);
  return Number.isNaN(time) ? null : time;
}

export function laneName(partition) {
  if (partition.in_bytes) return `the file of ${partition.source}`;
  const topic = partition.topic ? ` (${partition.topic})` : "";
  return `partition ${partition.partition}${topic} of ${partition.source}`;
}

// The name in a table that is of one source.
function shortName(partition) {
  return partition.in_bytes ? "file" : partition.topic ?? `partition ${partition.partition}`;
}

// The state of a partition: a word, and the class that colours it.
export function laneState(partition, first, stream) {
  if (partition.ended) return ["ended", "ended"];
  if (partition.rests) return ["paused, too far ahead", "paused"];
  if (partition.idle) return ["idle", "idle"];
  const time = timeOf(partition.watermark);
  if (time === null) return [partition.moved_ms >= SILENT_MS ? "silent, no record yet" : "no record yet", "waiting"];
  const holds = first !== null && time < first && (stream === null || time <= stream);
  if (partition.moved_ms >= SILENT_MS && (holds || partition.lag === 0 || partition.end === partition.next)) {
    return [holds ? "silent, holds the watermark" : "silent", "silent"];
  }
  if (holds && first - time > BEHIND_MS) return ["late, holds the watermark", "behind"];
  return ["active", "active"];
}

export function partitionsOf(status) {
  return status.processes.flatMap((process) => process.workers.flatMap((worker) => worker.partitions));
}

const areas = new Map();

function areaOf(source) {
  if (!areas.has(source)) {
    const title = html("h3", {}, source);
    const said = html("p", { class: "quiet" });
    const body = html("tbody", {});
    const head = html("thead", {}, html("tr", {}, ...["Partition", "State", "Watermark", "Event time", "Behind", "Lag", "Last record"].map(
      (name) => html("th", { scope: "col" }, name))));
    const scrolls = html("div", { class: "scrolls", role: "region", tabindex: "0", "aria-label": `Partitions of ${source}` },
      html("table", {}, head, body));
    areas.set(source, { whole: html("div", {}, title, said, scrolls), said, body, bars: new Map() });
  }
  return areas.get(source);
}

// A bar from the first of the shown event times to the partition's watermark; the line is the stream's watermark.
function drawBar(bars, key, [from, until], time, stream, kind) {
  let bar = bars.get(key);
  if (!bar) {
    const value = svg("rect", { class: "lane-bar", x: 0, y: 3, width: 0, height: 8 });
    const line = svg("line", { class: "lane-stream", x1: 0, x2: 0, y1: 0, y2: 14 });
    const ground = svg("rect", { class: "lane-ground", x: 0, y: 2, width: 100, height: 10 });
    bar = { node: svg("svg", { class: "lane", viewBox: "0 0 100 14", preserveAspectRatio: "none", "aria-hidden": "true" }, ground, value, line), value, line };
    bars.set(key, bar);
  }
  const place = (at) => (until > from ? Math.max(0, Math.min(100, (100 * (at - from)) / (until - from))) : 100);
  setClass(bar.node, `lane ${kind}`);
  bar.value.setAttribute("width", time === null ? 0 : Math.max(1, place(time)));
  const at = stream === null ? -5 : place(stream);
  bar.line.setAttribute("x1", at);
  bar.line.setAttribute("x2", at);
  return bar.node;
}

export function showLanes(status) {
  const all = partitionsOf(status);
  const sources = [...new Set([...status.streams.map((stream) => stream.source), ...all.map((partition) => partition.source)])];
  const wanted = sources.map(areaOf);
  for (const [source, area] of areas) {
    if (!sources.includes(source)) {
      area.whole.remove();
      areas.delete(source);
    }
  }
  sources.forEach((source, at) => {
    const area = wanted[at];
    if (area.whole.parentNode === null) by("streams").append(area.whole);
    const stream = status.streams.find((known) => known.source === source);
    const reached = stream ? timeOf(stream.watermark) : null;
    setText(area.said, stream ? `Watermark of the stream: ${stream.watermark}` : "A table: its event times hold nothing back.");
    const partitions = all.filter((partition) => partition.source === source).sort((a, b) => a.partition - b.partition);
    const times = partitions.map((partition) => timeOf(partition.watermark)).filter((time) => time !== null);
    const first = times.length ? Math.max(...times) : null;
    const least = times.length ? Math.min(...times, reached ?? Infinity) : null;
    const shown = least === null ? [0, 1] : [least - Math.max(1000, (first - least) / 5), first];
    keepRows(area.body, partitions, laneName, (partition) => {
      const [word, kind] = laneState(partition, first, reached);
      const lag = partition.end === null ? null : Math.max(0, partition.end - partition.next);
      const behind = timeOf(partition.watermark);
      return [
        shortName(partition),
        { text: word, class: `word ${kind}` },
        partition.watermark.replace("T", " "),
        { node: drawBar(area.bars, laneName(partition), shown, behind, reached, kind) },
        first !== null && behind !== null && behind < first ? duration(first - behind) : "",
        partition.in_bytes ? bytes(lag) : count(lag),
        `${duration(partition.moved_ms)} ago${partition.note ? `; ${partition.note}` : ""}`,
      ];
    });
  });
}

// Moves the focus to a partition's lane; returns false if there is none of that name.
export function chooseLane(name) {
  let found = null;
  for (const row of document.querySelectorAll("#streams tbody tr")) {
    row.classList.toggle("chosen", row.dataset.key === name);
    if (row.dataset.key === name) found = row;
  }
  if (!found) return false;
  found.setAttribute("tabindex", "-1");
  found.focus();
  found.scrollIntoView({ block: "center" });
  return true;
}
