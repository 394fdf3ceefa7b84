/** The PINGs of one connection, and who waits for their answers. */

import { Buffer } from "node:buffer";

import { type HsmError, lost } from "./errors.js";
import * as wire from "./wire.js";

const DATA_BYTES = 8;

export class Pings {
  /** What is to be called with the outcome of each, by its number. */
  private readonly awaited = new Map<number, (error?: HsmError) => void>();
  private last = 0;

  constructor(private readonly write: (frame: Buffer) => void) {}

  /** Send one and return its number. */
  send(): number {
    const data = Buffer.alloc(DATA_BYTES);
    data.writeUInt32LE((this.last = (this.last + 1) >>> 0));
    this.write(wire.ping(data));
    return this.last;
  }

  /** Send one. Resolves when the gateway answers it; rejects when the connection breaks, or the time is over. */
  ask(timeoutMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const number = this.send();
      const timer = setTimeout(() => this.awaited.get(number)?.(lost(`no answer within ${timeoutMs} ms`)), timeoutMs);
      this.awaited.set(number, (error) => {
        clearTimeout(timer);
        this.awaited.delete(number);
        if (error) reject(error);
        else resolve();
      });
    });
  }

  /** A PONG has come, with what its PING had. */
  answered(data: Buffer): void {
    if (data.length === DATA_BYTES) this.awaited.get(data.readUInt32LE())?.();
  }

  /** The connection is gone, and their answers with it. */
  lost(error: HsmError): void {
    for (const settle of [...this.awaited.values()]) settle(error);
  }
}
