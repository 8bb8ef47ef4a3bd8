"use strict";
// The tables are complete without this script; it lets a reader choose, sort, search, open and download.

const SHOWN_AT_FIRST = 100;
const FEW_TABLES = 4; // so many need no choice
const PRINTED = ["published", "reproduced", "differs", "unchecked"];
const GROUPS = {
  "identity": ["schema_version", "run_id", "cell_id", "created_utc", "kind", "block", "spec", "family", "seed", "estimated"],
  "input": ["batch", "channels", "height", "width", "dtype", "mode", "compiled"],
  "outcome": ["status", "reason", "error_type", "wall_s"],
  "options": ["options_json"],
  "protocol": ["task", "preset", "model", "dataset", "scoring", "first_weights", "train_iterations", "protocol_json", "extractor", "images_scored"],
  "environment": ["device_type", "device_name", "cpu", "threads", "torch", "cuda", "cudnn", "driver", "tf32", "python", "ctxbench_version", "git_commit", "git_dirty", "flags_json", "env_hash", "code_hash", "program_hash"],
};
const find = (selector, root = document) => [...root.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);

function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// Records: by columns, unpacked when they are first needed.

let unpacked = null;
function records() {
  unpacked ??= (async () => {
    const bytes = Uint8Array.from(atob(byId("records").textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  })();
  return unpacked;
}

function valueOf(column, number) {
  if ("all" in column) return column.all;
  return "each" in column ? column.each[number] : column.of[column.at[number]];
}

function recordOf(data, number) {
  return Object.fromEntries(Object.entries(data.columns).map(([name, column]) => [name, valueOf(column, number)]));
}

// Downloads. A spreadsheet must not take a text for a formula.

function csvCell(value) {
  if (value === null || value === undefined) return "";
  let text = typeof value === "boolean" ? (value ? "True" : "False") : String(value);
  if (typeof value === "string" && /^[=+\-@\t\r\n]/.test(text)) text = "'" + text;
  return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}

async function download(format) {
  const data = await records();
  const names = Object.keys(data.columns);
  const rows = Array.from({ length: data.count }, (_, number) => recordOf(data, number));
  const text = format === "json"
    ? JSON.stringify(rows, null, 1) + "\n"
    : [names, ...rows.map((row) => names.map((name) => row[name]))].map((cells) => cells.map(csvCell).join(",") + "\r\n").join("");
  const link = make("a", "", { download: document.body.dataset.name + "." + format });
  link.href = URL.createObjectURL(new Blob([text], { type: format === "json" ? "application/json" : "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// What a row opens to.

function pairs(record, names) {
  const list = make("dl");
  for (const name of names) {
    let value = record[name];
    if (value === null || value === undefined || value === "") continue;
    if (name.endsWith("_json")) {
      try { value = JSON.parse(value); } catch { /* shown as it is */ }
    }
    const prefix = names.length > 1 && name.endsWith("_ops_json") ? "not counted: " : "";
    const flat = value !== null && typeof value === "object" && !Array.isArray(value)
      ? Object.entries(value).map(([key, inner]) => [prefix + key, typeof inner === "object" ? JSON.stringify(inner) : String(inner)])
      : [[name, typeof value === "object" ? JSON.stringify(value) : String(value)]];
    for (const [key, text] of flat) {
      const pair = make("div", "", text.length > 40 ? { class: "long" } : {});
      pair.append(make("dt", key), make("dd", text));
      list.append(pair);
    }
  }
  return list;
}

function showRecord(place, record) {
  place.replaceChildren();
  const known = Object.values(GROUPS).flat();
  const rest = Object.keys(record).filter((name) => !known.includes(name) && name !== "command");
  for (const [title, names] of [...Object.entries(GROUPS).slice(0, 4), ["found", rest], ...Object.entries(GROUPS).slice(4)]) {
    const list = pairs(record, names);
    if (list.children.length) place.append(make("h4", title), list);
  }
  if (record.command) {
    const alone = record.kind === "profile" ? " (this block alone; compare blocks within one run)" : " (with the others of its run)";
    const copy = make("button", "Copy", { type: "button" });
    copy.addEventListener("click", () => navigator.clipboard?.writeText(record.command).then(() => { copy.textContent = "Copied"; }, () => {}));
    place.append(make("h4", "measure it again" + alone), make("pre", record.command), copy);
  }
}

async function detailOf(row) {
  const outer = make("td", "", { colspan: row.children.length });
  const cell = make("div", "", { class: "inside" });
  outer.append(cell);
  const data = await records();
  const found = row.dataset.records.split(",").map((number) => recordOf(data, Number(number)));
  const place = make("div");
  if (found.length > 1) {
    const which = make("div", "", { class: "which", role: "group", "aria-label": "records of this row" });
    for (const [index, record] of found.entries()) {
      const name = record.kind === "task" ? "seed " + record.seed : record.run_id;
      const choice = make("button", name, { type: "button", "aria-pressed": String(index === 0) });
      choice.addEventListener("click", () => {
        for (const other of which.children) other.setAttribute("aria-pressed", String(other === choice));
        showRecord(place, record);
      });
      which.append(choice);
    }
    cell.append(which);
  }
  showRecord(place, found[0]);
  cell.append(place);
  return outer;
}

// Tables: sorted by what the cells say; missing values always last.

function keyOf(text) {
  const number = parseFloat(text.replaceAll(",", ""));
  return /^[-+]?[\d.]/.test(text) && !Number.isNaN(number) ? number : text;
}

class Board {
  constructor(section) {
    this.section = section;
    this.table = section.querySelector("table");
    this.body = this.table.tBodies[0];
    this.rows = [...this.body.rows];
    this.texts = this.rows.map((row) => row.textContent.toLowerCase());
    this.order = this.rows.map((_, index) => index);
    this.all = this.rows.length <= SHOWN_AT_FIRST;
    this.details = new Map(); // of the rows that are open
    this.matching = this.order;
    find("thead th", this.table).forEach((head, column) => {
      const button = make("button", head.textContent, { type: "button" });
      head.replaceChildren(button);
      button.addEventListener("click", () => this.sort(head, column));
    });
    for (const row of this.rows) {
      if (!row.dataset.records) continue;
      const name = row.querySelector(".name");
      const button = make("button", name.textContent, { type: "button", "aria-expanded": "false" });
      button.addEventListener("click", () => this.toggle(row, button));
      name.replaceChildren(button);
    }
    this.more = make("button", "", { type: "button", class: "more" });
    this.more.addEventListener("click", () => { this.all = true; this.show(); });
    this.table.parentElement.after(this.more);
    this.show();
  }

  sort(head, column) {
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of find("thead th", this.table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const keys = this.rows.map((row) => row.cells[column].textContent).map((text) => (text === "–" || text === "" ? null : keyOf(text)));
    const sign = descending ? -1 : 1;
    const compare = (one, other) => {
      if (one === null || other === null) return (one === null) - (other === null);
      if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
      return sign * (typeof one === "number" ? one - other : one.localeCompare(other));
    };
    this.order = this.rows.map((_, index) => index).sort((a, b) => compare(keys[a], keys[b]) || a - b);
    this.show();
  }

  filter(words, state) {
    const fits = (index) => {
      const kind = this.rows[index].dataset.kind ?? "";
      return words.every((word) => this.texts[index].includes(word))
        && (!state || (state === "measured" ? !PRINTED.includes(kind) : state === "published" ? PRINTED.includes(kind) : kind === state));
    };
    this.fits = words.length || state ? fits : null;
    this.show();
    return this.matching.length;
  }

  show() {
    this.matching = this.fits ? this.order.filter(this.fits) : this.order;
    const shown = this.all ? this.matching : this.matching.slice(0, SHOWN_AT_FIRST);
    this.body.replaceChildren(...shown.flatMap((index) => {
      const row = this.rows[index];
      return this.details.has(row) ? [row, this.details.get(row)] : [row];
    }));
    this.more.hidden = shown.length === this.matching.length;
    this.more.textContent = "Show all " + this.matching.length.toLocaleString("en") + " rows";
  }

  async toggle(row, button) {
    const open = this.details.has(row);
    button.setAttribute("aria-expanded", String(!open));
    if (open) {
      this.details.get(row).remove();
      this.details.delete(row);
      return;
    }
    const detail = make("tr", "", { class: "detail" });
    this.details.set(row, detail);
    detail.replaceChildren(await detailOf(row));
    if (this.details.get(row) === detail && row.isConnected) row.after(detail);
  }

  // Each within its own run; as they were written for the baseline that they were written for.
  relate(baseline, initial) {
    if (!("ratio" in this.table.dataset)) return;
    const column = Number(this.table.dataset.ratio);
    this.written ??= this.rows.map((row) => row.cells[column].textContent);
    const name = (row) => row.querySelector(".name").textContent;
    const units = new Map();
    for (const row of this.rows) if (name(row) === baseline && row.dataset.cost) units.set(row.dataset.run, Number(row.dataset.cost));
    const head = this.table.tHead.rows[0].cells[column].querySelector("button");
    this.title ??= head.textContent;
    head.textContent = baseline === initial ? this.title : this.title.slice(0, this.title.indexOf(" / ")) + " / " + baseline;
    this.rows.forEach((row, index) => {
      const ratio = Number(row.dataset.cost) / units.get(row.dataset.run);
      const text = row.dataset.cost && ratio ? String(Number(ratio.toPrecision(3))) : "–";
      row.cells[column].textContent = baseline === initial ? this.written[index] : text;
    });
  }
}

// The choice of tables.

function start() {
  const boards = find(".board").map((section) => new Board(section));
  const choices = find("select[data-facet]");
  const faceted = boards.filter((board) => Object.keys(board.section.dataset).length);

  function fits(board, wanted) {
    return Object.entries(wanted).every(([name, value]) => !value || !(name in board.section.dataset) || board.section.dataset[name] === value);
  }

  function chosen() {
    return Object.fromEntries(choices.map((select) => [select.dataset.facet, select.value]));
  }

  function apply() {
    const words = [...byId("search").value.toLowerCase().matchAll(/"([^"]+)"|[^\s"]+/g)].map((found) => found[1] ?? found[0]);
    const state = byId("states").value;
    let tables = 0, rows = 0;
    for (const board of boards) {
      const matching = fits(board, chosen()) ? board.filter(words, state) : 0;
      const visible = fits(board, chosen()) && (matching > 0 || (!words.length && !state));
      board.section.hidden = !visible;
      if (visible) { tables += 1; rows += matching; }
    }
    for (const part of find(".part")) {
      const inside = find(".board", part);
      const nothing = part.querySelector(".nothing");
      if (nothing && inside.length) nothing.hidden = inside.some((board) => !board.hidden);
    }
    remember();
    byId("told").textContent = tables + (tables === 1 ? " table, " : " tables, ") + rows.toLocaleString("en") + (rows === 1 ? " row" : " rows");
  }

  // A choice that no table fits takes others along, as few as can be: those of the table that is most like it.
  function choose(changed) {
    const sized = faceted.filter((board) => "resolution" in board.section.dataset);
    if (changed.value && !sized.some((board) => fits(board, chosen()))) {
      const wanted = chosen();
      const alike = (board) => choices.filter((select) => board.section.dataset[select.dataset.facet] === wanted[select.dataset.facet]).length;
      const able = sized.filter((board) => board.section.dataset[changed.dataset.facet] === changed.value);
      const like = able.reduce((best, board) => (best && alike(best) >= alike(board) ? best : board), null);
      for (const select of choices) {
        const value = like?.section.dataset[select.dataset.facet];
        if (select !== changed && select.value && value) select.value = value;
      }
    }
    apply();
  }

  // The choice stands in the address, so that it can be handed on.
  function remember() {
    const told = Object.entries({ ...chosen(), rows: byId("states").value, search: byId("search").value }).filter(([, value]) => value);
    history.replaceState(null, "", "#" + new URLSearchParams(told));
  }

  function recall() {
    const told = new URLSearchParams(location.hash.slice(1));
    if (![...told].length) return;
    for (const select of choices) select.value = told.get(select.dataset.facet) ?? "";
    byId("states").value = told.get("rows") ?? "";
    byId("search").value = told.get("search") ?? "";
  }

  for (const select of choices) select.addEventListener("change", () => choose(select));
  byId("states").addEventListener("change", apply);
  byId("search").addEventListener("input", apply);
  const initial = byId("baseline")?.value;
  byId("baseline")?.addEventListener("change", (event) => boards.forEach((board) => { board.relate(event.target.value, initial); }));
  byId("csv")?.addEventListener("click", () => download("csv"));
  byId("json")?.addEventListener("click", () => download("json"));
  byId("tools").addEventListener("submit", (event) => event.preventDefault());

  const sized = faceted.filter((board) => "resolution" in board.section.dataset);
  if (sized.length > FEW_TABLES) {
    const measured = sized.filter((board) => board.section.dataset.machine !== "estimated");
    const first = (measured.length ? measured : sized).at(-1).section.dataset;
    const best = (measured.length ? measured : sized).findLast((board) => ["machine", "input", "precision"].every((name) => board.section.dataset[name] === first[name]) && board.section.dataset.mode === "inference");
    for (const select of choices) select.value = (best?.section.dataset ?? first)[select.dataset.facet] ?? "";
  }
  recall();
  byId("tools").hidden = false;
  apply();
  addEventListener("beforeprint", () => { for (const board of boards) { board.all = true; board.show(); } });
}

start();
