// Line and scatter charts as SVG. Colours come from the page's own properties, so both themes work.
import { exact, extent, labels, linear, logarithmic, padded } from "./scale.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { top: 8, right: 16, bottom: 40, left: 52 };
const HEIGHT = 220;
const ACROSS = 5;
const UP = 5;
const COLORS = 10; // in the style sheet, s0 to s9
const TABLE_ROWS = 200;

export function node(name, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

export function button(text, act, pressed = null) {
  const made = element("button", "button small plain", text);
  made.type = "button";
  if (pressed !== null) made.setAttribute("aria-pressed", String(pressed));
  made.addEventListener("click", () => act(made));
  return made;
}

/** The exponential mean of a curve, corrected for its start; weight 0 leaves the curve as it is. */
export function smoothed(points, weight) {
  if (!weight) return points;
  let mean = 0;
  let mass = 0;
  return points.map(([x, y]) => {
    mean = mean * weight + y * (1 - weight);
    mass = mass * weight + (1 - weight);
    return [x, mean / mass];
  });
}

export class Chart {
  /** options: {kind: "line" | "scatter", title, x, y, diagonal, tools, series: [{name, points, color, band, dots}]};
      band: [[x, low, high]] around a curve; dots: points alone, without a line */
  constructor(host, options) {
    this.options = options;
    this.series = options.series;
    this.hidden = new Set();
    this.log = false;
    this.weight = 0;
    this.zoom = null;
    this.at = -1;
    this.#frame(host);
    this.resizing = new ResizeObserver(() => this.draw());
    this.resizing.observe(this.figure);
  }

  update(series) {
    const known = this.series.length;
    this.series = series;
    if (series.length !== known) this.#fillLegend();
    this.#soon();
  }

  smooth(weight) {
    this.weight = weight;
    this.#soon();
  }

  #soon() {
    cancelAnimationFrame(this.pending);
    this.pending = requestAnimationFrame(() => this.draw());
  }

  #frame(host) {
    const { title, kind, tools } = this.options;
    this.figure = element("figure", "card chart");
    const head = element("div", "chart-head");
    head.append(element("h3", "", title));
    const bar = element("div", "chart-tools");
    this.reset = button("Reset zoom", () => this.#zoomTo(null));
    this.reset.hidden = true;
    bar.append(this.reset);
    if (tools) bar.append(button("log", (one) => this.#toggleLog(one), false));
    head.append(bar);
    this.svg = node("svg", { role: "img", tabindex: "0", "aria-label": `${title}: chart. Arrow keys read the values.` });
    this.readout = element("div", "readout");
    this.readout.setAttribute("aria-live", "polite");
    this.legend = element("div", "chart-legend");
    this.table = element("details");
    this.table.append(element("summary", "", "Values as a table"));
    this.table.addEventListener("toggle", () => this.#fillTable());
    this.figure.append(head, this.svg, this.readout, this.legend, this.table);
    this.#fillLegend();
    this.#listen(kind);
    host.append(this.figure);
  }

  #fillLegend() {
    this.legend.replaceChildren();
    this.legend.hidden = this.series.length < 2;
    this.series.forEach((one, position) => {
      const toggle = button("", (pressed) => this.#toggleSeries(one.name, pressed), !this.hidden.has(one.name));
      toggle.className = "";
      toggle.append(element("span", `swatch ${this.#look(position)}`), element("span", "", one.name));
      this.legend.append(toggle);
    });
  }

  #color(position) {
    return (this.series[position].color ?? position) % COLORS;
  }

  /** Its color; a series beyond the last color has a cross for its dots, so that no two look alike. */
  #look(position) {
    return `s${this.#color(position)}${(this.series[position].color ?? position) < COLORS ? "" : " again"}`;
  }

  #toggleSeries(name, pressed) {
    if (!this.hidden.delete(name)) this.hidden.add(name);
    pressed.setAttribute("aria-pressed", String(!this.hidden.has(name)));
    this.draw();
  }

  #toggleLog(pressed) {
    this.log = !this.log;
    pressed.setAttribute("aria-pressed", String(this.log));
    pressed.textContent = this.log ? "linear" : "log";
    this.draw();
  }

  #zoomTo(range) {
    this.zoom = range;
    this.reset.hidden = !range;
    this.draw();
  }

  #listen(kind) {
    let from = null;
    const inside = (event) => event.clientX - this.svg.getBoundingClientRect().left;
    this.svg.addEventListener("pointerdown", (event) => {
      from = inside(event);
      if (event.pointerType === "mouse") this.svg.setPointerCapture(event.pointerId);
    });
    this.svg.addEventListener("pointermove", (event) => {
      const pixel = inside(event);
      if (from !== null && Math.abs(pixel - from) > 4) this.#showSelection(from, pixel);
      if (kind !== "scatter") this.#readAt(this.x?.invert(pixel));
    });
    this.svg.addEventListener("pointerup", (event) => {
      const pixel = inside(event);
      if (from !== null && Math.abs(pixel - from) > 8) {
        this.#zoomTo([this.x.invert(Math.min(from, pixel)), this.x.invert(Math.max(from, pixel))]);
      }
      from = null;
      this.selection?.remove();
    });
    this.svg.addEventListener("pointerleave", () => this.#readAt(null));
    this.svg.addEventListener("dblclick", () => this.#zoomTo(null));
    this.svg.addEventListener("keydown", (event) => this.#step(event));
  }

  #step(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (event.key === "Escape") this.#zoomTo(null);
    if (!(event.key in moves) || this.options.kind === "scatter") return;
    event.preventDefault();
    const longest = this.#shown().reduce((best, one) => (one.points.length > best.length ? one.points : best), []);
    if (!longest.length) return;
    this.at = Math.min(Math.max(this.at + moves[event.key], 0), longest.length - 1);
    this.#readAt(longest[this.at][0]);
  }

  #showSelection(from, to) {
    this.selection?.remove();
    this.selection = node("rect", {
      class: "zoom", x: Math.min(from, to), y: MARGIN.top, width: Math.abs(to - from), height: HEIGHT - MARGIN.top - MARGIN.bottom,
    });
    this.svg.append(this.selection);
  }

  #shown() {
    return this.series
      .map((one, position) => ({ ...one, look: this.#look(position), color: this.#color(position) }))
      .filter((one) => !this.hidden.has(one.name))
      .map((one) => ({ ...one, points: one.points.filter(([x, y]) => Number.isFinite(y) && (!this.log || y > 0) && this.#within(x)) }));
  }

  #within(x) {
    return !this.zoom || (x >= this.zoom[0] && x <= this.zoom[1]);
  }

  draw() {
    const width = this.svg.clientWidth;
    if (!width) return;
    const shown = this.#shown();
    const flat = shown.flatMap((one) => one.points);
    const xs = this.zoom ?? extent(flat.map((point) => point[0]));
    const bands = shown.flatMap((one) => this.#band(one));
    const ys = extent([...flat.map((point) => point[1]), ...bands.flatMap(([, low, high]) => [low, high])]);
    const range = [HEIGHT - MARGIN.bottom, MARGIN.top];
    this.x = linear(this.options.kind === "scatter" ? padded(xs) : xs, [MARGIN.left, width - MARGIN.right]);
    this.y = this.log && flat.length ? logarithmic([ys[0] * 0.9, ys[1] * 1.1], range) : linear(padded(ys), range);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren(...this.#axes(width), ...this.#guide(xs, ys), ...shown.flatMap((one) => this.#marks(one)));
    this.cursor = node("line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
    this.svg.append(this.cursor);
    if (!flat.length) this.svg.append(node("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "No values to show"));
  }

  #axes(width) {
    const { x = "", whole = x === "step" } = this.options;
    const across = this.x.ticks(ACROSS, whole);
    const up = this.y.ticks(UP);
    const names = { x: labels(across), y: labels(up) };
    return [
      ...up.flatMap((tick, at) => [
        node("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: this.y(tick), y2: this.y(tick) }),
        node("text", { x: MARGIN.left - 6, y: this.y(tick) + 4, "text-anchor": "end" }, names.y[at]),
      ]),
      ...across.map((tick, at) => node("text", { x: this.x(tick), y: HEIGHT - 24, "text-anchor": "middle" }, names.x[at])),
      node("text", { class: "axis", x: (MARGIN.left + width - MARGIN.right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, x),
    ];
  }

  #guide(xs, ys) {
    if (!this.options.diagonal) return [];
    const low = Math.max(xs[0], ys[0]);
    const high = Math.min(xs[1], ys[1]);
    return [node("line", { class: "guide", x1: this.x(low), y1: this.y(low), x2: this.x(high), y2: this.y(high) })];
  }

  #marks(one) {
    if (this.options.kind === "scatter") {
      return [node("path", { class: `dots s${one.color}`, d: this.#dots(one.points) })];
    }
    if (one.dots) return [node("path", { class: `dots ${one.look}`, d: one.look.endsWith("again") ? this.#crosses(one.points) : this.#dots(one.points) })];
    const lines = [];
    const band = this.#band(one);
    if (band.length > 1) lines.push(node("path", { class: `band s${one.color}`, d: this.#outline(band) }));
    lines.push(node("path", { class: `curve s${one.color}${this.weight ? " faint" : ""}`, d: this.#path(one.points) }));
    if (this.weight) lines.push(node("path", { class: `curve s${one.color}`, d: this.#path(smoothed(one.points, this.weight)) }));
    if (one.points.length === 1 || (this.options.whole && one.points.length < 40)) lines.push(node("path", { class: `dots s${one.color}`, d: this.#dots(one.points) }));
    return lines;
  }

  /** What of a band can be drawn: [[x, low, high]]. */
  #band(one) {
    return (one.band ?? []).filter(([x, low]) => this.#within(x) && (!this.log || low > 0));
  }

  #outline(band) {
    const up = band.map(([x, , high]) => [x, high]);
    const down = band.map(([x, low]) => [x, low]).reverse();
    return `${this.#path([...up, ...down])}Z`;
  }

  #dots(points) {
    return points.map(([x, y]) => `M${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}h0`).join("");
  }

  #crosses(points) {
    return points.map(([x, y]) => `M${(this.x(x) - 3.5).toFixed(1)} ${this.y(y).toFixed(1)}h7m-3.5 -3.5v7`).join("");
  }

  #path(points) {
    return points.map(([x, y], at) => `${at ? "L" : "M"}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`).join("");
  }

  #readAt(x) {
    if (x === null || x === undefined || !this.x) {
      this.cursor?.setAttribute("visibility", "hidden");
      this.readout.replaceChildren();
      return;
    }
    const found = this.#shown().map((one) => ({ ...one, point: nearest(smoothed(one.points, this.weight), x) })).filter((one) => one.point);
    if (!found.length) return;
    const at = found[0].point[0];
    this.cursor.setAttribute("x1", this.x(at));
    this.cursor.setAttribute("x2", this.x(at));
    this.cursor.setAttribute("visibility", "visible");
    this.readout.replaceChildren(element("span", "", `${this.options.x ?? "x"} ${exact(at)}`), ...found.map((one) => this.#reading(one)));
  }

  #reading(one) {
    const line = element("span", "");
    const label = this.series.length > 1 ? `${one.name} ` : "";
    line.append(element("span", `swatch ${one.look}`), `${label}${exact(one.point[1])}`);
    return line;
  }

  #fillTable() {
    this.table.querySelector("table")?.remove();
    if (!this.table.open) return;
    const table = element("table", "compact");
    table.append(headRow([this.options.x ?? "x", ...(this.series.length > 1 ? ["series"] : []), this.options.y ?? "value"]));
    const body = element("tbody");
    for (const one of this.series) {
      for (const [x, y] of one.points.slice(-TABLE_ROWS)) {
        const row = element("tr");
        const cells = [exact(x), ...(this.series.length > 1 ? [one.name] : []), exact(y)];
        row.append(...cells.map((text) => element("td", "", text)));
        body.append(row);
      }
    }
    table.append(body);
    this.table.append(table);
  }
}

function headRow(names) {
  const head = element("thead");
  const row = element("tr");
  for (const name of names) {
    const cell = element("th", "", name);
    cell.scope = "col";
    row.append(cell);
  }
  head.append(row);
  return head;
}

/** The point whose x is closest, by bisection. */
function nearest(points, x) {
  let low = 0;
  let high = points.length - 1;
  if (high < 0) return null;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle;
    else high = middle;
  }
  return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
}
