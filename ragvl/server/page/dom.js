// Elements are made from data here and nowhere else, as text and never as HTML.

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/**
 * A new element.
 * @param {string} tag
 * @param {object} properties of the element; a name with a dash is set as an attribute
 * @param {...(Node|string)} children
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** Shows or hides an element. */
export function show(one, shown = true) {
  one.hidden = !shown;
}

/** A picture beside its words. */
export function picture(url) {
  return element("img", { alt: "", src: url });
}

/** What stands for a text where others have a picture. */
export function textSign() {
  return element("span", { className: "glyph", "aria-hidden": "true" }, "¶");
}

/** A button that does `work`. */
export function choice(words, work) {
  const button = element("button", { type: "button" }, words);
  button.addEventListener("click", work);
  return button;
}

/** Words for those who hear the page. */
export function hiddenText(words) {
  return element("span", { className: "unseen" }, words);
}
