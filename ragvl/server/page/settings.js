// What a question is asked with.

import { byId, choice } from "./dom.js";

/** Offers the thresholds of a model, as /v1/models lists it, and begins with its own. */
export function offerThresholds({ threshold, thresholds }) {
  const field = byId("threshold");
  field.value = threshold;
  const buttons = Object.entries(thresholds).map(([name, value]) =>
    choice(`${name}: ${value.toFixed(3)}`, () => (field.value = value)),
  );
  byId("thresholds").replaceChildren(...buttons);
}

/** @returns {{candidates: number, kept: number, threshold: number}} */
export function readSettings() {
  const [candidates, kept, threshold] = ["candidates", "kept", "threshold"].map(
    (id) => byId(id).valueAsNumber,
  );
  return { candidates, kept, threshold };
}
