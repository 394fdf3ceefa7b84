// Proofs of the audit log, checked here and not believed: RFC 6962 trees over SHA-256, C2SP signed notes.

export class Unproven extends Error {}

const encoder = new TextEncoder();
const subtle = globalThis.crypto?.subtle;

const sha256 = async (...parts) => new Uint8Array(await subtle.digest("SHA-256", joined(parts)));
const node = (left, right) => sha256([1], left, right);
export const leaf = (line) => sha256([0], encoder.encode(line));

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export function bytes(base64) {
  let text;
  try {
    text = atob(base64);
  } catch {
    throw new Unproven("a hash is not base64");
  }
  return Uint8Array.from(text, (letter) => letter.charCodeAt(0));
}

export const hexOf = (data) => Array.from(data, (byte) => byte.toString(16).padStart(2, "0")).join("");
const equal = (a, b) => a.length === b.length && a.every((byte, index) => byte === b[index]);

function hashes(path) {
  if (!Array.isArray(path) || path.length > 128) throw new Unproven("the path is not one");
  const found = path.map(bytes);
  if (found.some((item) => item.length !== 32)) throw new Unproven("the path has a hash that is not 32 bytes long");
  return found;
}

/** The root that a record leads to (RFC 9162 section 2.1.3.2). Sizes may exceed 32 bits, hence BigInt. */
export async function rootOfInclusion(start, index, size, path) {
  if (index < 0n || index >= size) throw new Unproven("the record is not within the checkpoint");
  let at = index, last = size - 1n, root = start;
  for (const item of path) {
    if (last === 0n) throw new Unproven("the path is too long");
    if (at & 1n || at === last) {
      root = await node(item, root);
      while (!(at & 1n) && at) [at, last] = [at >> 1n, last >> 1n];
    } else root = await node(root, item);
    [at, last] = [at >> 1n, last >> 1n];
  }
  if (last) throw new Unproven("the path is too short");
  return root;
}

/** That a tree begins with an older one (RFC 9162 section 2.1.4.2). */
export async function checkConsistency(old, oldRoot, size, root, path) {
  if (old === size) {
    if (path.length || !equal(oldRoot, root)) throw new Unproven("two trees of one size have different roots");
    return;
  }
  if (old > size) throw new Unproven(`the log has become shorter: ${size} records, it had ${old}`);
  const nodes = (old & (old - 1n)) === 0n ? [oldRoot, ...path] : path;
  if (!nodes.length) throw new Unproven("the consistency proof is empty");
  let at = old - 1n, last = size - 1n;
  while (at & 1n) [at, last] = [at >> 1n, last >> 1n];
  let first = nodes[0], second = nodes[0];
  for (const item of nodes.slice(1)) {
    if (last === 0n) throw new Unproven("the consistency proof is too long");
    if (at & 1n || at === last) {
      [first, second] = [await node(item, first), await node(item, second)];
      while (!(at & 1n) && at) [at, last] = [at >> 1n, last >> 1n];
    } else second = await node(second, item);
    [at, last] = [at >> 1n, last >> 1n];
  }
  if (last || !equal(first, oldRoot) || !equal(second, root)) {
    throw new Unproven("the log is not a continuation of the one that this browser has seen: it was written anew");
  }
}

/** A checkpoint: {origin, size, root, text, signatures}. */
export function parseCheckpoint(note) {
  const cut = note.lastIndexOf("\n\n");
  const text = note.slice(0, cut + 1);
  const [origin, size, root] = text.split("\n");
  if (cut < 0 || !origin || !/^[0-9]{1,18}$/.test(size ?? "")) throw new Unproven("the checkpoint is not one");
  const lines = note.slice(cut + 2).split("\n").filter(Boolean);
  const signatures = lines.map((line) => /^— (\S+) (\S+)$/.exec(line)).filter(Boolean);
  return {
    origin, size: BigInt(size), root: bytes(root), text,
    signatures: signatures.map(([, name, value]) => ({ name, value: bytes(value) })),
  };
}

async function parseKey(line) {
  const [name, id, encoded] = [line.slice(0, line.indexOf("+")), ...line.slice(line.indexOf("+") + 1).split(/\+(.*)/s)];
  const data = bytes(encoded ?? "");
  const own = (await sha256(encoder.encode(`${name}\n`), data)).slice(0, 4);
  if (data.length !== 33 || data[0] !== 1 || hexOf(own) !== id) return null;
  return { line, name, id: own, key: data.slice(1) };
}

/** The verifier key that signed a checkpoint; null where this browser has no Ed25519. Throws Unproven. */
export async function signerOf(checkpoint, lines) {
  for (const key of (await Promise.all(lines.map(parseKey))).filter(Boolean)) {
    for (const { name, value } of checkpoint.signatures) {
      if (name !== key.name || !equal(value.slice(0, 4), key.id)) continue;
      let imported;
      try {
        imported = await subtle.importKey("raw", key.key, { name: "Ed25519" }, false, ["verify"]);
      } catch {
        return null;
      }
      const good = await subtle.verify({ name: "Ed25519" }, imported, value.slice(4), encoder.encode(checkpoint.text));
      if (!good) throw new Unproven("the checkpoint's signature is wrong");
      return key;
    }
  }
  throw new Unproven("none of the log's keys has signed the checkpoint");
}

/** What this browser has seen of each log before, so that one that is written anew is noticed. */
const memory = {
  read(origin) {
    try {
      return JSON.parse(localStorage.getItem(`hsmcore log ${origin}`));
    } catch {
      return null;
    }
  },
  write(origin, value) {
    try {
      localStorage.setItem(`hsmcore log ${origin}`, JSON.stringify(value));
    } catch {
      // a browser that keeps nothing checks the record alone
    }
  },
};

/** Check the answer of /api/audit/N/proof about the record whose line is shown. `ask(path)` fetches JSON.
 * Returns {seq, size, leaf, root, signer, before}; throws Unproven. */
export async function check(seq, line, answer, ask) {
  if (!subtle) throw new Unproven("this browser gives SHA-256 to pages over HTTPS or from localhost only");
  if (answer.seq !== seq || answer.line !== line) throw new Unproven("the proof is about another record than the one shown");
  const checkpoint = parseCheckpoint(answer.checkpoint);
  const own = await leaf(line);
  const root = await rootOfInclusion(own, BigInt(seq) - 1n, checkpoint.size, hashes(answer.path));
  if (!equal(root, checkpoint.root)) throw new Unproven("the record does not lead to the checkpoint’s root: it was changed");
  const signer = await signerOf(checkpoint, answer.keys);
  const before = memory.read(checkpoint.origin);
  if (before) await continues(before, checkpoint, signer, ask);
  const pinned = signer ? [...new Set([...(before?.keys ?? []), signer.line])] : before?.keys ?? [];
  if (!before || checkpoint.size > BigInt(before.size)) {
    memory.write(checkpoint.origin, { size: String(checkpoint.size), root: hexOf(checkpoint.root), keys: pinned });
  }
  return { seq, size: checkpoint.size, leaf: hexOf(own), root: hexOf(root), signer, before, origin: checkpoint.origin };
}

async function continues(before, checkpoint, signer, ask) {
  const old = BigInt(before.size);
  const oldRoot = Uint8Array.from(before.root.match(/../g), (pair) => parseInt(pair, 16));
  // Whichever is older must be the beginning of the other: a page may still show a record against an older checkpoint.
  const [first, second] = old <= checkpoint.size
    ? [{ size: old, root: oldRoot }, checkpoint] : [checkpoint, { size: old, root: oldRoot }];
  const path = first.size === second.size ? []
    : hashes((await ask(`/api/audit/consistency?old=${first.size}&size=${second.size}`)).path);
  await checkConsistency(first.size, first.root, second.size, second.root, path);
  // A new key is legitimate after a change of keys; people have to compare it.
  if (signer && before.keys.length && !before.keys.includes(signer.line)) signer.unknown = true;
}
