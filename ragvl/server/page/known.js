// Documents that the server knows: the list to browse, and their pictures.

import { byId, element, show, textSign } from "./dom.js";

const PAGE = 60; // documents at once in the list
const AT_ONCE = 6; // pictures on their way

export class KnownDocuments {
  #api;
  #seen; // the IntersectionObserver of pictures that are not seen yet
  #pictures = new Map(); // id -> promise of a URL
  #waiting = []; // functions that let a picture begin
  #running = 0;
  #last = null; // the id that the list ends with

  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.#api = api;
    const soon = { rootMargin: "300px" };
    this.#seen = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        this.#seen.unobserve(target);
        this.#fetch(target);
      }
    }, soon);
    byId("known-list").replaceChildren();
  }

  /** A document's picture, which is fetched when it is seen; a sign for one that has none. */
  picture(id) {
    const image = element("img", { alt: "" });
    image.dataset.document = id;
    this.#seen.observe(image);
    return image;
  }

  #fetch(image) {
    const { document: id } = image.dataset;
    if (!this.#pictures.has(id)) this.#pictures.set(id, this.#load(id));
    this.#pictures.get(id).then(
      (url) => (image.src = url),
      () => image.replaceWith(textSign()),
    );
  }

  /** Shows the next documents of the list. */
  async showMore() {
    const after = this.#last === null ? "" : `&after=${encodeURIComponent(this.#last)}`;
    const { data, has_more } = await this.#api.get(`v1/documents?limit=${PAGE}${after}`);
    for (const { id, text, num_pictures } of data) {
      const words = text || id;
      const face = num_pictures > 0 ? this.picture(id) : textSign();
      byId("known-list").append(
        element("li", { title: words }, face, element("span", { className: "words" }, words)),
      );
      this.#last = id;
    }
    show(byId("more"), has_more);
  }

  async #load(id) {
    if (this.#running === AT_ONCE) await new Promise((resolve) => this.#waiting.push(resolve));
    else this.#running += 1;
    try {
      return await this.#api.picture(`v1/documents/${encodeURIComponent(id)}/picture`);
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#running -= 1;
    }
  }
}
