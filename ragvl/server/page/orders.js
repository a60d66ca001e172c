// Both orders of the candidates, side by side.

import { byId, element, hiddenText, show, textSign } from "./dom.js";

/**
 * Shows the candidates before and after reranking.
 * @param {import("./requests.js").Candidate[]} ranked the most relevant first
 * @param {number} threshold
 * @param {(candidate: object) => {picture: ?HTMLElement, words: string}} face how one looks
 */
export function showOrders(ranked, threshold, face) {
  const given = ranked.toSorted((one, other) => one.index - other.index);
  const placeBefore = new Map(given.map((one, place) => [one, place]));
  const before = given.map((one, place) =>
    item(one, place, face(one), one.similarity === null ? [] : [similarity(one)]),
  );
  const after = ranked.map((one, place) =>
    item(one, place, face(one), [
      relevance(one, threshold),
      moved(placeBefore.get(one) - place),
      ...(one.kept ? [element("span", { className: "badge" }, "kept")] : []),
    ]),
  );
  // Where the index's order counts, too, one that passes may stand after one that does not
  const passed = ranked.findLastIndex((one) => one.passed) + 1;
  byId("before").replaceChildren(...before);
  byId("after").replaceChildren(...after.slice(0, passed));
  byId("below").replaceChildren(...after.slice(passed));
  byId("below").start = passed + 1;
  byId("cut").textContent =
    `${passed === 0 ? "Nothing reaches" : "Below"} the threshold of ${shown(threshold)}`;
  show(byId("cut"), passed < after.length);
  show(byId("after"), passed > 0);
  show(byId("below"), passed < after.length);
  show(byId("orders"));
}

/** Lets a candidate light up in one order while it is pointed at in the other. */
export function linkOrders() {
  const orders = byId("orders");
  const mark = (event, on) => {
    const index = event.target.closest("[data-index]")?.dataset.index;
    if (index === undefined) return;
    for (const one of orders.querySelectorAll(`[data-index="${index}"]`))
      one.classList.toggle("pointed", on);
  };
  orders.addEventListener("pointerover", (event) => mark(event, true));
  orders.addEventListener("pointerout", (event) => mark(event, false));
}

function item(candidate, place, { picture, words }, figures) {
  return element(
    "li",
    { className: candidate.kept ? "kept" : "", "data-index": candidate.index },
    element("span", { className: "place", "aria-hidden": "true" }, String(place + 1)),
    picture ?? textSign(),
    element(
      "div",
      { className: "body" },
      element("p", { className: "words", title: words }, words),
      element("p", { className: "figures" }, ...figures),
    ),
  );
}

function similarity({ similarity }) {
  return element(
    "span",
    {},
    hiddenText("similarity "),
    element("data", { value: similarity }, shown(similarity)),
  );
}

function relevance({ relevance }, threshold) {
  const filled = element("span", { className: "filled" });
  filled.style.width = `${100 * relevance}%`;
  const mark = element("span", { className: "mark" });
  mark.style.left = `${100 * threshold}%`;
  return element(
    "span",
    { className: "relevance" },
    element("span", { className: "bar", "aria-hidden": "true" }, filled, mark),
    hiddenText("relevance "),
    element("data", { value: relevance }, shown(relevance)),
  );
}

function moved(places) {
  if (places === 0) return element("span", { className: "moved" }, hiddenText("same place"));
  const direction = places > 0 ? "up" : "down";
  const distance = Math.abs(places);
  return element(
    "span",
    { className: "moved" },
    element("span", { "aria-hidden": "true" }, `${places > 0 ? "▲" : "▼"} ${distance}`),
    hiddenText(`${direction} ${distance}`),
  );
}

function shown(number) {
  return number.toFixed(3);
}
