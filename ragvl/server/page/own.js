// The visitor's own documents: pictures with captions, and texts. They never leave the page but
// with a question.

import { byId, element, picture, textSign } from "./dom.js";

export class OwnDocuments {
  #entries = []; // {image: data URL or null, name, field: the element that holds its text, item}
  #say;

  /**
   * @param {(message: string) => void} say tells the visitor something
   */
  constructor(say) {
    this.#say = say;
    const drop = byId("drop");
    const files = byId("files");
    files.addEventListener("change", () => {
      this.add([...files.files]);
      files.value = ""; // so that the same file can be chosen again
    });
    // Anywhere on the page: a picture dropped beside the field must not replace the page
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) drop.classList.remove("over");
    });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
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

  /** Takes files; what is no picture is named and left out. */
  async add(files) {
    const pictures = files.filter((file) => file.type.startsWith("image/"));
    const others = files.filter((file) => !pictures.includes(file)).map((file) => file.name);
    const read = await Promise.all(pictures.map(dataUrl));
    pictures.forEach((file, at) => this.#addPicture(file.name, read[at]));
    const added = `${pictures.length} ${pictures.length === 1 ? "picture" : "pictures"} added.`;
    this.#say(others.length ? `${added} Not a picture: ${others.join(", ")}.` : added);
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

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
