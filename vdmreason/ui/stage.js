// One puzzle answered twice. `props.value` is the scene that compare.py builds; nothing in the template depends on it,
// so a new scene redraws canvases and texts and never replaces an element that has the focus.
const $ = (selector) => element.querySelector(selector);
const make = (tag, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
};
const LARGEST = 256; // pixels of a grid's longer side
const CLIP_TEXT = 6000; // a longer text would slow the page; "show all" brings the rest
let scene = null;
let cell = null; // the cell under the pointer or the keyboard, {r, c}, the same in every grid
let frame = 0, timer = null, onion = false, difference = false, heat = false, showAll = false;
let film = null, truthPicture = null; // decoded images

// ---------------------------------------------------------------------------------------------- grids on canvases
const grids = {}; // name -> {canvas, grid, truth, certainty}
const css = (name) => getComputedStyle(element).getPropertyValue(name).trim();

function draw(name) {
  const { canvas, grid, truth, certainty, marks } = grids[name];
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
  const parts = [`row ${cell.r + 1}, column ${cell.c + 1}`, `input ${meaning(at(scene.question))}`, `truth ${meaning(at(scene.answer))}`];
  for (const arm of ["video", "language"]) {
    const answer = scene[arm];
    if (!answer || !answer.grid) continue;
    const sure = answer.certainty && answer.certainty[cell.r] && answer.certainty[cell.r][cell.c];
    const wrong = at(answer.grid) !== at(scene.answer) ? " ✗" : "";
    parts.push(`${arm} ${meaning(at(answer.grid))}${sure === undefined || sure === null ? "" : ` (${Math.round(100 * sure)} % sure)`}${wrong}`);
  }
  line.textContent = parts.join("  ·  ");
}

function point(next) {
  if ((next && cell && next.r === cell.r && next.c === cell.c) || (!next && !cell)) return;
  cell = next;
  Object.keys(grids).forEach(draw);
  drawFrame();
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

// ------------------------------------------------------------------------------------------------------- the film
const screen = $(".screen"), slider = $(".film input");

function drawFrame() {
  const video = scene && scene.video;
  const ready = film && film.complete && film.naturalWidth && video && video.film;
  $(".film").hidden = !(video && video.film);
  if (!ready) return;
  const { width, height, columns, frames } = video.film;
  const room = screen.parentElement.clientWidth || 300;
  const zoom = Math.max(1, Math.floor(Math.min(room, LARGEST) / Math.max(width, height)));
  const scale = zoom > 1 ? zoom : Math.min(1, Math.min(room, LARGEST) / Math.max(width, height));
  screen.width = Math.round(width * scale);
  screen.height = Math.round(height * scale);
  const pen = screen.getContext("2d");
  pen.imageSmoothingEnabled = scale < 1;
  frame = Math.max(0, Math.min(frames - 1, frame));
  const x = (frame % columns) * width, y = Math.floor(frame / columns) * height;
  pen.drawImage(film, x, y, width, height, 0, 0, screen.width, screen.height);
  if (truthPicture && truthPicture.complete && truthPicture.naturalWidth && (onion || difference)) {
    pen.globalAlpha = difference ? 1 : 0.5;
    pen.globalCompositeOperation = difference ? "difference" : "source-over";
    pen.drawImage(truthPicture, 0, 0, screen.width, screen.height);
    pen.globalAlpha = 1;
    pen.globalCompositeOperation = "source-over";
  }
  const [rows, cols] = scene.canvas;
  if (cell && cell.r < rows && cell.c < cols) {
    const w = screen.width / cols, h = screen.height / rows;
    spot(pen, cell.c * w, cell.r * h, w, h);
  }
  slider.max = frames - 1;
  slider.value = frame;
  slider.setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames}`);
  $(".count").textContent = `${frame + 1} / ${frames}`;
  screen.setAttribute("aria-label", `Frame ${frame + 1} of ${frames} of the video arm's transition${onion ? ", the truth laid over it" : ""}${difference ? ", difference to the truth" : ""}`);
}

function go(to) {
  pause();
  frame = to;
  drawFrame();
}

function pause() {
  clearInterval(timer);
  timer = null;
  $(".play").textContent = "▶";
  $(".play").setAttribute("aria-label", "Play");
}

function play() {
  const last = scene.video.film.frames - 1;
  if (last < 1) return;
  if (frame >= last) frame = 0;
  clearInterval(timer);
  $(".play").textContent = "❚❚";
  $(".play").setAttribute("aria-label", "Pause");
  drawFrame();
  timer = setInterval(() => {
    if (!element.isConnected || frame >= last) return pause();
    frame += 1;
    drawFrame();
  }, Math.max(40, Math.min(180, 1800 / last)));
}

const toggle = (name) => {
  if (name === "onion") [onion, difference] = [!onion, false];
  if (name === "difference") [onion, difference] = [false, !difference];
  if (name === "heat") heat = !heat;
  $(".onion").setAttribute("aria-pressed", onion);
  $(".difference").setAttribute("aria-pressed", difference);
  $(".heat").setAttribute("aria-pressed", heat);
  drawFrame();
  if (grids.video.grid) draw("video");
};

const last = () => scene.video.film.frames - 1;
const FILM_KEYS = {
  ArrowLeft: () => go(frame - 1), ArrowRight: () => go(frame + 1), Home: () => go(0), End: () => go(last()),
  " ": () => (timer ? pause() : play()), o: () => toggle("onion"), d: () => toggle("difference"), c: () => toggle("heat"),
};
$(".film").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !FILM_KEYS[event.key] || !scene || !scene.video || !scene.video.film) return;
  if (event.key === " " && event.target.tagName === "BUTTON") return; // a focused button keeps its own space
  event.preventDefault();
  FILM_KEYS[event.key]();
});
slider.addEventListener("input", () => go(Number(slider.value)));
$(".play").addEventListener("click", () => (timer ? pause() : play()));
$(".back").addEventListener("click", () => go(frame - 1));
$(".forth").addEventListener("click", () => go(frame + 1));
$(".onion").addEventListener("click", () => toggle("onion"));
$(".difference").addEventListener("click", () => toggle("difference"));
$(".heat").addEventListener("click", () => toggle("heat"));
screen.addEventListener("pointermove", (event) => {
  if (!scene) return;
  const box = screen.getBoundingClientRect(), [rows, cols] = scene.canvas;
  point({ r: Math.floor(((event.clientY - box.top) / box.height) * rows), c: Math.floor(((event.clientX - box.left) / box.width) * cols) });
});
screen.addEventListener("pointerleave", () => point(null));

// ------------------------------------------------------------------------------------------------------- the text
function drawText() {
  const pre = $(".text"), more = $(".more"), fault = $(".fault");
  const answer = scene.language || {};
  const text = answer.text || "";
  const shown = showAll ? text : text.slice(0, CLIP_TEXT);
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
$(".more").addEventListener("click", () => { showAll = true; drawText(); });

// ------------------------------------------------------------------------------------------------------ the scene
function verdict(arm) {
  const answer = scene[arm], chip = $(`.${arm} .verdict`), reason = $(`.${arm} .reason`), badge = $(`.${arm} .badge`);
  const state = answer ? answer.state : "none";
  $(`.${arm}`).dataset.state = state;
  badge.hidden = !answer || !answer.badge;
  badge.textContent = answer ? answer.badge : "";
  badge.dataset.badge = answer ? answer.badge : "";
  const solved = state === "answer" && answer.right;
  chip.hidden = state !== "answer";
  chip.dataset.right = solved;
  chip.textContent = state !== "answer" ? "" : solved ? (answer.exact ? "✓ solved" : "✓ right by the rules") : "✗ wrong";
  reason.textContent = !answer ? "" : state !== "answer" ? answer.note || "" : words(answer);
  $(`.${arm} .size`).textContent = answer && answer.grid ? shape(answer.grid) : "";
  $(`.${arm} .decoded`).hidden = !(answer && answer.grid);
  $(`.${arm} .run`).textContent = answer && answer.run ? answer.run : "";
}

function words(answer) {
  if (answer.error) return "The text is no grid. The place where it stops being one is marked.";
  if (answer.problem || answer.reason) return answer.problem || answer.reason;
  return answer.exact ? "Every cell agrees with the truth." : "Another right answer than the stored one.";
}

function setGrid(name, grid, truth, certainty, marks) {
  Object.assign(grids[name], { grid, truth, certainty, marks });
  const label = name === "question" ? "Input" : name === "answer" ? "Ground truth" : `The ${name} arm's answer`;
  let text = grid ? `${label}, ${grid.length} rows, ${grid[0].length} columns` : label;
  if (grid && truth) {
    let wrong = 0;
    grid.forEach((row, r) => row.forEach((v, c) => { wrong += !truth[r] || truth[r][c] !== v; }));
    text += `, ${wrong} cells differ from the truth`;
  }
  grids[name].canvas.setAttribute("role", "img");
  grids[name].canvas.setAttribute("aria-label", text + ". Use the arrow keys to walk over its cells.");
  draw(name);
}

function picture(source, done) {
  if (!source) return null;
  const image = new Image();
  image.onload = done;
  image.src = source;
  return image;
}

function show() {
  const before = scene;
  scene = props.value;
  element.classList.toggle("empty", !scene);
  if (!scene) return;
  const fresh = !before || before.id !== scene.id;
  if (fresh) [cell, showAll] = [null, false];
  $(".title").textContent = scene.title;
  $(".about").textContent = scene.about;
  setGrid("question", scene.question);
  setGrid("answer", scene.answer);
  $(".given .size").textContent = shape(scene.question);
  $(".truth .size").textContent = shape(scene.answer);
  for (const arm of ["video", "language"]) {
    const answer = scene[arm];
    setGrid(arm, answer && answer.grid, scene.answer, answer && answer.certainty, answer && answer.state === "answer" && !answer.right);
    verdict(arm);
  }
  $(".heat").hidden = !(scene.video && scene.video.certainty);
  drawText();
  showDemos();
  const video = scene.video;
  truthPicture = picture(video && video.film && video.film.truth, drawFrame);
  const sameFilm = before && before.video && video && before.video.film && video.film && before.video.film.sprite === video.film.sprite;
  if (!sameFilm || fresh) {
    pause();
    const quiet = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    film = picture(video && video.film && video.film.sprite, () => {
      frame = video.film.frames - 1;
      drawFrame();
      if (video.state === "answer" && !quiet) play();
    });
  }
  drawFrame();
  readout();
  element.dataset.scene = scene.id;
  const address = new URL(location.href); // so that the address can be sent to someone
  for (const key of ["task", "index", "seed"]) address.searchParams.set(key, scene[key]);
  if (fresh) history.replaceState(history.state, "", address);
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
wire("video", $(".video .decoded canvas"));
wire("language", $(".language .decoded canvas"));

// j, k and r walk through the examples from anywhere but a field one types in.
const BUTTONS = { j: "next-example", k: "previous-example", r: "random-example" };
document.addEventListener("keydown", (event) => {
  if (!element.isConnected || !element.offsetParent || event.ctrlKey || event.metaKey || event.altKey) return;
  if (/INPUT|TEXTAREA|SELECT/.test(event.target.tagName) && event.target.type !== "range" && event.target.type !== "radio") return;
  const button = BUTTONS[event.key] && document.getElementById(BUTTONS[event.key]);
  if (button) button.click();
});
const again = () => { if (scene) { Object.keys(grids).forEach(draw); drawFrame(); } };
new ResizeObserver(again).observe(element);
new MutationObserver(again).observe(document.body, { attributes: true, attributeFilter: ["class"] });
watch("value", show);
show();
