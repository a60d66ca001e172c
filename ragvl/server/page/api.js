// The server's routes. All paths are relative, so that the page works behind a proxy's prefix.

/** What the server said instead of an answer. */
export class ApiError extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export class Api {
  #key = null;

  /** The key for all requests from now on; kept in memory only. */
  useKey(key) {
    this.#key = key;
  }

  /**
   * The parsed answer to a request, and how long it took from here.
   * @returns {Promise<{body: object, elapsed: number}>} elapsed in milliseconds
   */
  async call(path, { body, signal } = {}) {
    const started = performance.now();
    const response = await this.#fetch(path, body, signal);
    return { body: await response.json(), elapsed: performance.now() - started };
  }

  /** The body of `GET path`. */
  async get(path) {
    return (await this.call(path)).body;
  }

  /** The picture at `path`, as a URL for an image element. */
  async picture(path) {
    const response = await this.#fetch(path);
    return URL.createObjectURL(await response.blob());
  }

  async #fetch(path, body, signal) {
    const headers = {};
    if (this.#key !== null) headers.Authorization = `Bearer ${this.#key}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, {
        method: body === undefined ? "GET" : "POST",
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal,
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The server cannot be reached.");
    }
    if (!response.ok) throw await errorOf(response);
    return response;
  }
}

async function errorOf(response) {
  let message = `The server answered ${response.status}.`;
  try {
    const body = await response.json();
    message = body.error?.message ?? body.detail ?? message;
  } catch {
    // Not the server's own words: a proxy's
  }
  return new ApiError(response.status, message, response.headers.get("Retry-After"));
}
