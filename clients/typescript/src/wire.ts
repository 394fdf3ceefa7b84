/** The frames of hsmcore-wire/1, as bytes and as values: a client's half. docs/WIRE.md specifies them. */

import { Buffer } from "node:buffer";

import { HsmError } from "./errors.js";

export const VERSION = 1;
export const MOST_BYTES = 1 << 20;
const MOST_PING = 64;
export const HEAD_BYTES = 16;
const LENGTH_BYTES = 4;
const AFTER_LENGTH = HEAD_BYTES - LENGTH_BYTES;
/** Before the name that ends the text of NOT_HOLDER. */
const HOLDER = "\nholder: ";
const NO_RECORD = 0xffff_ffff_ffff_ffffn;

export const Type = {
  HELLO: 1,
  SIGN: 2,
  SIGN_MANY: 3,
  VERIFY: 4,
  CANCEL: 5,
  ACK: 6,
  PING: 7,
  MANAGE: 8,
  SIGN_BATCHED: 9,
  WELCOME: 129,
  SIGNED: 130,
  SIGNED_MANY: 131,
  VERIFIED: 132,
  PONG: 133,
  ERROR: 134,
  KEYS: 135,
  CREDIT: 136,
  GOAWAY: 137,
  DONE: 138,
  BATCHED: 139,
} as const;

export const HAS_POSITION = 1;
export const AGAIN = 2;
const TRACED = 4;

export const KINDS = [
  "",
  "tx-legacy",
  "tx-v0",
  "tx-v1",
  "off-chain",
  "block",
  "state-root",
  "digest32",
  "raw",
  "prehashed",
] as const;
const ALGORITHMS = ["", "ed25519", "ecdsa-p256", "ecdsa-secp256k1"] as const;
const LEVELS = ["", "primary", "secondary", "emergency"] as const;
const OPERATIONS = ["", "generate", "set-current", "deactivate", "cache-stats", "export", "unfinished"] as const;

/** What a message is; "" says nothing. */
export type Kind = (typeof KINDS)[number];
export type Algorithm = (typeof ALGORITHMS)[number];
/** The level of failover that signed; "": unknown. */
export type Level = (typeof LEVELS)[number];
export type Operation = (typeof OPERATIONS)[number];

/** A version of a key. `version` is its number, `kinds` has bit n for kind n; see `batches`. */
export interface Key {
  readonly slot: number;
  readonly version: number;
  readonly current: boolean;
  readonly algorithm: Algorithm;
  readonly id: string;
  readonly publicKey: Buffer;
  readonly kinds: number;
}

const [TRACES, BATCHES, ALL_KINDS] = [0x4000, 0x8000, 0xffff];

/** Whether the gateway signs batches with this key. One of an earlier release sets the bit only with all others. */
export const batches = ({ kinds }: Key): boolean => (kinds & BATCHES) !== 0 && kinds !== ALL_KINDS;

/** Whether the gateway takes traces; as `batches`. */
export const traces = ({ kinds }: Key): boolean => (kinds & TRACES) !== 0 && kinds !== ALL_KINDS;

export interface Welcome {
  readonly instance: Buffer;
  readonly credits: number;
  readonly messageBytes: number;
  readonly batch: number;
  readonly rememberMs: number;
  readonly client: string;
  readonly slots: readonly string[];
  readonly keys: readonly Key[];
}

export interface Signed {
  readonly version: number;
  readonly level: Level;
  /** The number of the audit record, or null without one. */
  readonly auditSeq: bigint | null;
  readonly signature: Buffer;
}

/** A place in a batch, as the gateway says; nothing of it is verified. */
export interface Batched {
  readonly auditSeq: bigint | null;
  readonly keyId: string;
  readonly publicKey: Buffer;
  readonly proof: Buffer;
}

export interface SignFields {
  kind?: Kind;
  timeoutMs?: number;
  position?: number | bigint;
  version?: number;
}

/** Bytes that are no frame of hsmcore-wire/1, or none that a gateway sends. The connection is of no more use. */
export class WireError extends Error {
  override readonly name = "WireError";
}

export interface Frame {
  readonly type: number;
  readonly slot: number;
  readonly request: number;
  readonly body: Buffer;
}

/** Cuts what a gateway sends into frames. */
export class Splitter {
  private rest: Buffer[] = [];
  private held = 0;
  private wanted = LENGTH_BYTES;

  /** Hand each frame that is whole now to `take`. Throws WireError. */
  feed(data: Buffer, take: (frame: Frame) => void): void {
    if (this.held > 0) {
      this.rest.push(data);
      this.held += data.length;
      if (this.held < this.wanted) return;
      data = Buffer.concat(this.rest);
      this.rest = [];
      this.held = 0;
    }
    const end = data.length;
    let at = 0;
    this.wanted = LENGTH_BYTES;
    while (end - at >= LENGTH_BYTES) {
      const length = data.readUInt32LE(at);
      if (length < AFTER_LENGTH || length > MOST_BYTES) throw new WireError(`a frame of ${length} bytes`);
      if (end - at < HEAD_BYTES) {
        this.wanted = HEAD_BYTES;
        break;
      }
      const type = data[at + 4]!;
      if (type < Type.WELCOME || type > Type.BATCHED) throw new WireError(`type ${type}`);
      if (data[at + 5] !== 0) throw new WireError(`flags ${data[at + 5]} of type ${type}`);
      const after = at + LENGTH_BYTES + length;
      if (after > end) {
        this.wanted = after - at;
        break;
      }
      this.wanted = LENGTH_BYTES;
      const request = data.readUInt32LE(at + 8) + data.readUInt32LE(at + 12) * 0x1_0000_0000;
      take({ type, slot: data.readUInt16LE(at + 6), request, body: data.subarray(at + HEAD_BYTES, after) });
      at = after;
    }
    if (at < end) {
      this.rest.push(data.subarray(at));
      this.held = end - at;
    }
  }
}

// ---- a client's frames: number, slot and what else a connection decides are stamped later ----------------------

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
  made.writeBigUInt64LE(BigInt(fields.position ?? 0), 21);
  if (fields.position !== undefined) made[5] = HAS_POSITION;
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

export const isBatched = (made: Buffer): boolean => made[4] === Type.SIGN_BATCHED;
export const isSigning = (made: Buffer): boolean =>
  made[4] === Type.SIGN || made[4] === Type.SIGN_MANY || isBatched(made);

export function stampVersion(made: Buffer, version: number): void {
  made.writeUInt32LE(version, made[4] === Type.SIGN ? 29 : 21);
}

export function stampTimeout(made: Buffer, timeoutMs: number): void {
  made.writeUInt32LE(Math.min(timeoutMs, 0xffff_ffff), 17);
}

export function stampAgain(made: Buffer, again: boolean): void {
  made[5] = (made[5]! & HAS_POSITION) | (again ? AGAIN : 0);
}

// ---- a gateway's bodies ------------------------------------------------------------------------------------------

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

class Fields {
  private at = 0;

  constructor(private readonly body: Buffer) {}

  raw(count: number): Buffer {
    const after = this.at + count;
    if (after > this.body.length) throw new WireError("a field ends behind the frame");
    const found = this.body.subarray(this.at, after);
    this.at = after;
    return found;
  }

  u8 = (): number => this.raw(1)[0]!;
  u16 = (): number => this.raw(2).readUInt16LE();
  u32 = (): number => this.raw(4).readUInt32LE();
  u64 = (): bigint => this.raw(8).readBigUInt64LE();
  text = (bytes: number): string => text(this.raw(bytes));
  text8 = (): string => this.text(this.u8());
  copy = (count: number): Buffer => Buffer.from(this.raw(count)); // what lives longer than the read does
  rest = (): Buffer => this.raw(this.body.length - this.at);

  list<T>(one: () => T): T[] {
    return Array.from({ length: this.u16() }, one);
  }

  named<T>(names: readonly T[], number: number): T {
    if (number >= names.length) throw new WireError(`number ${number} means nothing`);
    return names[number]!;
  }

  keys(): Key[] {
    return this.list(() => {
      const [slot, version, state, algorithm] = [this.u16(), this.u32(), this.u8(), this.u8()];
      if (state > 1 || algorithm === 0) throw new WireError(`state ${state}, algorithm ${algorithm} of a key`);
      const [id, publicKey, kinds] = [this.text8(), this.copy(this.u8()), this.u16()];
      return {
        slot,
        version,
        current: state === 1,
        algorithm: this.named(ALGORITHMS, algorithm),
        id,
        publicKey,
        kinds,
      };
    });
  }

  end(): void {
    if (this.at !== this.body.length) throw new WireError("bytes behind the last field");
  }
}

function text(data: Buffer): string {
  try {
    return utf8.decode(data);
  } catch {
    throw new WireError("a text that is not UTF-8");
  }
}

function whole<T>(body: Buffer, read: (fields: Fields) => T): T {
  const fields = new Fields(body);
  const found = read(fields);
  fields.end();
  return found;
}

export const readWelcome = (body: Buffer): Welcome =>
  whole(body, (fields) => {
    const version = fields.u16();
    if (version !== VERSION) throw new WireError(`version ${version} of the protocol; this is ${VERSION}`);
    return {
      instance: fields.copy(16),
      credits: fields.u32(),
      messageBytes: fields.u32(),
      batch: fields.u16(),
      rememberMs: fields.u32(),
      client: fields.text8(),
      slots: fields.list(fields.text8),
      keys: fields.keys(),
    };
  });

export const readKeys = (body: Buffer): Key[] => whole(body, (fields) => fields.keys());

export function readSigned(body: Buffer): Signed {
  if (body.length < 13) throw new WireError("a field ends behind the frame");
  const level = LEVELS[body[4]!];
  if (level === undefined) throw new WireError(`number ${body[4]} means nothing`);
  const record = body.readBigUInt64LE(5);
  const signature = Buffer.from(body.subarray(13));
  return { version: body.readUInt32LE(0), level, auditSeq: record === NO_RECORD ? null : record, signature };
}

export const readSignedMany = (body: Buffer): { version: number; outcomes: (Buffer | HsmError)[] } =>
  whole(body, (fields) => ({
    version: fields.u32(),
    outcomes: fields.list(() => {
      const bad = fields.u8();
      if (bad > 1) throw new WireError(`outcome ${bad}`);
      return bad ? readError(fields.raw(fields.u16())) : fields.copy(fields.u16());
    }),
  }));

export const readBatched = (body: Buffer): Batched =>
  whole(body, (fields) => {
    const [record, keyId, publicKey] = [fields.u64(), fields.text8(), fields.copy(fields.u8())];
    return { auditSeq: record === NO_RECORD ? null : record, keyId, publicKey, proof: Buffer.from(fields.rest()) };
  });

/** `request`: the number of the request that is refused, where it is one. */
export const readError = (body: Buffer, request?: number): HsmError =>
  whole(body, (fields) => {
    const flags = fields.u8();
    if (flags > 3) throw new WireError(`flags ${flags} of an error`);
    const [retryAfterMs, status, kind, says] = [
      fields.u32(),
      fields.text8(),
      fields.text8(),
      fields.text(fields.u16()),
    ];
    const [plain = "", holder = ""] = status === "NOT_HOLDER" ? says.split(HOLDER) : [says];
    return new HsmError(plain, {
      status,
      class: kind,
      retryable: !!(flags & 1),
      maybeSigned: !!(flags & 2),
      retryAfterMs,
      holder,
      ...(request !== undefined && { request }),
    });
  });

export const readGoaway = (body: Buffer): { leftMs: number; reason: string } =>
  whole(body, (fields) => ({ leftMs: fields.u32(), reason: fields.text8() }));

export const readCredit = (body: Buffer): number => whole(body, (fields) => fields.u32());

/** What PING had. */
export function readPong(body: Buffer): Buffer {
  if (body.length > MOST_PING) throw new WireError(`PONG of ${body.length} bytes`);
  return body;
}

export const readText = (body: Buffer): string => text(body);
