// A report inside the page: what `vdmreason sweep report` wrote, its tables sortable, its files to keep.
const head = element.querySelector(".report-head");
const main = element.querySelector(".report-main");
let drawn = "";
let name = "";

function keep(name, kind, label) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.keep = kind;
  button.textContent = label;
  button.addEventListener("click", async () => {
    const file = await server.kept({ name, kind });
    const problem = head.querySelector(".problem");
    problem.textContent = file.error || "";
    if (file.error) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([file.text], { type: file.type }));
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  return button;
}

function show() {
  const value = given();
  if (!value || !value.main) {
    drawn = "";
    head.replaceChildren();
    main.replaceChildren();
    return;
  }
  const badge = document.createElement("span");
  badge.className = `badge ${value.finished ? "whole" : "part"}`;
  badge.textContent = value.badge;
  const made = document.createElement("span");
  made.className = "made";
  made.textContent = value.made;
  const problem = document.createElement("p");
  problem.className = "problem";
  problem.setAttribute("role", "alert");
  const tools = document.createElement("span");
  tools.className = "keep";
  tools.append("Download: ", keep(value.name, "html", "HTML page"), keep(value.name, "md", "Markdown"), keep(value.name, "csv", "CSV"));
  head.replaceChildren(badge, made, tools, problem);
  if (value.main === drawn) return;
  // what was opened or closed stays so while the same sweep goes on
  const open = value.name === name ? [...main.querySelectorAll("details")].map((node) => node.open) : [];
  [drawn, name] = [value.main, value.name];
  main.innerHTML = value.main; // every text in it was escaped when the report was written
  main.querySelectorAll("details").forEach((node, i) => { node.open = open[i] ?? node.open; });
  sortable(main);
}
watch("value", show);
show();
