// A whole ARC puzzle on one canvas. The drawing and its history live here, and in this browser's storage; Python is told what
// is drawn when a stroke has ended: the value = {train, test, family}, event "drawn". Python sends commands as the value:
// {load: {train, test, family, names}, note} opens a puzzle, {fill: [{i, output}], note} draws answers; both can be undone.
// {rules: {family, names}} says which rules a puzzle follows.
const { palette, names: ARC_NAMES, most, store: KEY } = props.facts;
const SIDE = 30, VALUES = 10, HISTORY = 300;
const canvas = $(".dw-well canvas");
const copyGrid = (grid) => grid.map((row) => row.slice());
const blankGrid = (rows, cols) => Array.from({ length: rows }, () => new Array(cols).fill(0));
const blankPuzzle = () => ({ train: [{ input: blankGrid(5, 5), output: blankGrid(5, 5) }], test: [{ input: blankGrid(5, 5), output: null }], family: "", names: null });

let state = blankPuzzle(); // never changed in place: every edit makes a new one that shares what stayed, so history is cheap
let at = { part: "train", i: 0, side: "input" };
let past = [], future = [];
let tool = "pen", colour = 1, symbols = false;
let cursor = { r: 0, c: 0 }, selection = null, anchor = null, clip = null, gesture = null;

// ------------------------------------------------------------------------------------------------ what is in a puzzle
const pairOf = (place = at) => state[place.part][place.i];
const gridOf = (place = at) => pairOf(place)[place.side];
const sizeText = (grid) => `${grid.length} × ${grid[0].length}`;
const nameOf = (value) => (state.names || ARC_NAMES)[value] || "";
const called = (value) => { const name = nameOf(value).split(",")[0]; return name && name !== String(value) ? `${value} ${name}` : `${value}`; };
const title = ({ part, i, side }) => `${part === "train" ? "Pair" : "Test"} ${i + 1}, ${side}`;

function withGrid(puzzle, { part, i, side }, grid) {
  const list = puzzle[part].slice();
  list[i] = { ...list[i], [side]: grid };
  return { ...puzzle, [part]: list };
}

function sane(found) { // a puzzle from a link or from storage, or an Error that says what is wrong with it
  const fail = (text) => { throw new Error(text); };
  const grid = (x, where) => {
    if (!Array.isArray(x) || !x.length || x.length > SIDE || !Array.isArray(x[0])) fail(`${where} is no grid of 1 to ${SIDE} rows`);
    const cols = x[0].length;
    if (!cols || cols > SIDE) fail(`${where} has no 1 to ${SIDE} columns`);
    for (const row of x) {
      if (!Array.isArray(row) || row.length !== cols) fail(`${where} has rows of unequal length`);
      for (const value of row) if (!Number.isInteger(value) || value < 0 || value >= VALUES) fail(`${where} holds more than the values 0 to 9`);
    }
    return x;
  };
  const list = (x, name, limit) => (Array.isArray(x) && x.length && x.length <= limit ? x : fail(`it needs 1 to ${limit} pairs in '${name}'`));
  if (!found || typeof found !== "object") fail("it is no puzzle");
  return {
    train: list(found.train, "train", most.train).map((p, i) => ({ input: grid(p && p.input, `pair ${i + 1}, input`), output: grid(p && p.output, `pair ${i + 1}, output`) })),
    test: list(found.test, "test", most.test).map((p, i) => ({ input: grid(p && p.input, `test ${i + 1}, input`), output: p.output ? grid(p.output, `test ${i + 1}, output`) : null })),
    family: typeof found.family === "string" ? found.family.slice(0, 80) : "",
    names: found.names && typeof found.names === "object" && !Array.isArray(found.names) ? found.names : null,
  };
}

function puzzle(withFamily = false) { // ARC JSON
  const bare = (pair) => (pair.output ? { input: pair.input, output: pair.output } : { input: pair.input });
  const plain = { train: state.train.map(bare), test: state.test.map(bare) };
  return withFamily && state.family ? { ...plain, family: state.family } : plain;
}

// ------------------------------------------------------------------------------------------------------------ history
let telling = 0;
function tell() { // one message for a burst of keys; the value is true at once
  props.value = JSON.stringify({ ...puzzle(), family: state.family, named: Boolean(state.names) });
  clearTimeout(telling);
  telling = setTimeout(() => trigger("drawn"), 120);
}

function keep() {
  try {
    localStorage.setItem(KEY, JSON.stringify({ ...state, at, symbols }));
  } catch { /* private browsing, or a full disk: the drawing lives as long as the page */ }
}

function settle(place) { // a place that is there
  const list = state[place.part];
  at = { ...place, i: Math.max(0, Math.min(place.i, list.length - 1)) };
  const grid = gridOf();
  if (grid) cursor = { r: Math.min(cursor.r, grid.length - 1), c: Math.min(cursor.c, grid[0].length - 1) };
  selection = anchor = null;
}

function commit(next, place = at, text = "") {
  if (next === state) return;
  past.push({ state, at });
  if (past.length > HISTORY) past.shift();
  future = [];
  const held = place === at ? selection : null;
  state = next;
  settle(place);
  selection = held;
  note(text);
  keep();
  render();
  tell();
}

function travel(from, to, word) {
  const step = from.pop();
  if (!step) return note(`Nothing to ${word}.`);
  to.push({ state, at });
  state = step.state;
  settle(step.at);
  note("");
  keep();
  render();
  tell();
}
const undo = () => travel(past, future, "undo"), redo = () => travel(future, past, "redo");
const put = (grid, text) => commit(withGrid(state, at, grid), at, text);

function note(text, undoable = false) {
  $(".dw-note span").textContent = text;
  $(".dw-note button").hidden = !undoable;
}

// ----------------------------------------------------------------------------------------------------------- drawing
const property = (style, name) => style.getPropertyValue(name).trim();
let pitch = 16;

function paintCells(pen, grid, step, rule, withNumbers) {
  const rows = grid.length, cols = grid[0].length, gap = step > 7 ? 1 : 0;
  pen.fillStyle = rule;
  pen.fillRect(0, 0, cols * step + gap, rows * step + gap);
  for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) {
    pen.fillStyle = palette[grid[r][c]];
    pen.fillRect(c * step + gap, r * step + gap, step - gap, step - gap);
  }
  if (!withNumbers || step < 9) return;
  pen.font = `${Math.round(0.6 * step)}px system-ui, sans-serif`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) {
    pen.fillStyle = ink(grid[r][c]);
    pen.fillText(grid[r][c], c * step + step / 2 + 0.5, r * step + step / 2 + 1);
  }
}

function ink(value) { // black or white, whichever is read better on the colour (relative luminance, WCAG)
  const [r, g, b] = palette[value].match(/\w\w/g).map((part) => { const x = parseInt(part, 16) / 255; return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

function shown() { // the grid with the gesture that is under way
  const grid = gridOf();
  if (!grid || !gesture || !gesture.grid) return grid;
  return gesture.grid;
}

function draw() {
  const grid = shown();
  canvas.hidden = !grid;
  $(".dw-open").hidden = Boolean(grid);
  if (!grid) return;
  const rows = grid.length, cols = grid[0].length;
  const room = Math.max(120, $(".dw-well").clientWidth - 2);
  pitch = Math.max(4, Math.min(64, Math.floor(Math.min(room, 500) / cols), Math.floor(480 / rows)));
  const ratio = window.devicePixelRatio || 1, gap = pitch > 7 ? 1 : 0;
  const width = cols * pitch + gap, height = rows * pitch + gap;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d"), style = getComputedStyle(element);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  paintCells(pen, grid, pitch, property(style, "--quiet"), symbols);
  if (selection) frame(pen, selection, true);
  if (document.activeElement === canvas) frame(pen, { r0: cursor.r, c0: cursor.c, r1: cursor.r, c1: cursor.c }, false);
  canvas.setAttribute("aria-label", `${title(at)}, ${grid.length} rows, ${grid[0].length} columns. Arrow keys move, digits paint, space uses the tool ${tool}.`);
}

function frame(pen, { r0, c0, r1, c1 }, dashed) { // black and white, so that it shows on every colour
  const box = [c0 * pitch + 1, r0 * pitch + 1, (c1 - c0 + 1) * pitch - 1, (r1 - r0 + 1) * pitch - 1];
  for (const [stroke, width, dash] of [["#000", dashed ? 3 : 4, []], ["#fff", dashed ? 1.5 : 2, dashed ? [5, 4] : []]]) {
    pen.setLineDash(dash);
    pen.lineWidth = width;
    pen.strokeStyle = stroke;
    pen.strokeRect(...box);
  }
  pen.setLineDash([]);
}

// ---------------------------------------------------------------------------------------------------- the pairs' list
const drawnAs = new WeakMap(); // canvas of a thumbnail -> the grid on it: an edit draws one thumbnail, not sixteen

function thumbnail(button, grid, label, here) {
  const picture = button.querySelector("canvas");
  button.setAttribute("aria-label", grid ? `${label}, ${grid.length} by ${grid[0].length}` : `${label}, open`);
  if (here) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
  picture.hidden = !grid;
  button.querySelector("b").hidden = Boolean(grid);
  if (!grid || drawnAs.get(picture) === grid) return;
  drawnAs.set(picture, grid);
  picture.width = grid[0].length; // a pixel a cell, enlarged by the style sheet
  picture.height = grid.length;
  paintCells(picture.getContext("2d"), grid, 1, palette[0], false);
  const scale = 46 / Math.max(grid.length, grid[0].length);
  picture.style.width = `${Math.round(grid[0].length * scale)}px`;
  picture.style.height = `${Math.round(grid.length * scale)}px`;
}

function rowOf(part) {
  const item = make("li");
  const name = make("span", undefined, "dw-name");
  const sides = ["input", "output"].map((side) => {
    const button = make("button", undefined, "dw-thumb");
    button.type = "button";
    button.dataset.side = side;
    button.append(document.createElement("canvas"), make("b", "?"));
    button.addEventListener("click", () => go({ part, i: [...item.parentElement.children].indexOf(item), side }));
    return button;
  });
  const acts = make("span", undefined, "dw-acts");
  for (const [what, sign, text] of [["up", "↑", "Move up"], ["down", "↓", "Move down"], ["twin", "×2", "Duplicate"], ["drop", "✕", "Delete"]]) {
    const button = make("button", sign);
    button.type = "button";
    button.dataset.what = what;
    button.dataset.text = text;
    button.addEventListener("click", () => rearrange(part, [...item.parentElement.children].indexOf(item), what));
    acts.append(button);
  }
  item.append(name, sides[0], make("span", "→", "dw-arrow"), sides[1], acts);
  return item;
}

function renderList(part) {
  const list = $(`.dw-${part}`), pairs = state[part], word = part === "train" ? "Pair" : "Test";
  while (list.children.length > pairs.length) list.lastChild.remove();
  while (list.children.length < pairs.length) list.append(rowOf(part));
  pairs.forEach((pair, i) => {
    const item = list.children[i], current = at.part === part && at.i === i;
    item.classList.toggle("here", current);
    item.querySelector(".dw-name").textContent = `${word} ${i + 1}`;
    for (const button of item.querySelectorAll(".dw-thumb")) thumbnail(button, pair[button.dataset.side], `${word} ${i + 1}, ${button.dataset.side}`, current && at.side === button.dataset.side);
    for (const button of item.querySelectorAll(".dw-acts button")) {
      const label = `${button.dataset.text} ${word.toLowerCase()} ${i + 1}`;
      button.setAttribute("aria-label", label);
      button.title = label;
      button.disabled = { up: i === 0, down: i === pairs.length - 1, twin: pairs.length >= most[part], drop: pairs.length === 1 }[button.dataset.what];
    }
  });
  $(`[data-do="add-${part}"]`).disabled = pairs.length >= most[part];
}

function rearrange(part, i, what) {
  const list = state[part].slice(), pair = list[i], word = part === "train" ? "Pair" : "Test";
  let to = i;
  if (what === "drop") {
    list.splice(i, 1);
    commit({ ...state, [part]: list }, { ...at, part, i: Math.min(i, list.length - 1), side: "input" });
    return note(`${word} ${i + 1} is deleted.`, true);
  }
  if (what === "twin") list.splice(to = i + 1, 0, { ...pair });
  else {
    to = what === "up" ? i - 1 : i + 1;
    [list[i], list[to]] = [list[to], list[i]];
  }
  commit({ ...state, [part]: list }, { ...at, part, i: to });
}

function add(part) { // a new pair has the size of the last one
  const last = state[part][state[part].length - 1], size = (grid) => blankGrid(grid.length, grid[0].length);
  const fresh = { input: size(last.input), output: part === "train" ? size(last.output) : null };
  commit({ ...state, [part]: [...state[part], fresh] }, { part, i: state[part].length, side: "input" });
}

function go(place) {
  settle(place);
  note("");
  keep();
  render();
}

// ------------------------------------------------------------------------------------------------------- all the rest
function render() {
  const grid = gridOf(), size = $(".dw-size input");
  renderList("train");
  renderList("test");
  $(".dw-title").textContent = title(at);
  size.disabled = !grid;
  if (element.ownerDocument.activeElement !== size) size.value = grid ? `${grid.length}x${grid[0].length}` : "";
  for (const button of element.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  const able = { undo: past.length, redo: future.length, "from-input": at.side === "output", clear: grid, "no-output": at.part === "test" && at.side === "output" && grid };
  for (const [what, can] of Object.entries(able)) for (const button of element.querySelectorAll(`[data-do="${what}"]`)) button.disabled = !can;
  $('[data-do="no-output"]').hidden = !(at.part === "test" && at.side === "output");
  $('[data-do="from-input"]').hidden = at.side !== "output";
  for (const button of element.querySelectorAll("[data-turn]")) button.disabled = !grid;
  $(".dw-symbols").setAttribute("aria-pressed", String(symbols));
  $(".dw-family").hidden = !state.family;
  $(".dw-family span").textContent = `Rules of ${state.family}`;
  renderPalette();
  renderHeld();
  where();
  draw();
}

function renderPalette() {
  const bar = $(".dw-palette");
  if (!bar.children.length) {
    for (let value = 0; value < VALUES; value++) {
      const button = make("button", String(value));
      button.type = "button";
      button.style.background = palette[value];
      button.style.color = ink(value);
      button.addEventListener("click", () => { colour = value; renderPalette(); });
      bar.append(button);
    }
    for (const list of element.querySelectorAll(".dw-a, .dw-b")) for (let value = 0; value < VALUES; value++) list.append(new Option("", value));
    $(".dw-a").value = "1";
    $(".dw-b").value = "2";
  }
  [...bar.children].forEach((button, value) => {
    button.setAttribute("aria-pressed", String(value === colour));
    button.setAttribute("aria-label", `Colour ${called(value)}`);
    button.title = called(value);
  });
  $(".dw-colour").textContent = called(colour);
  for (const list of element.querySelectorAll(".dw-a, .dw-b")) [...list.options].forEach((option, value) => { option.textContent = called(value); });
}

function renderHeld() {
  $(".dw-held").hidden = !selection && !(clip && tool === "select");
  $(".dw-held-size").textContent = selection ? `${selection.r1 - selection.r0 + 1} × ${selection.c1 - selection.c0 + 1} selected` : "";
  for (const what of ["copy", "cut", "deselect"]) $(`[data-do="${what}"]`).disabled = !selection;
  $('[data-do="paste"]').disabled = !clip;
}

function where(cell = cursor) {
  const grid = gridOf();
  $(".dw-where").textContent = grid && grid[cell.r] && grid[cell.r][cell.c] !== undefined ? `row ${cell.r + 1}, column ${cell.c + 1}: ${called(grid[cell.r][cell.c])}` : "";
}

function speak() {
  const grid = gridOf();
  if (grid) $(".dw-spoken").textContent = `row ${cursor.r + 1}, column ${cursor.c + 1}: ${called(grid[cursor.r][cursor.c])}`;
}

// -------------------------------------------------------------------------------------------------------------- tools
function rectOf(a, b) {
  return { r0: Math.min(a.r, b.r), c0: Math.min(a.c, b.c), r1: Math.max(a.r, b.r), c1: Math.max(a.c, b.c) };
}

function filled(grid, { r0, c0, r1, c1 }, value) {
  const fresh = copyGrid(grid);
  for (let r = r0; r <= r1; r++) for (let c = c0; c <= c1; c++) fresh[r][c] = value;
  return fresh;
}

function flooded(grid, { r, c }, value) {
  const old = grid[r][c];
  if (old === value) return grid;
  const fresh = copyGrid(grid), stack = [[r, c]];
  while (stack.length) {
    const [y, x] = stack.pop();
    if (!fresh[y] || fresh[y][x] !== old) continue;
    fresh[y][x] = value;
    stack.push([y + 1, x], [y - 1, x], [y, x + 1], [y, x - 1]);
  }
  return fresh;
}

function line(grid, a, b, value) { // every cell between two places of a quick drag
  const steps = Math.max(Math.abs(b.r - a.r), Math.abs(b.c - a.c), 1);
  for (let k = 0; k <= steps; k++) grid[Math.round(a.r + ((b.r - a.r) * k) / steps)][Math.round(a.c + ((b.c - a.c) * k) / steps)] = value;
}

const same = (a, b) => a.length === b.length && a.every((row, r) => row.length === b[r].length && row.every((value, c) => value === b[r][c]));
const putIfNew = (grid, text) => (same(grid, gridOf()) ? render() : put(grid, text));
const inside = (cell, box) => box && cell.r >= box.r0 && cell.r <= box.r1 && cell.c >= box.c0 && cell.c <= box.c1;
const cut = (grid, { r0, c0, r1, c1 }) => grid.slice(r0, r1 + 1).map((row) => row.slice(c0, c1 + 1));

function pasted(grid, part, r0, c0) { // what lies outside is cut off
  const fresh = copyGrid(grid);
  part.forEach((row, r) => row.forEach((value, c) => { if (fresh[r0 + r] && fresh[r0 + r][c0 + c] !== undefined) fresh[r0 + r][c0 + c] = value; }));
  return fresh;
}

function boxAt(part, r, c, grid) {
  const box = { r0: Math.max(0, r), c0: Math.max(0, c), r1: Math.min(grid.length, r + part.length) - 1, c1: Math.min(grid[0].length, c + part[0].length) - 1 };
  return box.r0 <= box.r1 && box.c0 <= box.c1 ? box : null;
}

function moved(base, box, by, copying) {
  const grid = copying ? base : filled(base, box, 0), part = cut(base, box);
  return { grid: pasted(grid, part, box.r0 + by.r, box.c0 + by.c), box: boxAt(part, box.r0 + by.r, box.c0 + by.c, base) };
}

function cellAt(event) {
  const box = canvas.getBoundingClientRect(), grid = gridOf();
  const clamp = (x, end) => Math.max(0, Math.min(end - 1, x));
  return { r: clamp(Math.floor((event.clientY - box.top) / pitch), grid.length), c: clamp(Math.floor((event.clientX - box.left) / pitch), grid[0].length) };
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || gesture) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  const base = gridOf(), cell = cellAt(event);
  cursor = cell;
  anchor = null;
  note("");
  if (tool === "pick") { colour = base[cell.r][cell.c]; renderPalette(); return draw(); }
  if (tool === "fill") return putIfNew(flooded(base, cell, colour));
  if (tool === "select" && inside(cell, selection)) {
    gesture = { kind: "move", id: event.pointerId, base, grid: base, from: cell, box: selection, copying: event.altKey || event.ctrlKey || event.metaKey };
  } else {
    gesture = { kind: tool, id: event.pointerId, base, grid: copyGrid(base), from: cell, last: cell };
    if (tool === "select") selection = null;
    follow(cell);
  }
  draw();
});

function follow(cell) {
  const { kind, base, from } = gesture;
  if (kind === "pen") { line(gesture.grid, gesture.last, cell, colour); gesture.last = cell; }
  if (kind === "rect") gesture.grid = filled(base, rectOf(from, cell), colour);
  if (kind === "select") { gesture.grid = base; selection = rectOf(from, cell); }
  if (kind === "move") {
    const after = moved(base, gesture.box, { r: cell.r - from.r, c: cell.c - from.c }, gesture.copying);
    gesture.grid = after.grid;
    selection = after.box;
  }
}

canvas.addEventListener("pointermove", (event) => {
  if (!gridOf()) return;
  const cell = cellAt(event);
  where(cell);
  if (!gesture || gesture.id !== event.pointerId || (cell.r === cursor.r && cell.c === cursor.c)) return;
  cursor = cell;
  follow(cell);
  draw();
});

function release(event) {
  if (!gesture || gesture.id !== event.pointerId) return;
  const { grid, kind, from } = gesture;
  gesture = null;
  if (kind === "select" && cursor.r === from.r && cursor.c === from.c) selection = null; // a click deselects
  putIfNew(grid);
}
canvas.addEventListener("pointerup", release);
canvas.addEventListener("pointercancel", (event) => { if (gesture && gesture.id === event.pointerId) { gesture = null; draw(); } });
canvas.addEventListener("pointerleave", () => where());
canvas.addEventListener("focus", draw);
canvas.addEventListener("blur", draw);

function use() { // what space does
  const grid = gridOf();
  if (tool === "pick") { colour = grid[cursor.r][cursor.c]; return render(); }
  if (tool === "pen") return putIfNew(filled(grid, rectOf(cursor, cursor), colour));
  if (tool === "fill") return putIfNew(flooded(grid, cursor, colour));
  if (!anchor) { // the first corner
    anchor = { ...cursor };
    if (tool === "select") selection = rectOf(anchor, cursor);
    note("The first corner is set. Go to the other one and press space.");
    return render();
  }
  const box = rectOf(anchor, cursor);
  anchor = null;
  if (tool === "rect") return putIfNew(filled(grid, box, colour));
  selection = box;
  note("");
  return render();
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const TOOL_KEYS = { p: "pen", f: "fill", r: "rect", s: "select", i: "pick" };

function arrow(event) {
  const grid = gridOf(), [dr, dc] = STEPS[event.key];
  const next = { r: Math.max(0, Math.min(grid.length - 1, cursor.r + dr)), c: Math.max(0, Math.min(grid[0].length - 1, cursor.c + dc)) };
  if (event.altKey && selection) {
    const after = moved(grid, selection, { r: dr, c: dc }, false);
    if (!after.box || after.box.r1 - after.box.r0 !== selection.r1 - selection.r0 || after.box.c1 - after.box.c0 !== selection.c1 - selection.c0) return; // at the edge
    cursor = next;
    selection = after.box;
    return putIfNew(after.grid);
  }
  if (event.shiftKey) {
    if (!anchor) anchor = { ...cursor };
    selection = rectOf(anchor, next);
  } else if (anchor && tool === "select") selection = rectOf(anchor, next);
  cursor = next;
  where();
  speak();
  renderHeld();
  draw();
}

element.addEventListener("keydown", (event) => {
  const typing = /INPUT|TEXTAREA|SELECT/.test(event.target.tagName), command = event.ctrlKey || event.metaKey, key = event.key.toLowerCase();
  if (typing) return;
  const done = () => { event.preventDefault(); event.stopPropagation(); };
  if (command && key === "z") { done(); return event.shiftKey ? redo() : undo(); }
  if (command && key === "y") { done(); return redo(); }
  if (event.target !== canvas) return;
  if (key === "[" || key === "]") { done(); return walk(key === "]" ? 1 : -1); }
  if (!gridOf()) return;
  if (command && "cxv".includes(key)) { done(); return ACTIONS[{ c: "copy", x: "cut", v: "paste" }[key]](); }
  if (command) return;
  if (STEPS[event.key]) { done(); return arrow(event); }
  if (event.altKey) return;
  if (/^[0-9]$/.test(event.key)) {
    done();
    colour = Number(event.key);
    putIfNew(filled(gridOf(), rectOf(cursor, cursor), colour));
    return speak();
  }
  if (event.key === " ") { done(); use(); return speak(); }
  if (TOOL_KEYS[key]) { done(); return choose(TOOL_KEYS[key]); }
  if (key === "c") { done(); return ACTIONS["from-input"](); }
  if ((event.key === "Delete" || event.key === "Backspace") && selection) { done(); return ACTIONS.clear(); }
  if (event.key === "Escape" && (selection || anchor)) { done(); return ACTIONS.deselect(); }
});

function walk(by) { // through all grids, in order
  const all = ["train", "test"].flatMap((part) => state[part].flatMap((_, i) => ["input", "output"].map((side) => ({ part, i, side }))));
  const here = all.findIndex((p) => p.part === at.part && p.i === at.i && p.side === at.side);
  go(all[(here + by + all.length) % all.length]);
  (gridOf() ? canvas : $('[data-do="open-output"]')).focus();
  $(".dw-spoken").textContent = title(at);
}

function choose(name) {
  tool = name;
  anchor = null;
  render();
}

// -------------------------------------------------------------------------------------------------- turns and flips
const TURNS = {
  right: (g) => g[0].map((_, c) => g.map((row) => row[c]).reverse()),
  left: (g) => g[0].map((_, c) => g.map((row) => row[row.length - 1 - c])),
  "flip-h": (g) => g.map((row) => row.slice().reverse()),
  "flip-v": (g) => g.map((row) => row.slice()).reverse(),
  transpose: (g) => g[0].map((_, c) => g.map((row) => row[c])),
  "shift-l": (g) => g.map((row) => [...row.slice(1), row[0]]),
  "shift-r": (g) => g.map((row) => [row[row.length - 1], ...row.slice(0, -1)]),
  "shift-u": (g) => [...g.slice(1), g[0]].map((row) => row.slice()),
  "shift-d": (g) => [g[g.length - 1], ...g.slice(0, -1)].map((row) => row.slice()),
  swap: (g) => { const a = Number($(".dw-a").value), b = Number($(".dw-b").value); return g.map((row) => row.map((v) => (v === a ? b : v === b ? a : v))); },
};

function turn(how) {
  const scope = $(".dw-scope").value, change = TURNS[how];
  const both = (pair) => ({ input: change(pair.input), output: pair.output && change(pair.output) });
  if (scope === "grid") return put(change(gridOf()));
  if (scope === "pair") { const list = state[at.part].slice(); list[at.i] = both(list[at.i]); return commit({ ...state, [at.part]: list }, { ...at }); }
  return commit({ ...state, train: state.train.map(both), test: state.test.map(both) }, { ...at });
}

// -------------------------------------------------------------------------------------------------------- the buttons
const ACTIONS = {
  undo, redo,
  clear: () => putIfNew(filled(gridOf(), selection || { r0: 0, c0: 0, r1: gridOf().length - 1, c1: gridOf()[0].length - 1 }, 0)),
  "from-input": () => { if (at.side === "output") put(copyGrid(pairOf().input), "Copied from the input."); },
  "open-output": () => { put(blankGrid(pairOf().input.length, pairOf().input[0].length)); canvas.focus(); },
  "no-output": () => put(null, "The answer is open."),
  "add-train": () => add("train"),
  "add-test": () => add("test"),
  forget: () => commit({ ...state, family: "", names: null }, at, "The rules are forgotten: this is a free drawing now."),
  symbols: () => { symbols = !symbols; keep(); render(); },
  copy: () => { if (selection) { clip = cut(gridOf(), selection); note(`${sizeText(clip)} copied. Paste works in every grid.`); renderHeld(); } },
  cut: () => { if (selection) { clip = cut(gridOf(), selection); putIfNew(filled(gridOf(), selection, 0)); renderHeld(); } },
  paste: () => {
    if (!clip) return note("Nothing is copied yet: select cells, then copy.");
    const place = selection ? { r: selection.r0, c: selection.c0 } : cursor, grid = gridOf();
    selection = boxAt(clip, place.r, place.c, grid);
    putIfNew(pasted(grid, clip, place.r, place.c));
  },
  deselect: () => { selection = anchor = null; note(""); render(); },
  download: () => {
    const made = document.createElement("a");
    made.href = URL.createObjectURL(new Blob([text()], { type: "application/json" }));
    made.download = "puzzle.json";
    made.click();
    setTimeout(() => URL.revokeObjectURL(made.href), 10000);
  },
  "copy-json": () => hand(text(), "The puzzle's JSON is copied."),
  "copy-link": async () => hand(await link(), "The link is copied. It carries the whole puzzle; nothing is stored anywhere."),
};
const text = () => JSON.stringify(puzzle());

async function hand(content, said) { // to the clipboard, or where that is refused, into a field to copy from
  const field = $(".dw-share input");
  field.value = content;
  try {
    await navigator.clipboard.writeText(content);
    field.hidden = true;
    note(said);
  } catch {
    field.hidden = false;
    field.focus();
    field.select();
    note("This browser keeps its clipboard closed. The text is marked: press Ctrl+C.");
  }
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || button.disabled) return;
  if (button.dataset.do) ACTIONS[button.dataset.do]();
  if (button.dataset.tool) choose(button.dataset.tool);
  if (button.dataset.turn && gridOf()) turn(button.dataset.turn);
});

const sizeField = $(".dw-size input");
function resize() {
  const grid = gridOf(), wanted = sizeField.value.trim().match(/^(\d{1,2})\s*(?:[x×*,;\s]\s*(\d{1,2}))?$/i);
  if (!grid) return;
  const rows = wanted && Number(wanted[1]), cols = wanted && Number(wanted[2] ?? wanted[1]);
  if (!wanted || rows < 1 || cols < 1 || rows > SIDE || cols > SIDE) {
    note(`A size is rows x columns, 1 to ${SIDE} each: 16x16, 3x9, or 16.`);
    sizeField.setAttribute("aria-invalid", "true");
    return;
  }
  sizeField.removeAttribute("aria-invalid");
  sizeField.value = `${rows}x${cols}`;
  if (rows === grid.length && cols === grid[0].length) return;
  put(blankGrid(rows, cols).map((row, r) => row.map((_, c) => (grid[r] && grid[r][c]) || 0)), `Resized to ${rows} × ${cols}.`);
}
sizeField.addEventListener("change", resize);
sizeField.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); resize(); } });

// -------------------------------------------------------------------------------------------------- links and storage
async function link() { // zlib, then base64 for addresses: what vdmreason.drawn.encode makes
  const stream = new Blob([JSON.stringify(puzzle(true))]).stream().pipeThrough(new CompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  const here = new URL(location.href);
  return `${here.origin}${here.pathname}#puzzle=${btoa(binary).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "")}`;
}

async function fromLink(packed) {
  const bytes = Uint8Array.from(atob(packed.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const parts = [];
  for (let size = 0; ;) { // a small link must not become a huge text
    const { done, value } = await reader.read();
    if (done) break;
    if ((size += value.length) > 1 << 20) throw new Error("it is too large");
    parts.push(value);
  }
  return JSON.parse(await new Blob(parts).text());
}

async function openLink() {
  if (!element.isConnected || !location.hash.startsWith("#puzzle=")) return;
  const packed = location.hash.slice("#puzzle=".length);
  history.replaceState(history.state, "", location.pathname + location.search); // a reload shows what was drawn since
  try {
    const found = sane(await fromLink(packed));
    commit(found, { part: "train", i: 0, side: "input" });
    note("Opened from a link. What was drawn here before comes back with Undo.", true);
  } catch (error) {
    const why = /^(pair|test|it) /.test(error.message) ? error.message : "it was cut off or changed on its way";
    note(`This link holds no puzzle: ${why}.`);
  }
}
window.addEventListener("hashchange", openLink);

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY));
    if (!kept) return;
    state = sane(kept);
    symbols = Boolean(kept.symbols);
    if (kept.at && state[kept.at.part] && ["input", "output"].includes(kept.at.side) && Number.isInteger(kept.at.i)) settle(kept.at);
  } catch { /* what was kept is no puzzle: begin anew */ }
}

function command() {
  const value = given();
  if (value && value.rules) { // which rules the puzzle of a link follows, and how they call the values
    state = { ...state, ...value.rules };
    keep();
    render();
    return tell();
  }
  if (!value || (!value.load && !value.fill)) return;
  const began = performance.now();
  if (value.load) {
    commit({ ...sane(value.load) }, { part: "train", i: 0, side: "input" });
    note(value.note || "", true);
  } else {
    const test = state.test.map((pair, i) => { const found = value.fill.find((f) => f.i === i); return found ? { ...pair, output: found.output } : pair; });
    commit({ ...state, test }, { part: "test", i: value.fill[0].i, side: "output" });
    note(value.note || "", true);
  }
  element.dataset.drawn = (performance.now() - began).toFixed(1); // milliseconds, for the test that holds us to it
}

let width = 0;
new ResizeObserver(() => { const now = $(".dw-well").clientWidth; if (now && now !== width) { width = now; draw(); } }).observe($(".dw-well"));
new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] });
watch("value", command);
restore();
render();
tell();
openLink();
