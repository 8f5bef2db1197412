// The strip of jobs under every tab, polled once a second. Rows are kept between polls, so a button keeps its focus.
const list = element.querySelector(".jobs-list");
const rows = new Map();
const ACTIONS = { running: [["stop", "Stop and save"], ["kill", "Stop now"]], starting: [["kill", "Stop now"]], queued: [["kill", "Remove"]],
  stopping: [["kill", "Stop now"]], stopped: [["resume", "Resume"]], lost: [["resume", "Resume"]], failed: [["resume", "Try again"]] };

function row(job) {
  const item = document.createElement("li");
  item.innerHTML = '<span class="job-state"></span><span class="job-title"></span><progress max="1"></progress><span class="job-numbers"></span><span class="job-actions"></span>';
  item.dataset.name = job.name;
  return item;
}

function update(item, job) {
  const set = (name, text) => { const node = item.querySelector(name); if (node.textContent !== text) node.textContent = text; };
  item.dataset.state = job.state;
  set(".job-state", job.state);
  set(".job-title", job.title);
  set(".job-numbers", job.numbers);
  const bar = item.querySelector("progress");
  bar.hidden = job.share === null;
  bar.value = job.share || 0;
  bar.setAttribute("aria-label", `progress of ${job.title}`);
  const wanted = (ACTIONS[job.state] || []).map(([how]) => how).join();
  const actions = item.querySelector(".job-actions");
  if (actions.dataset.wanted !== wanted) {
    actions.dataset.wanted = wanted;
    actions.replaceChildren(...(ACTIONS[job.state] || []).map(([how, label]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      button.setAttribute("aria-label", `${label}: ${job.title}`);
      button.addEventListener("click", () => trigger("act", { name: job.name, how }));
      return button;
    }));
  }
}

function show() {
  const jobs = given() || [];
  element.classList.toggle("idle", !jobs.length);
  for (const [name, item] of rows) if (!jobs.some((job) => job.name === name)) { item.remove(); rows.delete(name); }
  jobs.forEach((job, i) => {
    if (!rows.has(job.name)) rows.set(job.name, row(job));
    const item = rows.get(job.name);
    update(item, job);
    if (list.children[i] !== item) list.insertBefore(item, list.children[i] || null);
  });
}
watch("value", show);
show();
