/** The binary form of a batched message's proof: what its verifier does not have already. docs/BATCHING.md has it. */

import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";

import { partsOf, rootBy } from "./batched.js";

const [PLAIN, BLINDED, HASH, SIGNATURE] = [0x10, 0x20, 32, 64];
const MOST = 10n ** 19n;

/** The binary form of a proof, a third smaller than the text. Throws RangeError for what is no proof, or has signatures of
 * other names. Verifies nothing. */
export function proofToBytes(proof: Uint8Array): Buffer {
  const parts = partsOf(proof);
  if (!parts || !rootBy(Buffer.alloc(0), parts, parts.says.size))
    throw new RangeError("not the proof of a batched message");
  const { extra, place, path, says, origin, signatures } = parts;
  const [own, ...others] = signatures;
  if (others.length > 0 || own?.name !== origin || own.value.length !== 4 + SIGNATURE) {
    throw new RangeError("a proof with other signatures than that of its origin has no binary form");
  }
  const blinder = extra.subarray(9);
  const numbers = [says.epoch, says.size, says.index - place, place, says.timeNs].map(written);
  const head = Buffer.of((blinder.length > 0 ? BLINDED : PLAIN) | extra[0]!);
  return Buffer.concat([head, own.value.subarray(4), ...numbers, blinder, ...path]);
}

/** The proof of which this is the binary form: the same text, if message, key (Ed25519, 32 bytes) and domain are those of
 * the proof. Throws RangeError. Whether it holds, verifyBatched says. */
export function proofFromBytes(data: Uint8Array, message: Uint8Array, publicKey: Uint8Array, domain: string): Buffer {
  const bytes = Buffer.from(data);
  const form = (bytes[0] ?? 0) & 0xf0;
  let at = 1 + SIGNATURE;
  const next = (): bigint => {
    const [number, behind] = read(bytes, at);
    at = behind;
    return number;
  };
  if ((form !== PLAIN && form !== BLINDED) || publicKey.length !== HASH) throw refused();
  const [epoch, size, first, place, timeNs] = [next(), next(), next(), next(), next()];
  const behind = at + (form === BLINDED ? HASH : 0);
  const count = (bytes.length - behind) / HASH;
  if (count < 0 || !Number.isInteger(count) || place >= size || (first + place) >> 64n) throw refused();
  const path = Array.from({ length: count }, (_, i) => bytes.subarray(behind + i * HASH, behind + (i + 1) * HASH));
  const number = Buffer.alloc(8);
  number.writeBigUInt64BE(first + place);
  const extra = Buffer.concat([Buffer.of(bytes[0]! ^ form), number, bytes.subarray(at, behind)]);
  const root = rootBy(message, { extra, place, path }, size);
  if (!root) throw refused();
  const origin = `${domain}/${epoch}`;
  const id = createHash("sha256").update(`${origin}\n\x01`).update(publicKey).digest().subarray(0, 4);
  const signature = Buffer.concat([id, bytes.subarray(1, 1 + SIGNATURE)]).toString("base64");
  const proof = Buffer.from(
    `c2sp.org/tlog-proof@v1\nextra ${extra.toString("base64")}\nindex ${place}\n` +
      `${path.map((hash) => `${hash.toString("base64")}\n`).join("")}\n` +
      `${origin}\n${size}\n${root.toString("base64")}\nhsmcore/batch-root/v1 ${first}\ntime ${timeNs}\n\n` +
      `— ${origin} ${signature}\n`,
  );
  if (!partsOf(proof)) throw refused();
  return proof;
}

const refused = () => new RangeError("not the binary form of a proof of this domain");

/** LEB128: seven bits a byte, the lowest first; each byte but the last has its highest bit set. */
function written(number: bigint): Buffer {
  const digits = [];
  for (; number >= 0x80n; number >>= 7n) digits.push(Number(number & 0x7fn) | 0x80);
  return Buffer.of(...digits, Number(number));
}

/** Read a number, of the shortest form. Returns it, and where the next one begins. */
function read(data: Buffer, at: number): [bigint, number] {
  let number = 0n;
  for (let shift = 0n; shift < 70n; shift += 7n) {
    const digit = data[at++];
    if (digit === undefined) break;
    number |= BigInt(digit & 0x7f) << shift;
    if (digit >= 0x80) continue;
    if (number >= MOST || (digit === 0 && shift > 0n)) break;
    return [number, at];
  }
  throw refused();
}
