// Keys of the queue: j and k move, Enter opens, f, g and a are sent to the server with the case that is chosen.
"use strict";

const QUEUE_KEYS = new Set(["j", "k", "f", "g", "a", "p", "Enter"]);

function queueGrid() {
  const element = document.querySelector(".queue-grid");
  return element ? getElement(Number(element.id.slice(1)))?.api : undefined;
}

function chosenRow(api) {
  return api.getSelectedNodes()[0];
}

function choose(api, step) {
  const chosen = chosenRow(api);
  const place = chosen ? Math.min(Math.max(chosen.rowIndex + step, 0), api.getDisplayedRowCount() - 1) : 0;
  const row = api.getDisplayedRowAtIndex(place);
  if (!row) return;
  row.setSelected(true, true);
  api.ensureIndexVisible(place);
  api.setFocusedCell(place, "score");
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input, textarea, select, [contenteditable=true]");
  const api = queueGrid();
  if (!api || typing) {
    if (typing && event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "/") {
    event.preventDefault();
    document.querySelector(".queue-search input")?.focus();
    return;
  }
  if (!QUEUE_KEYS.has(event.key)) return;
  if (event.key === "Enter" && event.target.closest("button, a")) return;
  event.preventDefault();
  if (event.key === "j" || event.key === "k") {
    choose(api, event.key === "j" ? 1 : -1);
    return;
  }
  const row = chosenRow(api);
  if (row || event.key === "p") emitEvent("queue_key", { key: event.key, id: row ? row.id : "" });
});
