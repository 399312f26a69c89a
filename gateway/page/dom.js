// What is shown is the word of others: it becomes text, never HTML.

export const byId = (id) => document.getElementById(id);

// h("td", { class: "num", title: "x" }, "text", node): an element; null children are left out.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (value === null || value === undefined) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

// Makes `parent`'s children those of `items`, in order, and keeps what is there: focus and open rows survive.
// `make(item)` gives { element, update(item) }; both are kept by `key(item)`. What stands up to `after` is left alone.
export function keyed(parent, key, make, after = null) {
  const known = new Map();
  return (items) => {
    const wanted = new Set(items.map(key));
    for (const [name, view] of known) {
      if (!wanted.has(name)) {
        view.element.remove();
        known.delete(name);
      }
    }
    let next = after ? after.nextElementSibling : parent.firstElementChild;
    for (const item of items) {
      const name = key(item);
      let view = known.get(name);
      if (!view) {
        view = make(item);
        known.set(name, view);
      }
      view.update(item);
      if (view.element === next) next = next.nextElementSibling;
      else parent.insertBefore(view.element, next);
    }
  };
}
