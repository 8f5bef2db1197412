// Which tab is looked at stands in the address, so that a link opens it and Back leads to the one before.
const shown = () => [...document.querySelectorAll('[role="tab"]')].find((tab) => tab.offsetParent && tab.getAttribute("aria-selected") === "true" && tab.closest(".tabs") === document.querySelector(".tabs"));
const word = (tab) => tab.textContent.trim().toLowerCase();
const inAddress = () => new URLSearchParams(location.search).get("tab") || "compare";
const turnTo = (name) => [...document.querySelectorAll('[role="tab"]')].find((tab) => tab.offsetParent && word(tab) === name)?.click();
let last = "";
function follow() {
  const tab = shown();
  if (!tab || word(tab) === last) return;
  const first = !last;
  last = word(tab);
  if (first && inAddress() !== last) return turnTo(inAddress()); // the page opens on Compare
  if (inAddress() === last) return;
  const address = new URL(location.href);
  if (last === "compare") address.searchParams.delete("tab"); else address.searchParams.set("tab", last);
  history.pushState(history.state, "", address);
}
new MutationObserver(follow).observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ["aria-selected"] });
window.addEventListener("popstate", () => { if (inAddress() !== last) turnTo(inAddress()); });
follow();
