// The page: takes the states as they come and hands them to its parts.

import { chartsView } from "./charts.js";
import { byId, h, setAttribute, setText } from "./dom.js";
import { endpointsView } from "./endpoints.js";
import { count, duration, money, moment, percent, plural, seconds, time, zone } from "./format.js";
import { modelsView } from "./models.js";
import { faultItem, reloadsView } from "./reloads.js";
import { requestsView } from "./requests.js";
import { State } from "./state.js";
import { follow } from "./stream.js";

const SHOWN_FAULTS = 3;
const dark = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;

function themeButton(repaint) {
  const button = byId("theme");
  const system = () => (dark.matches ? "dark" : "light");
  const current = () => root.dataset.theme ?? system();
  const other = () => (current() === "dark" ? "light" : "dark");
  function show() {
    setAttribute(button, "aria-label", `Switch to the ${other()} theme`);
    setAttribute(button, "title", `Switch to the ${other()} theme`);
    repaint();
  }
  button.addEventListener("click", () => {
    const chosen = other();
    try {
      if (chosen === system()) localStorage.removeItem("theme");
      else localStorage.setItem("theme", chosen);
    } catch {
      // storage may be forbidden: the choice lasts as long as the page
    }
    root.dataset.theme = chosen;
    show();
  });
  dark.addEventListener("change", show);
  show();
}

function factsView() {
  const [generation, strategy, up, version] = ["fact-generation", "fact-strategy", "fact-up", "version"].map(byId);
  return ({ head, began, version: running }) => {
    setText(generation, head.generation ? `${head.generation}${head.revision ? `.${head.revision}` : ""}` : "none");
    generation.title = head.generation ? `configuration ${head.generation}, health and breakers changed it ${plural(head.revision, "time")}; content ${head.hash}` : "";
    const parameters = Object.entries(head.parameters).map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`);
    setText(strategy, head.strategy ? [head.strategy, ...parameters].join(", ") : "none");
    setText(up, duration(head.at - began));
    up.title = `since ${moment(began)}`;
    setText(version, `gateway ${running}`);
  };
}

function tilesView() {
  const list = byId("tiles");
  const tile = (name) => {
    const [value, note] = [h("dd", { class: "value" }, "–"), h("dd", { class: "note" })];
    list.append(h("div", { class: "tile" }, h("dt", {}, name), value, note));
    return (text, more = "") => {
      setText(value, text);
      setText(note, more);
    };
  };
  const [flight, requests, errors, fallbacks, spent, avoided] = ["In flight", "Requests", "Errors", "Fallbacks", "Spent", "Avoided"].map(tile);
  return ({ head, seconds: rows }) => {
    const [asked, failed, fell] = [1, 2, 3].map((column) => rows.reduce((sum, row) => sum + row[column], 0));
    const minutes = rows.length < 595 ? duration(rows.length) : "10 min";
    const part = (number) => (asked ? `${percent(number / asked)} in ${minutes}` : `in ${minutes}`);
    flight(count(head.in_flight), "attempts under way");
    requests(count(asked), `in ${minutes} · ${count(head.ended)} in all`);
    errors(count(failed), part(failed));
    fallbacks(count(fell), part(fell));
    const priced = head.money !== null;
    spent(priced ? money(head.money.spent) : "–", priced ? "on this gateway's answers" : "no prices configured");
    avoided(priced ? money(head.money.avoided) : "–", priced ? "against the cheapest remote" : "no prices configured");
  };
}

// What asks for attention: the state of the stream, a save that was refused, no configuration, another version.
function noticesView() {
  const holder = byId("notices");
  const lost = h("div", { class: "notice warn", id: "notice-lost" });
  const refused = h("div", { class: "notice bad", id: "notice-refused" });
  const renewed = h("div", { class: "notice", id: "notice-version" }, h("strong", {}, "The gateway is of another version now."), " ", h("a", { href: "" }, "Load the page anew"));
  let told = null;
  let first = null;
  const place = (notice, wanted) => {
    if (wanted && notice.parentNode !== holder) holder.append(notice);
    if (!wanted) notice.remove();
  };
  return {
    connection(kind, since, isKnown) {
      const [what, shown] = isKnown ? [`Disconnected since ${time(since / 1000)}.`, "What is shown is as of then."] : ["Not connected.", "No state has come since the page was opened."];
      if (kind === "lost") lost.replaceChildren(h("strong", {}, what), ` ${shown} The page goes on by itself when the gateway answers.`);
      place(lost, kind === "lost");
    },
    update(state) {
      first ??= state.version;
      place(renewed, state.version !== first);
      const { faults = [], faults_more: more = 0, rejected_at: at = null } = state.reload ?? {};
      place(refused, faults.length > 0);
      if (!faults.length || told === at) return;
      told = at;
      const stays = state.head.generation ? `Generation ${state.head.generation} is still in force.` : "Nothing is served until it is fixed.";
      const rest = faults.length + more - SHOWN_FAULTS;
      refused.replaceChildren(
        h("p", {}, h("strong", {}, `The configuration read at ${time(seconds(at) ?? state.now)} is refused: ${plural(faults.length + more, "fault")}.`), ` ${stays}`),
        h("ul", {}, ...faults.slice(0, SHOWN_FAULTS).map(faultItem), rest > 0 ? h("li", {}, `and ${rest} more`) : null));
    },
  };
}

function connectionView(state, notices) {
  const [text, when] = [byId("connection-text"), byId("connection-since")];
  return (kind, since) => {
    const isKnown = state.head !== null;
    const word = kind === "live" ? "Live" : isKnown ? "Disconnected" : "Not connected";
    document.body.dataset.connection = kind;
    setText(text, word);
    setText(when, kind === "live" || !isKnown ? "" : ` since ${time(since / 1000)}`);
    document.title = kind === "live" ? "Hybrid Inference Gateway" : `${word} · Hybrid Inference Gateway`;
    notices.connection(kind, since, isKnown);
    if (kind === "lost" && !isKnown) for (const part of document.querySelectorAll(".unknown")) setText(part, "Not connected: no state yet.");
  };
}

function main() {
  const state = new State();
  const charts = chartsView();
  themeButton(charts.repaint);
  const notices = noticesView();
  const parts = [factsView(), charts.update, tilesView(), modelsView(), endpointsView(), reloadsView(), requestsView(), notices.update];
  setText(byId("zone"), `Times are those of ${zone()}.`);
  follow("events", {
    state(message) {
      state.take(message);
      for (const update of parts) update(state);
    },
    connection: connectionView(state, notices),
  });
}

main();
