// Ticks of the list of runs survive its refresh.
const chosen = new Set();

function show() {
  const words = document.getElementById("chosen");
  if (words) words.textContent = chosen.size ? `${chosen.size} run${chosen.size > 1 ? "s" : ""} chosen` : "Tick runs to compare them.";
  const button = document.getElementById("compare");
  if (button) button.disabled = chosen.size < 1;
}

document.addEventListener("change", (event) => {
  if (event.target.name !== "run") return;
  if (event.target.checked) chosen.add(event.target.value);
  else chosen.delete(event.target.value);
  show();
});

function restore() {
  for (const box of document.querySelectorAll("input[name=run]")) {
    if (box.checked) chosen.add(box.value);
    box.checked = chosen.has(box.value);
  }
  show();
}

document.addEventListener("htmx:load", restore);
restore();
