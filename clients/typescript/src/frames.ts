/** Frames of hsmcore-wire/1: cut from what a gateway sends. docs/WIRE.md specifies them. */

import { Buffer } from "node:buffer";

export const VERSION = 1;
export const MOST_BYTES = 1 << 20;
export const HEAD_BYTES = 16;
const LENGTH_BYTES = 4;
const AFTER_LENGTH = HEAD_BYTES - LENGTH_BYTES;

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

  /** Hand each frame that is whole now to `take`. `data`, and so a frame, is read from no more after that. Throws
   * WireError. */
  feed(data: Buffer, take: (frame: Frame) => void): void {
    if (this.held > 0) {
      this.rest.push(Buffer.from(data));
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
      this.rest.push(Buffer.from(data.subarray(at)));
      this.held = end - at;
    }
  }
}
