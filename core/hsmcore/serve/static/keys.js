// The key ring, and its rotation.

import { byId, el, onChange, pill, say, Table } from "./dom.js";
import { base58, hex, until, when } from "./format.js";
import { serving } from "./members.js";

const STATES = {
  active: ["active", "good"], overlap: ["verifies still", "idle"], pending: ["being made", "idle"],
  deactivated: ["deactivated", "warn"], destroyed: ["destroyed", "idle"],
};
const STATUS = {
  running: "warn", undoing: "warn", overlap: "good", done: "good", failed: "bad", aborted: "warn",
};

function stateOf(row) {
  if (row.current && !row.signing) return ["current", "warn"];
  return row.current ? ["signs", "good"] : STATES[row.state] ?? [row.state, "idle"];
}

export function keysView() {
  const table = new Table(byId("keys"), [
    { title: "Key", class: "code", text: (row) => hex(row.id, 16) },
    { title: "State", node: (row) => pill(...stateOf(row)), same: (row) => stateOf(row).join() },
    { title: "Algorithm", text: (row) => row.algorithm },
    { title: "Address", class: "code long", text: (row) => (row.algorithm === "ed25519" && row.publicKey ? base58(row.publicKey) : "–") },
    { title: "Public key", class: "code", node: (row) => el("span", { title: row.publicKey }, hex(row.publicKey, 20)), same: (row) => row.publicKey },
    { title: "Label", class: "long", text: (row) => row.label },
    { title: "Signs from", class: "short", text: (row) => when(row.validFromNs) },
    { title: "Verifies until", class: "short", text: (row) => when(row.validUntilNs) },
  ], "No key.");
  return (state) => {
    const stored = state.rotation?.keys ?? [];
    const byPublic = new Map(stored.map((key) => [key.publicKey, key]));
    const loaded = (state.keys ?? []).map((key) => ({
      ...byPublic.get(key.publicKey), ...key, current: key.id === state.currentKey && key.state === "active",
      signing: (state.members ?? []).some(serving),
      state: key.state === "active" ? byPublic.get(key.publicKey)?.state ?? key.state : key.state,
    }));
    const known = new Set(loaded.map((key) => key.publicKey));
    const rest = stored.filter((key) => key.publicKey && !known.has(key.publicKey));
    table.update([...loaded, ...rest].reverse().map((key) => ({ key: `${key.id} ${key.publicKey}`, ...key })));
  };
}

export function rotationView(act) {
  const table = new Table(byId("rotations"), [
    { title: "No.", class: "number", text: (row) => row.id },
    { title: "Status", node: (row) => pill(row.status, STATUS[row.status] ?? "idle"), same: (row) => row.status },
    { title: "Begun", text: (row) => when(row.begunNs) },
    { title: "Ended", text: (row) => when(row.endedNs) },
    { title: "Cause", text: (row) => [row.cause, row.reason].filter(Boolean).join(": ") },
    { title: "Versions", text: (row) => `${row.oldVersion} → ${row.newVersion}` },
    { title: "Error", class: "long", text: (row) => row.error ?? "" },
  ], "No rotation yet.");
  const actions = onChange(({ operator, underWay }) => {
    const button = (text, action) => el("button", { type: "button", onclick: () => act(action, {}, text) }, text);
    byId("rotation-actions").replaceChildren(...(operator
      ? [underWay ? button("Abort rotation", "rotate-abort") : button("Rotate now", "rotate")] : []));
  });
  const steps = onChange((found) => byId("rotation-steps").replaceChildren(
    ...found.map((step) => el("li", {}, pill(`${step.step}: ${step.outcome}`, step.outcome === "done" ? "good" : "idle")))));
  return (state, operator) => {
    const { rotation } = state;
    if (!rotation) {
      say(byId("rotation-next"), "No rotation is configured (keyRotation).");
      byId("rotations").hidden = true;
      actions({ operator: false });
      return;
    }
    const underWay = rotation.history.find((one) => ["running", "undoing"].includes(one.status));
    const next = rotation.next ? Date.parse(rotation.next.at) : null;
    const parts = [];
    if (underWay) parts.push(`Rotation ${underWay.id} is at step ${underWay.step}`);
    if (next) parts.push(`next ${rotation.next.at.slice(0, 16).replace("T", " ")} UTC (${until(next)})`);
    if (rotation.failedInARow) parts.push(`${rotation.failedInARow} failed in a row`);
    say(byId("rotation-next"), `${parts.join(" · ") || "No key has signed yet"}.`);
    steps(underWay ? rotation.steps.filter((step) => step.rotation_id === underWay.id).slice(-12) : []);
    byId("rotations").hidden = !rotation.history.length;
    table.update([...rotation.history].reverse().map((one) => ({ key: one.id, ...one })));
    actions({ operator, underWay: Boolean(underWay) });
  };
}
