// The matrix of a sweep: a row a task and arm, a column an n, a cell its trials; and the trials of the cell that was picked.
// Buttons are kept between polls, so the focus stays. One cell is in the order of tabs; arrow keys lead to the others.
const box = $(".matrix-box");
const below = $(".trials");
let shape = "";
let buttons = [];
let told = "";

const node = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(name, value);
  made.append(...children);
  return made;
};
const percent = (share) => (100 * share).toFixed(1);
const n = (column) => (column === "all" ? "every n that a puzzle has" : `n ${column}`);

function build(matrix) {
  const head = node("tr", {}, node("th", { scope: "col", class: "arm" }, "arm"),
    ...matrix.columns.map((column) => node("th", { scope: "col", class: "number" }, column === "all" ? "all n" : `n ${column}`)));
  buttons = [];
  const groups = [];
  let before = null;
  matrix.rows.forEach(([task, arm, kind], i) => {
    if (task !== before) { // a line of its own, whose words stay in sight when a narrow screen scrolls to the larger n
      const name = node("th", { scope: "rowgroup", colspan: matrix.columns.length + 1, class: "task" }, node("span", {}, task));
      groups.push(node("tbody", {}, node("tr", {}, name)));
      before = task;
    }
    const line = node("tr", { "data-kind": kind });
    line.append(node("th", { scope: "row", class: "arm" }, node("i", { "aria-hidden": "true" }), arm));
    buttons.push(matrix.columns.map((column, j) => {
      const place = node("td");
      line.append(place);
      if (!matrix.cells[i][j]) return null;
      const button = node("button", { type: "button", tabindex: "-1" }, node("b"), node("span", { class: "count" }), node("span", { class: "marks" }));
      button.addEventListener("click", () => { enter(button); trigger("pick", { row: matrix.rows[i], column }); });
      button.addEventListener("keydown", (event) => walk(event, i, j));
      place.append(button);
      return button;
    }));
    groups[groups.length - 1].append(line);
  });
  const about = node("p", { class: "matrix-about" }, "Mean exact match in %, and trials done of those planned. ▸ running, ✕ failed. A cell shows its trials; arrow keys move.");
  const table = node("table", {}, node("thead", {}, head), ...groups);
  box.replaceChildren(about, node("div", { class: "matrix-scroll", role: "region", "aria-label": "Matrix of trials", tabindex: "0" }, table));
  const first = buttons.flat().find(Boolean);
  if (first) first.tabIndex = 0;
}

function enter(button) {
  for (const other of buttons.flat()) if (other) other.tabIndex = -1;
  button.tabIndex = 0;
}

function walk(event, i, j) {
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  const row = buttons[i].map((button, k) => (button ? k : -1)).filter((k) => k >= 0);
  let to = null;
  if (event.key === "Home") to = buttons[i][row[0]];
  else if (event.key === "End") to = buttons[i][row[row.length - 1]];
  else if (steps[event.key]) {
    const [down, right] = steps[event.key];
    for (let a = i + down, b = j + right; buttons[a] && b >= 0 && b < buttons[a].length; a += down, b += right)
      if (buttons[a][b]) { to = buttons[a][b]; break; }
  } else return;
  event.preventDefault();
  if (to) { enter(to); to.focus(); }
}

function fill(matrix, cell) {
  const picked = cell ? JSON.stringify([cell.row, cell.column]) : "";
  buttons.forEach((row, i) => row.forEach((button, j) => {
    if (!button) return;
    const [done, all, mean, failed, running] = matrix.cells[i][j];
    const state = JSON.stringify(matrix.cells[i][j]);
    const current = JSON.stringify([matrix.rows[i], matrix.columns[j]]) === picked;
    if (current) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
    if (button.dataset.state === state) return;
    button.dataset.state = state;
    button.children[0].textContent = mean === null ? "–" : percent(mean);
    button.children[1].textContent = `${done}/${all}`;
    button.children[2].textContent = [running ? `▸${running}` : "", failed ? `✕${failed}` : ""].join(" ").trim();
    button.style.setProperty("--share", mean === null ? 0 : mean);
    button.classList.toggle("none", mean === null);
    button.classList.toggle("failed", failed > 0);
    const [task, arm] = matrix.rows[i];
    button.setAttribute("aria-label", `${task}, ${arm}, ${n(matrix.columns[j])}: ${done} of ${all} trials done`
      + (mean === null ? "" : `, mean exact match ${percent(mean)} %`) + (running ? `, ${running} running` : "") + (failed ? `, ${failed} failed` : ""));
  }));
}

function trials(cell) {
  const text = JSON.stringify(cell || null);
  if (text === told) return;
  told = text;
  if (!cell) {
    below.replaceChildren();
    return;
  }
  const open = new Set([...below.querySelectorAll("details[open]")].map((node) => node.dataset.id));
  const focus = document.activeElement && below.contains(document.activeElement) ? document.activeElement.dataset.id : null;
  const columns = [...(cell.many ? ["puzzle", "n"] : []), "seed", "state", "exact, %", "right, %", "time", "machine", "commit", ""];
  const lines = cell.trials.map((trial) => {
    const answers = trial.state === "done";
    const view = node("button", { type: "button", "data-id": trial.id, "aria-label": `Open seed ${trial.seed} of ${trial.task} in Compare` }, "Open in Compare");
    view.addEventListener("click", () => trigger("open", { id: trial.id }));
    const values = [...(cell.many ? [trial.task.split("/").pop(), trial.n] : []), trial.seed, null,
      trial.exact === null ? "–" : percent(trial.exact), trial.right === null ? "–" : percent(trial.right),
      trial.time || "–", trial.host || "–", trial.commit || "–"];
    const line = node("tr", {}, ...values.map((value) => node("td", {}, value === null
      ? node("span", { class: "state", "data-state": trial.state }, (trial.state === "failed" || trial.state === "damaged" ? "✕ " : trial.state === "running" ? "▸ " : "") + trial.state)
      : String(value))), node("td", {}, answers ? view : ""));
    if (!trial.note && !trial.log) return [line];
    const more = node("td", { colspan: columns.length, class: "why" }, trial.note);
    if (trial.log) {
      const log = node("details", { "data-id": trial.id }, node("summary", {}, "End of its log"), node("pre", { tabindex: "0" }, trial.log));
      log.open = open.has(trial.id);
      more.append(log);
    }
    return [line, node("tr", { class: "under" }, more)];
  });
  const table = node("table", {}, node("thead", {}, node("tr", {}, ...columns.map((name) => node("th", { scope: "col" }, name || node("span", { class: "hidden" }, "open"))))),
    node("tbody", {}, ...lines.flat()));
  below.replaceChildren(node("h3", {}, cell.about), node("div", { class: "trials-scroll", role: "region", "aria-label": "Trials of the cell", tabindex: "0" }, table),
    ...(cell.more ? [node("p", { class: "more" }, `${cell.more} more trials are not shown here; vdmreason sweep status names them.`)] : []));
  if (focus) below.querySelector(`button[data-id="${focus}"]`)?.focus();
}

function show() {
  const value = given();
  if (!value) {
    shape = told = "";
    box.replaceChildren();
    below.replaceChildren();
    return;
  }
  const wanted = JSON.stringify([value.matrix.name, value.matrix.rows, value.matrix.columns, value.matrix.cells.map((row) => row.map(Boolean))]);
  if (wanted !== shape) {
    shape = wanted;
    build(value.matrix);
  }
  fill(value.matrix, value.cell);
  trials(value.cell);
}
watch("value", show);
show();
