// A change of data, target or task re-reads the whole form; any other change only its estimate, because replacing
// the form while somebody presses its button would lose the press.
document.addEventListener("change", (event) => {
  const form = event.target.closest("#run-form");
  if (!form) return;
  if ("reloads" in event.target.dataset) {
    htmx.trigger(form, "reload");
    return;
  }
  const query = new URLSearchParams(new FormData(form));
  query.delete("csrfmiddlewaretoken");
  htmx.ajax("GET", `${form.getAttribute("hx-get")}?${query}`, { target: "#estimate", select: "#estimate", swap: "outerHTML" });
});
