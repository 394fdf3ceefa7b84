/** Signatures of C2SP signed notes: what the proof of a batch and a set of keys have in common. */

import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";

import { isEd25519 } from "./signature.js";

/** Of a note, in bytes. */
export const MOST_BYTES = 1 << 16;
/** A pattern of the lines after the text. */
export const SIGNATURES = "(?:— [^ +\\x00-\\x1f]+ [A-Za-z0-9+/]+={0,2}\\n){1,64}";

export interface Signature {
  readonly name: string;
  /** Four bytes that name signer and key, then what the key made. */
  readonly value: Buffer;
}

/** Read lines that fit SIGNATURES; undefined if one is not in the one form that it may have. */
export function signaturesOf(lines: string): readonly Signature[] | undefined {
  const found = lines
    .split("\n")
    .slice(0, -1)
    .map((line) => {
      const [, name = "", text = ""] = line.split(" ");
      return { name, text, value: Buffer.from(text, "base64") };
    });
  // The last digit has bits that mean nothing: a note that is changed there must not verify.
  return found.every(({ text, value }) => value.length >= 5 && value.toString("base64") === text) ? found : undefined;
}

/** Whether an Ed25519 key (32 bytes) signed a text as `name`; undefined if a signature of it is wrong. Those of other
 * names and keys count not. */
export function isSigned(
  text: string,
  signatures: readonly Signature[],
  name: string,
  publicKey: Uint8Array,
): boolean | undefined {
  const id = createHash("sha256").update(`${name}\n\x01`).update(publicKey).digest().subarray(0, 4);
  const own = signatures.filter((one) => one.name === name && one.value.subarray(0, 4).equals(id));
  const data = Buffer.from(text);
  return own.every(({ value }) => isEd25519(publicKey, data, value.subarray(4))) ? own.length > 0 : undefined;
}
