/** One request, from the call until its promise is settled. */

import type { Buffer } from "node:buffer";
import { setMaxListeners } from "node:events";

import { HsmError } from "./errors.js";
import * as wire from "./wire.js";
import { type Key, Type, WireError } from "./wire.js";

/** How much longer than its deadline a request waits for the gateway's word about it, which says more than ours. */
const GRACE_MS = 250;

export interface Settler {
  /** The promise of a request is settled: before its answer came if `early`. */
  settled(job: Job, early: boolean): void;
  /** Why nothing can be sent now, if that is so. */
  trouble(): HsmError | undefined;
}

export interface JobFields {
  /** Its frame; number, slot, version and flags are stamped when it is sent. */
  frame: Buffer;
  slot: string;
  /** How many credits it takes. */
  weight?: number;
  timeoutMs: number;
  signal?: AbortSignal | undefined;
  /** The caller's span, as bytes. */
  trace?: Buffer | undefined;
  /** The public key (hexadecimal) that the caller insists on. */
  pin?: string | undefined;
  /** The key that refused it before, as no longer the current one. */
  refusedBy?: Key;
  /** Another request may have had it signed. */
  uncertain?: boolean;
}

export class Job {
  readonly frame: Buffer;
  readonly slot: string;
  readonly weight: number;
  readonly signs: boolean;
  readonly trace: Buffer | undefined;
  pin: string | undefined;
  readonly deadline: number;
  /** The key that it was sent for. */
  key: Key | undefined;
  request = 0;
  /** How often the gateway had no room for it. */
  refusals = 0;
  sentAt = 0;
  /** An attempt at another gateway process, or too long ago, may have had it signed. */
  uncertain: boolean;
  refusedBy: Key | undefined;
  refusal: HsmError | undefined;
  done = false;
  resolve!: (value: never) => void;
  reject!: (error: HsmError) => void;
  readonly promise: Promise<unknown>;
  private readonly timer: NodeJS.Timeout;
  private readonly signal: AbortSignal | undefined;

  constructor(
    fields: JobFields,
    private readonly owner: Settler,
  ) {
    this.frame = fields.frame;
    this.slot = fields.slot;
    this.weight = fields.weight ?? 1;
    this.signs = wire.isSigning(fields.frame);
    this.trace = fields.trace;
    this.pin = fields.pin;
    this.refusedBy = fields.refusedBy;
    this.uncertain = fields.uncertain ?? false;
    this.deadline = performance.now() + fields.timeoutMs;
    this.promise = new Promise((resolve, reject) => {
      this.resolve = resolve as (value: never) => void;
      this.reject = reject;
    });
    this.timer = setTimeout(this.late, fields.timeoutMs + GRACE_MS);
    this.signal = fields.signal;
    if (this.signal) setMaxListeners(0, this.signal); // it may be that of many requests
    this.signal?.addEventListener("abort", this.withdrawn);
    if (this.signal?.aborted) this.withdrawn();
  }

  get leftMs(): number {
    return Math.max(1, Math.round(this.deadline - performance.now()));
  }

  /** Whether a signature may exist although no answer came. */
  get maybeSigned(): boolean {
    return this.signs && (this.sentAt > 0 || this.uncertain);
  }

  /** What a frame answers to it: the value, or the error of a refusal. A batch of which no message has found the host that
   * holds the epoch was refused as a whole. Throws WireError for the answer to another type of request. */
  read(type: number, body: Buffer): unknown {
    const asked = this.frame[4];
    if (type === Type.ERROR) return wire.readError(body, Number(this.frame.readBigUInt64LE(8)));
    if (asked === Type.SIGN && type === Type.SIGNED) return wire.readSigned(body);
    if (asked === Type.SIGN_MANY && type === Type.SIGNED_MANY) return unheld(wire.readSignedMany(body));
    if (asked === Type.SIGN_BATCHED && type === Type.BATCHED) return wire.readBatched(body);
    if (asked === Type.MANAGE && type === Type.DONE) return wire.readText(body);
    throw new WireError(`type ${type} answers type ${asked}`);
  }

  answer(value: unknown): void {
    if (this.finish(false)) this.resolve(value as never);
  }

  fail(error: HsmError, early = false): void {
    if (this.finish(early)) this.reject(this.uncertain && this.signs ? error.asMaybeSigned() : error);
  }

  private finish(early: boolean): boolean {
    if (this.done) return false;
    this.done = true;
    clearTimeout(this.timer);
    this.signal?.removeEventListener("abort", this.withdrawn);
    this.owner.settled(this, early);
    return true;
  }

  private readonly late = (): void => {
    const fault = { status: "DEADLINE_EXCEEDED", class: "RETRY", retryable: true, maybeSigned: this.maybeSigned };
    const cause = this.owner.trouble();
    const error = this.refusal ?? new HsmError("The deadline passed before the gateway answered.", { ...fault, cause });
    this.fail(this.maybeSigned ? error.asMaybeSigned() : error, true);
  };

  private readonly withdrawn = (): void => {
    const fault = { status: "CANCELLED", class: "REQUEST_FATAL", maybeSigned: this.maybeSigned };
    this.fail(new HsmError("The request was withdrawn by its caller.", { ...fault, cause: this.signal?.reason }), true);
  };
}

/** What SIGNED_MANY says, or the error of all its messages if none has found the host that holds the epoch. */
function unheld(said: { outcomes: (Buffer | HsmError)[] }): unknown {
  const errors = said.outcomes.filter((one) => one instanceof HsmError && one.status === "NOT_HOLDER") as HsmError[];
  if (errors.length === 0 || errors.length < said.outcomes.length) return said;
  return errors.find((one) => one.maybeSigned) ?? errors[0];
}
