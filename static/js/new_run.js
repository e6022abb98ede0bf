// A change of data, target or size re-reads the form: its columns, its suggestions, its estimate.
document.addEventListener("change", (event) => {
  if ("reloads" in event.target.dataset) htmx.trigger("#run-form", "reload");
});
