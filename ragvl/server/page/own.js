// The visitor's own documents: pictures with captions, and texts. They never leave the page but
// with a question.

import { byId, element, picture, textSign } from "./dom.js";

export class OwnDocuments {
  #entries = []; // {image: data URL or null, name, field: the element that holds its text, item}
  #say;

  /**
   * @param {(message: string) => void} say tells the visitor something
   * @param {() => void} dropped called when files were dropped somewhere on the page
   */
  constructor(say, dropped) {
    this.#say = say;
    const drop = byId("drop");
    const files = byId("files");
    files.addEventListener("change", () => {
      this.add([...files.files]);
      files.value = ""; // so that the same file can be chosen again
    });
    // Anywhere on the page: a picture dropped beside the field must not replace the page
    document.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      drop.classList.add("over");
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) drop.classList.remove("over");
    });
    document.addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      drop.classList.remove("over");
      dropped();
      this.add([...event.dataTransfer.files]);
    });
    byId("add-text").addEventListener("click", () => this.#addText());
  }

  /**
   * The documents as they are now, in the order of the list.
   * @returns {{body: object, image: ?string, words: string}[]} for the server, and how it looks
   */
  get documents() {
    return this.#entries.map(({ image, name, field }) => {
      const text = field.value.trim();
      const body = { ...(image && { image }), ...(text && { text }) };
      return { body, image, words: text || name };
    });
  }

  /**
   * Marks the document at a place of the list as the one that is wrong, until it is called again.
   * @param {?number} wrong null for none
   * @returns {?string} its name
   */
  mark(wrong) {
    this.#entries.forEach(({ field }, place) => {
      if (place === wrong) field.setAttribute("aria-invalid", "true");
      else field.removeAttribute("aria-invalid");
    });
    return this.#entries[wrong]?.name ?? null;
  }

  /** Takes files; what is no picture is named and left out. */
  async add(files) {
    const images = await Promise.all(files.map(readPicture));
    const names = files.map(({ name }) => name);
    const others = names.filter((_, at) => images[at] === null);
    images.forEach((image, at) => image && this.#addPicture(names[at], image));
    const added = files.length - others.length;
    const message = `${added} ${added === 1 ? "picture" : "pictures"} added.`;
    this.#say(others.length ? `${message} Not a picture: ${others.join(", ")}.` : message);
  }

  #addPicture(name, image) {
    const field = element("input", {
      type: "text",
      placeholder: "Caption",
      "aria-label": `Caption of ${name}`,
    });
    this.#append({ image, name, field }, picture(image), name);
  }

  #addText() {
    const name = `text ${this.#entries.length + 1}`;
    const field = element("textarea", {
      rows: 2,
      placeholder: "Text",
      "aria-label": `Words of ${name}`,
    });
    this.#append({ image: null, name, field }, textSign(), name);
    field.focus();
  }

  #append(entry, face, name) {
    const remove = element(
      "button",
      { type: "button", className: "remove", "aria-label": `Remove ${name}` },
      "×",
    );
    entry.item = element("li", {}, face, entry.field, remove);
    remove.addEventListener("click", () => this.#remove(entry));
    this.#entries.push(entry);
    byId("own-list").append(entry.item);
  }

  #remove(entry) {
    this.#entries = this.#entries.filter((other) => other !== entry);
    // The focus would fall back to the top of the page
    const next = entry.item.nextElementSibling ?? entry.item.previousElementSibling;
    entry.item.remove();
    (next?.querySelector("button") ?? byId("files")).focus();
    this.#say(`${entry.name} removed.`);
  }
}

function hasFiles({ dataTransfer }) {
  return dataTransfer.types.includes("Files");
}

/** A picture's file as a data URL; null for another file, or one that cannot be read. */
function readPicture(file) {
  if (!file.type.startsWith("image/")) return null;
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => resolve(null);
    reader.readAsDataURL(file);
  });
}
