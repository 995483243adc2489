// Keys of the queue: j, k and arrows move, Enter opens, f, g, a and c are sent to the server with the chosen case.
// Keys of a case: all of CASE_KEYS are sent to the server, / goes to the note.
"use strict";

const QUEUE_KEYS = new Set(["j", "k", "f", "g", "a", "c", "p", "Enter"]);
const CASE_KEYS = new Set(["j", "k", "f", "g", "u", "a", "c"]);
const GRID_KEYS = new Set(["ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End", "Tab"]); // the grid's own
const followed = new WeakSet();
let lastPlace = 0; // of the chosen row, for when it goes

function queueGrid() {
  const element = document.querySelector(".queue-grid");
  const api = element ? getElement(Number(element.id.slice(1)))?.api : undefined;
  if (api && !followed.has(api)) {
    followed.add(api);
    lastPlace = 0;
    api.addEventListener("modelUpdated", () => keepFocus(api));
  }
  return api;
}

function chosenRow(api) {
  return api.getSelectedNodes()[0];
}

// Rows come and go above the chosen one. The grid leaves the focus at its place, and so on another row; a key would then
// be for a row that is not the one with the focus.
function keepFocus(api) {
  const row = chosenRow(api);
  if (!row || row.rowIndex === null || row.rowIndex === lastPlace) return;
  const place = lastPlace;
  lastPlace = row.rowIndex;
  const cell = api.getFocusedCell();
  if (!cell || cell.rowIndex !== place || !document.activeElement?.closest(".queue-grid")) return;
  const { top, bottom } = api.getVerticalPixelRange();
  const wasSeen = row.rowHeight * place >= top && row.rowHeight * place < bottom;
  if (wasSeen) api.ensureIndexVisible(row.rowIndex);
  api.setFocusedCell(row.rowIndex, cell.column);
}

function choose(api, step) {
  const chosen = chosenRow(api);
  const last = api.getDisplayedRowCount() - 1;
  const place = Math.min(Math.max(chosen ? chosen.rowIndex + step : lastPlace, 0), last);
  const row = api.getDisplayedRowAtIndex(place);
  if (!row) return;
  row.setSelected(true, true);
  lastPlace = place;
  api.ensureIndexVisible(place);
  api.setFocusedCell(place, api.getFocusedCell()?.column ?? "score");
}

// Where the grid's own keys have moved the focus, its row is the chosen one.
function chooseFocused(api) {
  const cell = api.getFocusedCell();
  const row = cell && !cell.rowPinned ? api.getDisplayedRowAtIndex(cell.rowIndex) : undefined;
  if (!row || !document.activeElement?.closest(".ag-row")) return;
  row.setSelected(true, true);
  lastPlace = cell.rowIndex;
}

document.addEventListener("focusin", () => queueGrid());

document.addEventListener("click", () => {
  const api = queueGrid();
  const row = api && chosenRow(api);
  if (row) lastPlace = row.rowIndex;
});

function pressOnCase(event) {
  if (event.key === "/") document.querySelector(".case-note input")?.focus();
  else if (CASE_KEYS.has(event.key) && !event.repeat) emitEvent("case_key", event.key);
  else return;
  event.preventDefault();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input, textarea, select, [contenteditable=true]");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (document.querySelector(".case-note")) {
    pressOnCase(event);
    return;
  }
  const api = queueGrid();
  if (!api) return;
  if (GRID_KEYS.has(event.key) && event.target.closest(".queue-grid")) {
    setTimeout(() => chooseFocused(api));
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
