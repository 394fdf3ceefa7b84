/** hsmcore's own form of an ordered payload: its bytes say kind, chain and position. docs/POLICY.md has the table. */

import { Buffer } from "node:buffer";

import { badArgument } from "./errors.js";

const CODES = { block: 1, "state-root": 2 } as const;
const MOST_POSITION = 2n ** 63n - 1n;

/** A kind whose payloads have a position. */
export type OrderedKind = keyof typeof CODES;

/** What is signed for a block or a state root of which there is only a digest (32 bytes). `domain`: the policy's.
 * Throws HsmError. */
export function payload(kind: OrderedKind, domain: string, position: bigint | number, digest: Uint8Array): Buffer {
  if (!Object.hasOwn(CODES, kind)) throw badArgument(`A payload of kind ${String(kind)} has no position.`);
  if (typeof domain !== "string" || !/^[!-*,-~]{1,64}$/.test(domain)) {
    throw badArgument('domain must be 1 to 64 characters of printable ASCII, without spaces and "+".');
  }
  if (typeof position === "number" ? !Number.isSafeInteger(position) : typeof position !== "bigint") {
    throw badArgument("position must be a whole number; above 2^53-1, a bigint.");
  }
  const number = BigInt(position);
  if (number < 0n || number > MOST_POSITION) throw badArgument("position must be from 0 to 2^63-1.");
  if (!(digest instanceof Uint8Array) || digest.length !== 32) throw badArgument("digest must be 32 bytes.");
  const place = Buffer.alloc(8);
  place.writeBigUInt64BE(number);
  const head = Buffer.from([0xff, ...Buffer.from("hsmcore"), CODES[kind], 1, domain.length]);
  return Buffer.concat([head, Buffer.from(domain), place, digest]);
}
