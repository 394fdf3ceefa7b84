/** The bodies of a gateway's frames. */

import { Buffer } from "node:buffer";

import { HsmError } from "./errors.js";
import { VERSION, WireError } from "./frames.js";
import { ALGORITHMS, type Batched, type Key, LEVELS, type Signed, type Welcome } from "./values.js";

const MOST_PING = 64;
/** Before the name that ends the text of NOT_HOLDER. */
const HOLDER = "\nholder: ";
const NO_RECORD = 0xffff_ffff_ffff_ffffn;

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
  const none = body.readUInt32LE(5) === 0xffff_ffff && body.readUInt32LE(9) === 0xffff_ffff;
  const signature = Buffer.allocUnsafe(body.length - 13);
  body.copy(signature, 0, 13);
  return { version: body.readUInt32LE(0), level, auditSeq: none ? null : body.readBigUInt64LE(5), signature };
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
