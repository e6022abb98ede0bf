// Whether a button of the pointer is held down: what is replaced or moves under it loses its click.
let held = false;
let release = () => {};
let wait = Promise.resolve();

export const pressed = () => held;

// Resolves behind the click that ends the press; at once where nothing is pressed.
export const released = () => wait;

document.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return; // behind the menu of the right one nothing ends
  release(); // of a press whose end nobody told
  held = true;
  wait = new Promise((resolve) => (release = resolve));
}, true);

function end() {
  held = false;
  setTimeout(release); // the click comes next
}

for (const name of ["pointerup", "pointercancel"]) document.addEventListener(name, end, true);
addEventListener("blur", end);
// A list of choices, or another window, may have had the end of the press.
document.addEventListener("pointermove", (event) => {
  if (held && !event.buttons) end();
}, true);
