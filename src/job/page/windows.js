// The open windows of all steps, and the records that were left out.

import { by, count, duration, keepRows } from "./dom.js";

const words = (time) => time.replace("T", " ");

function windowName({ start, end }) {
  return end.startsWith("after") ? "all time" : `${words(start)} – ${words(end)}`;
}

function dueCells(window) {
  if (window.closes_at === null) return ["at the end of the stream", ""];
  const missing = window.missing_ms === null ? { text: "no watermark yet", class: "word waiting" }
    : window.missing_ms === 0 ? { text: "closes now", class: "word active" } : `${duration(window.missing_ms)} of event time`;
  return [words(window.closes_at), missing];
}

// Rows of a step: its open windows, a row for what is not listed, and the last one that has closed.
function rowsOf(step) {
  const rows = step.open.map((window) => ({ key: `${step.step} ${window.end}`, step: step.step,
    cells: [windowName(window), `${window.exact ? "" : "at most "}${count(window.rows)}`, ...dueCells(window)] }));
  if (step.more > 0) rows.push({ key: `${step.step} more`, step: step.step, cells: [`${count(step.more)} more`, "", "", ""] });
  if (step.keys !== null) {
    const next = step.next_at === null ? "at the end of the stream" : `not before ${words(step.next_at)}`;
    rows.push({ key: `${step.step} keys`, step: step.step, cells: ["of each key its own", `${count(step.keys)} keys`, next, ""] });
  }
  if (step.closed) {
    rows.push({ key: `${step.step} closed`, step: step.step,
      cells: [windowName(step.closed), count(step.closed.rows), "", { text: `closed ${duration(step.closed.ago_ms)} ago`, class: "word ended" }] });
  }
  return rows;
}

export function showWindows(status) {
  const rows = status.windows.flatMap(rowsOf);
  by("windows").hidden = rows.length === 0;
  keepRows(by("window-rows"), rows, (row) => row.key, (row) => [row.step, ...row.cells]);
}

// A file is known by its path, which has no partitions; a topic by its partition and offset.
function placeOf(record) {
  if (record.line !== null) return `${record.place}, line ${count(record.line)}`;
  return record.in_bytes ? `${record.place}, byte ${count(record.offset)}` : `${record.place}, partition ${record.partition}, offset ${record.offset}`;
}

export function showLeftOut(status) {
  const rows = status.left_out.flatMap((left) => {
    const name = left.kind === "late" ? `late for ${left.name}` : `rejected by ${left.name}`;
    const kind = left.kind === "late" ? "late" : "rejected";
    const records = left.records.map((record, at) => ({ key: `${name} ${at}`,
      cells: ["", placeOf(record), record.reason, `${duration(record.ago_ms)} ago`] }));
    return [{ key: name, cells: [{ text: `${count(left.count)} ${kind}`, class: "late" }, "", "", ""], name }, ...records.map((row) => ({ ...row, name }))];
  });
  by("left-area").hidden = rows.length === 0;
  keepRows(by("left-rows"), rows, (row) => row.key, (row) => [row.name, ...row.cells]);
}
