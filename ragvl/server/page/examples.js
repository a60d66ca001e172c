// Questions that the server offers to try.

import { byId, choice } from "./dom.js";

const AT_ONCE = 4;

/**
 * Shows the server's examples.
 * @param {import("./api.js").Api} api
 * @param {(question: string) => void} ask
 */
export async function offerExamples(api, ask) {
  const { questions } = await api.get("v1/examples");
  showFrom(0, questions, ask);
}

function showFrom(first, questions, ask) {
  const end = first + AT_ONCE;
  const buttons = questions.slice(first, end).map((one) => choice(one, () => ask(one)));
  if (questions.length > AT_ONCE) {
    const next = end < questions.length ? end : 0;
    buttons.push(
      choice("Others…", () => {
        showFrom(next, questions, ask);
        byId("examples").lastChild.focus(); // the button that was pressed is gone
      }),
    );
  }
  byId("examples").replaceChildren(...buttons);
}
