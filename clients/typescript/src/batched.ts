/** Proofs of messages that were signed in a batch, of which the HSM signed the root. docs/BATCHING.md has their form. */

import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";

import { isSigned, MOST_BYTES, type Signature, SIGNATURES, signaturesOf } from "./note.js";
import type { Kind } from "./wire.js";

/** A message's place in a batch: `proof` is a C2SP tlog-proof. */
export interface BatchedSignature {
  readonly proof: Buffer;
  /** The message's number in the domain. */
  readonly index: bigint;
  readonly root: Buffer;
  readonly keyId: string;
  /** Of the key that signed the root: compare it with the one that you trust. */
  readonly publicKey: Buffer;
  /** The number of the root's audit record, or null without one. */
  readonly auditSeq: bigint | null;
}

/** What a valid proof says. */
export interface BatchProof {
  readonly domain: string;
  readonly epoch: bigint;
  readonly index: bigint;
  readonly kind: Kind;
  /** Messages in the batch. */
  readonly size: bigint;
  readonly root: Buffer;
  /** When the batch was closed, by the signer's clock: nanoseconds of Unix time. */
  readonly timeNs: bigint;
}

const KINDS = ["", "tx-legacy", "tx-v0", "tx-v1", "off-chain", "", "", "digest32", "raw"] as const;
const NUMBER = "(0|[1-9][0-9]{0,18})\\n";
const LAST = "[AEIMQUYcgkosw048]=";
const HASH = `[A-Za-z0-9+/]{42}${LAST}`;
const FORM = new RegExp(
  `^c2sp\\.org/tlog-proof@v1\\nextra ([A-Za-z0-9+/]{12}|[A-Za-z0-9+/]{54}${LAST})\\n` +
    `index ${NUMBER}((?:${HASH}\\n){0,63})\\n` +
    `((([!-*,-~]{1,64})/${NUMBER.slice(0, -2)})\\n${NUMBER}(${HASH})\\n` +
    `hsmcore/batch-root/v1 ${NUMBER}time ${NUMBER})\\n` +
    `(${SIGNATURES})$`,
);
const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

const sha256 = (...parts: Uint8Array[]): Buffer => {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest();
};
const decoded = (text: string): Buffer => Buffer.from(text, "base64");
const [LEAF, NODE] = [Buffer.of(0), Buffer.of(1)];

/** A proof as it is written. Nothing in it is compared with anything else yet, but kind and numbers with one another. */
interface ProofParts {
  /** Kind, number in the domain, and blinder if there is one. */
  readonly extra: Buffer;
  /** The leaf's index in its tree. */
  readonly place: bigint;
  readonly path: readonly Buffer[];
  readonly says: BatchProof;
  /** Of the checkpoint, and the name that signs it. */
  readonly text: string;
  readonly origin: string;
  readonly signatures: readonly Signature[];
}

/** The parts of a proof; undefined for what has not its form. */
function partsOf(proof: Uint8Array): ProofParts | undefined {
  if (proof.length > MOST_BYTES) return undefined;
  let written: string;
  try {
    written = utf8.decode(proof);
  } catch {
    return undefined;
  }
  const [, head = "", at = "", path = "", text = "", origin = "", domain = "", ...rest] = FORM.exec(written) ?? [];
  if (domain === "") return undefined;
  const [epoch = "", count = "", root = "", first = "", time = "", lines = ""] = rest;
  const signatures = signaturesOf(lines);
  const extra = decoded(head);
  const [place, size, index] = [BigInt(at), BigInt(count), BigInt(first) + BigInt(at)];
  const kind = KINDS[extra[0]!] ?? "";
  if (kind === "" || place >= size || extra.readBigUInt64BE(1) !== index || !signatures) return undefined;
  const says = { domain, epoch: BigInt(epoch), index, kind, size, root: decoded(root), timeNs: BigInt(time) };
  return { extra, place, path: path.split("\n").filter(Boolean).map(decoded), says, text, origin, signatures };
}

/** The parts of a proof; undefined unless its path leads from the message to the root. */
export function shownBy(message: Uint8Array, proof: Uint8Array): ProofParts | undefined {
  const parts = partsOf(proof);
  return parts && rootBy(message, parts, parts.says.size)?.equals(parts.says.root) ? parts : undefined;
}

/** The root that the path of a proof leads to from a message; undefined if it has another length. */
function rootBy(message: Uint8Array, leaf: Pick<ProofParts, "extra" | "place" | "path">, size: bigint) {
  const { extra, place, path } = leaf;
  return rootOf(sha256(LEAF, extra.subarray(0, 9), sha256(message), extra.subarray(9)), place, size - 1n, path);
}

/** Whether an Ed25519 key (32 bytes) signed the checkpoint of a proof. */
export const isSignedBy = ({ text, signatures, origin }: ProofParts, publicKey: Uint8Array): boolean =>
  publicKey.length === 32 && isSigned(text, signatures, origin, publicKey) === true;

/** What a proof says of a message. Undefined unless this Ed25519 key (32 bytes) signed the root of its batch. */
export function readBatchProof(publicKey: Uint8Array, message: Uint8Array, proof: Uint8Array): BatchProof | undefined {
  const shown = shownBy(message, proof);
  return shown && isSignedBy(shown, publicKey) ? shown.says : undefined;
}

/** Whether a proof shows that a message is in a batch whose root this Ed25519 key signed; of `domain`, `kind` and `epoch`,
 * where they are given. */
export function verifyBatched(
  publicKey: Uint8Array,
  message: Uint8Array,
  proof: Uint8Array,
  wanted: { domain?: string; kind?: Kind; epoch?: bigint } = {},
): boolean {
  const found = readBatchProof(publicKey, message, proof);
  if (!found) return false;
  const { domain = found.domain, kind = found.kind, epoch = found.epoch } = wanted;
  return domain === found.domain && kind === found.kind && epoch === found.epoch;
}

/** The root that a path leads to (RFC 9162, section 2.1.3.2); undefined if it has another length. */
export function rootOf(leaf: Buffer, index: bigint, last: bigint, path: readonly Buffer[]): Buffer | undefined {
  let node = leaf;
  for (const sibling of path) {
    if (last === 0n) return undefined;
    if ((index & 1n) === 1n || index === last) {
      node = sha256(NODE, sibling, node);
      while ((index & 1n) === 0n && index > 0n) [index, last] = [index >> 1n, last >> 1n];
    } else node = sha256(NODE, node, sibling);
    [index, last] = [index >> 1n, last >> 1n];
  }
  return last === 0n ? node : undefined;
}
