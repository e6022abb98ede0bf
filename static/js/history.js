// The slider of "what stood when" sets the time field; the field's change event lets htmx fetch that time.
document.addEventListener("input", (event) => {
  const field = document.getElementById(event.target.dataset?.sets ?? "");
  if (field) field.value = new Date(Number(event.target.value) * 1000).toISOString().slice(0, 19);
});
document.addEventListener("change", (event) => {
  const field = document.getElementById(event.target.dataset?.sets ?? "");
  field?.dispatchEvent(new Event("change", { bubbles: true }));
});
