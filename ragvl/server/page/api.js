// The server's routes. All paths are relative, so that the page works behind a proxy's prefix.

/** What the server said instead of an answer. */
export class ApiError extends Error {
  constructor(status, message, { param = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.param = param; // the place in the request, such as "documents[3].image"
    this.retryAfter = retryAfter; // in seconds
  }
}

export class Api {
  #key = null;

  /** The key for all requests from now on; kept in memory only. */
  useKey(key) {
    this.#key = key;
  }

  get hasKey() {
    return this.#key !== null;
  }

  /** The answer to `GET path`. */
  async get(path) {
    return (await this.#fetch(path, {})).json();
  }

  /** The picture at `path`, as a URL for an image element. */
  async picture(path) {
    return URL.createObjectURL(await (await this.#fetch(path, {})).blob());
  }

  /**
   * The answer to `POST path` with a body of JSON, and for how long it was waited.
   * @returns {Promise<{answer: object, elapsed: number}>} elapsed in milliseconds
   */
  async call(path, body, signal) {
    const sent = { method: "POST", body, signal };
    const started = performance.now();
    const response = await this.#fetch(path, sent, { "Content-Type": "application/json" });
    return { answer: await response.json(), elapsed: performance.now() - started };
  }

  async #fetch(path, request, headers = {}) {
    if (this.hasKey) headers.Authorization = `Bearer ${this.#key}`;
    let response;
    try {
      response = await fetch(path, { ...request, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "the server cannot be reached");
    }
    if (!response.ok) throw await errorOf(response);
    return response;
  }
}

async function errorOf(response) {
  const retryAfter = response.headers.get("Retry-After");
  try {
    const { message, param } = (await response.json()).error;
    return new ApiError(response.status, message, { param, retryAfter });
  } catch {
    // Not the server's own words: a proxy's
    return new ApiError(response.status, `the server answered ${response.status}`, { retryAfter });
  }
}
