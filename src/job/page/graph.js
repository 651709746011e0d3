// The dataflow graph: layers from left to right, drawn as SVG.

import { by, html, setClass, setText, svg } from "./dom.js";

const WIDTH = 214, HEIGHT = 92, BETWEEN = 64, ABOVE = 22, MARGIN = 6;
let drawn = new Map();

// The layer of each node: one more than the greatest of those that lead to it.
function layersOf(nodes, edges) {
  const layer = new Map(nodes.map((node) => [node.id, 0]));
  for (let round = 0; round < nodes.length; round += 1) {
    let moved = false;
    for (const { from, to } of edges) {
      if (layer.get(to) <= layer.get(from) && layer.get(from) + 1 < nodes.length) {
        layer.set(to, layer.get(from) + 1);
        moved = true;
      }
    }
    if (!moved) break;
  }
  const layers = [];
  for (const node of nodes) (layers[layer.get(node.id)] ||= []).push(node.id);
  return layers.map((ids) => ids || []).filter((ids) => ids.length);
}

// Orders each layer by the mean place of the nodes that lead there, so that fewer edges cross.
function untangle(layers, edges) {
  for (const way of ["to", "from", "to"]) {
    const other = way === "to" ? "from" : "to";
    const order = way === "to" ? layers : [...layers].reverse();
    const place = new Map(layers.flatMap((ids) => ids.map((id, at) => [id, at])));
    for (const ids of order) {
      const mean = (id) => {
        const ends = edges.filter((edge) => edge[way] === id).map((edge) => place.get(edge[other]));
        return ends.length ? ends.reduce((sum, at) => sum + at, 0) / ends.length : place.get(id);
      };
      const means = new Map(ids.map((id) => [id, mean(id)]));
      ids.sort((a, b) => means.get(a) - means.get(b));
      ids.forEach((id, at) => place.set(id, at));
    }
  }
}

function short(text, most) {
  const letters = [...text];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : text;
}

export function drawGraph(graph) {
  const area = by("graph-area");
  drawn = new Map();
  if (!graph.nodes.length) {
    area.replaceChildren(html("p", { class: "quiet" }, "The query has no steps."));
    return;
  }
  const layers = layersOf(graph.nodes, graph.edges);
  untangle(layers, graph.edges);
  const tallest = Math.max(...layers.map((ids) => ids.length));
  const width = 2 * MARGIN + layers.length * (WIDTH + BETWEEN) - BETWEEN;
  const height = 2 * MARGIN + tallest * (HEIGHT + ABOVE) - ABOVE;
  const place = new Map();
  layers.forEach((ids, layer) => ids.forEach((id, at) => {
    const free = (tallest - ids.length) * (HEIGHT + ABOVE) / 2;
    place.set(id, [MARGIN + layer * (WIDTH + BETWEEN), MARGIN + free + at * (HEIGHT + ABOVE)]);
  }));
  const lines = svg("g", { "aria-hidden": "true" });
  for (const { from, to } of graph.edges) {
    const [x, y] = place.get(from), [left, top] = place.get(to);
    const [x1, y1, x2, y2] = [x + WIDTH, y + HEIGHT / 2, left - 7, top + HEIGHT / 2];
    const bend = Math.max(24, (x2 - x1) / 2);
    lines.append(svg("path", { class: "edge", d: `M${x1},${y1} C${x1 + bend},${y1} ${x2 - bend},${y2} ${x2},${y2}` }));
    lines.append(svg("path", { class: "edge-head", d: `M${x2 + 7},${y2} l-8,-4 v8 z` }));
  }
  const whole = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "list", "aria-label": "Steps of the query" }, lines);
  for (const node of graph.nodes) {
    const [x, y] = place.get(node.id);
    const text = (kind, down, said) => svg("text", { class: kind, x: 10, y: down }, said);
    const mark = text("node-mark", 17, "");
    mark.setAttribute("x", WIDTH - 10);
    mark.style.textAnchor = "end";
    const first = text("node-line", 53, ""), second = text("node-line", 69, ""), third = text("node-line", 84, "");
    const group = svg("g", { class: "node", role: "listitem", tabindex: "-1", transform: `translate(${x},${y})` },
      svg("title", {}, `${node.kind} ${node.name}${node.detail ? `: ${node.detail}` : ""}`),
      svg("rect", { class: "node-box", x: 0, y: 0, width: WIDTH, height: HEIGHT, rx: 6 }),
      text("node-kind", 17, node.kind), text("node-name", 36, short(node.name, 25)), mark, first, second, third);
    group.dataset.step = node.id;
    whole.append(group);
    const next = graph.edges.filter((edge) => edge.from === node.id).map((edge) => edge.to);
    drawn.set(node.id, { node, group, mark, lines: [first, second, third], next });
  }
  area.replaceChildren(whole);
}

// Shows what is known of each node: `figures` gives up to three lines for it, `marks` gives ["busy", …] or ["blocking", …].
export function updateGraph(figures, marks) {
  for (const { node, group, mark, lines, next } of drawn.values()) {
    const said = figures(node);
    lines.forEach((line, at) => setText(line, short(said[at] ?? "", 36)));
    const [kind, word] = marks(node) ?? ["", ""];
    const chosen = group.classList.contains("chosen") ? " chosen" : "";
    setClass(group, `node${kind ? ` ${kind}` : ""}${chosen}`);
    setText(mark, word);
    const leads = next.length ? `leads to ${next.join(", ")}` : "";
    const label = [`${node.kind} ${node.name}`, word, ...said, leads].filter(Boolean).join("; ");
    if (group.getAttribute("aria-label") !== label) group.setAttribute("aria-label", label);
  }
}

// Moves the focus to a node; returns false if there is none.
export function chooseNode(matches) {
  const found = [...drawn.values()].find(({ node }) => matches(node));
  for (const { group } of drawn.values()) group.classList.toggle("chosen", group === found?.group);
  if (!found) return false;
  found.group.focus();
  found.group.scrollIntoView({ block: "center", inline: "center" });
  return true;
}
