// What every component's script begins with: a part of its own element, a new node, a colour of the page.
const $ = (selector) => element.querySelector(selector);
const make = (tag, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
};
const css = (name) => getComputedStyle(element).getPropertyValue(name).trim();
