// What every component's script begins with: what it was given, a part of its own element, a new node, a colour of the page.
const given = (() => { // `props.value` is JSON: gradio copies every component's value at every tick, and a text costs nothing
  let text, value = null;
  return () => {
    if (props.value !== text) { text = props.value; value = text ? JSON.parse(text) : null; }
    return value;
  };
})();
const $ = (selector) => element.querySelector(selector);
const make = (tag, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
};
const css = (name) => getComputedStyle(element).getPropertyValue(name).trim();
