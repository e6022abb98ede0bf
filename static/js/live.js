// Lists stay current: a hint about the organization becomes a page event that htmx parts listen to.
import { follow } from "./socket.js";

const GATHER = 400; // milliseconds in which hints of one kind become one refresh
const timers = {};

function refresh(kind) {
  clearTimeout(timers[kind]);
  timers[kind] = setTimeout(() => document.body.dispatchEvent(new CustomEvent(`live-${kind}`)), GATHER);
}

const slug = document.body.dataset.organization;
if (slug && document.querySelector("[data-live]")) {
  let dropped = false;
  const kinds = () => new Set([...document.querySelectorAll("[data-live]")].flatMap((one) => one.dataset.live.split(" ")));
  follow(() => `/ws/organizations/${slug}`, (hint) => refresh(hint.kind), {
    onStatus(status) {
      if (status === "open" && dropped) kinds().forEach(refresh); // hints were missed while away
      dropped = status !== "open";
    },
  });
}
