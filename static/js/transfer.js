// What pages that send files share: sizes in words, errors of the API as sentences, a place to drop files.

export function size(bytes) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let at = 0;
  for (; bytes >= 1024 && at < units.length - 1; at += 1) bytes /= 1024;
  return `${at ? bytes.toFixed(1) : Math.round(bytes)} ${units[at]}`;
}

export function sentences(answer, status) {
  const found = answer?.errors?.map(({ attr, detail }) => (attr && attr !== "file" ? `${attr}: ${detail}` : detail));
  return found?.length ? found : [`The platform answered with an error (${status}). Try again.`];
}

export function showErrors(place, lines) {
  place.replaceChildren(...[].concat(lines).map((line) => {
    const one = document.createElement("p");
    one.textContent = line;
    return one;
  }));
  place.scrollIntoView({ block: "nearest" });
}

export function receiveDrops(drop, take) {
  for (const type of ["dragenter", "dragover"]) {
    drop.addEventListener(type, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  for (const type of ["dragleave", "drop"]) drop.addEventListener(type, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  });
}
