// Texts of language models while they are being written.

/** The pieces of a text that the address writes for a form's person. Throws an Error with a sentence for them. */
export async function* pieces(address, form, asked, signal) {
  const answer = await fetch(address, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRFToken": new FormData(form).get("csrfmiddlewaretoken") },
    body: JSON.stringify(asked),
    signal,
  });
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({ errors: [] }));
    throw new Error(problem.errors.map((error) => error.detail).join(" ") || "The model cannot be asked now; try again.");
  }
  let rest = "";
  for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
    const events = (rest + chunk).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const told = JSON.parse(event.slice("data: ".length));
      if (told.text) yield told.text;
      if (told.error) throw new Error(told.error);
    }
  }
}

/** What goes wrong, in words: a connection that breaks has none of its own. */
export function sentence(problem) {
  return problem instanceof TypeError ? "The model cannot be asked now; try again." : problem.message;
}
