// Uploads a file as it is, with progress and a way to stop it; then goes to the page that follows its reading.
import { csrfToken } from "./platform.js";
import { receiveDrops, sentences, showErrors, size } from "./transfer.js";

const form = document.getElementById("upload");
const file = document.getElementById("file");
const drop = document.getElementById("drop");
const errors = document.getElementById("upload-errors");
const start = document.getElementById("upload-start");
const cancel = document.getElementById("upload-cancel");
const progress = document.getElementById("upload-progress");
const bar = document.getElementById("upload-bar");
const words = document.getElementById("upload-words");
const name = form.elements.name;
let request = null;
let dataset = form.dataset.dataset;

function chosen() {
  const one = file.files[0];
  document.getElementById("file-words").textContent = one ? `${one.name}, ${size(one.size)}` : "";
  if (one && name && !name.value) name.value = one.name.replace(/(\.(csv|tsv|txt|ndjson|jsonl|json|parquet|gz|zip|tar|tgz|zst))+$/i, "").slice(0, 120);
}

function fail(lines) {
  showErrors(errors, lines);
  busy(false);
}

function busy(on) {
  start.disabled = on;
  cancel.hidden = !on;
  progress.hidden = !on;
}

async function makeDataset() {
  const body = { name: name.value.trim(), description: form.elements.description.value, organization: form.dataset.organization };
  const answer = await fetch(form.dataset.api, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRFToken": csrfToken() },
    body: JSON.stringify(body),
  });
  const made = await answer.json();
  if (!answer.ok) throw sentences(made, answer.status);
  return made.id;
}

function send(one) {
  return new Promise((resolve, reject) => {
    request = new XMLHttpRequest();
    request.open("POST", `${form.dataset.api}/${dataset}/versions?filename=${encodeURIComponent(one.name)}`);
    request.setRequestHeader("Content-Type", one.type || "application/octet-stream");
    request.setRequestHeader("X-CSRFToken", csrfToken());
    request.responseType = "json";
    const begun = performance.now();
    request.upload.onprogress = (event) => {
      bar.value = event.loaded / event.total;
      const speed = event.loaded / ((performance.now() - begun) / 1000);
      words.textContent = `${size(event.loaded)} of ${size(event.total)}, ${size(Math.round(speed))}/s`;
    };
    request.onload = () => (request.status < 300 ? resolve(request.response) : reject(sentences(request.response, request.status)));
    request.onerror = () => reject(["The connection broke. Try again; nothing was kept of this attempt."]);
    request.onabort = () => reject(["Cancelled. Nothing was kept."]);
    request.send(one);
  });
}

async function upload(event) {
  event.preventDefault();
  errors.replaceChildren();
  const one = file.files[0];
  if (!one) return fail(["Choose a file first."]);
  if (one.size > Number(form.dataset.limit)) return fail([`The file has ${size(one.size)}; the limit is ${size(Number(form.dataset.limit))}.`]);
  if (name && !name.value.trim()) return fail(["Give the dataset a name."]);
  busy(true);
  try {
    dataset ||= await makeDataset();
    const version = await send(one);
    location.assign(`/datasets/${dataset}/?version=${version.number}`);
  } catch (problem) {
    fail(Array.isArray(problem) ? problem : [String(problem.message ?? problem)]);
  }
}

form.addEventListener("submit", upload);
file.addEventListener("change", chosen);
cancel.addEventListener("click", () => request?.abort());
receiveDrops(drop, (files) => {
  file.files = files;
  chosen();
});
