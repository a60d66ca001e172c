// Both orders of the candidates, side by side.

import { byId, element, show } from "./dom.js";

/**
 * @typedef {object} Candidate
 * @property {number} index names it in both orders
 * @property {?number} score the retriever's; null where nothing was retrieved
 * @property {number} relevance between 0 and 1
 * @property {boolean} passed whether its relevance reaches the threshold
 * @property {boolean} kept whether it is among those that are kept, or that were answered from
 * @property {string} words
 * @property {?(image: HTMLImageElement) => void} draw shows its picture; null for a text
 */

/**
 * Shows the candidates in both orders.
 * @param {Candidate[]} before in the order that the reranker got
 * @param {Candidate[]} after in its own order
 * @param {?number} threshold
 */
export function showOrders(before, after, threshold) {
  const places = new Map(before.map(({ index }, place) => [index, place]));
  const ranked = after.map((one, place) => {
    const parts = [relevance(one, threshold), moved(places.get(one.index) - place)];
    if (one.kept) parts.push(element("span", { className: "badge" }, "kept"));
    return item(one, place, ...parts);
  });
  const passed = after.filter((one) => one.passed).length;
  byId("before").replaceChildren(
    ...before.map((one, place) => item(one, place, ...(one.score === null ? [] : [score(one)]))),
  );
  byId("after").replaceChildren(...ranked.slice(0, passed));
  byId("below").replaceChildren(...ranked.slice(passed));
  byId("below").start = passed + 1;
  byId("cut").textContent =
    passed === 0 ? `Nothing reaches the threshold of ${shown(threshold)}` : `Below the threshold of ${shown(threshold)}`;
  show(byId("cut"), threshold !== null && passed < ranked.length);
}

/** Lets a candidate light up in one order while it is pointed at in the other. */
export function linkOrders() {
  const orders = byId("orders");
  const mark = (event, on) => {
    const index = event.target.closest?.("[data-index]")?.dataset.index;
    if (index === undefined) return;
    for (const one of orders.querySelectorAll(`[data-index="${index}"]`)) one.classList.toggle("pointed", on);
  };
  orders.addEventListener("pointerover", (event) => mark(event, true));
  orders.addEventListener("pointerout", (event) => mark(event, false));
}

function item(candidate, place, ...figures) {
  let face = element("span", { className: "glyph", "aria-hidden": "true" }, "¶");
  if (candidate.draw !== null) {
    face = element("img", { alt: "", loading: "lazy" });
    candidate.draw(face);
  }
  return element(
    "li",
    { className: candidate.kept ? "kept" : "", "data-index": candidate.index },
    element("span", { className: "place", "aria-hidden": "true" }, String(place + 1)),
    face,
    element(
      "div",
      { className: "body" },
      element("p", { className: "words", title: candidate.words }, candidate.words),
      element("p", { className: "figures" }, ...figures),
    ),
  );
}

function score({ score }) {
  return element("span", {}, hidden("similarity "), element("data", { value: score }, shown(score)));
}

function relevance({ relevance }, threshold) {
  const filled = element("span", { className: "filled" });
  filled.style.width = `${100 * relevance}%`;
  const bar = element("span", { className: "bar", "aria-hidden": "true" }, filled);
  if (threshold !== null) {
    const mark = element("span", { className: "mark" });
    mark.style.left = `${100 * threshold}%`;
    bar.append(mark);
  }
  return element("span", { className: "relevance" }, bar, hidden("relevance "), element("data", { value: relevance }, shown(relevance)));
}

function moved(places) {
  if (places === 0) return element("span", { className: "moved" }, "–", hidden(" same place"));
  const direction = places > 0 ? "up" : "down";
  return element(
    "span",
    { className: `moved ${direction}` },
    element("span", { "aria-hidden": "true" }, `${places > 0 ? "▲" : "▼"} ${Math.abs(places)}`),
    hidden(`${direction} ${Math.abs(places)}`),
  );
}

function hidden(words) {
  return element("span", { className: "unseen" }, words);
}

function shown(number) {
  return number.toFixed(3);
}
