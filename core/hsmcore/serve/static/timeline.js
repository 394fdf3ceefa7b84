// Which level signed when, over the last hour: a band, and the same in words.

import { byId, el, onChange, say, svg } from "./dom.js";
import { clock } from "./format.js";

const HOUR_MS = 3600000, MOST = 400, WIDTH = 1000, HEIGHT = 22;
const MOVES = new Set(["failover", "failback", "outage", "recovered"]);
const LOOKS = { primary: "good", secondary: "warn" };

/** From moves (oldest first) to spans {level, from, to} within the last hour; `known`: since when anything is known. */
export function spans(moves, active, known, now) {
  const begin = Math.max(now - HOUR_MS, known);
  const found = [];
  let level = moves.length ? moves[0].from : active, from = begin;
  for (const move of moves) {
    if (move.at > from) {
      found.push({ level, from, to: Math.min(move.at, now) });
      from = move.at;
    }
    level = move.to;
  }
  if (now > from) found.push({ level: active, from, to: now });
  return found;
}

export function share(found, level) {
  const total = found.reduce((sum, one) => sum + one.to - one.from, 0);
  const own = found.filter((one) => one.level === level).reduce((sum, one) => sum + one.to - one.from, 0);
  return total ? own / total : 0;
}

const percent = (value) => `${(value * 100).toFixed(value > 0.999 && value < 1 ? 3 : 1)} %`;
const named = (level) => level ?? "nobody";

export function timelineView() {
  let moves = [], first = Infinity;
  const band = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  const from = el("span"), words = el("p", { class: "quiet" });
  byId("timeline").append(band, el("div", { class: "times" }, from, el("span", {}, "now")), words);

  const paint = onChange((boxes) => band.replaceChildren(...boxes.map(([x, width, level]) => svg("rect", {
    x, width: Math.max(width, 1.5), y: 0, height: HEIGHT, class: `band ${LOOKS[level] ?? "bad"}`,
  }, svg("title", {}, named(level))))));

  return {
    clear() {
      moves = [];
      first = Infinity;
    },
    add(event) {
      const at = event.timeNs / 1e6;
      first = Math.min(first, at);
      if (!MOVES.has(event.kind)) return;
      moves.push({ at, from: event.from_level ?? null, to: event.to_level ?? null });
      if (moves.length > MOST) moves = moves.slice(-MOST);
    },
    draw({ failover }, oldest) {
      byId("timeline").hidden = !failover;
      if (!failover) return;
      const now = Date.now(), begin = now - HOUR_MS;
      const recent = moves.filter((move) => move.at > begin);
      const before = moves.filter((move) => move.at <= begin).at(-1);
      const known = before ? begin : Math.max(begin, Math.min(first, oldest));
      const found = spans(recent, failover.active, known, now);
      const start = found[0]?.from ?? now, width = Math.max(now - start, 1000);
      paint(found.map((one) => [
        Math.round(((one.from - start) / width) * WIDTH), Math.round(((one.to - one.from) / width) * WIDTH), one.level,
      ]));
      const levels = [...new Set(found.map((one) => one.level))];
      const parts = levels.map((level) => `${named(level)} ${percent(share(found, level))}`);
      const times = recent.filter((move) => move.to !== move.from).length;
      const text = `${parts.join(" · ")}${times ? ` · ${times} move${times === 1 ? "" : "s"}` : ""}`;
      say(from, clock(start));
      say(words, `Signed since ${clock(start)}: ${text}.`);
      band.setAttribute("aria-label", `Which level signed. ${text}`);
    },
  };
}
