// Only what the chosen method uses is shown and sent. What stands there with an error stays, so that it can be mended.
function show(form) {
  const method = form.elements.method.value;
  for (const group of form.querySelectorAll("[data-methods]")) {
    const used = group.dataset.methods.split(" ").includes(method) || group.querySelector(".errors") !== null;
    group.hidden = !used;
    group.disabled = !used;
  }
}

for (const group of document.querySelectorAll("[data-methods]")) show(group.form);

document.addEventListener("change", (event) => {
  if (event.target.name === "method" && event.target.form?.querySelector("[data-methods]")) show(event.target.form);
});
