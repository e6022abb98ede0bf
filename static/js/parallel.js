// Parallel coordinates: one axis a setting, one line a trial; the better its result, the stronger its line.
import { element, node } from "./chart.js";
import { exact, labels, linear, logarithmic } from "./scale.js";

const HEIGHT = 300;
const TOP = 34;
const BOTTOM = HEIGHT - 16;
const SIDE = 56;
const LEAST = 104; // pixels from one axis to the next; narrower figures scroll
const SHADES = 5;

/** options: {title, axes: [{name, choices} | {name, low, high, log}], lines: [{name, values, rank}]}; rank 0 is the best */
export function parallelCoordinates(host, { title, axes, lines }) {
  const figure = element("figure", "card chart wide");
  const head = element("div", "chart-head");
  head.append(element("h3", "", title));
  const scroller = element("div", "table-wrap");
  scroller.tabIndex = 0;
  const svg = node("svg", { role: "img", class: "parallel", "aria-label": `${title}: ${lines.length} trials; the table has the same values` });
  const readout = element("div", "readout");
  scroller.append(svg);
  figure.append(head, scroller, readout);
  host.append(figure);
  new ResizeObserver(() => draw(svg, scroller, readout, axes, lines)).observe(figure);
}

function scaleOf(axis) {
  const range = [BOTTOM, TOP];
  if (axis.choices) {
    const place = linear([0, Math.max(axis.choices.length - 1, 1)], range);
    return (value) => place(axis.choices.indexOf(value));
  }
  const ends = axis.high > axis.low ? [axis.low, axis.high] : [axis.low - 1, axis.high + 1];
  return axis.log && axis.low > 0 ? logarithmic(ends, range) : linear(ends, range);
}

function ticksOf(axis, scale) {
  if (axis.choices) return axis.choices.map((choice) => [choice, String(choice)]);
  const places = scale.ticks(4);
  const names = labels(places);
  return places.map((place, at) => [place, names[at]]);
}

function draw(svg, scroller, readout, axes, lines) {
  const width = Math.max(scroller.clientWidth, LEAST * (axes.length - 1) + 2 * SIDE);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.setAttribute("width", width);
  const across = linear([0, Math.max(axes.length - 1, 1)], [SIDE, width - SIDE]);
  const scales = axes.map(scaleOf);
  const worstFirst = [...lines].sort((one, other) => other.rank - one.rank);
  svg.replaceChildren(
    ...worstFirst.map((one) => path(one, across, scales, readout, axes, lines.length)),
    ...axes.flatMap((axis, at) => marks(axis, across(at), scales[at])),
  );
}

function path(one, across, scales, readout, axes, count) {
  const points = one.values.map((value, at) => `${at ? "L" : "M"}${across(at).toFixed(1)} ${scales[at](value).toFixed(1)}`);
  const shade = Math.floor((one.rank / count) * SHADES);
  const line = node("path", { class: `strand shade-${shade}`, d: points.join("") });
  line.addEventListener("pointerenter", () => {
    const told = axes.map((axis, at) => `${axis.name} ${axis.choices ? one.values[at] : exact(one.values[at])}`);
    readout.textContent = [one.name, ...told].join(" · ");
  });
  return line;
}

function marks(axis, x, scale) {
  return [
    node("line", { class: "grid", x1: x, x2: x, y1: TOP, y2: BOTTOM }),
    node("text", { class: "axis", x, y: 16, "text-anchor": "middle" }, axis.name),
    ...ticksOf(axis, scale).map(([value, text]) => node("text", { x: x + 5, y: scale(value) + 4 }, text)),
  ];
}
