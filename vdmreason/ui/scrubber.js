// Aligned films under one slider. The value: {title, note, films: [{name, frames, error, hidden}], sprite, width, height,
// frames, patch}; the sprite has a row a film and a column a frame. The first film is what the others are compared with.
const slider = $("input[type=range]");
let value = null, picture = null, frame = 0, timer = null, cards = [];
const on = { strips: false, difference: false, hatch: true };

function build() {
  cards = value.films.map((film, row) => {
    const card = document.createElement("figure");
    const name = document.createElement("figcaption");
    const canvas = document.createElement("canvas");
    const said = document.createElement("span");
    name.textContent = film.name;
    said.className = "error";
    canvas.setAttribute("role", "img");
    canvas.addEventListener("pointerdown", (event) => {
      if (!on.strips) return;
      const box = canvas.getBoundingClientRect();
      go(Math.floor(((event.clientX - box.left) / box.width) * value.frames));
    });
    card.append(name, canvas, said);
    return { film, row, card, canvas, said };
  });
  $(".films").replaceChildren(...cards.map((c) => c.card));
  slider.max = value.frames - 1;
  $(".scrub-note").textContent = value.note || "";
  $(".scrub").setAttribute("aria-label", `Frames of all films${value.title ? ": " + value.title : ""}`);
}

// One frame of a film at (x, y) of a canvas, `scale` times as large.
function paint(pen, card, k, x, y, scale) {
  const { width: w, height: h, patch } = value;
  const at = Math.min(k, card.film.frames - 1);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(picture, at * w, card.row * h, w, h, x, y, w * scale, h * scale);
  if (on.difference && card.row > 0) { // three times the distance from the clip's own frame, on black
    const base = Math.min(k, value.films[0].frames - 1);
    pen.save();
    pen.beginPath();
    pen.rect(x, y, w * scale, h * scale);
    pen.clip();
    pen.globalCompositeOperation = "difference";
    pen.drawImage(picture, base * w, 0, w, h, x, y, w * scale, h * scale);
    pen.globalCompositeOperation = "lighter";
    for (const alpha of [1, 0.5]) { // itself once more, then half of both: threefold, and white where that is too much
      pen.globalAlpha = alpha;
      pen.drawImage(pen.canvas, x, y, w * scale, h * scale, x, y, w * scale, h * scale);
    }
    pen.restore();
  }
  const hidden = on.hatch && !on.difference && card.film.hidden && card.film.hidden[at];
  if (!hidden) return;
  const size = patch * scale, columns = w / patch;
  const pattern = hatching(pen);
  [...hidden].forEach((bit, i) => {
    if (bit !== "1") return;
    const left = x + (i % columns) * size, top = y + Math.floor(i / columns) * size;
    pen.fillStyle = css("--card");
    pen.fillRect(left, top, size, size);
    pen.fillStyle = pattern;
    pen.fillRect(left, top, size, size);
  });
}

function hatching(pen) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 8;
  const draw = tile.getContext("2d");
  draw.strokeStyle = css("--quiet");
  draw.lineWidth = 1.2;
  for (const shift of [-8, 0, 8]) {
    draw.beginPath();
    draw.moveTo(shift, 8);
    draw.lineTo(shift + 8, 0);
    draw.stroke();
  }
  return pen.createPattern(tile, "repeat");
}

function draw() {
  if (!value || !picture) return;
  const { width: w, height: h } = value;
  element.classList.toggle("as-strips", on.strips);
  for (const card of cards) {
    const scale = on.strips ? Math.max(1, Math.round(64 / w)) : Math.max(1, Math.round(144 / w));
    const gap = on.strips ? 4 : 0, count = on.strips ? value.frames : 1;
    card.canvas.width = count * (w * scale + gap) - gap;
    card.canvas.height = h * scale;
    const pen = card.canvas.getContext("2d");
    for (let k = 0; k < count; k++) {
      const shown = on.strips ? k : frame;
      paint(pen, card, shown, k * (w * scale + gap), 0, scale);
      if (on.strips && k === frame) {
        for (const [colour, line] of [["#000", 4], ["#fff", 2]]) {
          pen.strokeStyle = colour;
          pen.lineWidth = line;
          pen.strokeRect(k * (w * scale + gap) + 1.5, 1.5, w * scale - 3, h * scale - 3);
        }
      }
    }
    const error = card.film.error && card.film.error[Math.min(frame, card.film.error.length - 1)];
    card.said.textContent = card.row === 0 ? "given" : error === undefined ? "" : `off by ${error.toFixed(1)}`;
    card.said.title = card.row === 0 ? "" : "mean absolute difference from the clip's frame, of 255";
    card.canvas.setAttribute("aria-label", `${card.film.name}, frame ${frame + 1} of ${value.frames}${error === undefined ? "" : `, off by ${error.toFixed(1)} of 255`}`);
  }
  slider.value = frame;
  slider.setAttribute("aria-valuetext", `frame ${frame + 1} of ${value.frames}`);
  $(".count").textContent = `${frame + 1} / ${value.frames}`;
  for (const name of Object.keys(on)) $("." + name).setAttribute("aria-pressed", String(on[name]));
  element.dataset.frame = frame;
}

function go(next) {
  frame = Math.max(0, Math.min(value.frames - 1, next));
  draw();
}

function pause() {
  clearInterval(timer);
  timer = null;
  $(".play").textContent = "▶";
  $(".play").setAttribute("aria-label", "Play");
  $(".play").setAttribute("aria-pressed", "false");
}

function play() {
  if (frame === value.frames - 1) go(0);
  $(".play").textContent = "❚❚";
  $(".play").setAttribute("aria-label", "Pause");
  $(".play").setAttribute("aria-pressed", "true");
  timer = setInterval(() => (frame === value.frames - 1 ? pause() : go(frame + 1)), 260);
}

const toggle = (name) => { on[name] = !on[name]; draw(); };
const KEYS = {
  ArrowLeft: () => go(frame - 1), ArrowRight: () => go(frame + 1), Home: () => go(0), End: () => go(value.frames - 1),
  " ": () => (timer ? pause() : play()), s: () => toggle("strips"), d: () => toggle("difference"), h: () => toggle("hatch"),
};
element.addEventListener("keydown", (event) => {
  if (!value || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  if (event.key === " " && event.target.tagName === "BUTTON") return; // a focused button keeps its own space
  event.preventDefault();
  KEYS[event.key]();
});
slider.addEventListener("input", () => go(Number(slider.value)));
$(".play").addEventListener("click", KEYS[" "]);
$(".back").addEventListener("click", () => go(frame - 1));
$(".forth").addEventListener("click", () => go(frame + 1));
for (const name of Object.keys(on)) $("." + name).addEventListener("click", () => toggle(name));
new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] }); // light or dark

function show() {
  pause();
  value = given() && given().films ? given() : null;
  element.classList.toggle("none", !value);
  picture = null;
  if (!value) { $(".films").replaceChildren(); return; }
  build();
  const image = new Image();
  const mine = value;
  image.onload = () => { if (mine === value) { picture = image; frame = Math.floor(value.frames / 2); draw(); } };
  image.src = value.sprite;
}
watch("value", show);
show();
