// Elements are built by functions that take texts as texts: nothing from the job is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";
// The attributes that scripts of this page set. A name from the job cannot be among them.
const ATTRIBUTES = new Set([
  "class", "id", "role", "scope", "tabindex", "type", "value", "colspan", "aria-label", "aria-hidden", "viewBox", "width", "height",
  "preserveAspectRatio", "x", "y", "x1", "y1", "x2", "y2", "rx", "d", "points", "transform", "title",
]);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (!ATTRIBUTES.has(name)) throw new Error(`attribute ${name}`);
    element.setAttribute(name, String(value));
  }
  for (const child of children) {
    if (child === null || child === undefined) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

export function html(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export function by(id) {
  return document.getElementById(id);
}

// Sets a text only if it differs, so that a live region is not read out again.
export function setText(element, text) {
  const value = String(text);
  if (element.textContent !== value) element.textContent = value;
}

export function setClass(element, value) {
  if (element.getAttribute("class") !== value) element.setAttribute("class", value);
}

// Keeps a row for each item: rows that stay keep their elements, and so focus and selection.
// `cells` gives for each item [header, …others], each a text or { text, class, node }.
export function keepRows(body, items, keyOf, cells) {
  const known = new Map([...body.children].map((row) => [row.dataset.key, row]));
  let place = body.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let row = known.get(key);
    known.delete(key);
    if (!row) {
      row = html("tr", {});
      row.dataset.key = key;
    }
    if (row === place) place = place.nextElementSibling;
    else body.insertBefore(row, place);
    cells(item).forEach((cell, at) => {
      let element = row.children[at];
      if (!element) {
        element = at === 0 ? html("th", { scope: "row" }) : html("td", {});
        row.append(element);
      }
      const { text, node, ...more } = cell !== null && typeof cell === "object" ? cell : { text: cell };
      if (node) {
        if (element.firstChild !== node) element.replaceChildren(node);
      } else if (more.class) {
        let word = element.firstElementChild;
        if (!word) {
          word = html("span", {});
          element.replaceChildren(word);
        }
        setClass(word, more.class);
        setText(word, text ?? "");
      } else {
        setText(element, text ?? "");
      }
    });
  }
  for (const row of known.values()) row.remove();
}

export function count(number) {
  if (number === null || number === undefined || Number.isNaN(number)) return "–";
  return Math.round(number).toLocaleString("en");
}

export function bytes(number) {
  if (number === null || number === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${unit ? number.toFixed(1) : Math.round(number)} ${units[unit]}`;
}

export function duration(millis) {
  if (millis === null || millis === undefined) return "–";
  if (millis < 1000) return `${Math.round(millis)} ms`;
  if (millis < 120000) return `${(millis / 1000).toFixed(1)} s`;
  if (millis < 7200000) return `${Math.round(millis / 60000)} min`;
  return `${(millis / 3600000).toFixed(1)} h`;
}
