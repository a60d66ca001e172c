// What is asked of the server, and its answers as the page shows them.

/**
 * The route and the body for a question.
 * @param {object} model as /v1/models lists it
 * @param {string} query
 * @param {?object[]} documents the visitor's own; null for the index
 * @param {{candidates: number, kept: number, threshold: number}} settings
 */
export function requestFor(model, query, documents, { candidates, kept, threshold }) {
  const body = { query, threshold, return_documents: true };
  if (documents === null) body.num_candidates = candidates;
  else body.documents = documents;
  if (model.has_generator) return { path: "v1/answer", body: { ...body, top_k: kept } };
  return { path: "v1/search", body };
}

/**
 * @typedef {object} Candidate
 * @property {number} index its place before reranking
 * @property {?string} id
 * @property {?number} similarity the retriever's score; null where nothing was retrieved
 * @property {number} relevance between 0 and 1
 * @property {boolean} passed whether its relevance reaches the threshold
 * @property {boolean} kept whether it is among those that are kept, at most as many as are wanted
 * @property {string} words its texts
 */

/**
 * The candidates of an answer, the most relevant first.
 * @returns {Candidate[]}
 */
export function candidatesOf(answer, mostKept) {
  return answer.results.map((result, place) => ({
    index: result.index,
    id: result.id ?? null,
    similarity: result.retrieval_score ?? null,
    relevance: result.relevance_score,
    passed: result.kept,
    kept: result.kept && place < mostKept,
    words: result.document?.text ?? "",
  }));
}
