// The form that tries a language model: its answer appears while it is being written.
import { pieces, sentence } from "./streaming.js";

let writing = new AbortController();

async function write(form) {
  writing.abort(); // one answer at a time
  writing = new AbortController();
  const shown = form.querySelector("[data-written]");
  const prompt = form.querySelector("textarea").value;
  const key = form.elements.key?.value.trim();
  shown.hidden = false;
  shown.textContent = prompt;
  for await (const piece of pieces(form.dataset.writes, form, { prompt, ...(key && { key }) }, writing.signal)) shown.append(piece);
}

document.addEventListener(
  "submit",
  (event) => {
    const form = event.target.closest("form[data-writes]");
    if (!form) return;
    event.preventDefault();
    event.stopPropagation();
    write(form).catch((problem) => {
      if (problem.name !== "AbortError") form.querySelector("[data-written]").append(` – ${sentence(problem)}`);
    });
  },
  true,
);
