/** What a position of a public log is bound to. docs/PUBLIC_LOG.md has the forms. No gateway is asked. */

import { isUtf8 } from "node:buffer";
import { createHash } from "node:crypto";

import { rootOf } from "./batched.js";
import { MOST_BYTES, SIGNATURES, signaturesOf } from "./note.js";
import { isEd25519 } from "./signature.js";

const NUMBER = "(0|[1-9][0-9]{0,18})";
const HASH = "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=";
const NAME = "[^ +\\x00-\\x1f]+";
const KEY = `(${NAME})\\+([0-9a-f]{8})\\+(B[A-P][A-Za-z0-9+/]{42})`;
const POLICY = new RegExp(`^origin (${NAME})\\nfirst ${NUMBER}\\nquorum ([1-9][0-9]?)\\n((?:witness ${KEY}\\n)+)$`);
const PROOF = new RegExp(
  `^c2sp\\.org/tlog-proof@v1\\nindex ${NUMBER}\\n((?:${HASH}\\n){0,63})\\n` +
    `((${NAME})\\n${NUMBER}\\n(${HASH})\\n)\\n(${SIGNATURES})$`,
);
const MOST = 2n ** 63n - 1n;

const sha256 = (...parts: Uint8Array[]): Buffer => createHash("sha256").update(Buffer.concat(parts)).digest();
const decoded = (text: string): Buffer => Buffer.from(text, "base64");

/** Public keys by name and key id; undefined if an id is not its key's. */
function witnessesOf(lines: string): ReadonlyMap<string, Buffer> | undefined {
  const found = new Map<string, Buffer>();
  for (const [, name = "", id = "", encoded = ""] of lines.matchAll(new RegExp(`witness ${KEY}\\n`, "g"))) {
    const data = decoded(encoded);
    if (
      sha256(Buffer.from(`${name}\n`), data)
        .subarray(0, 4)
        .toString("hex") !== id
    )
      return undefined;
    found.set(`${name} ${id}`, data.subarray(1));
  }
  return found;
}

/** The number of witnesses that have seen this digest (SHA-256 of the payload that was signed) at the position; undefined if
 * the proof does not hold. Then no other digest has the position in any history of the log that the policy's quorum has seen. */
export function verifyPosition(
  policy: Uint8Array,
  digest: Uint8Array,
  position: bigint,
  proof: Uint8Array,
): number | undefined {
  if (!isUtf8(policy) || !isUtf8(proof) || proof.length > MOST_BYTES || digest.length !== 32) return undefined;
  const rules = POLICY.exec(Buffer.from(policy).toString());
  const found = PROOF.exec(Buffer.from(proof).toString());
  if (!rules || !found) return undefined;
  const [, origin, first = "", quorum, listed = ""] = rules;
  const [, place = "", hashes = "", text = "", name, leaves = "", root = "", lines = ""] = found;
  const witnesses = witnessesOf(listed);
  const signatures = signaturesOf(lines);
  const [index, size] = [BigInt(place), BigInt(leaves)];
  if (!witnesses || !signatures || name !== origin || BigInt(first) + index !== position) return undefined;
  if (index >= size || size > MOST) return undefined;
  const path = hashes.split("\n").filter(Boolean).map(decoded);
  const shown = rootOf(sha256(Buffer.of(0, 1), digest), index, size - 1n, path);
  if (!shown?.equals(decoded(root))) return undefined;
  const seen = new Set<string>();
  for (const { name: signer, value } of signatures) {
    const key = witnesses.get(`${signer} ${value.subarray(0, 4).toString("hex")}`);
    if (!key) continue; // of the log itself, or of a witness that the policy does not name
    if (value.length !== 76) return undefined;
    const signed = Buffer.from(`cosignature/v1\ntime ${value.readBigUInt64BE(4)}\n${text}`);
    if (!isEd25519(key, signed, value.subarray(12))) return undefined;
    seen.add(key.toString("hex"));
  }
  return seen.size >= Number(quorum) ? seen.size : undefined;
}
