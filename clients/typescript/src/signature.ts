/** Whether a key made a signature: as strict as hsmcore. */

import { Buffer } from "node:buffer";
import { createPublicKey, verify } from "node:crypto";

import type { Key } from "./wire.js";

const ED25519 = Buffer.from("302a300506032b6570032100", "hex");
/** What stands before the point in SubjectPublicKeyInfo, and the order of the curve. */
const CURVES: Readonly<Partial<Record<Key["algorithm"], readonly [Buffer, bigint]>>> = {
  "ecdsa-p256": [
    Buffer.from("3059301306072a8648ce3d020106082a8648ce3d030107034200", "hex"),
    0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n,
  ],
  "ecdsa-secp256k1": [
    Buffer.from("3056301006072a8648ce3d020106052b8104000a034200", "hex"),
    0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n,
  ],
};

// 2^255 - 19, and the y of a point of order eight.
const P = (1n << 255n) - 19n;
const EIGHTH = 0x7a03ac9277fdc74ec6cc392cfa53202a0f67100d760b3cba4fd84d3d706a17c7n;
const SMALL = [0n, 1n, P - 1n, EIGHTH, P - EIGHTH];

/** The y of a point, as it is spelled. */
const yOf = (point: Uint8Array): bigint =>
  BigInt(`0x${Buffer.from(point).reverse().toString("hex")}`) & ((1n << 255n) - 1n);

/** Whether an Ed25519 key (32 bytes) made a signature, by Solana's rule. OpenSSL compares S and the spelling of R, and takes
 * keys of a second spelling, and points of small order. */
export function isEd25519(publicKey: Uint8Array, message: Uint8Array, signature: Uint8Array): boolean {
  if (publicKey.length !== 32 || signature.length !== 64) return false;
  const y = yOf(publicKey);
  if (y >= P || SMALL.includes(y) || SMALL.includes(yOf(signature.subarray(0, 32)))) return false;
  return isGood(null, ED25519, publicKey, message, signature);
}

/** Whether a key made a signature: 64 bytes. An ECDSA signature must have a low s, as each of hsmcore has. */
export function isSignature(
  { algorithm, publicKey }: Pick<Key, "algorithm" | "publicKey">,
  message: Uint8Array,
  signature: Uint8Array,
): boolean {
  if (algorithm === "ed25519") return isEd25519(publicKey, message, signature);
  const [head, order] = CURVES[algorithm] ?? [];
  if (!head || !order || signature.length !== 64) return false;
  const s = BigInt(`0x${Buffer.from(signature.subarray(32)).toString("hex")}`);
  return s <= order / 2n && isGood("sha256", head, publicKey, message, signature);
}

function isGood(
  hash: "sha256" | null,
  head: Buffer,
  point: Uint8Array,
  message: Uint8Array,
  signature: Uint8Array,
): boolean {
  try {
    const key = createPublicKey({ key: Buffer.concat([head, point]), format: "der", type: "spki" });
    return verify(hash, message, { key, dsaEncoding: "ieee-p1363" }, signature); // Ed25519 has one form
  } catch {
    return false; // no point of the curve
  }
}
