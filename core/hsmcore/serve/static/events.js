// What happened: a bounded list. However fast events come, the page is touched once a frame and keeps MOST rows.

import { byId, el, pill } from "./dom.js";
import { clock, day } from "./format.js";

export const MOST = 200;

const TONES = {
  failover: "bad", outage: "bad", "member-down": "bad", "emergency-entered": "bad", "emergency-exhausted": "bad",
  "rotation-failed": "bad", "store-not-genuine": "bad",
  "member-drained": "warn", "level-forced": "warn", "emergency-disabled": "warn",
  "operator-action": "warn", "rotation-aborted": "warn", "key-deactivated": "warn", missed: "warn",
  failback: "good", recovered: "good", "member-up": "good", "key-rotated": "good",
};
/** A failover that an operator asked for is no alarm. */
const wanted = (event) => event.kind === "failover" && /: drained/.test(event.reason ?? "");
const toneOf = (event) => (wanted(event) ? "warn" : TONES[event.kind] ?? "idle");
const ANNOUNCED = new Set(Object.keys(TONES).filter((kind) => TONES[kind] === "bad"));

const KNOWN = new Set(["timeNs", "kind", "id", "from_level", "to_level", "member", "reason"]);

export function text(event) {
  const parts = [];
  if (event.from_level || event.to_level) parts.push(`${event.from_level ?? "nobody"} → ${event.to_level ?? "nobody"}`);
  if (event.kind.startsWith("member-") && event.from_level) parts[0] = `level ${event.from_level}`;
  if (event.member) parts.push(event.member);
  for (const [name, value] of Object.entries(event)) {
    if (!KNOWN.has(name) && value !== "" && value !== null) parts.push(`${name.replaceAll("_", " ")} ${value}`);
  }
  // A member that is up again tells why it was down.
  if (event.reason) parts.push(event.kind === "member-up" ? `after: ${event.reason}` : event.reason);
  return parts.join(" · ");
}

export function eventsView(announce) {
  const list = byId("events");
  let waiting = [], scheduled = false;

  function row(event) {
    const ms = event.timeNs / 1e6;
    const stamp = new Date(ms).toISOString();
    return el("li", {},
      el("time", { datetime: stamp, title: stamp }, day(ms) === day(Date.now()) ? clock(ms) : stamp.slice(5, 16).replace("T", " ")),
      pill(event.kind, toneOf(event)), el("span", {}, text(event)));
  }

  function flush() {
    scheduled = false;
    const fresh = waiting.map(row).reverse();
    const alarming = waiting.filter((event) => ANNOUNCED.has(event.kind)).at(-1);
    waiting = [];
    list.prepend(...fresh);
    while (list.childElementCount > MOST) list.lastElementChild.remove();
    byId("no-events").hidden = list.childElementCount > 0;
    if (alarming && Date.now() - alarming.timeNs / 1e6 < 10000) announce(`${alarming.kind}: ${text(alarming)}`);
  }

  const clear = () => {
    waiting = [];
    list.replaceChildren();
  };

  const add = (event) => {
    waiting.push(event);
    if (waiting.length > MOST) waiting = waiting.slice(-MOST);
    if (!scheduled) {
      scheduled = true;
      // Not a frame: a page in the background has none, and its list would stand still.
      setTimeout(flush, 50);
    }
  };
  return { add, clear };
}
