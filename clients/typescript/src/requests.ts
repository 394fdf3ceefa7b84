/** A client's frames. Number, slot and what else a connection decides are stamped later. */

import { Buffer } from "node:buffer";

import { HEAD_BYTES, MOST_BYTES, Type, VERSION, WireError } from "./frames.js";
import { KINDS, type Operation, OPERATIONS, type SignFields } from "./values.js";

/** What `length` counts besides the body. */
const AFTER_LENGTH = HEAD_BYTES - 4;

export const HAS_POSITION = 1;
export const AGAIN = 2;
const TRACED = 4;

function frame(type: number, bodyBytes: number): Buffer {
  if (AFTER_LENGTH + bodyBytes > MOST_BYTES) throw new WireError(`a frame of ${AFTER_LENGTH + bodyBytes} bytes`);
  const made = Buffer.allocUnsafe(HEAD_BYTES + bodyBytes);
  made.writeUInt32LE(AFTER_LENGTH + bodyBytes, 0);
  made.writeUInt32LE(type, 4); // no flags, slot 0
  made.fill(0, 8, HEAD_BYTES);
  return made;
}

const short = (text: string): Buffer => {
  const data = Buffer.from(text);
  if (data.length > 255) throw new WireError(`a text of ${data.length} bytes`);
  return data;
};

export function hello(nonce: Uint8Array, program: string): Buffer {
  const text = short(program);
  const made = frame(Type.HELLO, 19 + text.length);
  made.writeUInt16LE(VERSION, 16);
  made.set(nonce, 18);
  made[34] = text.length;
  made.set(text, 35);
  return made;
}

export function sign(message: Uint8Array, fields: SignFields = {}): Buffer {
  const made = frame(Type.SIGN, 17 + message.length);
  made[16] = KINDS.indexOf(fields.kind ?? "");
  made.writeUInt32LE(fields.timeoutMs ?? 0, 17);
  if (fields.position === undefined) made.fill(0, 21, 29);
  else {
    made.writeBigUInt64LE(BigInt(fields.position), 21);
    made[5] = HAS_POSITION;
  }
  made.writeUInt32LE(fields.version ?? 0, 29);
  made.set(message, 33);
  return made;
}

export function signMany(messages: readonly Uint8Array[], fields: SignFields = {}): Buffer {
  const made = frame(Type.SIGN_MANY, 11 + messages.reduce((sum, one) => sum + 4 + one.length, 0));
  made[16] = KINDS.indexOf(fields.kind ?? "");
  made.writeUInt32LE(fields.timeoutMs ?? 0, 17);
  made.writeUInt32LE(fields.version ?? 0, 21);
  made.writeUInt16LE(messages.length, 25);
  let at = 27;
  for (const message of messages) {
    made.writeUInt32LE(message.length, at);
    made.set(message, at + 4);
    at += 4 + message.length;
  }
  return made;
}

export function signBatched(message: Uint8Array, fields: Pick<SignFields, "kind" | "timeoutMs"> = {}): Buffer {
  const made = frame(Type.SIGN_BATCHED, 5 + message.length);
  made[16] = KINDS.indexOf(fields.kind ?? "");
  made.writeUInt32LE(fields.timeoutMs ?? 0, 17);
  made.set(message, 21);
  return made;
}

export function manage(operation: Operation, keyId = ""): Buffer {
  const id = short(keyId);
  const made = frame(Type.MANAGE, 2 + id.length);
  made[16] = OPERATIONS.indexOf(operation);
  made[17] = id.length;
  made.set(id, 18);
  return made;
}

export const ping = (data: Uint8Array): Buffer => {
  const made = frame(Type.PING, data.length);
  made.set(data, HEAD_BYTES);
  return made;
};

export const cancel = (request: number): Buffer => stamp(frame(Type.CANCEL, 0), request);

/** Of what is below `request` nothing is asked again. */
export const ack = (request: number): Buffer => stamp(frame(Type.ACK, 0), request);

export function stamp(made: Buffer, request: number, slot = 0): Buffer {
  made.writeUInt16LE(slot, 6);
  // Two halves: a BigInt for each request would cost more than the rest of its frame.
  made.writeUInt32LE(request >>> 0, 8);
  made.writeUInt32LE(Math.floor(request / 0x1_0000_0000), 12);
  return made;
}

/** A span of the caller's: `traceparent` of W3C Trace Context, or OpenTelemetry's SpanContext. */
export type TraceParent = string | { readonly traceId: string; readonly spanId: string; readonly traceFlags: number };

/** Its bytes on the wire; undefined for what is none of version 00, which the standard ignores. */
export function traceOf(parent: TraceParent): Buffer | undefined {
  const written = ({ traceId, spanId, traceFlags }: Exclude<TraceParent, string>): string =>
    `00-${traceId}-${spanId}-${traceFlags.toString(16).padStart(2, "0")}`;
  const text = typeof parent === "string" ? parent : written(parent);
  const found = /^00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})$/.exec(text);
  return found ? Buffer.from(found.slice(1).join(""), "hex") : undefined;
}

/** A copy of a request's frame with its trace; the frame itself if it would be too long then. */
export function traced(made: Buffer, trace: Buffer): Buffer {
  const length = made.readUInt32LE(0) + trace.length;
  if (length > MOST_BYTES) return made;
  const whole = Buffer.concat([made.subarray(0, HEAD_BYTES), trace, made.subarray(HEAD_BYTES)]);
  whole.writeUInt32LE(length, 0);
  whole[5]! |= TRACED;
  return whole;
}

export const isSign = (made: Buffer): boolean => made[4] === Type.SIGN;
export const isBatched = (made: Buffer): boolean => made[4] === Type.SIGN_BATCHED;
export const isSigning = (made: Buffer): boolean => isSign(made) || made[4] === Type.SIGN_MANY || isBatched(made);

export function stampVersion(made: Buffer, version: number): void {
  made.writeUInt32LE(version, made[4] === Type.SIGN ? 29 : 21);
}

export function stampTimeout(made: Buffer, timeoutMs: number): void {
  made.writeUInt32LE(Math.min(timeoutMs, 0xffff_ffff), 17);
}

export function stampAgain(made: Buffer, again: boolean): void {
  made[5] = (made[5]! & HAS_POSITION) | (again ? AGAIN : 0);
}
