// How long each stage took, warm against cold.

import { byId, element, show } from "./dom.js";

const STAGES = [
  ["queue", "Waiting"],
  ["retrieve", "Retrieve"],
  ["score", "Rerank"],
  ["generate", "Generate"],
  ["total", "Server"],
  ["elapsed", "This page"],
];

export class Timings {
  #cold = null;
  #warm = null;

  /** Forgets what was measured: what is asked now is not what was asked. */
  clear() {
    this.#cold = this.#warm = null;
    show(byId("timings"), false);
  }

  /**
   * Shows one more measurement beside the last of the other kind.
   * @param {object} times milliseconds by stage
   * @param {number} built how many documents' prefixes were computed for it
   * @param {number} candidates how many documents were ranked
   */
  add(times, built, candidates) {
    if (built > 0) [this.#cold, this.#warm] = [times, null];
    else this.#warm = times;
    const longest = Math.max(
      ...[this.#cold, this.#warm].flatMap((of) => (of ? Object.values(of) : [])),
    );
    byId("timing-rows").replaceChildren(
      ...STAGES.filter(([stage]) => stage in times).map(([stage, name]) =>
        element(
          "tr",
          { className: stage },
          element("th", { scope: "row" }, name),
          cell(this.#cold?.[stage], longest, "cold"),
          cell(this.#warm?.[stage], longest, "warm"),
        ),
      ),
    );
    byId("timing-note").textContent = this.#note(built, candidates);
    show(byId("timings"));
  }

  #note(built, candidates) {
    if (built > 0) {
      return `Cold. The prefixes of ${built} of ${candidates} documents were computed for this question. Ask again to see it warm.`;
    }
    if (this.#cold === null)
      return "Warm. The prefixes of all documents were known before this question.";
    const ratio = this.#cold.score / this.#warm.score;
    return `Warm. Every prefix was known. Reranking took ${ratio.toFixed(1)} times as long cold.`;
  }
}

function cell(milliseconds, longest, kind) {
  if (milliseconds === undefined) return element("td", {}, "–");
  const bar = element("span", { className: `time ${kind}`, "aria-hidden": "true" });
  bar.style.width = `${(100 * milliseconds) / longest}%`;
  return element("td", {}, element("data", { value: milliseconds }, milliseconds.toFixed(1)), bar);
}
