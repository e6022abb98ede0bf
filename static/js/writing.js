// The form that tries a language model: its answer appears while it is being written.
let writing = new AbortController();

async function write(form) {
  writing.abort(); // one answer at a time
  writing = new AbortController();
  const shown = form.querySelector("[data-written]");
  const prompt = form.querySelector("textarea, input[type=text]").value;
  shown.hidden = false;
  shown.textContent = prompt;
  const answer = await fetch(form.dataset.writes, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRFToken": new FormData(form).get("csrfmiddlewaretoken") },
    body: JSON.stringify({ prompt }),
    signal: writing.signal,
  });
  if (!answer.ok) {
    const problem = await answer.json();
    shown.textContent = problem.errors.map((error) => error.detail).join(" ");
    return;
  }
  let rest = "";
  for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
    const events = (rest + chunk).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const told = JSON.parse(event.slice("data: ".length));
      if (told.text) shown.append(told.text);
      if (told.error) shown.append(` – ${told.error}`);
    }
  }
}

document.addEventListener(
  "submit",
  (event) => {
    const form = event.target.closest("form[data-writes]");
    if (!form) return;
    event.preventDefault();
    event.stopPropagation();
    write(form).catch((problem) => {
      if (problem.name !== "AbortError") form.querySelector("[data-written]").textContent = "The model cannot be asked now; try again.";
    });
  },
  true,
);
