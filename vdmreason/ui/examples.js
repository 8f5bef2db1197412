// The recorded examples in a row above the stage: a small picture of the question and what each arm made of it.
const row = element.querySelector(".example-row");
let items = [];

function paint(canvas, grid, palette) {
  const rows = grid.length, cols = grid[0].length;
  canvas.width = cols;
  canvas.height = rows;
  const pen = canvas.getContext("2d");
  grid.forEach((line, r) => line.forEach((value, c) => { pen.fillStyle = palette[value]; pen.fillRect(c, r, 1, 1); }));
  const scale = 40 / Math.max(rows, cols);
  canvas.style.width = `${Math.round(cols * scale)}px`;
  canvas.style.height = `${Math.round(rows * scale)}px`;
}

// Right or wrong; null where nobody knows the answer, undefined where the arm gave none.
const word = (right) => (right === undefined ? "no answer" : right === null ? "answered" : right ? "right" : "wrong");
const mark = (right) => (right === undefined ? "–" : right === null ? "?" : right ? "✓" : "✗");

function button(item, palette) {
  const place = document.createElement("li"), node = document.createElement("button");
  const picture = document.createElement("canvas"), label = document.createElement("span");
  node.type = "button";
  node.dataset.i = item.i;
  node.setAttribute("aria-label", `Example ${item.i}: video ${word(item.video)}, language ${word(item.language)}`);
  for (const [arm, letter] of [["video", "V"], ["language", "L"]]) {
    const flag = document.createElement("b");
    flag.dataset.right = item[arm] ?? "";
    flag.textContent = `${letter} ${mark(item[arm])}`;
    label.append(flag);
  }
  paint(picture, item.question, palette);
  node.append(picture, label);
  node.addEventListener("click", () => trigger("pick", { i: item.i }));
  place.append(node);
  return place;
}

function show() {
  const value = given();
  if (!value) return;
  if (value.items) {
    items = value.items;
    element.classList.toggle("none", !items.length);
    row.replaceChildren(...items.map((item) => button(item, value.palette)));
  }
  for (const node of row.querySelectorAll("button")) {
    const here = Number(node.dataset.i) === value.current;
    if (here) node.setAttribute("aria-current", "true");
    else node.removeAttribute("aria-current");
    if (here) { // only the row scrolls, never the page
      const left = node.offsetLeft - row.offsetLeft;
      if (left < row.scrollLeft || left + node.offsetWidth > row.scrollLeft + row.clientWidth) row.scrollLeft = left - row.clientWidth / 2;
    }
  }
}
watch("value", show);
show();
