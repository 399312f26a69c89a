// Models and their deployments: planned, eligible and delivered share side by side, and a word for why they differ.

import { byId, h, keyed, setAttribute, setText } from "./dom.js";
import { ago, count, percent, plural } from "./format.js";

const SHOWN = 40;
const FILTERED_FROM = 6;
const WINDOW = 300;
const GROUPS = ["local", "remote", "unlisted"];
const COLUMNS = ["Deployment", "Planned", "Eligible", "Delivered", "In flight", "Answers", "Why"];
const HEALTH = { up: "up", down: "down", loading: "loading", unknown: "not known" };

const isOut = (each) => ["down", "loading"].includes(each.health.state) || each.breaker.state !== "closed";

function tone(each) {
  if (each.health.state === "down" || each.breaker.state === "open") return "bad";
  if (isOut(each) || each.why === "slow start" || /^\d+ failed$/.test(each.why ?? "")) return "warn";
  return "calm";
}

// The sign before a deployment's name: how its endpoint and its breaker are, as a shape and a word.
function sign(each) {
  const state = each.health.state;
  if (state === "down" || state === "loading") return [state, `endpoint ${HEALTH[state]}`];
  if (each.breaker.state !== "closed") return ["down", `breaker ${each.breaker.state.replace("_", " ")}`];
  return [state, `endpoint ${HEALTH[state]}`];
}

function share(kind) {
  const number = h("span", { class: "number" });
  const fill = h("span", { class: "fill" });
  const cell = h("td", { role: "cell", class: `share ${kind}`, "data-label": kind }, number, h("span", { class: "track", "aria-hidden": "true" }, fill));
  return {
    cell,
    update(part) {
      setText(number, percent(part));
      fill.style.width = `${((part ?? 0) * 100).toFixed(2)}%`;
    },
  };
}

function deploymentRow() {
  const dot = h("span", { class: "dot", role: "img" });
  const name = h("span", { class: "name" });
  const group = h("span", { class: "tag" });
  const place = h("span", { class: "place" });
  const head = h("th", { role: "rowheader", scope: "row" }, h("span", { class: "line" }, dot, name, group), place);
  const [planned, eligible, delivered] = ["planned", "eligible", "delivered"].map(share);
  const flight = h("td", { role: "cell", class: "num flight", "data-label": "in flight" });
  const answers = h("td", { role: "cell", class: "num answers", "data-label": "answers since the start" });
  const why = h("span", { class: "why" });
  const element = h("tr", { role: "row", class: "deployment" }, head, planned.cell, eligible.cell, delivered.cell, flight, answers, h("td", { role: "cell", class: "reason" }, why));
  return {
    element,
    update(each) {
      element.dataset.deployment = each.name;
      const [state, word] = sign(each);
      dot.dataset.state = state;
      setAttribute(dot, "aria-label", word);
      setAttribute(dot, "title", word);
      setText(name, each.name);
      setText(group, each.group);
      setText(place, `${each.endpoint.replace(/^https?:\/\//, "")} · ${each.kind}`);
      setAttribute(place, "title", `${each.endpoint}, ${each.kind}, known there as ${each.provider_model_id}`);
      planned.update(each.configured_weight);
      eligible.update(each.effective_weight);
      delivered.update(each.recent_share);
      setAttribute(eligible.cell, "data-differs", each.effective_weight === each.configured_weight ? null : "");
      setText(flight, count(each.in_flight));
      setText(answers, each.failures ? `${count(each.requests)} · ${count(each.failures)}\u00a0failed` : count(each.requests));
      setText(why, each.why ?? "");
      why.dataset.tone = tone(each);
      const reason = each.health.reason ?? each.breaker.reason;
      setAttribute(why, "title", isOut(each) ? reason : null);
    },
  };
}

function inactiveRow(inactive) {
  const dash = () => h("td", { role: "cell", class: "share none" }, "–");
  const element = h("tr", { role: "row", class: "deployment inactive" },
    h("th", { role: "rowheader", scope: "row" }, h("span", { class: "line" }, h("span", { class: "dot", "data-state": "waiting", role: "img", "aria-label": "inactive" }), h("span", { class: "name" }, inactive.name), h("span", { class: "tag" }, inactive.group))),
    dash(), dash(), dash(), h("td", { role: "cell" }), h("td", { role: "cell" }),
    h("td", { role: "cell", class: "reason" }, h("span", { class: "why", "data-tone": "warn" }, `waiting for \${${inactive.waits_for}}`)));
  return { element, update() {} };
}

// Of which time the delivered shares are: of the last minutes, or, where that is later, since they were counted anew.
function period({ at, since, generation }) {
  if (at - since >= WINDOW) return { short: "in 5 min", long: "in 5 min" };
  const short = generation > 1 ? "since the save" : "since the start";
  return { short, long: `${short}, ${ago(at - since)}` };
}

function modelBody(first) {
  const name = h("span", { class: "model-name" });
  const how = h("span", { class: "how" });
  const lately = h("span", { class: "lately" });
  const head = h("tr", { role: "row", class: "model" }, h("th", { role: "rowheader", scope: "rowgroup", colspan: COLUMNS.length }, h("span", { class: "model-line" }, name, how, lately)));
  const element = h("tbody", { role: "rowgroup", "data-model": first.model.id }, head);
  const rows = keyed(element, (row) => row.key, (row) => (row.inactive ? inactiveRow(row.inactive) : deploymentRow()), head);
  return {
    element,
    update({ model, time }) {
      setText(name, model.id);
      const notes = [model.selection, model.fallbacks.length ? `falls back to ${model.fallbacks.join(", ")}` : ""];
      setText(how, notes.filter(Boolean).join(" · "));
      const recent = model.deployments.reduce((sum, each) => sum + each.recent, 0);
      setText(lately, `${recent ? plural(recent, "answer") : "no answers"} ${time}`);
      const rank = (each) => GROUPS.indexOf(each.group);
      const sorted = model.deployments.toSorted((a, b) => rank(a) - rank(b) || b.configured_weight - a.configured_weight || a.name.localeCompare(b.name));
      rows([
        ...sorted.map((each) => ({ key: `deployment ${each.name}`, ...each })),
        ...model.inactive.map((inactive, place) => ({ key: `inactive ${place} ${JSON.stringify(inactive)}`, inactive })),
      ]);
    },
  };
}

export function modelsView() {
  const [holder, hint, filter, more] = ["models", "models-hint", "models-filter", "models-more"].map(byId);
  const input = filter.querySelector("input");
  const headings = h("tr", { role: "row" }, ...COLUMNS.map((name) => h("th", { role: "columnheader", scope: "col" }, name)));
  const caption = h("caption", { class: "unseen" }, "Shares of each model's deployments: planned by the configuration, eligible now, delivered in the last five minutes, or since the last save where that is later; and all their answers since the start");
  const thead = h("thead", { role: "rowgroup" }, headings);
  const table = h("table", { role: "table", class: "shares" }, caption, thead);
  const delivered = h("small");
  headings.children[3].append(" ", delivered);
  headings.children[5].append(" ", h("small", {}, "since the start"));
  const empty = h("p", { class: "empty" });
  const bodies = keyed(table, ({ model }) => model.id, modelBody, thead);
  let shown = SHOWN;
  let last = null;
  input.addEventListener("input", () => last && update(last));
  more.addEventListener("click", () => {
    shown += 100;
    if (last) update(last);
  });

  // Of many, those in trouble come first, then those that were asked for; each kind in the order written.
  function choose(models) {
    const wanted = input.value.trim().toLowerCase();
    const found = wanted ? models.filter((model) => [model.id, ...model.deployments.flatMap((each) => [each.name, each.endpoint, each.group]), ...model.inactive.map((each) => each.name)].some((text) => text.toLowerCase().includes(wanted))) : models;
    if (found.length <= shown) return { found, chosen: found };
    const rank = (model) => (model.deployments.some(isOut) ? 0 : model.deployments.some((each) => each.recent || each.in_flight) ? 1 : 2);
    const first = new Set(found.map((model) => [rank(model), model]).sort((a, b) => a[0] - b[0]).slice(0, shown).map(([, model]) => model));
    return { found, chosen: found.filter((model) => first.has(model)) };
  }

  function update(state) {
    last = state;
    const models = state.listModels();
    filter.hidden = models.length < FILTERED_FROM;
    const { found, chosen } = choose(models);
    const deployments = models.reduce((sum, model) => sum + model.deployments.length, 0);
    const all = `${plural(models.length, "model")}, ${plural(deployments, "deployment")}`;
    setText(hint, chosen.length === models.length ? all : `${count(chosen.length)} of ${all}`);
    more.hidden = found.length <= shown;
    setText(more, `Show more of ${count(found.length)}`);
    const text = state.head.generation === 0 ? "There is no valid configuration yet. The gateway answers 503 until there is one." : models.length ? `No model matches “${input.value.trim()}”.` : "The configuration names no models.";
    if (chosen.length) {
      const { short, long } = period(state.head);
      setText(delivered, short);
      bodies(chosen.map((model) => ({ model, time: long })));
      if (table.parentNode !== holder) holder.replaceChildren(table);
    } else {
      setText(empty, text);
      if (empty.parentNode !== holder) holder.replaceChildren(empty);
    }
  }
  return update;
}
