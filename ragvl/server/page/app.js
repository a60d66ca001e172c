// The page: documents, a question, and what came of it.

import { Api } from "./api.js";
import { byId, picture, show } from "./dom.js";
import { offerExamples } from "./examples.js";
import { KnownDocuments } from "./known.js";
import { linkOrders, showOrders } from "./orders.js";
import { OwnDocuments } from "./own.js";
import { candidatesOf, requestFor } from "./requests.js";
import { offerThresholds, readSettings } from "./settings.js";
import { Timings } from "./timings.js";

const READY_EVERY = 2000; // milliseconds between two looks at how far the index's prefixes are

const api = new Api();
const timings = new Timings();
const own = new OwnDocuments(say, chooseOwn);
let model = null; // as /v1/models lists it
let connecting = null; // a promise, until the server has answered
let known = null; // documents of the server
let running = null; // the AbortController of a question under way
let asked = null; // the request whose times are shown, as JSON

/** Tells the visitor something, without moving the focus. */
function say(message) {
  byId("status").textContent = message;
}

function fail(error) {
  if (error.name === "AbortError") return say("Stopped.");
  say("");
  if (error.status === 401) return askForKey(error);
  const when = error.retryAfter ? `; try again in ${error.retryAfter} s` : "";
  const name = asksIndex() ? null : own.mark(placeOf(error));
  byId("error").textContent = `${name === null ? "" : `${name}: `}${error.message}${when}`;
  show(byId("error"));
}

/** Which of the request's documents an error is about, if it is about one. */
function placeOf({ param }) {
  const place = /^documents\[(\d+)\]/.exec(param ?? "");
  return place && Number(place[1]);
}

function askForKey({ message }) {
  show(byId("key-form"));
  byId("key-error").textContent = api.hasKey ? message : "";
  byId("key").focus();
}

/** Learns what the server has; once, also where it is asked again before it has answered. */
function connect() {
  connecting ??= load().finally(() => (connecting = null));
  return connecting;
}

async function load() {
  [model] = (await api.get("v1/models")).data;
  byId("server").textContent = model.id;
  offerThresholds(model);
  show(byId("source"), model.has_index);
  showSource();
  if (model.has_index) await Promise.all([showIndex(), offerExamples(api, askThis)]);
}

async function showIndex() {
  known = new KnownDocuments(api);
  await Promise.all([watchWarming(), known.showMore()]);
}

/** Shows how far the prefixes of the index are, until all are there. */
async function watchWarming() {
  const { warming } = await api.get("ready");
  const going = warming !== null && warming.done < warming.total;
  if (going) {
    byId("warming").textContent = `Prefixes computed ahead: ${warming.done} of ${warming.total}`;
    setTimeout(() => watchWarming().catch(fail), READY_EVERY);
  }
  show(byId("warming"), going);
}

function askThis(question) {
  byId("question").value = question;
  submit();
}

function submit() {
  if (running === null) byId("ask-form").requestSubmit();
}

function asksIndex() {
  return model?.has_index && document.querySelector("[name=source]:checked").value === "index";
}

function chooseOwn() {
  document.querySelector("[name=source][value=own]").checked = true;
  showSource();
}

function showSource() {
  show(byId("index-panel"), asksIndex());
  show(byId("own-panel"), !asksIndex());
  show(byId("candidates-setting"), asksIndex());
}

async function ask() {
  running = new AbortController();
  byId("ask").textContent = "Stop";
  show(byId("error"), false);
  own.mark(null);
  say("Asking…");
  try {
    if (model === null) await connect();
    const documents = asksIndex() ? null : own.documents;
    if (documents?.length === 0) say("Add a document to ask about, such as a picture.");
    else await send(documents, readSettings());
  } catch (error) {
    // What is still there answered another request
    for (const id of ["answer", "timings", "orders"]) show(byId(id), false);
    throw error;
  } finally {
    running = null;
    byId("ask").textContent = "Ask";
  }
}

async function send(documents, settings) {
  const query = byId("question").value.trim();
  const bodies = documents?.map(({ body }) => body) ?? null;
  const { path, body } = requestFor(model, query, bodies, settings);
  const request = JSON.stringify(body);
  if (request !== asked) timings.clear();
  asked = request;
  const { answer, elapsed } = await api.call(path, request, running.signal);
  showResult(answer, elapsed, settings, documents);
}

function showResult(answer, elapsed, settings, documents) {
  const ranked = candidatesOf(answer, settings.kept);
  const knownFace = ({ id, words }) => ({ picture: known.picture(id), words: words || id });
  const ownFace = ({ index }) => {
    const { image, words } = documents[index];
    return { picture: image && picture(image), words };
  };
  showAnswer(answer, ranked);
  timings.add({ ...answer.timings, elapsed }, answer.built, ranked.length);
  showOrders(ranked, answer.threshold, documents === null ? knownFace : ownFace);
}

function showAnswer({ answer, grounded, unusable }, ranked) {
  const kept = ranked.filter((one) => one.kept).length;
  let message = `${kept} of ${documentsOf(ranked.length)} kept.`;
  if (unusable?.length) message += ` Not usable: ${unusable.join(", ")}.`;
  show(byId("answer"), answer !== undefined);
  if (answer === undefined) return say(message);
  byId("answer-text").textContent = answer;
  byId("answer-source").textContent = grounded
    ? `From ${documentsOf(kept)}.`
    : "From no document: none reached the threshold.";
  say(`Answer: ${answer}. ${message}`);
}

function documentsOf(count) {
  return count === 1 ? "1 document" : `${count} documents`;
}

function listen(id, event, work) {
  byId(id).addEventListener(event, (happened) => work(happened)?.catch?.(fail));
}

listen("ask-form", "submit", (event) => {
  event.preventDefault();
  if (running === null) return ask();
  running.abort();
});
listen("question", "keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
listen("again", "click", submit);
listen("more", "click", () => known.showMore());
listen("source", "change", showSource);
listen("key-form", "submit", (event) => {
  event.preventDefault();
  api.useKey(byId("key").value);
  byId("key").value = "";
  show(byId("key-form"), false);
  return connect().then(() => byId("question").focus());
});
linkOrders();
connect().catch(fail);
