// The console: asks what it may do, follows the stream, hands each part to its view.

import { actions, request, token } from "./ask.js";
import { auditView } from "./audit.js";
import { Chart } from "./charts.js";
import { byId, el, onChange, pill, say, tone } from "./dom.js";
import { eventsView } from "./events.js";
import { micros, rate, whole } from "./format.js";
import { keysView, rotationView } from "./keys.js";
import { membersView, serving } from "./members.js";
import { Stream } from "./stream.js";
import { timelineView } from "./timeline.js";

const SECONDS = 300;
const FLEET = { holder: "good", doubtful: "bad" };
const OUTCOMES = { ok: ["ok", "good"], warn: ["look", "warn"], fail: ["fails", "bad"] };

let session = { role: null, canOperate: false, open: false };
let latest = null, arrived = 0;
const series = new Map();

const announce = (text) => say(byId("said"), text);
const act = actions((text) => announce(text));
const views = { members: membersView(act), keys: keysView(), rotation: rotationView(act) };
const audit = auditView(request);
const happened = eventsView(announce);
const timeline = timelineView();
const charts = {
  rate: new Chart(byId("chart-rate"), "Signatures/s", rate, SECONDS),
  latency: new Chart(byId("chart-latency"), "HSM time", micros, SECONDS),
  failed: new Chart(byId("chart-failed"), "Failures/s", rate, SECONDS),
};

// ---- one state ----

const NUMBERS = [
  ["Signatures/s", ({ now }) => rate(now.rate)],
  ["p50", ({ now }) => micros(now.p50)],
  ["p99", ({ now }) => micros(now.p99)],
  ["p99.9", ({ now }) => micros(now.p999)],
  ["In flight", ({ state }) => whole(state.members.reduce((sum, member) => sum + member.inFlight, 0))],
  ["Failures/s", ({ now }) => rate(now.failed)],
  ["Signed", ({ state }) => whole(state.members.reduce((sum, member) => sum + (member.counters?.signatures ?? 0), 0))],
  ["Cache hits", ({ state }) => (state.cache?.max_size ? `${(state.cache.hit_rate * 100).toFixed(1)} %` : "off")],
].map(([title, value]) => {
  const node = el("dd");
  byId("numbers").append(el("div", {}, el("dt", {}, title), node));
  return [node, value];
});

/** Rates add up; of the latencies of several members the worst is shown. */
function together(members) {
  const worst = (name) => members.reduce((most, { now }) => (now?.[name] === undefined ? most : Math.max(most ?? 0, now[name])), undefined);
  const sum = (name) => members.reduce((total, { now }) => total + (now?.[name] ?? 0), 0);
  return { rate: sum("rate"), failed: sum("failed"), p50: worst("p50"), p99: worst("p99"), p999: worst("p999") };
}

function verdictOf(state) {
  if (state.problem) return ["No answer", "bad", state.problem];
  if (state.life !== "open") return [`Key manager ${state.life}`, "bad", ""];
  const failing = state.checks.filter((check) => check.outcome === "fail");
  const level = state.failover?.active;
  if (failing.length) {
    const text = failing.map((check) => `${check.name}: ${check.detail}`).join(" · ");
    return [state.members.some(serving) ? "Not ready" : "Cannot sign", "bad", text];
  }
  if (state.fleet?.state === "doubtful") return ["In doubt", "bad", `fleet: ${state.fleet.reason}`];
  if (state.fleet && state.fleet.state !== "holder") return ["Standing by", "idle", ""];
  if (level === "emergency") return ["Emergency key signs", "warn", state.checks.find((check) => check.name === "emergency").detail];
  const warned = state.checks.filter((check) => check.outcome === "warn");
  const name = level ? `Signing · ${level}` : "Signing";
  return warned.length ? [`${name} · look`, "warn", ""] : [name, "good", ""];
}

/** The host's state in its fleet; hidden without one. */
const fleet = onChange((found) => {
  const node = byId("fleet");
  node.hidden = !found;
  if (!found) return;
  const whose = found.state === "follower" ? `follower of ${found.holder || "nobody"}` : found.state;
  say(node, `Fleet ${found.name} · ${whose} · epoch ${found.epoch}`);
  tone(node, FLEET[found.state] ?? "idle");
});

const checks = onChange((list) => byId("checks").replaceChildren(...list.map(({ name, outcome, detail }) => {
  const [text, kind] = OUTCOMES[outcome];
  return el("li", {}, pill(text, kind), el("span", {}, name), el("span", { class: "quiet" }, detail));
})));

const CHANGED = onChange((title) => (document.title = title));

function show(state) {
  latest = state;
  arrived = Date.now();
  say(byId("name"), `${state.name ?? ""} ${state.version}`);
  const [text, kind, alarm] = verdictOf(state);
  say(byId("verdict"), text);
  tone(byId("verdict"), kind);
  CHANGED(`${text} · ${state.name ?? "hsmcore"}`);
  fleet(state.fleet ? { ...state.fleet, leaseSeconds: 0 } : null);
  const box = byId("alarm");
  box.hidden = !alarm;
  tone(box, kind);
  say(box, alarm);
  const members = state.members ?? [];
  const now = together(members);
  for (const [node, value] of NUMBERS) say(node, value({ now, state: { ...state, members } }));
  const operator = session.role === "operator";
  views.members(state, operator);
  views.keys(state);
  views.rotation(state, operator);
  checks(state.checks);
  audit.state(state);
  for (const member of members) if (member.now) point(member.member, member.now);
  for (const name of series.keys()) if (members.length && !members.some((member) => member.member === name)) series.delete(name);
  timeline.draw(state, Math.min(...[...series.values()].map((points) => points[0]?.t ?? arrived)));
  draw();
}

// ---- charts ----

function point(name, value) {
  const points = series.get(name) ?? [];
  if (!points.length || points.at(-1).t < value.t) points.push(value);
  if (points.length > SECONDS + 10) points.splice(0, points.length - SECONDS);
  series.set(name, points);
}

function draw() {
  const now = Date.now();
  // Members that have never run, such as an emergency key, would only be in the way.
  const shown = [...series].filter(([name]) => latest?.members?.some((one) => one.member === name && one.counters?.workers));
  const lines = (field) => shown.map(([name, points], index) => ({
    name, look: `k${index % 5} d${Math.floor(index / 5) % 3}`, points: points.map((one) => [one.t, one[field]]),
  }));
  charts.rate.draw(lines("rate"), now);
  charts.failed.draw(lines("failed"), now);
  const busy = shown.filter(([, points]) => points.some((one) => one.p99 !== undefined)).slice(0, 5);
  charts.latency.draw(busy.flatMap(([name, points], index) => [
    { name: `${name} p50`, look: `k${index} d0`, points: points.map((one) => [one.t, one.p50]) },
    { name: `${name} p99`, look: `k${index} d1`, points: points.map((one) => [one.t, one.p99]) },
  ]), now);
}

// ---- the stream ----

const stream = new Stream({
  token: token.get,
  message(kind, value) {
    if (kind === "state") show(value);
    else if (kind === "happened") {
      happened.add(value);
      timeline.add(value);
    } else if (kind === "anew") {
      happened.clear();
      timeline.clear();
    }
    else if (kind === "records") audit.take(value.records);
    else if (kind === "missed") happened.add({ timeNs: Date.now() * 1e6, kind: "missed", reason: `${value.count} events came too fast to be shown` });
    else if (kind === "series") {
      series.clear();
      for (const [name, points] of Object.entries(value.series)) for (const one of points) point(name, one);
    }
  },
  state(kind) {
    if (kind === "refused") return begin();
    return connection(kind === "live");
  },
});

let connected = false;
function connection(live) {
  connected = live;
  age();
}

function age() {
  const seconds = Math.round((Date.now() - arrived) / 1000);
  const stale = !connected || (latest && seconds > 5);
  say(byId("live"), connected && !stale ? "live" : latest ? `not live: ${seconds} s old` : connected ? "connected"
    : session.role === null ? "signed out" : "reconnecting");
  if (stale && latest) {
    say(byId("verdict"), "Not live");
    tone(byId("verdict"), "idle");
  }
}
setInterval(age, 1000);

// ---- the token ----

const form = byId("token-form");
const button = byId("token-button");

function offer() {
  const needed = session.role === null;
  form.hidden = !needed && form.dataset.asked !== "yes";
  byId("sections").hidden = needed;
  button.hidden = needed || (!session.canOperate && !token.get());
  say(button, session.role === "operator" ? "Operator" : "Enter token");
  byId("token-drop").hidden = !token.get();
  if (needed) {
    say(byId("verdict"), "Token needed");
    tone(byId("verdict"), "idle");
    byId("token").focus();
  }
}

async function begin() {
  stream.stop();
  try {
    session = await request("/api/session");
    say(byId("token-error"), "");
  } catch (error) {
    if (error.status === undefined || error.status >= 500) {
      connection(false);
      setTimeout(begin, 2000);
      return;
    }
    session = { ...session, role: null };
    say(byId("token-error"), error.message);
    token.set("");
  }
  offer();
  if (session.role !== null) stream.start();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(byId("token").value.trim());
  byId("token").value = "";
  form.dataset.asked = "no";
  begin();
});
byId("token-drop").addEventListener("click", () => {
  token.set("");
  form.dataset.asked = "no";
  begin();
});
button.addEventListener("click", () => {
  form.dataset.asked = form.hidden ? "yes" : "no";
  offer();
  if (!form.hidden) byId("token").focus();
});

begin();
