// A table to search, sort, filter and choose from: adapters, runs, removed runs. Event: `pick`, {"ids": [...]}.
// The value: {label, columns: [{name, number, filter, minor}], rows: [{id, cells, sort, state}], most, empty, chosen}.
// Where `chosen` is a list, the page makes that the choice; else the visitor's own stays through every update.
const find = (selector) => element.querySelector(selector);
const group = `rows-${Math.random().toString(36).slice(2)}`; // radio buttons of one table know each other by it
const search = find(".rows-search"), filters = find(".rows-filters"), head = find("thead tr"), body = find("tbody");
let chosen = new Set(), order = { column: -1, down: true }, columns = "";

const rowsOf = () => (props.value && props.value.rows) || [];
const several = () => props.value.most > 1;

function say() {
  const all = rowsOf().length, shown = body.children.length;
  const parts = [shown === all ? `${all}` : `${shown} of ${all}`];
  if (props.value.more) parts.push(`the newest of ${all + props.value.more}`);
  if (several() && chosen.size) parts.push(`${chosen.size} chosen` + (chosen.size >= props.value.most ? ", no more at once" : ""));
  find(".rows-count").textContent = all ? parts.join(" · ") : "";
}

function choose(id, on) {
  if (!several()) chosen.clear();
  if (on && chosen.size >= props.value.most) return draw();
  if (on) chosen.add(id); else chosen.delete(id);
  mark();
  trigger("pick", { ids: [...chosen] });
}

function mark() {
  for (const row of body.children) {
    const on = chosen.has(row.dataset.id), box = row.querySelector("input");
    box.checked = on;
    box.disabled = several() && !on && chosen.size >= props.value.most;
    row.classList.toggle("chosen", on);
  }
  say();
}

function passes(row) {
  const words = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const text = row.cells.join(" ").toLowerCase();
  const kept = [...filters.querySelectorAll("select")].every((s) => !s.value || row.cells[Number(s.dataset.column)] === s.value);
  return kept && words.every((word) => text.includes(word));
}

function line(row) {
  const node = document.createElement("tr"), first = document.createElement("td"), box = document.createElement("input");
  node.dataset.id = row.id;
  box.type = several() ? "checkbox" : "radio";
  box.name = group;
  box.setAttribute("aria-label", `Choose ${row.cells[0]}`);
  box.addEventListener("change", () => choose(row.id, box.checked));
  first.append(box);
  node.append(first);
  row.cells.forEach((text, i) => {
    const cell = document.createElement(i ? "td" : "th"), column = props.value.columns[i];
    if (!i) cell.scope = "row";
    cell.textContent = text;
    cell.className = [column.number ? "number" : "", column.minor ? "minor" : ""].join(" ").trim();
    if (column.state) cell.dataset.state = text;
    node.append(cell);
  });
  node.addEventListener("click", (event) => {
    if (event.target === box || String(getSelection())) return; // a text that is being marked is no choice
    if (!box.disabled) choose(row.id, several() ? !chosen.has(row.id) : true);
  });
  return node;
}

function draw() {
  const rows = rowsOf().filter(passes), { column, down } = order;
  const key = (row) => (row.sort && row.sort[column] !== undefined && row.sort[column] !== null ? row.sort[column] : row.cells[column]);
  if (column >= 0) {
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      const ahead = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      return down ? ahead : -ahead;
    });
  }
  const at = document.activeElement && body.contains(document.activeElement) ? document.activeElement.closest("tr").dataset.id : null;
  body.replaceChildren(...rows.map(line));
  mark();
  if (at) [...body.children].find((row) => row.dataset.id === at)?.querySelector("input").focus({ preventScroll: true });
  const empty = find(".rows-empty");
  empty.textContent = rowsOf().length ? "Nothing here passes the search." : props.value.empty;
  empty.hidden = body.children.length > 0;
  find(".rows-scroll").hidden = !body.children.length;
  find(".rows-tools").hidden = !rowsOf().length;
}

function heads() {
  head.replaceChildren(document.createElement("td"));
  props.value.columns.forEach((column, i) => {
    const cell = document.createElement("th"), button = document.createElement("button");
    cell.scope = "col";
    cell.className = [column.number ? "number" : "", column.minor ? "minor" : ""].join(" ").trim();
    button.type = "button";
    button.textContent = column.name;
    button.addEventListener("click", () => {
      order = { column: i, down: order.column === i ? !order.down : true };
      for (const other of head.querySelectorAll("th")) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", order.down ? "ascending" : "descending");
      draw();
    });
    cell.append(button);
    head.append(cell);
  });
}

function menus() {
  const before = Object.fromEntries([...filters.querySelectorAll("select")].map((s) => [s.dataset.column, s.value]));
  filters.replaceChildren();
  props.value.columns.forEach((column, i) => {
    if (!column.filter) return;
    const known = [...new Set(rowsOf().map((row) => row.cells[i]))].sort();
    const label = document.createElement("label"), menu = document.createElement("select");
    label.textContent = column.name;
    menu.dataset.column = i;
    menu.append(new Option("all", ""), ...known.map((text) => new Option(text, text)));
    menu.value = known.includes(before[i]) ? before[i] : "";
    menu.addEventListener("change", draw);
    label.append(menu);
    filters.append(label);
  });
}

function show() {
  if (!props.value || !props.value.columns) return;
  const { label, columns: now, chosen: wanted } = props.value;
  find("caption").textContent = label;
  find(".rows-scroll").setAttribute("aria-label", label);
  search.setAttribute("aria-label", `Search in: ${label}`);
  if (JSON.stringify(now) !== columns) { columns = JSON.stringify(now); heads(); }
  menus();
  const ids = new Set(rowsOf().map((row) => row.id));
  chosen = new Set([...(wanted || chosen)].filter((id) => ids.has(id)));
  draw();
}
search.addEventListener("input", draw);
watch("value", show);
show();
