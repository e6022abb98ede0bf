// A change of data, target or task re-reads the whole form; any other change only its estimate. Neither shows during a press,
// which may be what leaves the field that was changed.
import { released } from "./pressing.js";

let asking = new AbortController();
const filledIn = (form) => new URLSearchParams(new FormData(form)).toString();
let asked = "";

async function reload(form) {
  await released();
  htmx.trigger(form, "reload");
}

document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.id === "run-form") asked = filledIn(event.target);
});

// What was typed since the form was sent is not in the answer.
document.addEventListener("htmx:beforeSwap", (event) => {
  const form = event.target;
  if (form.id !== "run-form" || !event.detail.shouldSwap || filledIn(form) === asked) return;
  event.detail.shouldSwap = false;
  reload(form);
});

async function estimate(form) {
  const told = document.getElementById("estimate");
  if (!told) return; // the page of fine-tuning has none
  asking.abort(); // an answer to an older state of the form must not come last
  asking = new AbortController();
  const { signal } = asking;
  const query = new URLSearchParams(new FormData(form));
  query.delete("csrfmiddlewaretoken");
  const address = `${form.getAttribute("hx-get")}?${query}`;
  try {
    const answer = await fetch(address, { headers: { "HX-Request": "true" }, signal });
    if (!answer.ok) return;
    const read = new DOMParser().parseFromString(await answer.text(), "text/html");
    await released();
    if (signal.aborted) return;
    told.textContent = read.getElementById("estimate").textContent;
  } catch (problem) {
    if (problem.name !== "AbortError") throw problem;
  }
}

document.addEventListener("change", (event) => {
  const form = event.target.closest("#run-form");
  if (!form) return;
  if ("reloads" in event.target.dataset) reload(form);
  else estimate(form);
});

document.addEventListener("click", (event) => {
  const preset = event.target.closest("#run-form button[data-fills]");
  if (!preset) return;
  const field = document.getElementById(preset.dataset.fills);
  field.value = JSON.stringify(JSON.parse(preset.dataset.value), null, 1);
  field.dispatchEvent(new Event("change", { bubbles: true }));
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("#run-form button[data-all], #run-form button[data-none]");
  if (button) estimate(button.form);
});

// A link to another form takes along what was filled in here.
document.addEventListener("click", (event) => {
  const link = event.target.closest("#run-form a[data-carries]");
  if (!link) return;
  const address = new URL(link.href);
  for (const [name, value] of new FormData(link.closest("form"))) {
    if (value !== "" && name !== "csrfmiddlewaretoken") address.searchParams.append(name, value);
  }
  link.href = address;
});
