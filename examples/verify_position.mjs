// Verify what a position of a public log is bound to, with Node.js alone (20 or newer).
//
//     node verify_position.mjs POLICY_FILE DIGEST_HEX POSITION PROOF_FILE
//
// If it ends with 0: no other digest has this position in any history of the log that the policy's quorum of witnesses
// has seen. DIGEST_HEX is the SHA-256 of the payload that was signed. docs/PUBLIC_LOG.md has the formats.
import { isUtf8 } from "node:buffer";
import { createHash, createPublicKey, verify as verifySignature } from "node:crypto";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const NUMBER = "(0|[1-9][0-9]{0,18})";
const HASH = "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=";
const NAME = "[^ +\\x00-\\x1f]+";
const KEY = `(${NAME})\\+([0-9a-f]{8})\\+(B[A-P][A-Za-z0-9+/]{42})`;
const POLICY = new RegExp(`^origin (${NAME})\\nfirst ${NUMBER}\\nquorum ([1-9][0-9]?)\\n((?:witness ${KEY}\\n)+)$`);
const PROOF = new RegExp(
  `^c2sp\\.org/tlog-proof@v1\\nindex ${NUMBER}\\n((?:${HASH}\\n){0,63})\\n` +
    `((${NAME})\\n${NUMBER}\\n(${HASH})\\n)\\n((?:— ${NAME} [A-Za-z0-9+/]+={0,2}\\n){1,64})$`,
);
const MOST = 2n ** 63n - 1n;

const sha256 = (...parts) => createHash("sha256").update(Buffer.concat(parts)).digest();
const bytes = (text) => Buffer.from(text, "base64");

/** RFC 9162, section 2.1.3.2. */
function rootOf(leaf, index, size, path) {
  let [node, at, last] = [leaf, index, size - 1n];
  for (const sibling of path) {
    if (last === 0n) return null;
    if (at % 2n === 1n || at === last) {
      node = sha256(Buffer.of(1), sibling, node);
      while (at % 2n === 0n && at > 0n) [at, last] = [at / 2n, last / 2n];
    } else {
      node = sha256(Buffer.of(1), node, sibling);
    }
    [at, last] = [at / 2n, last / 2n];
  }
  return last === 0n ? node : null;
}

/** Public keys by name and key id; null if an id is not its key's. */
function witnessesOf(lines) {
  const found = new Map();
  for (const [, name, id, encoded] of lines.matchAll(new RegExp(`witness ${KEY}\\n`, "g"))) {
    const data = bytes(encoded);
    if (sha256(Buffer.from(`${name}\n`), data).subarray(0, 4).toString("hex") !== id) return null;
    found.set(`${name} ${id}`, data.subarray(1));
  }
  return found;
}

/** The number of witnesses that have seen this digest at the position; null if the proof does not hold. */
export function verifyPosition(policy, digest, position, proof) {
  if (!isUtf8(policy) || !isUtf8(proof) || proof.length > 65536 || digest.length !== 32) return null;
  const [rules, found] = [POLICY.exec(policy.toString()), PROOF.exec(proof.toString())];
  const witnesses = rules && witnessesOf(rules[4]);
  if (!found || !witnesses) return null;
  const signatures = found[7].split("\n").slice(0, -1).map((line) => line.split(" ").slice(1));
  if (signatures.some(([, value]) => bytes(value).length < 5 || bytes(value).toString("base64") !== value)) return null;
  const [index, size, first] = [found[1], found[5], rules[2]].map(BigInt);
  if (found[4] !== rules[1] || first + index !== position || index >= size || size > MOST) return null;
  const path = found[2].split("\n").filter(Boolean).map(bytes);
  if (!rootOf(sha256(Buffer.of(0, 1), digest), index, size, path)?.equals(bytes(found[6]))) return null;
  const seen = new Set();
  for (const [name, value] of signatures) {
    const data = bytes(value);
    const key = witnesses.get(`${name} ${data.subarray(0, 4).toString("hex")}`);
    if (!key) continue; // of the log itself, or of a witness that the policy does not name
    if (data.length !== 76) return null;
    const text = Buffer.from(`cosignature/v1\ntime ${data.readBigUInt64BE(4)}\n${found[3]}`);
    const spki = Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), key]);
    const known = createPublicKey({ key: spki, format: "der", type: "spki" });
    if (!verifySignature(null, text, known, data.subarray(12))) return null;
    seen.add(key.toString("hex"));
  }
  return seen.size >= Number(rules[3]) ? seen.size : null;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [policy, digest, position, proof] = process.argv.slice(2);
  const found = verifyPosition(readFileSync(policy), Buffer.from(digest, "hex"), BigInt(position), readFileSync(proof));
  if (found === null) {
    console.error("NOT valid");
    process.exit(1);
  }
  console.log(String(found));
}
