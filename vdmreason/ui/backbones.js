// The table of backbones. The value: {rows: [{key, cells: [{label, text, note}], state}], current}. A row's name is a button.
const body = element.querySelector("tbody");
const rows = new Map();

function row(backbone) {
  const line = document.createElement("tr");
  backbone.cells.forEach((cell, i) => {
    const node = document.createElement(i ? "td" : "th");
    node.dataset.label = cell.label;
    if (!i) {
      node.scope = "row";
      const button = document.createElement("button");
      button.type = "button";
      button.addEventListener("click", () => trigger("pick", { key: backbone.key }));
      node.append(button);
    } else node.append(document.createElement("span"));
    node.append(document.createElement("small"));
    line.append(node);
  });
  return line;
}

function show() {
  const value = given() || { rows: [] };
  for (const [key, line] of rows) if (!value.rows.some((r) => r.key === key)) { line.remove(); rows.delete(key); }
  value.rows.forEach((backbone, at) => {
    if (!rows.has(backbone.key)) rows.set(backbone.key, row(backbone));
    const line = rows.get(backbone.key);
    line.dataset.state = backbone.state;
    const chosen = backbone.key === value.current;
    line.classList.toggle("chosen", chosen);
    backbone.cells.forEach((cell, i) => {
      const [main, note] = line.children[i].children;
      if (main.textContent !== cell.text) main.textContent = cell.text;
      if (note.textContent !== (cell.note || "")) note.textContent = cell.note || "";
    });
    const button = line.querySelector("button");
    if (chosen) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
    if (body.children[at] !== line) body.insertBefore(line, body.children[at] || null);
  });
}
watch("value", show);
show();
