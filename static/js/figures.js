// Draws the charts that a page, or a part that htmx brought, describes in a JSON island.
import { Chart, element, node } from "./chart.js";
import { parallelCoordinates } from "./parallel.js";
import { exact, extent, labels, linear } from "./scale.js";

const HEIGHT = 220;
const BASE = HEIGHT - 40; // room for the labels and the title of the axis

function histogram(host, { title, x, y, counts, edges }) {
  const figure = element("figure", "card chart");
  const head = element("div", "chart-head");
  head.append(element("h3", "", title));
  const svg = node("svg", { role: "img", "aria-label": `${title}: histogram of ${counts.length} bins` });
  const readout = element("div", "readout");
  figure.append(head, svg, readout);
  host.append(figure);
  new ResizeObserver(() => drawBars(svg, readout, { x, y, counts, edges })).observe(figure);
}

function drawBars(svg, readout, { x, y, counts, edges }) {
  const width = svg.clientWidth;
  if (!width) return;
  const across = linear([edges[0], edges.at(-1)], [50, width - 12]);
  const up = linear([0, extent(counts)[1] || 1], [BASE, 8]);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const bars = counts.map((count, at) => {
    const left = across(edges[at]);
    const bar = node("rect", {
      class: "box", x: left + 0.5, y: up(count), width: Math.max(across(edges[at + 1]) - left - 1, 1), height: BASE - up(count),
    });
    bar.addEventListener("pointerenter", () => {
      readout.textContent = `${x} ${exact(edges[at])} to ${exact(edges[at + 1])}: ${exact(count)} ${y}`;
    });
    return bar;
  });
  const heights = up.ticks(4);
  const places = across.ticks(5);
  const [counted, placed] = [labels(heights), labels(places)];
  const lines = heights.flatMap((tick, at) => [
    node("line", { class: "grid", x1: 50, x2: width - 12, y1: up(tick), y2: up(tick) }),
    node("text", { x: 44, y: up(tick) + 4, "text-anchor": "end" }, counted[at]),
  ]);
  const names = places.map((tick, at) => node("text", { x: across(tick), y: HEIGHT - 24, "text-anchor": "middle" }, placed[at]));
  names.push(node("text", { class: "axis", x: (50 + width - 12) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, x));
  svg.replaceChildren(...lines, ...names, ...bars);
}

export function drawFigures(scope) {
  const hosts = [...scope.querySelectorAll("[data-charts]")];
  if (scope.matches?.("[data-charts]")) hosts.push(scope);
  for (const host of hosts) {
    if (host.childElementCount) continue;
    const described = JSON.parse(document.getElementById(host.dataset.charts).textContent);
    for (const one of described) {
      if (one.kind === "histogram") histogram(host, one);
      else if (one.kind === "parallel") parallelCoordinates(host, one);
      else new Chart(host, one);
    }
  }
}

drawFigures(document);
document.addEventListener("htmx:load", (event) => drawFigures(event.detail.elt));
