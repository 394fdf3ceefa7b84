// Verify the proof of a batched signature with Node.js alone (20 or newer).
//
//     node verify_batched.mjs PUBLIC_KEY_HEX MESSAGE_FILE PROOF_FILE
//
// Prints the domain, the epoch, the message's number and its kind, or exits with 1. docs/BATCHING.md has the formats.
import { isUtf8 } from "node:buffer";
import { createHash, createPublicKey, verify as verifySignature } from "node:crypto";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const KINDS = { 1: "tx-legacy", 2: "tx-v0", 3: "tx-v1", 4: "off-chain", 7: "digest32", 8: "raw" };
const NUMBER = "(0|[1-9][0-9]{0,18})\\n";
const HASH = "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=";
const PROOF = new RegExp(
  "^c2sp\\.org/tlog-proof@v1\\n" +
    "extra ([A-Za-z0-9+/]{12}|[A-Za-z0-9+/]{54}[AEIMQUYcgkosw048]=)\\n" +
    `index ${NUMBER}((?:${HASH}\\n){0,63})\\n` +
    `(([!-*,-~]{1,64})/${NUMBER}${NUMBER}(${HASH})\\nhsmcore/batch-root/v1 ${NUMBER}time ${NUMBER})\\n` +
    "((?:— [^ +\\x00-\\x1f]+ [A-Za-z0-9+/]+={0,2}\\n){1,64})$",
);

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

/** What the proof says of the message; null if it does not hold. `publicKey`: 32 bytes. */
export function verifyBatched(publicKey, message, proof) {
  const text = isUtf8(proof) && proof.length <= 65536 && publicKey.length === 32 ? proof.toString() : "";
  const found = PROOF.exec(text);
  if (found === null) return null;
  const signatures = found[11].split("\n").slice(0, -1).map((line) => line.split(" ").slice(1));
  if (signatures.some(([, value]) => bytes(value).length < 5 || bytes(value).toString("base64") !== value)) return null;
  const [extra, root] = [bytes(found[1]), bytes(found[8])];
  const [index, epoch, size, first] = [2, 6, 7, 9].map((group) => BigInt(found[group]));
  const kind = KINDS[extra[0]];
  if (kind === undefined || index >= size || extra.readBigUInt64BE(1) !== first + index) return null;
  const leaf = sha256(Buffer.of(0), extra.subarray(0, 9), sha256(message), extra.subarray(9));
  const path = found[3].split("\n").filter(Boolean).map(bytes);
  if (!rootOf(leaf, index, size, path)?.equals(root)) return null;
  const origin = `${found[5]}/${found[6]}`;
  const keyId = sha256(Buffer.from(origin), Buffer.from("\n\x01"), publicKey).subarray(0, 4);
  const spki = Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), publicKey]);
  const key = createPublicKey({ key: spki, format: "der", type: "spki" });
  const own = signatures.map(([name, value]) => [name, bytes(value)])
    .filter(([name, value]) => name === origin && value.subarray(0, 4).equals(keyId));
  const good = own.every(([, value]) => verifySignature(null, Buffer.from(found[4]), key, value.subarray(4)));
  return own.length > 0 && good ? { domain: found[5], epoch, index: first + index, kind } : null;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [publicKey, message, proof] = process.argv.slice(2);
  const found = verifyBatched(Buffer.from(publicKey, "hex"), readFileSync(message), readFileSync(proof));
  if (found === null) {
    console.error("NOT valid");
    process.exit(1);
  }
  console.log(found.domain, String(found.epoch), String(found.index), found.kind);
}
