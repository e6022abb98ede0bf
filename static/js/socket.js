// A WebSocket that comes back: backs off, asks again from the last sequence number that was seen.

const FIRST_WAIT = 500;
const LONGEST_WAIT = 15000;
const FINAL_CODES = new Set([4401, 4403, 4404, 1008]); // refused: asking again would not help

export function follow(address, onMessage, { onStatus = () => {} } = {}) {
  let wait = FIRST_WAIT;
  let socket = null;
  let stopped = false;
  let timer = 0;

  function connect() {
    const url = new URL(address(), location.href);
    url.protocol = url.protocol.replace("http", "ws");
    socket = new WebSocket(url);
    socket.onopen = () => onStatus("open");
    socket.onmessage = (event) => {
      wait = FIRST_WAIT;
      onMessage(JSON.parse(event.data));
    };
    socket.onclose = (event) => {
      if (stopped) return;
      if (FINAL_CODES.has(event.code)) return onStatus("refused");
      onStatus("waiting");
      timer = setTimeout(connect, wait * (0.7 + Math.random() * 0.6));
      wait = Math.min(wait * 2, LONGEST_WAIT);
    };
  }

  connect();
  return () => {
    stopped = true;
    clearTimeout(timer);
    socket?.close();
  };
}
