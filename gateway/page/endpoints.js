// Each endpoint's health, since when and why.

import { byId, h, keyed, setAttribute, setText } from "./dom.js";
import { duration, moment, plural, stamp } from "./format.js";

const SHOWN = 24;
const NAMED = 3;
const RANK = { down: 0, loading: 1, unknown: 2, up: 3 };

function endpointRow() {
  const dot = h("span", { class: "dot", "aria-hidden": "true" });
  const name = h("span", { class: "name" });
  const place = h("span", { class: "place" });
  const word = h("strong", { class: "state" });
  const since = h("time", {});
  const load = h("span", { class: "load" });
  const reason = h("span", { class: "cause" });
  const element = h("li", {}, dot, name, h("span", { class: "standing" }, word, " ", since), place, load, reason);
  return {
    element,
    update({ endpoint, names, now, probed }) {
      element.dataset.endpoint = endpoint.id;
      dot.dataset.state = word.dataset.state = endpoint.state;
      const address = endpoint.id.replace(/^https?:\/\//, "");
      const called = [...names].filter((each) => each !== address);
      setText(name, called.slice(0, NAMED).join(", ") + (called.length > NAMED ? " ..." : "") || address);
      setText(place, called.length ? address : "");
      setAttribute(name, "title", endpoint.id);
      setText(word, endpoint.state === "unknown" ? (probed ? "not probed yet" : "not probed") : endpoint.state);
      setText(since, endpoint.since ? duration(now - endpoint.since) : "");
      setAttribute(since, "datetime", endpoint.since ? stamp(endpoint.since) : null);
      setAttribute(since, "title", endpoint.since ? `since ${moment(endpoint.since)}` : null);
      setText(load, endpoint.in_flight ? `${endpoint.in_flight} in flight` : "");
      setText(reason, endpoint.state === "up" ? "" : (endpoint.reason ?? ""));
    },
  };
}

// What the deployments on each endpoint are called.
function namesOf(models) {
  const names = new Map();
  for (const model of models) {
    for (const each of model.deployments) {
      const known = names.get(each.endpoint);
      if (known) known.add(each.name);
      else names.set(each.endpoint, new Set([each.name]));
    }
  }
  return names;
}

export function endpointsView() {
  const [list, hint, empty] = ["endpoints", "endpoints-hint", "endpoints-empty"].map(byId);
  const rows = keyed(list, (each) => each.endpoint.id, endpointRow);
  return (state) => {
    const endpoints = state.listEndpoints();
    const troubled = endpoints.filter((each) => RANK[each.state] < 2);
    const sorted = troubled.length ? endpoints.toSorted((a, b) => Math.min(RANK[a.state], 2) - Math.min(RANK[b.state], 2)) : endpoints;
    const names = namesOf(state.listModels());
    rows(sorted.slice(0, SHOWN).map((endpoint) => ({ endpoint, names: names.get(endpoint.id) ?? [], now: state.now, probed: state.head.probed })));
    const out = troubled.length ? `${troubled.length} of ${endpoints.length} out` : plural(endpoints.length, "endpoint");
    setText(hint, endpoints.length ? out : "");
    const rest = endpoints.length - SHOWN;
    empty.hidden = endpoints.length > 0 && rest <= 0;
    setText(empty, endpoints.length ? `and ${plural(rest, "more", "more")}` : "There are none.");
  };
}
