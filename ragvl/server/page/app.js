// The page: documents, a question, and what came of it.

import { Api } from "./api.js";
import { byId, show } from "./dom.js";
import { linkOrders, showOrders } from "./orders.js";
import { OwnDocuments } from "./own.js";
import { readResult, requestOf } from "./requests.js";
import { Timings } from "./timings.js";

const api = new Api();
const timings = new Timings();
const own = new OwnDocuments(say);
let running = null; // the AbortController of a question under way
let last = null; // the request whose times are shown

/** Tells the visitor something, without moving the focus. */
function say(message) {
  byId("status").textContent = message;
}

function showError(error) {
  say("");
  byId("error").textContent = error?.message ?? "";
  show(byId("error"), error !== null);
}

async function connect() {
  try {
    const { data } = await api.get("v1/models");
    byId("server").textContent = data.map(({ id }) => id).join(", ");
    show(byId("key-form"), false);
    showError(null);
  } catch (error) {
    if (error.status === 401) askForKey();
    else showError(error);
  }
}

function askForKey() {
  byId("server").textContent = "Waiting for an API key";
  show(byId("key-form"));
  byId("key").focus();
}

async function ask() {
  const request = requestOf({ question: byId("question").value.trim(), documents: own.documents, settings: settings() });
  if (JSON.stringify(request) !== JSON.stringify(last)) timings.clear();
  last = request;
  showError(null);
  say("Asking…");
  running = new AbortController();
  byId("ask").textContent = "Stop";
  try {
    const { body, elapsed } = await api.call(request.path, { body: request.body, signal: running.signal });
    showResult(readResult(body, (index) => own.face(index)), elapsed);
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else if (error.status === 401) askForKey();
    else showError(error);
  } finally {
    running = null;
    byId("ask").textContent = "Ask";
  }
}

function settings() {
  const number = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
  return { candidates: number("candidates"), kept: number("kept"), threshold: number("threshold") };
}

function showResult(result, elapsed) {
  showOrders(result.before, result.after, result.threshold);
  show(byId("orders"));
  timings.add({ ...result.timings, elapsed }, result.built, result.after.length);
  const kept = result.after.filter((one) => one.kept).length;
  say(`${kept} of ${result.after.length} documents kept.`);
}

byId("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else ask();
});
byId("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) byId("ask-form").requestSubmit();
});
byId("again").addEventListener("click", () => {
  if (!running) byId("ask-form").requestSubmit();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.useKey(byId("key").value);
  byId("key").value = "";
  connect();
});
linkOrders();
connect();
