// What is asked of the server, and its answers as the page shows them.

/**
 * The route and body for a question.
 * @param {object} asked
 * @param {string} asked.question
 * @param {?object[]} asked.documents the visitor's own; null for the index
 * @param {{candidates: number, kept: number, threshold: ?number}} asked.settings
 */
export function requestOf({ question, documents, settings }) {
  const body = { query: question, documents };
  if (settings.threshold !== null) body.threshold = settings.threshold;
  return { path: "v1/rerank", body };
}

/**
 * An answer as the page shows it.
 * @param {object} body
 * @param {(index: number) => {picture: ?string, words: string}} face how a document looks
 */
export function readResult(body, face) {
  const after = body.results.map((result) => {
    const { picture, words } = face(result.index);
    return {
      index: result.index,
      score: null,
      relevance: result.relevance_score,
      passed: result.kept,
      kept: result.kept,
      words,
      draw: picture === null ? null : (image) => (image.src = picture),
    };
  });
  const before = after.toSorted((one, other) => one.index - other.index);
  return { before, after, threshold: body.threshold ?? null, timings: body.timings, built: body.built };
}
