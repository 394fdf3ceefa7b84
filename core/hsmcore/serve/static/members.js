// Levels and members: who signs, who does not, and why.

import { el, pill, say, Table, byId, onChange } from "./dom.js";
import { micros, rate, whole } from "./format.js";

const CONDITIONS = {
  ready: ["ready", "good"],
  ramping: ["ramping up", "good"],
  "half-open": ["being tried", "warn"],
  drained: ["drained", "warn"],
  open: ["out", "bad"],
  fenced: ["fenced off", "bad"],
  stopped: ["not started", "idle"],
};

export const serving = (member) => member.condition === "ready" || member.condition === "ramping";

function conditionOf(member) {
  const [text, kind] = CONDITIONS[member.condition] ?? [member.condition, "idle"];
  return member.level === "emergency" && member.condition === "stopped" ? ["on call", "idle"] : [text, kind];
}

function why(member) {
  const parts = [];
  if (member.reason && !serving(member)) parts.push(member.reason.replace(/\.$/, ""));
  const breakers = Object.entries(member.breakers ?? {}).map(([kind, state]) => `${kind} ${state}`);
  if (breakers.length) parts.push(`breakers: ${breakers.join(", ")}`);
  if (member.nextProbeSeconds !== null && member.nextProbeSeconds !== undefined) {
    parts.push(`next probe in ${member.nextProbeSeconds.toFixed(1)} s`);
  }
  if (member.counters?.stuck) parts.push(`${member.counters.stuck} workers hang`);
  return parts.join("; ");
}

/** Whether no other member is left but the emergency level's. */
const isLast = (row, members) => serving(row)
  && !members.some((one) => one.member !== row.member && one.level !== "emergency" && serving(one));

const operations = (act, state) => (row) => {
  const last = isLast(row, state.members);
  const button = (text, action) => el("button", {
    type: "button", class: last && action === "drain" ? "danger" : "",
    onclick: () => act(action, { member: row.member }, `${text} ${row.member}${last && action === "drain" ? ", the last one that signs" : ""}`),
  }, text);
  const buttons = [];
  if (row.condition === "drained") buttons.push(button("Resume", "resume"));
  else if (row.level !== "emergency") buttons.push(button("Drain", "drain"));
  if (row.condition === "open" || row.condition === "fenced") buttons.push(button("Readmit", "readmit"));
  return state.operator && state.levels ? el("div", { class: "row" }, ...buttons) : "";
};

export function membersView(act) {
  const shared = { operator: false, levels: false, members: [] };
  const table = new Table(byId("members"), [
    { title: "Level", class: "short", text: (row) => row.level },
    { title: "Member", class: "long", text: (row) => row.member },
    { title: "Condition", node: (row) => pill(...conditionOf(row)), same: (row) => conditionOf(row).join() },
    { title: "Signed/s", class: "number", text: (row) => rate(row.now?.rate) },
    { title: "p50", class: "number", text: (row) => micros(row.now?.p50) },
    { title: "p99", class: "number", text: (row) => micros(row.now?.p99) },
    { title: "In flight", class: "number", text: (row) => whole(row.inFlight) },
    { title: "Signed", class: "number", text: (row) => whole(row.counters?.signatures) },
    { title: "Failed", class: "number", text: (row) => whole(row.counters?.failures) },
    { title: "Why", class: "long", text: why },
    {
      title: "Actions", node: operations(act, shared),
      same: (row) => [shared.operator, shared.levels, row.condition, isLast(row, shared.members)].join(),
    },
  ], "No member.");

  const levels = onChange(({ failover, operator }) => {
    const box = byId("level-actions");
    const button = (text, action, target) => el("button", {
      type: "button", class: target.level === "emergency" ? "danger" : "", onclick: () => act(action, target, text),
    }, text);
    if (!operator || !failover) return box.replaceChildren();
    const names = failover.levels.filter((name) => name !== failover.forced);
    return box.replaceChildren(
      ...names.map((name) => button(`Force ${name}`, "force", { level: name })),
      ...(failover.forced ? [button(`Release ${failover.forced}`, "release", {})] : []),
      ...(failover.levels.includes("emergency")
        ? [failover.permitted ? button("Forbid emergency key", "emergency-disable", {})
          : button("Permit emergency key", "emergency-enable", {})] : []),
    );
  });

  return (state, operator) => {
    const { failover } = state;
    shared.operator = operator;
    shared.levels = Boolean(failover);
    shared.members = state.members ?? [];
    table.update((state.members ?? []).map((member) => ({ key: member.member, ...member })));
    say(byId("routing"), failover ? routing(failover, state.budget) : "One member, no failover.");
    say(byId("wishes"), Object.entries(state.wishes ?? {})
      .map(([name, wish]) => `Asked for: ${name} = ${wish.value} (${wish.reason || "no reason given"})`).join(". "));
    levels({
      operator,
      failover: failover && { levels: failover.levels, forced: failover.forced, permitted: failover.emergency.permitted },
    });
  };
}

function routing(failover, budget) {
  const parts = [failover.active ? `Level ${failover.active} signs` : "Nobody can sign"];
  if (failover.forced) parts.push(`level ${failover.forced} is forced`);
  parts.push(`mode ${failover.mode}`);
  if (failover.levels.includes("emergency")) {
    parts.push(failover.emergency.usedUp ? "emergency budget used up"
      : failover.emergency.permitted ? "emergency key permitted" : "emergency key forbidden");
    if (budget) parts.push(`${whole(budget.left)} of ${whole(budget.maxTransactions)} emergency signatures left`);
  }
  return `${parts.join(" · ")}.`;
}
