// The last readings of the configuration: what each changed, or its faults with their lines.

import { byId, h, keyed, setAttribute, setText } from "./dom.js";
import { ago, moment, plural, seconds } from "./format.js";

const KINDS = {
  models_added: ["+", "model"],
  models_removed: ["−", "model"],
  models_changed: ["~", "model"],
  deployments_added: ["+", "deployment"],
  deployments_removed: ["−", "deployment"],
  deployments_changed: ["~", "deployment"],
  weights: ["~", "weight"],
  fallback: ["~", "fallback"],
  inactive: ["−", "inactive"],
  active: ["+", "active"],
  settings: ["~", "setting"],
};
const SIGNS = { "+": "added", "−": "removed", "~": "changed" };

export const place = (fault) => [fault.file, ...(fault.line ? [fault.line, fault.column] : [])].join(":");

// A fault: where, what, and the path of the field.
export function faultItem(fault) {
  return h("li", { class: "fault" }, h("code", {}, place(fault)), " ", fault.path ? h("span", { class: "path" }, `${fault.path}: `) : null, fault.message);
}

function changeLines(changes) {
  const lines = [];
  for (const [kind, entries] of Object.entries(changes)) {
    if (!Array.isArray(entries)) continue;
    const [sign, noun] = KINDS[kind] ?? ["~", kind.replaceAll("_", " ")];
    for (const entry of entries) {
      lines.push(h("li", { class: "change", "data-sign": sign }, h("span", { class: "sign", "aria-hidden": "true" }, sign), h("span", { class: "noun" }, h("span", { class: "unseen" }, `${SIGNS[sign]} `), noun), h("span", { class: "what" }, (typeof entry === "string" ? entry : JSON.stringify(entry)).replaceAll(" -> ", " → "))));
    }
    const more = changes[`${kind}_more`];
    if (more) lines.push(h("li", { class: "change" }, h("span", { class: "sign" }, sign), h("span", { class: "noun" }, noun), h("span", { class: "what" }, `and ${more} more`)));
  }
  return lines;
}

function summary(entry) {
  if (entry.result !== "accepted") return plural(entry.faults.length + (entry.faults_more ?? 0), "fault");
  const parts = Object.entries(entry.changes).filter(([, entries]) => Array.isArray(entries)).map(([kind, entries]) => {
    const [sign, noun] = KINDS[kind] ?? ["~", kind.replaceAll("_", " ")];
    const number = entries.length + (entry.changes[`${kind}_more`] ?? 0);
    return `${sign}\u2009${["active", "inactive"].includes(noun) ? `${number} ${noun}` : plural(number, noun)}`;
  });
  return parts.join(", ") || (entry.generation === 1 ? "read at the start" : "no effective change");
}

function reloadItem({ entry }) {
  const accepted = entry.result === "accepted";
  const when = seconds(entry.at);
  const since = h("time", { datetime: entry.at, title: moment(when) });
  const title = accepted ? `Generation ${entry.generation}` : "Refused";
  const details = h("details", { class: accepted ? "reload" : "reload refused" },
    h("summary", {}, h("span", { class: "dot", "data-state": accepted ? "up" : "down", "aria-hidden": "true" }), h("strong", {}, title), h("span", { class: "sum" }, summary(entry)), since),
    h("ul", { class: "lines" }, ...(accepted ? changeLines(entry.changes) : entry.faults.map(faultItem)),
      entry.faults_more ? h("li", {}, `and ${entry.faults_more} more`) : null,
      accepted ? (entry.hash ? h("li", { class: "digest" }, "content ", h("code", {}, entry.hash)) : null) : h("li", { class: "digest" }, entry.generation ? `generation ${entry.generation} stayed in force` : "nothing is in force")));
  return {
    element: h("li", {}, details),
    update({ now, open }) {
      setText(since, ago(now - when));
      if (open !== undefined) details.open = open;
    },
  };
}

export function reloadsView() {
  const [list, hint, empty, warnings] = ["reloads", "reloads-hint", "reloads-empty", "warnings"].map(byId);
  const items = keyed(list, (each) => `${each.entry.at} ${each.entry.result}`, reloadItem);
  const notes = keyed(warnings, (warning) => JSON.stringify(warning), (warning) => ({ element: faultItem(warning), update() {} }));
  let newest = null;
  return (state) => {
    const reload = state.reload;
    if (!reload) return;
    const history = reload.history ?? [];
    const first = history[0]?.at;
    const isNew = first !== newest;
    newest = first;
    items(history.map((entry, at) => ({ entry, now: state.now, open: isNew ? at === 0 && history.length > 1 : undefined })));
    setText(hint, state.head.hash ? `content ${state.head.hash}` : "");
    setAttribute(hint, "title", "the first 12 digits of the SHA-256 of both files");
    setText(empty, "Nothing has been read yet.");
    empty.hidden = history.length > 0;
    warnings.hidden = reload.warnings.length === 0;
    notes(reload.warnings);
  };
}
