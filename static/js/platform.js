// What every page needs: theme, menu, dialogs, copy buttons, messages, and htmx with CSRF and clear errors.
import { pressed, released } from "./pressing.js";

const root = document.documentElement;

export function csrfToken() {
  return document.querySelector('meta[name="csrf-token"]')?.content ?? "";
}

export function flash(text, level = "error") {
  const list = document.getElementById("flashes");
  if (!list) return;
  const line = document.createElement("div");
  line.className = `flash ${level}`;
  const words = document.createElement("span");
  words.textContent = text;
  const close = document.createElement("button");
  close.type = "button";
  close.className = "button small plain";
  close.dataset.dismiss = "";
  close.textContent = "Dismiss";
  line.append(words, close);
  list.append(line);
}

function darkNow() {
  const chosen = root.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function toggleTheme() {
  root.dataset.theme = darkNow() ? "light" : "dark";
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch {
    // The choice then lasts as long as this page.
  }
}

function toggleMenu(button) {
  const side = button.closest(".side");
  const open = side.toggleAttribute("data-open");
  button.setAttribute("aria-expanded", String(open));
}

async function copy(button) {
  const source = document.getElementById(button.dataset.copies);
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(source);
    button.textContent = "Press Ctrl+C";
  }
}

const clicks = {
  theme: toggleTheme,
  menu: toggleMenu,
  opens: (button) => document.getElementById(button.dataset.opens)?.showModal(),
  closes: (button) => button.closest("dialog")?.close(),
  copies: copy,
  dismiss: (button) => button.closest(".flash")?.remove(),
  all: (button) => checkAll(button, true),
  none: (button) => checkAll(button, false),
};

function checkAll(button, value) {
  for (const box of document.querySelectorAll(`input[type=checkbox][name="${button.dataset.all || button.dataset.none}"]`)) {
    box.checked = value;
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button, a[data-opens]");
  if (!button || (button.href && (event.ctrlKey || event.metaKey || event.shiftKey))) return;
  if (button.href) event.preventDefault(); // without scripts it leads to a page that does the same
  for (const [name, act] of Object.entries(clicks)) {
    if (name in button.dataset) act(button);
  }
});

document.addEventListener("change", (event) => {
  if ("submits" in event.target.dataset) event.target.form.requestSubmit();
});

document.addEventListener("htmx:configRequest", (event) => {
  if (event.detail.verb !== "get") event.detail.headers["X-CSRFToken"] = csrfToken();
});

document.addEventListener("htmx:beforeSwap", (event) => {
  // The session ended: the answer is the sign-in page, which belongs in the window and not in a part of it.
  if (new URL(event.detail.xhr.responseURL || location.href).pathname === "/login") {
    event.preventDefault();
    location.reload();
  }
});

// A part that refreshes itself waits for the end of a press and of a dialog in it, and asks again, for its answer is old by then.
const openIn = (part) => part.querySelector("dialog[open]");
const waiting = new WeakSet();

async function left(part) {
  await released(); // the click may open a dialog
  const dialog = openIn(part);
  if (dialog) await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
}

document.addEventListener("htmx:beforeSwap", (event) => {
  const { target, requestConfig, shouldSwap } = event.detail;
  if (!shouldSwap || requestConfig.verb !== "get" || !(pressed() || openIn(target))) return;
  event.detail.shouldSwap = false;
  const { elt, path } = requestConfig;
  if (waiting.has(elt)) return;
  waiting.add(elt);
  left(target).then(() => {
    waiting.delete(elt);
    if (elt.isConnected) htmx.ajax("get", path, { source: elt, target });
  });
});

const sentences = {
  403: "You are not allowed to do this.",
  404: "This no longer exists.",
  429: "Too many requests; wait a moment.",
};

document.addEventListener("htmx:responseError", (event) => {
  const status = event.detail.xhr.status;
  flash(sentences[status] ?? `The platform answered with an error (${status}). Try again.`);
});
