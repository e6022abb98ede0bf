// Uploads the files of a model in parts: goes on where it stopped after a broken connection, a pause or a closed tab.
import { csrfToken } from "./platform.js";
import { receiveDrops, sentences, showErrors, size } from "./transfer.js";

const AT_A_TIME = 3;
const ATTEMPTS = 8;
const form = document.getElementById("upload");
const inputs = [document.getElementById("files"), document.getElementById("folder")];
const errors = document.getElementById("upload-errors");
const start = document.getElementById("upload-start");
const pause = document.getElementById("upload-pause");
const progress = document.getElementById("upload-progress");
const bar = document.getElementById("upload-bar");
const words = document.getElementById("upload-words");
const name = form.elements.name;
let chosen = [];
let model = form.dataset.model;
let stopped = false;
const underWay = new Set();

function take(files) {
  chosen = [...files].map((file) => ({ file, path: file.webkitRelativePath.split("/").slice(1).join("/") || file.name }));
  chosen = chosen.filter(({ path }) => !path.split("/").some((part) => part.startsWith(".")));
  const total = chosen.reduce((sum, { file }) => sum + file.size, 0);
  document.getElementById("file-words").textContent = chosen.length
    ? `${chosen.length === 1 ? chosen[0].path : `${chosen.length} files`}, ${size(total)}`
    : "";
  const folder = files[0]?.webkitRelativePath.split("/")[0];
  if (name && !name.value && chosen.length) name.value = (folder || chosen[0].path.replace(/\.(safetensors|zip)$/i, "")).slice(0, 120);
}

function fail(lines) {
  showErrors(errors, lines);
  busy(false);
}

function busy(on) {
  start.disabled = on;
  pause.hidden = !on;
  progress.hidden = !on && !bar.value;
}

async function call(method, path, body) {
  const answer = await fetch(`/api/v1${path}`, {
    method,
    headers: { "Content-Type": "application/json", "X-CSRFToken": csrfToken() },
    body: body && JSON.stringify(body),
  });
  const told = await answer.json().catch(() => null);
  if (!answer.ok) throw sentences(told, answer.status);
  return told;
}

// The same files, chosen again, go on with the upload that this browser began.
function memory() {
  const files = chosen.map(({ file, path }) => `${path}:${file.size}:${file.lastModified}`);
  return `upload:${model}:${form.elements.branch.value}:${files.join("|")}`;
}

async function earlier() {
  try {
    const id = localStorage.getItem(memory());
    const found = id && (await call("GET", `/uploads/${id}`));
    return found?.state === "receiving" ? found : null;
  } catch {
    return null;
  }
}

function remember(id) {
  try {
    if (id) localStorage.setItem(memory(), id);
    else localStorage.removeItem(memory());
  } catch {
    // Then it can be continued only while this page is open.
  }
}

async function begin() {
  model ||= (await call("POST", "/models", {
    name: name.value.trim(), description: form.elements.description.value, organization: form.dataset.organization,
  })).id;
  const found = await earlier();
  if (found) return found;
  const made = await call("POST", `/models/${model}/uploads`, {
    files: chosen.map(({ file, path }) => ({ path, size: file.size })),
    message: form.elements.message.value, branch: form.elements.branch.value,
  });
  remember(made.id);
  return made;
}

function partsOf(upload) {
  const parts = [];
  for (const { file, parts: ranges } of upload.missing) {
    const blob = chosen.find(({ path }) => path === upload.files[file].path).file;
    for (const [first, last] of ranges) {
      for (let number = first; number <= last; number += 1) {
        const slice = blob.slice(number * upload.part_size, (number + 1) * upload.part_size);
        parts.push({ address: `/api/v1/uploads/${upload.id}/files/${file}/parts/${number}`, slice });
      }
    }
  }
  return parts;
}

async function digestOf(slice) {
  if (!globalThis.crypto?.subtle) return null; // not offered to pages that came over plain HTTP from another machine
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", await slice.arrayBuffer()));
  return `sha-256=:${btoa(String.fromCharCode(...hash))}:`;
}

function put({ address, slice }, digest, told) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    underWay.add(request);
    request.open("PUT", address);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.setRequestHeader("X-CSRFToken", csrfToken());
    if (digest) request.setRequestHeader("Content-Digest", digest);
    request.responseType = "json";
    request.upload.onprogress = (event) => told(event.loaded);
    request.onload = () => (request.status < 300 ? resolve() : reject({ status: request.status, lines: sentences(request.response, request.status) }));
    request.onerror = request.onabort = () => reject({ status: 0, lines: ["The connection broke. Continue when it is back; what was sent is kept."] });
    request.onloadend = () => underWay.delete(request);
    request.send(slice);
  });
}

async function sendPatiently(part, told) {
  const digest = await digestOf(part.slice);
  for (let attempt = 1; !stopped; attempt += 1) {
    try {
      await put(part, digest, told);
      told(part.slice.size);
      return;
    } catch (problem) {
      told(0);
      if (stopped) return;
      const passing = problem.status === 0 || problem.status === 429 || problem.status >= 500;
      if (!passing || attempt === ATTEMPTS) throw problem.lines ?? problem;
      await new Promise((resolve) => setTimeout(resolve, Math.min(500 * 2 ** attempt, 15_000)));
    }
  }
}

async function sendAll(upload) {
  const parts = partsOf(upload);
  const total = upload.files.reduce((sum, file) => sum + file.size, 0);
  const before = total - parts.reduce((sum, { slice }) => sum + slice.size, 0);
  const loaded = new Map();
  const begun = performance.now();
  const show = () => {
    const now = [...loaded.values()].reduce((sum, one) => sum + one, 0);
    const speed = now / ((performance.now() - begun) / 1000);
    bar.value = total ? (before + now) / total : 1;
    const left = speed > 0 ? (total - before - now) / speed : 0;
    const wait = left > 90 ? `${Math.round(left / 60)} min` : `${Math.ceil(left)} s`;
    words.textContent = `${size(before + now)} of ${size(total)}, ${size(speed)}/s, ${wait} left`;
  };
  const lane = async () => {
    for (let part = parts.shift(); part && !stopped; part = parts.shift()) {
      await sendPatiently(part, (count) => {
        loaded.set(part, count);
        show();
      });
    }
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, lane));
}

async function upload(event) {
  event.preventDefault();
  errors.replaceChildren();
  if (!chosen.length) return fail(["Choose files or a folder first."]);
  if (name && !name.value.trim()) return fail(["Give the model a name."]);
  stopped = false;
  busy(true);
  try {
    const begun = await begin();
    await sendAll(begun);
    if (stopped) throw ["Paused. Continue here, or come back and choose the same files."];
    words.textContent = "All there; handing it to a worker.";
    await call("POST", `/uploads/${begun.id}/complete`, {});
    remember(null);
    location.assign(`/uploads/${begun.id}/`);
  } catch (problem) {
    start.textContent = bar.value ? "Continue" : "Upload";
    fail(Array.isArray(problem) ? problem : [String(problem.message ?? problem)]);
  }
}

function stop() {
  stopped = true;
  for (const request of underWay) request.abort();
}

form.addEventListener("submit", upload);
pause.addEventListener("click", stop);
for (const input of inputs) input.addEventListener("change", () => take(input.files));
receiveDrops(document.getElementById("drop"), take);
