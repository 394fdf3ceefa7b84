// The audit log's newest records, and the check of their proofs.

import { byId, el, pill, say, Table } from "./dom.js";
import { clock, hex, micros, whole } from "./format.js";
import { check, hexOf, Unproven } from "./proof.js";

const TONES = { ok: "good", error: "bad", refused: "bad", unknown: "warn" };

function parse({ seq, line }) {
  try {
    return { key: seq, seq, line, ...JSON.parse(line), seq_shown: seq };
  } catch {
    return { key: seq, seq, line, operation: "unreadable" };
  }
}

const who = (record) => [record.user, record.source?.hostname].filter(Boolean).join(" @ ");
const what = (record) => [record.command, record.member, record.level, record.reason, record.error]
  .filter((part) => typeof part === "string").join(" · ");

/** `ask(path)`: JSON from the server, or an Error that says why not. */
export function auditView(ask) {
  let records = [], extra = null, held = false, newest = [];
  const opened = new Map();

  const buttons = (row) => el("div", { class: "row" },
    el("button", { type: "button", "aria-label": `Check record ${row.seq}`, onclick: () => prove(row) }, "Check"),
    el("button", { type: "button", "aria-label": `Raw record ${row.seq}`, onclick: () => open(row.key, rawOf(row)) }, "Raw"));
  const table = new Table(byId("audit"), [
    { title: "Record", class: "number", text: (row) => row.seq },
    { title: "UTC", class: "short", text: (row) => (row.time_ns ? clock(row.time_ns / 1e6) : "–") },
    { title: "Operation", text: (row) => row.operation },
    { title: "Result", node: (row) => (row.result ? pill(row.result, TONES[row.result] ?? "idle") : ""), same: (row) => row.result },
    { title: "Key", class: "code", text: (row) => hex(row.key_id, 8) },
    { title: "Latency", class: "number", text: (row) => (row.latency_ns ? micros(row.latency_ns / 1e3) : "–") },
    { title: "What", class: "long", text: what },
    { title: "Who", class: "short", text: who },
    { title: "Proof", node: buttons, same: (row) => row.line },
  ], "No record.");

  const rawOf = (row) => el("pre", { class: "record code" }, row.line);

  function open(key, node) {
    if (opened.has(key) && opened.get(key) === node.className) {
      opened.delete(key);
      table.under(key, null);
      return;
    }
    opened.set(key, node.className);
    // A record that was opened stays in sight while newer ones come.
    table.under(key, node);
    draw();
  }

  async function prove(row) {
    const box = el("div", { class: "proof", "data-seq": row.seq, role: "status" }, "Checking…");
    opened.delete(row.key);
    open(row.key, box);
    try {
      const answer = await ask(`/api/audit/${row.seq}/proof`);
      if (!answer.path) throw new Error(answer.message); // not sealed yet
      const found = await check(row.seq, row.line, answer, ask);
      box.dataset.tone = "good";
      box.dataset.outcome = "proven";
      box.replaceChildren(...verdict(row, found));
    } catch (error) {
      const broken = error instanceof Unproven;
      box.dataset.tone = broken ? "bad" : "warn";
      box.dataset.outcome = broken ? "broken" : "unknown";
      box.replaceChildren(el("p", {}, el("b", {}, broken ? `Not proven: record ${row.seq} is not to be believed.` : "Not checked.")),
        el("p", {}, error.message));
    }
  }

  function verdict(row, found) {
    const lines = [
      el("p", {}, el("b", {}, `Proven: record ${row.seq} is in the log of ${whole(found.size)} records.`)),
      el("p", { class: "code" }, `leaf ${found.leaf}`),
      el("p", { class: "code" }, `root ${found.root}`),
    ];
    lines.push(el("p", {}, found.signer
      ? `The checkpoint is signed by ${found.signer.name}, key id ${hexOf(found.signer.id)}.`
      : "This browser cannot verify Ed25519, so the checkpoint’s signature was not checked."));
    if (found.signer?.unknown) {
      lines.push(el("p", {}, "This browser has not seen that key before: compare its id with `hsmcore audit show`."));
    }
    if (found.before) {
      lines.push(el("p", {}, `The log continues the one of ${whole(BigInt(found.before.size))} records that this browser saw before.`));
    }
    return lines;
  }

  function draw() {
    const shown = new Map(records.map((record) => [record.key, record]));
    for (const key of opened.keys()) {
      const kept = table.rows.get(key)?.data;
      if (kept && !shown.has(key)) shown.set(key, kept);
    }
    if (extra) shown.set(extra.key, extra);
    const ordered = [...shown.values()].sort((a, b) => b.seq - a.seq).slice(0, 60);
    table.update(ordered);
    for (const record of ordered) table.rows.get(record.key).data = record;
  }

  byId("audit-hold").addEventListener("click", (event) => {
    held = !held;
    event.currentTarget.setAttribute("aria-pressed", String(held));
    say(event.currentTarget, held ? "Held" : "Hold");
    if (!held) take(newest);
  });
  byId("audit-find").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      extra = parse(await ask(`/api/audit/${Number(byId("audit-seq").value)}`));
      draw();
      table.rows.get(extra.key)?.row.scrollIntoView({ block: "center" });
      await prove(extra);
    } catch (error) {
      say(byId("audit-state"), error.message);
    }
  });

  function take(list) {
    newest = list;
    if (held) return;
    records = list.slice(-20).map(parse);
    draw();
  }
  return {
    take,
    state({ audit, auditConfigured }) {
      if (!auditConfigured) say(byId("audit-state"), "No audit log is configured (auditLogFile).");
      else if (audit) {
        const ships = Object.entries(audit.shipping)
          .map(([kind, one]) => `${kind}: ${one.error ? one.error : `${whole(one.lagRecords)} behind`}`);
        say(byId("audit-state"), [
          audit.failure ? `Cannot be written: ${audit.failure}` : `${whole(audit.durableSeq)} records kept`,
          `${whole(audit.sealed)} sealed under a signed checkpoint`, ...ships,
        ].join(" · "));
      }
    },
  };
}
