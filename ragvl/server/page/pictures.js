// Small pictures of documents that the server holds, fetched once each and a few at a time.

const AT_ONCE = 6;

export class Pictures {
  #api;
  #known = new Map(); // id -> promise of a URL
  #waiting = [];
  #running = 0;

  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.#api = api;
  }

  /** Puts the picture of document `id` into an image element; leaves it out if there is none. */
  async showIn(image, id) {
    if (!this.#known.has(id)) this.#known.set(id, this.#inTurn(id));
    try {
      image.src = await this.#known.get(id);
    } catch {
      this.#known.delete(id);
      image.hidden = true;
    }
  }

  async #inTurn(id) {
    if (this.#running >= AT_ONCE) await new Promise((resolve) => this.#waiting.push(resolve));
    this.#running += 1;
    try {
      return await this.#api.picture(`v1/documents/${encodeURIComponent(id)}/picture`);
    } finally {
      this.#running -= 1;
      this.#waiting.shift()?.();
    }
  }
}
