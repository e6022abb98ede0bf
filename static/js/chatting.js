// The form that talks to a language model: each answer appears while it is being written, and what was said stays in the page.
import { pieces, sentence } from "./streaming.js";

let answering = new AbortController();

function turn(form, role, text) {
  const item = document.createElement("li");
  item.className = `turn ${role}`;
  const who = document.createElement("span");
  who.className = "help";
  who.textContent = role === "user" ? "You" : "Model";
  const said = document.createElement("p");
  said.className = "written";
  said.textContent = text;
  item.append(who, said);
  form.querySelector("[data-turns]").append(item);
  item.scrollIntoView({ block: "nearest" });
  return item;
}

function tell(form, problem) {
  const shown = form.querySelector("[data-problem]");
  shown.hidden = !problem;
  shown.textContent = problem;
}

function asked(form, messages) {
  const { system, max_tokens: most, temperature, key } = form.elements;
  const first = system.value.trim() ? [{ role: "system", content: system.value }] : [];
  return {
    messages: [...first, ...messages],
    ...(most.value && { max_tokens: Number(most.value) }),
    ...(temperature.value && { temperature: Number(temperature.value) }),
    ...(key?.value.trim() && { key: key.value.trim() }),
  };
}

async function send(form) {
  const { history, message } = form.elements;
  const text = message.value;
  if (!text.trim()) return message.focus();
  answering.abort(); // one answer at a time
  const mine = (answering = new AbortController());
  tell(form, "");
  const before = JSON.parse(history.value || "[]");
  const messages = [...before, { role: "user", content: text }];
  const question = turn(form, "user", text);
  const answer = turn(form, "assistant", "");
  const said = answer.querySelector(".written");
  answer.setAttribute("aria-busy", "true");
  message.value = "";
  try {
    for await (const piece of pieces(form.dataset.chats, form, asked(form, messages), mine.signal)) said.append(piece);
    history.value = JSON.stringify([...messages, { role: "assistant", content: said.textContent }]);
  } catch (problem) {
    question.remove();
    answer.remove();
    if (problem.name === "AbortError") return;
    if (!message.value) message.value = text; // nothing that was written is lost
    tell(form, sentence(problem));
  } finally {
    answer.removeAttribute("aria-busy");
  }
}

function startOver(form) {
  answering.abort();
  form.elements.history.value = "";
  form.querySelector("[data-turns]").replaceChildren();
  tell(form, "");
  form.elements.message.focus();
}

document.addEventListener("submit", (event) => {
  const form = event.target.closest("form[data-chats]");
  if (!form) return;
  event.preventDefault();
  if (event.submitter?.hasAttribute("data-starts-over")) startOver(form);
  else send(form);
});

document.addEventListener("keydown", (event) => {
  const form = event.target.closest("form[data-chats]");
  if (!form || event.target.name !== "message" || event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
