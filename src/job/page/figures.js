// Figures: metrics by name and labels, and charts of the last ten minutes.

import { by, bytes, count, duration, html, setText, svg } from "./dom.js";

const UNESCAPED = { n: "\n", "\\": "\\", '"': '"' };

// Parses a page of metrics: [{ name, labels, value }].
export function parseMetrics(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const head = /^([a-zA-Z_:][\w:]*)\{/.exec(line);
    if (!head) continue;
    const labels = {};
    const label = /\s*,?\s*([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/y;
    label.lastIndex = head[0].length;
    let end = label.lastIndex;
    for (let match; (match = label.exec(line)); end = label.lastIndex) {
      labels[match[1]] = match[2].replace(/\\(.)/g, (_, letter) => UNESCAPED[letter] ?? letter);
    }
    const value = Number(line.slice(line.indexOf("}", end) + 1));
    found.push({ name: head[1], labels, value });
  }
  return found;
}

// The metrics of now and of the time before, for counts and rates.
export class Figures {
  #now = new Map();
  #before = new Map();
  #at = 0;
  #elapsed = 0;

  static key(name, label, value) {
    return JSON.stringify([name, label, value]);
  }

  take(text, at) {
    const now = new Map();
    for (const { name, labels, value } of parseMetrics(text)) {
      for (const label of ["source", "step", "table", "sink"]) {
        if (labels[label] === undefined) continue;
        const key = Figures.key(name, label, labels[label]);
        // Of several partitions the sum.
        now.set(key, (now.get(key) ?? 0) + value);
      }
    }
    [this.#before, this.#now, this.#elapsed, this.#at] = [this.#now, now, (at - this.#at) / 1000, at];
  }

  forget() {
    [this.#before, this.#now] = [new Map(), new Map()];
  }

  value(name, label, value) {
    return this.#now.get(Figures.key(name, label, value)) ?? null;
  }

  rate(name, label, value) {
    const key = Figures.key(name, label, value);
    const [now, before] = [this.#now.get(key), this.#before.get(key)];
    return now === undefined || before === undefined || this.#elapsed <= 0 ? null : Math.max(0, now - before) / this.#elapsed;
  }
}

const perSecond = (name) => (sample, before) =>
  before && sample.at_ms > before.at_ms ? (1000 * (sample[name] - before[name])) / (sample.at_ms - before.at_ms) : null;
const as = (name) => (sample) => sample[name];

const CHARTS = [
  { title: "Records read per second", lines: [perSecond("read")], say: count },
  { title: "Rows published per second", lines: [perSecond("published")], say: count },
  { title: "Epoch latency, p50 and p99 (dashed)", lines: [as("latency_p50_ms"), as("latency_p99_ms")], say: duration },
  { title: "Bytes in flight", lines: [as("in_flight_bytes")], say: bytes },
  { title: "Records not read yet", lines: [as("lag_records")], say: count },
  { title: "Late and rejected (dashed) per second", lines: [perSecond("late"), perSecond("rejected")], say: count },
  { title: "Age of the last snapshot", lines: [as("snapshot_age_ms")], say: duration },
  { title: "Snapshot: duration", lines: [as("snapshot_ms")], say: duration },
  { title: "Snapshot: bytes written", lines: [as("snapshot_bytes")], say: bytes },
];

let charts = [];

export function drawCharts() {
  charts = CHARTS.map((chart) => {
    const value = html("b", {}, "–");
    const lines = chart.lines.map((_, at) => svg("polyline", { class: at ? "second" : "first", points: "" }));
    const picture = svg("svg", { class: "spark", viewBox: "0 0 600 40", preserveAspectRatio: "none", role: "img", "aria-label": chart.title }, ...lines);
    return { ...chart, value, picture, drawn: lines, whole: html("figure", {}, html("figcaption", {}, html("span", {}, chart.title), value), picture) };
  });
  by("charts").replaceChildren(...charts.map((chart) => chart.whole));
}

export function updateCharts(samples) {
  for (const { title, lines, say, value, picture, drawn } of charts) {
    const series = lines.map((line) => samples.map((sample, at) => line(sample, samples[at - 1])));
    const known = series.flat().filter((number) => number !== null && number !== undefined);
    const most = known.length ? Math.max(...known, 1e-9) : 1;
    const first = samples.length > 600 ? samples.length - 600 : 0;
    series.forEach((numbers, at) => {
      const points = numbers.map((number, sample) => [sample - first, number]).filter(([, number]) => number !== null && number !== undefined);
      const offset = 600 - (samples.length - first);
      drawn[at].setAttribute("points", points.map(([x, number]) => `${x + offset},${(38 - (36 * number) / most).toFixed(1)}`).join(" "));
    });
    const last = series.map((numbers) => say(numbers.findLast((number) => number !== null && number !== undefined)));
    setText(value, last.join(" · "));
    const label = known.length ? `${title}: now ${last.join(" and ")}, at most ${say(most)}` : `${title}: not known`;
    if (picture.getAttribute("aria-label") !== label) picture.setAttribute("aria-label", label);
  }
}
