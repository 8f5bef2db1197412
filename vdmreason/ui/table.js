// A table one can search, filter and sort, with a row to choose, rows to tick and actions on a row. Used three times in the
// Library. Rows are kept between updates, so a button keeps its focus; what is typed into the search stays.
const body = $("tbody"), rows = new Map(), chosen = {}, ticked = new Set();
let sorted = null; // {key, down}

function head() {
  const { columns, ticks, actions } = given();
  const cells = columns.map((column) => {
    const th = make("th"), button = make("button", column.label);
    th.scope = "col";
    th.setAttribute("role", "columnheader");
    if (column.number) th.className = "number";
    button.type = "button";
    button.addEventListener("click", () => {
      sorted = sorted && sorted.key === column.key ? (sorted.down ? { key: column.key, down: false } : null) : { key: column.key, down: true };
      order();
    });
    th.dataset.key = column.key;
    th.append(button);
    return th;
  });
  const silent = (words) => { const th = make("th"); th.scope = "col"; th.setAttribute("role", "columnheader"); th.append(make("span", words, "unseen")); return th; };
  if (ticks) { const th = make("th", "Compare", "plain"); th.scope = "col"; th.setAttribute("role", "columnheader"); cells.unshift(th); }
  if (actions.length) cells.push(silent("Actions"));
  $("thead tr").replaceChildren(...cells);
}

function filters() { // a menu for each column that has few values; made anew when the values change
  for (const { key, label } of given().filters) {
    const values = [...new Set(given().rows.map((row) => row.cells[key]))].filter(Boolean).sort();
    let select = $(`select[data-key="${key}"]`);
    if (!select) {
      const holder = make("label", label + " ");
      select = make("select");
      select.dataset.key = key;
      select.addEventListener("change", () => { chosen[key] = select.value; sift(); });
      holder.append(select);
      $(".sieve").insertBefore(holder, $(".count"));
    }
    if (chosen[key] && !values.includes(chosen[key])) chosen[key] = "";
    if (select.dataset.values === values.join("\n")) continue;
    select.dataset.values = values.join("\n");
    select.replaceChildren(...["", ...values].map((value) => { const option = make("option", value || "all"); option.value = value; return option; }));
    select.value = chosen[key] || "";
  }
}

function fill(item, row) {
  const { columns, ticks, actions, picks } = given();
  const focus = item.contains(document.activeElement) ? document.activeElement.dataset.role : null;
  const cells = columns.map((column, i) => {
    const cell = make(i ? "td" : "th");
    cell.setAttribute("role", i ? "cell" : "rowheader");
    if (!i) cell.scope = "row";
    cell.dataset.label = column.label;
    cell.dataset.key = column.key;
    if (column.number) cell.classList.add("number");
    const text = row.cells[column.key] ?? "";
    if (!text) cell.classList.add("none");
    if (!i && picks) {
      const button = make("button", undefined, "name"), at = text.lastIndexOf("/") + 1;
      if (at) button.append(make("small", text.slice(0, at)), document.createElement("br"));
      text.slice(at).split(/(?<=--)/).forEach((piece) => button.append(piece, make("wbr"))); // a line ends behind a "--"
      button.type = "button";
      button.dataset.role = "pick";
      cell.append(button);
    } else cell.append(make("span", text));
    if (row.titles && row.titles[column.key]) cell.title = row.titles[column.key];
    return cell;
  });
  if (ticks) {
    const cell = make("td", undefined, "tick"), holder = make("label"), box = make("input");
    cell.setAttribute("role", "cell");
    box.type = "checkbox";
    box.dataset.role = "tick";
    box.checked = ticked.has(row.id);
    box.setAttribute("aria-label", `Compare ${row.cells[columns[0].key]}`);
    box.addEventListener("change", () => {
      if (box.checked) ticked.add(row.id); else ticked.delete(row.id);
      limit();
      trigger("tick", { ids: [...ticked] });
    });
    holder.append(box);
    cell.append(holder);
    cells.unshift(cell);
  }
  if (actions.length) {
    const cell = make("td", undefined, "acts");
    cell.setAttribute("role", "cell");
    cell.append(...actions.map(([how, label, question]) => action(row, how, label, question)));
    cells.push(cell);
  }
  item.replaceChildren(...cells);
  if (focus) item.querySelector(`[data-role="${focus}"]`)?.focus();
}

function action(row, how, label, question) { // one with a question asks it in its own place, and acts on the second press
  const button = make("button", label), name = row.cells[given().columns[0].key];
  let asked = false;
  button.type = "button";
  button.dataset.role = how;
  button.disabled = Boolean(given().off);
  const say = (text) => { button.textContent = text; button.setAttribute("aria-label", `${text}: ${name}`); button.classList.toggle("asks", asked); };
  say(label);
  button.addEventListener("blur", () => { if (asked) { asked = false; say(label); } });
  button.addEventListener("click", (event) => {
    event.stopPropagation();
    if (question && !asked) { asked = true; say(question); return; }
    trigger("act", { id: row.id, how });
  });
  return button;
}

function limit() { // as many ticks as can be compared; the other boxes are off, with the reason
  const { ticks } = given();
  if (!ticks) return;
  for (const box of body.querySelectorAll(".tick input")) {
    box.disabled = ticked.size >= ticks && !box.checked;
    box.parentElement.title = box.disabled ? `At most ${ticks} can be compared.` : "";
  }
}

function order() {
  const list = [...given().rows];
  if (sorted) {
    const of = (row) => (row.order && row.order[sorted.key] !== undefined ? row.order[sorted.key] : (row.cells[sorted.key] ?? ""));
    list.sort((a, b) => {
      const x = of(a), y = of(b);
      if (x === null || y === null) return (x === null) - (y === null); // what is not known stands last either way
      const before = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
      return sorted.down ? before : -before;
    });
  }
  list.forEach((row, i) => { const item = rows.get(row.id); if (body.children[i] !== item) body.insertBefore(item, body.children[i] || null); });
  for (const th of element.querySelectorAll("thead th[data-key]")) {
    const mine = sorted && sorted.key === th.dataset.key;
    th.setAttribute("aria-sort", mine ? (sorted.down ? "ascending" : "descending") : "none");
  }
}

function sift() {
  const words = $("input[type=search]").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of given().rows) {
    const text = Object.values(row.cells).join(" ").toLowerCase();
    const fits = words.every((word) => text.includes(word)) && Object.entries(chosen).every(([key, value]) => !value || row.cells[key] === value);
    rows.get(row.id).hidden = !fits;
    shown += fits;
  }
  const all = given().rows.length;
  $(".count").textContent = !all ? "" : shown === all ? `${all}` : `${shown} of ${all}`;
  $(".nothing").textContent = all ? "No row fits the search." : given().empty;
  $(".nothing").hidden = shown > 0;
  $(".frame").hidden = shown === 0;
  $(".sieve").hidden = all === 0;
}

function show() {
  const value = given();
  if (!value) return;
  const columns = JSON.stringify([value.columns, value.actions, value.off]);
  if (element.dataset.columns !== columns) {
    element.dataset.columns = columns;
    rows.clear();
    body.replaceChildren();
    head();
  }
  const known = new Set(value.rows.map((row) => row.id));
  for (const [id, item] of rows) if (!known.has(id)) { item.remove(); rows.delete(id); }
  for (const id of ticked) if (!known.has(id)) ticked.delete(id);
  for (const row of value.rows) {
    let item = rows.get(row.id);
    if (!item) {
      item = make("tr");
      item.setAttribute("role", "row");
      item.dataset.id = row.id;
      item.addEventListener("click", (event) => {
        if (given().picks && !event.target.closest(".tick, .acts")) trigger("pick", { id: row.id });
      });
      rows.set(row.id, item);
      body.append(item);
    }
    const content = JSON.stringify(row);
    if (item.dataset.content !== content) {
      item.dataset.content = content;
      item.dataset.state = row.state || "";
      fill(item, row);
    }
    const picked = value.picks && row.id === value.picked;
    item.classList.toggle("picked", picked);
    if (value.picks) item.querySelector(".name").setAttribute("aria-pressed", picked);
  }
  filters();
  order();
  sift();
  limit();
}

$("input[type=search]").addEventListener("input", sift);
watch("value", show);
show();
