// One puzzle and one to four answers. The value is the scene that scenes.py builds; nothing in the template depends on it,
// so a new scene redraws canvases and texts and never replaces an element that has the focus.
const LARGEST = 256; // pixels of a grid's longer side
const CLIP_TEXT = 6000; // a longer text would slow the page; "show all" brings the rest
let scene = null;
let cell = null; // the cell under the pointer or the keyboard, {r, c}, the same in every grid
const cards = {}; // "video", "language", "more0", "more1" -> a Card

// ---------------------------------------------------------------------------------------------- grids on canvases
const grids = {}; // name -> {canvas, grid, truth, certainty}

function draw(name) {
  const { canvas, grid, truth, certainty, marks } = grids[name];
  const heat = cards[name] && cards[name].heat;
  canvas.hidden = !grid;
  if (!grid) return;
  const rows = Math.max(grid.length, truth ? truth.length : 0);
  const cols = Math.max(grid[0].length, truth ? truth[0].length : 0);
  const room = canvas.parentElement.clientWidth || 240;
  const limit = canvas.dataset.small ? 64 : LARGEST;
  const pitch = Math.max(3, Math.min(34, Math.floor(Math.min(room, limit) / Math.max(rows, cols))));
  const ratio = window.devicePixelRatio || 1;
  const width = cols * pitch + 1, height = rows * pitch + 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.width = width + "px";
  canvas.style.height = height + "px";
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const gap = pitch > 7 ? 1 : 0;
  const sameShape = truth && truth.length === grid.length && truth[0].length === grid[0].length;
  grid.forEach((row, r) => row.forEach((value, c) => {
    const x = c * pitch, y = r * pitch;
    const sure = certainty ? certainty[r][c] : 1;
    pen.fillStyle = css("--rule");
    pen.fillRect(x, y, pitch + 1, pitch + 1);
    pen.fillStyle = heat && certainty ? `color-mix(in oklab, ${css("--heat-low")}, ${css("--heat-high")} ${Math.round(100 * sure)}%)` : scene.palette[value];
    pen.fillRect(x + gap, y + gap, pitch - gap, pitch - gap);
    number(pen, value, x, y, pitch);
    if (certainty && !heat && sure < 0.75) hatch(pen, x + gap, y + gap, pitch - gap, 1 - sure);
    if (marks && truth && r < truth.length && c < truth[0].length && truth[r][c] !== value) cross(pen, x, y, pitch);
  }));
  if (truth && !sameShape && marks) { // the truth's size as a ghost
    pen.setLineDash([5, 4]);
    pen.lineWidth = 2;
    pen.strokeStyle = css("--ink");
    pen.strokeRect(1, 1, truth[0].length * pitch - 1, truth.length * pitch - 1);
    pen.setLineDash([]);
  }
  if (cell && cell.r < rows && cell.c < cols && !canvas.dataset.small) spot(pen, cell.c * pitch, cell.r * pitch, pitch, pitch);
}

function number(pen, value, x, y, pitch) { // where values stand for numbers (sudoku, hitori), the cell says which
  const name = (scene.names[value] || "").split(",")[0];
  if (!/^\d+$/.test(name) || pitch < 12) return;
  const [r, g, b] = scene.palette[value].match(/\w\w/g).map((part) => parseInt(part, 16));
  pen.fillStyle = r + g + b > 300 ? "#000" : "#fff";
  pen.font = `${Math.round(0.65 * pitch)}px system-ui, sans-serif`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText(name, x + pitch / 2 + 0.5, y + pitch / 2 + 1);
}

function hatch(pen, x, y, size, doubt) { // an unsure cell is hatched; more doubt, heavier lines
  pen.save();
  pen.beginPath();
  pen.rect(x, y, size, size);
  pen.clip();
  pen.strokeStyle = `rgba(128,128,128,${Math.min(0.95, 0.2 + doubt)})`;
  pen.lineWidth = 0.6 + 2 * doubt;
  for (let k = -size; k < size; k += 5) {
    pen.beginPath();
    pen.moveTo(x + k, y + size);
    pen.lineTo(x + k + size, y);
    pen.stroke();
  }
  pen.restore();
}

function cross(pen, x, y, pitch) { // a wrong cell: thick ring and slash, dark on light, so that it shows on every colour
  const inset = Math.max(1.5, pitch * 0.14), width = Math.max(1.2, pitch * 0.1);
  for (const [colour, extra] of [["#000", width + 1.6], ["#fff", width]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = extra;
    pen.beginPath();
    pen.rect(x + inset + 0.5, y + inset + 0.5, pitch - 2 * inset, pitch - 2 * inset);
    pen.moveTo(x + inset + 0.5, y + pitch - inset + 0.5);
    pen.lineTo(x + pitch - inset + 0.5, y + inset + 0.5);
    pen.stroke();
  }
}

function spot(pen, x, y, w, h) {
  for (const [colour, width] of [["#000", 4], ["#fff", 2]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.strokeRect(x + 1, y + 1, w - 1, h - 1);
  }
}

const shape = (grid) => (grid ? `${grid.length} × ${grid[0].length}` : "");
const meaning = (value) => (value === undefined ? "outside" : scene.names[value] ? `${value} ${scene.names[value]}` : `${value}`);
const at = (grid) => (grid && grid[cell.r] ? grid[cell.r][cell.c] : undefined);

function readout() {
  const line = $(".readout");
  if (!scene || !cell) {
    line.textContent = "Point at a cell, or tab to a grid and use the arrow keys, to compare it everywhere.";
    return;
  }
  const parts = [`row ${cell.r + 1}, column ${cell.c + 1}`, `input ${meaning(at(scene.question))}`];
  if (scene.answer) parts.push(`truth ${meaning(at(scene.answer))}`);
  for (const card of Object.values(cards)) {
    const answer = card.answer;
    if (!answer || !answer.grid) continue;
    const sure = answer.certainty && answer.certainty[cell.r] && answer.certainty[cell.r][cell.c];
    const wrong = scene.answer && at(answer.grid) !== at(scene.answer) ? " ✗" : "";
    parts.push(`${card.name} ${meaning(at(answer.grid))}${sure === undefined || sure === null ? "" : ` (${Math.round(100 * sure)} % sure)`}${wrong}`);
  }
  line.textContent = parts.join("  ·  ");
}

function point(next) {
  if ((next && cell && next.r === cell.r && next.c === cell.c) || (!next && !cell)) return;
  cell = next;
  Object.keys(grids).forEach(draw);
  Object.values(cards).forEach((card) => card.drawFrame());
  readout();
}

function wire(name, canvas) {
  grids[name] = { canvas, grid: null };
  if (canvas.dataset.small) return;
  canvas.tabIndex = 0;
  canvas.addEventListener("pointermove", (event) => {
    const { grid, truth } = grids[name];
    if (!grid) return;
    const box = canvas.getBoundingClientRect();
    const rows = Math.max(grid.length, truth ? truth.length : 0), cols = Math.max(grid[0].length, truth ? truth[0].length : 0);
    const r = Math.floor(((event.clientY - box.top) / box.height) * rows), c = Math.floor(((event.clientX - box.left) / box.width) * cols);
    point({ r: Math.max(0, Math.min(rows - 1, r)), c: Math.max(0, Math.min(cols - 1, c)) });
  });
  canvas.addEventListener("pointerleave", () => point(null));
  canvas.addEventListener("blur", () => point(null));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || !grids[name].grid) return;
    event.preventDefault();
    const { grid } = grids[name];
    const from = cell || { r: 0, c: 0 };
    const clamp = (x, size) => Math.max(0, Math.min(size - 1, x));
    point(cell ? { r: clamp(from.r + step[0], grid.length), c: clamp(from.c + step[1], grid[0].length) } : from);
  });
}

// ------------------------------------------------------------------------------------------------------- the cards
const ORIGINALS = { video: $(".card.video").cloneNode(true), language: $(".card.language").cloneNode(true) };
const FRAME_KEYS = {
  ArrowLeft: (card) => card.go(card.frame - 1), ArrowRight: (card) => card.go(card.frame + 1),
  Home: (card) => card.go(0), End: (card) => card.go(card.last()), " ": (card) => (card.timer ? card.pause() : card.play()),
  o: (card) => card.toggle("onion"), d: (card) => card.toggle("difference"), c: (card) => card.toggle("heat"),
};

class Card {
  // One arm's answer. A video arm's card has a film with a scrubber, a language arm's a text.
  constructor(slot, kind, root) {
    Object.assign(this, { slot, kind, root, answer: null, frame: 0, timer: null, film: null, truthPicture: null });
    Object.assign(this, { onion: false, difference: false, heat: false, showAll: false });
    this.name = kind;
    wire(slot, this.$(".decoded canvas"));
    if (kind === "video") this.wireFilm();
    else this.$(".more").addEventListener("click", () => { this.showAll = true; this.drawText(); });
    for (const button of root.querySelectorAll("[data-keep]")) button.addEventListener("click", () => this.keep(button.dataset.keep));
  }

  $(selector) { return this.root.querySelector(selector); }
  last() { return this.answer.film.frames - 1; }

  wireFilm() {
    this.screen = this.$(".screen");
    this.slider = this.$(".film input");
    this.$(".film").addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !FRAME_KEYS[event.key] || !this.answer || !this.answer.film) return;
      if (event.key === " " && event.target.tagName === "BUTTON") return; // a focused button keeps its own space
      event.preventDefault();
      FRAME_KEYS[event.key](this);
    });
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    this.$(".play").addEventListener("click", () => FRAME_KEYS[" "](this));
    this.$(".back").addEventListener("click", () => this.go(this.frame - 1));
    this.$(".forth").addEventListener("click", () => this.go(this.frame + 1));
    for (const name of ["onion", "difference", "heat"]) this.$("." + name).addEventListener("click", () => this.toggle(name));
    this.screen.addEventListener("pointermove", (event) => {
      if (!scene) return;
      const box = this.screen.getBoundingClientRect(), [rows, cols] = scene.canvas;
      point({ r: Math.floor(((event.clientY - box.top) / box.height) * rows), c: Math.floor(((event.clientX - box.left) / box.width) * cols) });
    });
    this.screen.addEventListener("pointerleave", () => point(null));
  }

  drawFrame() {
    if (this.kind !== "video") return;
    const { answer, screen, film, truthPicture } = this;
    this.$(".film").hidden = !(answer && answer.film);
    if (!(film && film.complete && film.naturalWidth && answer && answer.film)) return;
    const { width, height, columns, frames } = answer.film;
    const room = screen.parentElement.clientWidth || 300;
    const zoom = Math.max(1, Math.floor(Math.min(room, LARGEST) / Math.max(width, height)));
    const scale = zoom > 1 ? zoom : Math.min(1, Math.min(room, LARGEST) / Math.max(width, height));
    screen.width = Math.round(width * scale);
    screen.height = Math.round(height * scale);
    const pen = screen.getContext("2d");
    pen.imageSmoothingEnabled = scale < 1;
    const frame = (this.frame = Math.max(0, Math.min(frames - 1, this.frame)));
    pen.drawImage(film, (frame % columns) * width, Math.floor(frame / columns) * height, width, height, 0, 0, screen.width, screen.height);
    if (truthPicture && truthPicture.complete && truthPicture.naturalWidth && (this.onion || this.difference)) {
      pen.globalAlpha = this.difference ? 1 : 0.5;
      pen.globalCompositeOperation = this.difference ? "difference" : "source-over";
      pen.drawImage(truthPicture, 0, 0, screen.width, screen.height);
      pen.globalAlpha = 1;
      pen.globalCompositeOperation = "source-over";
    }
    const [rows, cols] = scene.canvas;
    if (cell && cell.r < rows && cell.c < cols) {
      const w = screen.width / cols, h = screen.height / rows;
      spot(pen, cell.c * w, cell.r * h, w, h);
    }
    this.slider.max = frames - 1;
    this.slider.value = frame;
    this.slider.setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames}`);
    this.$(".count").textContent = `${frame + 1} / ${frames}`;
    screen.setAttribute("aria-label", `Frame ${frame + 1} of ${frames} of the ${this.name} arm's transition${this.onion ? ", the truth laid over it" : ""}${this.difference ? ", difference to the truth" : ""}`);
  }

  go(to) {
    this.pause();
    this.frame = to;
    this.drawFrame();
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.$(".play").textContent = "▶";
    this.$(".play").setAttribute("aria-label", "Play");
  }

  play() {
    const last = this.last();
    if (last < 1) return;
    if (this.frame >= last) this.frame = 0;
    clearInterval(this.timer);
    this.$(".play").textContent = "❚❚";
    this.$(".play").setAttribute("aria-label", "Pause");
    this.drawFrame();
    this.timer = setInterval(() => {
      if (!this.root.isConnected || this.frame >= last) return this.pause();
      this.frame += 1;
      this.drawFrame();
    }, Math.max(40, Math.min(180, 1800 / last)));
  }

  toggle(name) {
    if (name === "onion") [this.onion, this.difference] = [!this.onion, false];
    if (name === "difference") [this.onion, this.difference] = [false, !this.difference];
    if (name === "heat") this.heat = !this.heat;
    for (const each of ["onion", "difference", "heat"]) this.$("." + each).setAttribute("aria-pressed", this[each]);
    this.drawFrame();
    if (grids[this.slot].grid) draw(this.slot);
  }

  drawText() {
    const pre = this.$(".text"), more = this.$(".more"), fault = this.$(".fault");
    const answer = this.answer || {}, text = answer.text || "";
    const shown = this.showAll ? text : text.slice(0, CLIP_TEXT);
    const error = answer.error;
    pre.replaceChildren();
    if (error && error.position <= shown.length) {
      pre.append(shown.slice(0, error.position), make("mark", shown.slice(error.position, error.position + 1) || "⏎", "fault-mark"), shown.slice(error.position + 1));
    } else pre.append(shown);
    if (answer.state === "working") pre.append(make("span", "▍", "caret"));
    pre.hidden = !text && answer.state !== "working";
    more.hidden = shown.length === text.length;
    more.textContent = `Show all ${text.length} characters`;
    fault.hidden = !error;
    fault.textContent = error ? error.message : "";
  }

  verdict() {
    const { answer } = this, chip = this.$(".verdict"), badge = this.$(".badge");
    const state = answer ? answer.state : "none";
    this.root.dataset.state = state;
    badge.hidden = !answer || !answer.badge;
    badge.textContent = answer ? answer.badge : "";
    badge.dataset.badge = answer ? answer.badge : "";
    const solved = state === "answer" && answer.right;
    chip.hidden = state !== "answer";
    const unknown = state === "answer" && answer.open && answer.grid; // nobody knows the answer
    chip.dataset.right = unknown ? "" : solved;
    chip.textContent = state !== "answer" ? "" : unknown ? "? nobody knows" : solved ? (answer.exact ? "✓ solved" : "✓ right by the rules") : "✗ wrong";
    this.$(".reason").textContent = !answer ? "" : state !== "answer" ? answer.note || "" : words(answer);
    this.$(".decoded .size").textContent = answer && answer.grid ? shape(answer.grid) : "";
    this.$(".decoded").hidden = !(answer && answer.grid);
    this.$(".run").textContent = answer && answer.run ? answer.run : "";
    this.$(".downloads").hidden = state !== "answer";
    this.$(".kept").textContent = "";
  }

  show(answer, fresh) {
    const before = this.answer;
    this.answer = answer;
    if (fresh) this.showAll = false;
    setGrid(this.slot, this.name, answer && answer.grid, scene.answer, answer && answer.certainty, answer && answer.state === "answer" && !answer.right);
    this.verdict();
    if (this.kind === "language") return this.drawText();
    this.$(".heat").hidden = !(answer && answer.certainty);
    this.truthPicture = picture(answer && answer.film && answer.film.truth, () => this.drawFrame());
    const sameFilm = before && before.film && answer && answer.film && before.film.sprite === answer.film.sprite;
    if (!sameFilm || fresh) {
      this.pause();
      const quiet = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
      this.film = picture(answer && answer.film && answer.film.sprite, () => {
        this.frame = answer.film.frames - 1;
        this.drawFrame();
        if (answer.state === "answer" && !quiet) this.play();
      });
    }
    this.drawFrame();
  }

  async keep(kind) { // a file to keep; films are encoded by the page's own server, everything else here
    const { task, index, seed } = scene, said = this.$(".kept");
    const name = `${task.replace(/\W+/g, "-")}-${seed}-${index}-${this.slot}`;
    if (kind === "json") {
      const { film, ...answer } = this.answer;
      const text = JSON.stringify({ task, index, seed, question: scene.question, answer: scene.answer, arm: this.kind, proposed: answer });
      return save(URL.createObjectURL(new Blob([text], { type: "application/json" })), `${name}.json`);
    }
    if (kind === "png") return save((this.answer.grid ? grids[this.slot].canvas : this.screen).toDataURL("image/png"), `${name}.png`);
    said.textContent = "…";
    const { sprite, frames, columns, width, height } = this.answer.film;
    try {
      const made = await server.movie({ kind, sprite, frames, columns, width, height });
      said.textContent = made.error || "";
      if (made.file) save(made.file, `${name}.${kind}`);
    } catch {
      said.textContent = "The page does not answer. Try again.";
    }
  }
}

function save(address, name) {
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
}

function words(answer) {
  if (answer.error) return "The text is no grid. The place where it stops being one is marked.";
  if (answer.open && answer.grid) return "The puzzle is open: there is no truth to compare this with.";
  if (answer.problem || answer.reason) return answer.problem || answer.reason;
  return answer.exact ? "Every cell agrees with the truth." : "Another right answer than the stored one.";
}

function setGrid(slot, name, grid, truth, certainty, marks) {
  Object.assign(grids[slot], { grid, truth, certainty, marks });
  const label = slot === "question" ? "Input" : slot === "answer" ? "Ground truth" : `The ${name} arm's answer`;
  let text = grid ? `${label}, ${grid.length} rows, ${grid[0].length} columns` : label;
  if (grid && truth) {
    let wrong = 0;
    grid.forEach((row, r) => row.forEach((v, c) => { wrong += !truth[r] || truth[r][c] !== v; }));
    text += `, ${wrong} cells differ from the truth`;
  }
  grids[slot].canvas.setAttribute("role", "img");
  grids[slot].canvas.setAttribute("aria-label", text + ". Use the arrow keys to walk over its cells.");
  draw(slot);
}

function picture(source, done) {
  if (!source) return null;
  const image = new Image();
  image.onload = done;
  image.src = source;
  return image;
}

// ------------------------------------------------------------------------------------------------------ the scene
function further() { // cards for what stands beside the two main arms; one whose kind has changed is made anew
  const wanted = scene.more || [];
  for (const slot of Object.keys(cards).filter((name) => name.startsWith("more"))) {
    const answer = wanted[Number(slot.slice(4))];
    if (answer && answer.arm === cards[slot].kind) continue;
    if (cards[slot].kind === "video") cards[slot].pause();
    cards[slot].root.remove();
    delete cards[slot];
    delete grids[slot];
  }
  wanted.forEach((answer, k) => {
    if (cards[`more${k}`]) return;
    const root = ORIGINALS[answer.arm].cloneNode(true);
    $(".columns").append(root);
    cards[`more${k}`] = new Card(`more${k}`, answer.arm, root);
  });
  const seen = {};
  for (const slot of ["video", "language", ...wanted.map((_, k) => `more${k}`)]) {
    const card = cards[slot];
    seen[card.kind] = (seen[card.kind] || 0) + 1;
    card.name = seen[card.kind] > 1 ? `${card.kind} ${seen[card.kind]}` : card.kind;
    card.root.setAttribute("aria-label", `The ${card.name} arm's answer`);
  }
  $(".columns").classList.toggle("many", wanted.length > 0);
}

function show() {
  const before = scene;
  scene = given();
  element.classList.toggle("empty", !scene);
  if (!scene) return;
  const fresh = !before || before.id !== scene.id;
  if (fresh) cell = null;
  $(".title").textContent = scene.title;
  $(".about").textContent = scene.about;
  setGrid("question", "", scene.question);
  setGrid("answer", "", scene.answer);
  $(".given .size").textContent = shape(scene.question);
  $(".truth .size").textContent = scene.answer ? shape(scene.answer) : "nobody knows it";
  further();
  for (const [slot, card] of Object.entries(cards)) card.show(slot.startsWith("more") ? scene.more[Number(slot.slice(4))] : scene[slot], fresh);
  showDemos();
  legend();
  readout();
  element.dataset.scene = scene.id;
  const address = new URL(location.href); // so that the address can be sent to someone
  for (const [key, value] of Object.entries(scene.address)) {
    if (value === "") address.searchParams.delete(key);
    else address.searchParams.set(key, value);
  }
  if (fresh) history.replaceState(history.state, "", address);
}

// What the colours of this puzzle's grids mean, where they have a meaning.
function legend() {
  const grids = [scene.question, scene.answer, ...scene.demos.flatMap((demo) => [demo.question, demo.answer])].filter(Boolean);
  const values = [...new Set(grids.flat(2))].sort((a, b) => a - b).filter((value) => scene.names[value] && scene.names[value] !== String(value));
  $(".legend").replaceChildren(...values.map((value) => {
    const item = make("li"), patch = make("i");
    patch.style.background = scene.palette[value];
    patch.setAttribute("aria-hidden", "true");
    item.append(patch, scene.names[value]);
    return item;
  }));
}

function showDemos() {
  const strip = $(".demos");
  const content = JSON.stringify(scene.demos);
  $(".demos-label").textContent = scene.demos_label;
  if (strip.dataset.content === content) return;
  strip.dataset.content = content;
  Object.keys(grids).filter((name) => name.startsWith("demo")).forEach((name) => delete grids[name]);
  strip.replaceChildren(...scene.demos.map((demo, i) => {
    const pair = make("figure", undefined, "demo");
    ["question", "answer"].forEach((side, k) => {
      const holder = make("div"), canvas = document.createElement("canvas");
      canvas.dataset.small = "yes";
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Example ${i + 1}, ${side}`);
      holder.append(canvas);
      if (k) pair.append(make("span", "→", "arrow"));
      pair.append(holder);
      wire(`demo${i}${side}`, canvas);
      Object.assign(grids[`demo${i}${side}`], { grid: demo[side] });
    });
    return pair;
  }));
  requestAnimationFrame(() => Object.keys(grids).filter((name) => name.startsWith("demo")).forEach(draw));
}

wire("question", $(".given canvas"));
wire("answer", $(".truth canvas"));
cards.video = new Card("video", "video", $(".card.video"));
cards.language = new Card("language", "language", $(".card.language"));

// j, k and r walk through the examples from anywhere but a field one types in.
const BUTTONS = { j: "next-example", k: "previous-example", r: "random-example" };
document.addEventListener("keydown", (event) => {
  if (!element.isConnected || !element.offsetParent || event.ctrlKey || event.metaKey || event.altKey) return;
  if (/INPUT|TEXTAREA|SELECT/.test(event.target.tagName) && event.target.type !== "range" && event.target.type !== "radio") return;
  const button = BUTTONS[event.key] && document.getElementById(BUTTONS[event.key]);
  if (button) button.click();
});
const again = () => { if (scene) { Object.keys(grids).forEach(draw); Object.values(cards).forEach((card) => card.drawFrame()); } };
new ResizeObserver(again).observe(element);
new MutationObserver(again).observe(document.body, { attributes: true, attributeFilter: ["class"] });
watch("value", show);
show();
