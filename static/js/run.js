// The page of one run: curves that survive a reload, progress, log; everything by the run's own socket.
import { Chart } from "./chart.js";
import { follow } from "./socket.js";

const watch = JSON.parse(document.getElementById("watch").textContent);
const curves = document.getElementById("curves");
const log = document.getElementById("log");
const connection = document.getElementById("connection");
const smoothing = document.getElementById("smoothing");
const LOG_LINES = 2000;

const charts = new Map(); // title → {chart, series: Map(key → points)}
let last = watch.after;
let baseTitle = document.title;

// --- curves: train/x and validation/x share a chart -----------------------------------------------------
function titleOf(key) {
  const [group, name] = key.split("/");
  return name && ["train", "validation"].includes(group) ? name : key;
}

function chartOf(key) {
  const title = titleOf(key);
  if (!charts.has(title)) {
    if (!charts.size) curves.replaceChildren();
    const chart = new Chart(curves, { kind: "line", title, x: "step", tools: true, series: [] });
    chart.smooth(Number(smoothing.value));
    charts.set(title, { chart, series: new Map() });
  }
  return charts.get(title);
}

function add(key, step, value) {
  if (value === null) return null;
  const entry = chartOf(key);
  const points = entry.series.get(key) ?? entry.series.set(key, []).get(key);
  if (points.length && points.at(-1)[0] >= step) return null; // the reload and the socket overlap
  points.push([step, value]);
  return entry;
}

function redraw(entry) {
  entry.chart.update([...entry.series].sort(([one], [other]) => one.localeCompare(other)).map(([name, points]) => ({ name, points })));
}

async function loadCurves() {
  const answer = await fetch(watch.metrics, { headers: { Accept: "application/json" } });
  if (!answer.ok) return;
  const { series } = await answer.json();
  const ordered = Object.entries(series).sort(([one], [other]) => rank(one) - rank(other) || one.localeCompare(other));
  for (const [key, points] of ordered) {
    if (points.length > 1 || (points.length && !watch.ended)) points.forEach(([step, value]) => add(key, step, value));
  }
  charts.forEach(redraw);
  if (!charts.size && watch.ended) curves.firstElementChild.textContent = "This run recorded no curves.";
}

function rank(key) {
  return key.endsWith("loss") ? 0 : key === "learning_rate" ? 2 : 1;
}

smoothing.addEventListener("input", () => charts.forEach(({ chart }) => chart.smooth(Number(smoothing.value))));

// --- progress -------------------------------------------------------------------------------------------
function words(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

function showProgress(event) {
  const share = `${(event.fraction * 100).toFixed(event.fraction < 0.1 ? 1 : 0)} %`;
  const left = words(event.eta_seconds);
  document.title = [share, left, watch.name].filter(Boolean).join(" · ");
  const bar = document.getElementById("progress");
  if (!bar) return;
  bar.value = event.fraction;
  const epoch = event.epoch ? `epoch ${event.epoch}` : "";
  const steps = event.total_steps ? `step ${event.step.toLocaleString("en")} of ${event.total_steps.toLocaleString("en")}` : "";
  document.getElementById("progress-text").textContent = [share, event.phase, epoch, steps, left && `${left} left`].filter(Boolean).join(" · ");
  const speed = event.rows_per_second ? `${Math.round(event.rows_per_second).toLocaleString("en")} rows/s` : "";
  document.getElementById("progress-speed").textContent = speed;
}

// --- log ------------------------------------------------------------------------------------------------
function write(level, message, time) {
  const line = document.createElement("p");
  line.className = level;
  const clock = document.createElement("time");
  clock.dateTime = time;
  clock.textContent = new Date(time).toISOString().slice(11, 19);
  const text = document.createElement("span");
  text.textContent = message;
  line.append(clock, text);
  log.append(line);
  while (log.childElementCount > LOG_LINES) log.firstElementChild.remove();
  if (document.getElementById("follow").checked) log.scrollTop = log.scrollHeight;
}

// --- events ---------------------------------------------------------------------------------------------
const touched = new Set();

const handlers = {
  metric(event) {
    for (const [key, value] of Object.entries(event.values)) {
      const entry = add(key, event.step, value);
      if (entry) touched.add(entry);
    }
  },
  progress: showProgress,
  log: (event) => write(event.level, event.message, event.time),
  checkpoint: (event) => write("muted", `checkpoint at step ${event.step}${event.best ? ", the best so far" : ""}`, event.time),
  finding: () => document.body.dispatchEvent(new CustomEvent("run-finding")),
  sample: () => document.body.dispatchEvent(new CustomEvent("run-sample")),
  state(event) {
    write("info", event.state, event.time);
    if (["paused", "succeeded", "failed", "cancelled"].includes(event.state)) document.title = `${event.state} · ${baseTitle}`;
    document.body.dispatchEvent(new CustomEvent("run-state"));
  },
};

function receive(event) {
  if (event.sequence) {
    if (event.sequence <= last) return;
    last = event.sequence;
  }
  handlers[event.type]?.(event);
  if (touched.size) {
    touched.forEach(redraw);
    touched.clear();
  }
}

const statuses = { open: "live", waiting: "connection lost, trying again", refused: "not live: load the page again" };

log.scrollTop = log.scrollHeight;
await loadCurves();
follow(() => `/ws/runs/${watch.run}?after=${last}`, receive, {
  onStatus(status) {
    connection.textContent = watch.ended && status === "open" ? "" : statuses[status];
  },
});
