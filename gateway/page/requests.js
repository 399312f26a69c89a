// The last fifty requests, newest first, each with its attempts.

import { byId, h, keyed, setAttribute, setText } from "./dom.js";
import { count, milliseconds, moment, plural, stamp, time } from "./format.js";

const COLUMNS = ["Ended", "Model", "Deployment", "Result", "Attempts", "First token", "Total", "Tokens"];
const BAD = 400;
const SHOWN = 12;
const RESCUES = { continue: "continue: from the text so far", replay: "replay: by the same request again" };

function result(request) {
  const { failure, status, fallback, rescue } = request;
  const words = failure ? failure.replaceAll("_", " ") : rescue ? `rescued: ${rescue}` : fallback ? "fallback" : status < BAD ? "ok" : "refused";
  const tone = request.error ? "bad" : failure || status >= BAD ? "warn" : fallback || rescue ? "note" : "good";
  return [words, tone];
}

function tokens({ prompt_tokens: prompt, completion_tokens: completion }) {
  if (prompt === null && completion === null) return "–";
  return `${prompt === null ? "–" : count(prompt)} → ${completion === null ? "–" : count(completion)}`;
}

// An answer that broke off after it had begun: another attempt takes it over, or the client has a half one.
function brokeOff(attempt, next, request) {
  return Boolean(attempt.failure && !attempt.rescue && (next ? next.rescue : request.status < BAD));
}

function attemptItem(attempt, request, place) {
  const total = Math.max(request.duration, 1);
  const next = request.attempts[place + 1];
  const bar = h("span", { class: "span" });
  bar.style.marginLeft = `${Math.min(98, (attempt.offset / total) * 100).toFixed(2)}%`;
  bar.style.width = `${Math.max(1, Math.min(100, (attempt.ms / total) * 100)).toFixed(2)}%`;
  bar.dataset.tone = attempt.failure ? "bad" : "good";
  const elsewhere = attempt.model === request.model_id ? [] : [h("bdi", {}, attempt.model), " / "];
  const failure = attempt.failure?.replaceAll("_", " ");
  const words = failure ? (brokeOff(attempt, next, request) ? `broke off: ${failure}` : failure) : attempt.rescue ? "carried on" : "answered";
  const status = attempt.status ? `status ${attempt.status}` : "";
  const more = [status, attempt.detail === status ? "" : attempt.detail, RESCUES[attempt.rescue]].filter(Boolean).join(" · ");
  return h("li", {},
    h("span", { class: "no" }, String(place + 1)),
    h("span", { class: "where" }, ...elsewhere, h("bdi", {}, attempt.deployment), " ", h("span", { class: "tag" }, attempt.group)),
    h("span", { class: "result", "data-tone": attempt.failure ? "bad" : "good" }, words),
    h("span", { class: "more" }, more),
    h("span", { class: "ms" }, milliseconds(attempt.ms)),
    h("span", { class: "lane", "aria-hidden": "true" }, bar));
}

function attempts(request) {
  const list = h("ol", { class: "attempts" }, ...request.attempts.map((attempt, place) => attemptItem(attempt, request, place)));
  const facts = [`${request.operation}${request.stream ? ", streamed" : ""}`, `generation ${request.generation}`, `request id ${request.id}`];
  return [request.attempts.length ? list : h("p", { class: "empty" }, "No deployment was asked."), h("p", { class: "facts-line" }, facts.join(" · "))];
}

function requestBody(request) {
  const panel = `attempts-${request.n}`;
  const button = h("button", { type: "button", class: "opener", "aria-expanded": "false", "aria-controls": panel }, h("span", { class: "chevron", "aria-hidden": "true" }), h("time", { datetime: stamp(request.at), title: moment(request.at) }, time(request.at)));
  const [words, tone] = result(request);
  const cell = (label, text, kind = "") => h("td", { role: "cell", class: kind, "data-label": label }, text);
  const elsewhere = request.served_model && request.served_model !== request.model_id;
  const row = h("tr", { role: "row", class: "request" },
    h("th", { role: "rowheader", scope: "row" }, button),
    h("td", { role: "cell", class: "asked", title: request.model }, request.model || "–"),
    h("td", { role: "cell", class: "who" }, h("bdi", {}, request.deployment ?? "–"), elsewhere ? h("small", {}, " of ", h("bdi", {}, request.served_model)) : null),
    h("td", { role: "cell", class: "came" }, h("span", { class: "code" }, String(request.status)), " ", h("span", { class: "result", "data-tone": tone }, words)),
    cell("attempts", String(request.attempts.length), "num tries"),
    cell("first token", request.stream ? milliseconds(request.first_content) : "–", "num first"),
    cell("total", milliseconds(request.duration), "num total"),
    cell("tokens", tokens(request), "num tokens"));
  const detail = h("tr", { role: "row", class: "detail", id: panel, hidden: true }, h("td", { role: "cell", colspan: COLUMNS.length }));
  button.addEventListener("click", () => {
    const open = detail.hidden;
    if (open && !detail.firstChild.hasChildNodes()) detail.firstChild.append(...attempts(request));
    detail.hidden = !open;
    setAttribute(button, "aria-expanded", String(open));
  });
  setAttribute(button, "aria-label", `${time(request.at)}, ${plural(request.attempts.length, "attempt")}`);
  return { element: h("tbody", { role: "rowgroup", "data-request": request.n }, row, detail), update() {} };
}

function invitation(state) {
  const model = state.order.models[0] ?? "MODEL";
  const url = new URL("v1/chat/completions", document.baseURI);
  const body = JSON.stringify({ model, messages: [{ role: "user", content: "hello" }] });
  return [h("p", {}, "No request has ended yet. Send one:"), h("pre", { tabindex: "0" }, `curl ${url} -H 'content-type: application/json' \\\n  -d '${body}'`)];
}

export function requestsView() {
  const [holder, hold, more] = ["requests", "hold", "requests-more"].map(byId);
  const headings = h("tr", { role: "row" }, ...COLUMNS.map((name, at) => h("th", { role: "columnheader", scope: "col", class: at > 3 ? "num" : null }, name)));
  const thead = h("thead", { role: "rowgroup" }, headings);
  const lines = h("table", { role: "table", class: "requests" }, h("caption", { class: "unseen" }, "The last fifty requests, newest first"), thead);
  const bodies = keyed(lines, (request) => request.n, requestBody, thead);
  const empty = h("div", { class: "empty" });
  let held = false;
  let all = false;
  let known = [];
  let newest = 0;

  function show() {
    const shown = known[0]?.n ?? 0;
    setAttribute(hold, "aria-pressed", String(held));
    setText(hold, held ? (newest > shown ? `Held, ${count(newest - shown)} newer` : "Held") : "Hold");
    hold.hidden = newest === 0;
    more.hidden = known.length <= SHOWN;
    setText(more, all ? `Show ${SHOWN}` : `Show all ${known.length}`);
    if (known.length) bodies(all ? known : known.slice(0, SHOWN));
  }

  function invite(state) {
    const model = state.order.models[0] ?? "";
    if (empty.parentNode === holder && empty.dataset.model === model) return;
    empty.dataset.model = model;
    empty.replaceChildren(...invitation(state));
    holder.replaceChildren(empty);
  }

  hold.addEventListener("click", () => {
    held = !held;
    show();
  });
  more.addEventListener("click", () => {
    all = !all;
    show();
  });

  return (state) => {
    newest = state.requests[0]?.n ?? 0;
    const isAnother = newest < (known[0]?.n ?? 0);
    if (!held || isAnother) known = state.requests;
    show();
    if (!known.length) invite(state);
    else if (lines.parentNode !== holder) holder.replaceChildren(lines);
  };
}
