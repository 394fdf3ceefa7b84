/** One request, from the call until its promise is settled. */

import type { Buffer } from "node:buffer";
import { setMaxListeners } from "node:events";

import { HsmError } from "./errors.js";
import * as wire from "./wire.js";
import { type Key, Type, WireError } from "./wire.js";

/** How much longer than its deadline a request waits for the gateway's word about it, which says more than ours. */
export const GRACE_MS = 250;

export interface Settler {
  /** The promise of a request is settled: before its answer came if `early`. */
  settled(job: Job, early: boolean): void;
  /** Why nothing can be sent now, if that is so. */
  trouble(): HsmError | undefined;
  /** What its caller gets for this answer. */
  shown(job: Job, answer: unknown): unknown;
}

export interface JobFields {
  /** How many credits it takes. */
  weight?: number;
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
  private readonly withdrawn: (() => void) | undefined;

  /** `frame`: number, slot, version and flags are stamped when it is sent. */
  constructor(
    readonly frame: Buffer,
    readonly slot: string,
    timeoutMs: number,
    private readonly owner: Settler,
    { weight = 1, trace, pin, refusedBy, uncertain = false, signal }: JobFields,
  ) {
    this.weight = weight;
    this.signs = wire.isSigning(frame);
    this.trace = trace;
    this.pin = pin;
    this.refusedBy = refusedBy;
    this.uncertain = uncertain;
    this.deadline = performance.now() + timeoutMs;
    this.promise = new Promise((resolve, reject) => {
      this.resolve = resolve as (value: never) => void;
      this.reject = reject;
    });
    this.withdrawn = signal && this.withdrawBy(signal);
    if (signal?.aborted) this.withdraw(signal);
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
    if (this.finish(false)) this.resolve(this.owner.shown(this, value) as never);
  }

  fail(error: HsmError, early = false): void {
    if (this.finish(early)) this.reject(this.uncertain && this.signs ? error.asMaybeSigned() : error);
  }

  private finish(early: boolean): boolean {
    if (this.done) return false;
    this.done = true;
    this.withdrawn?.();
    this.owner.settled(this, early);
    return true;
  }

  /** Its deadline has passed, and the gateway's word did not come. */
  late(): void {
    const fault = { status: "DEADLINE_EXCEEDED", class: "RETRY", retryable: true, maybeSigned: this.maybeSigned };
    const cause = this.owner.trouble();
    const error = this.refusal ?? new HsmError("The deadline passed before the gateway answered.", { ...fault, cause });
    this.fail(this.maybeSigned ? error.asMaybeSigned() : error, true);
  }

  /** Have it withdrawn by this signal, which may be that of many requests. Returns what ends that. */
  private withdrawBy(signal: AbortSignal): () => void {
    const withdraw = (): void => this.withdraw(signal);
    setMaxListeners(0, signal);
    signal.addEventListener("abort", withdraw);
    return () => signal.removeEventListener("abort", withdraw);
  }

  private withdraw({ reason }: AbortSignal): void {
    const fault = { status: "CANCELLED", class: "REQUEST_FATAL", maybeSigned: this.maybeSigned };
    this.fail(new HsmError("The request was withdrawn by its caller.", { ...fault, cause: reason }), true);
  }
}

/** What SIGNED_MANY says, or the error of all its messages if none has found the host that holds the epoch. */
function unheld(said: { outcomes: (Buffer | HsmError)[] }): unknown {
  const errors = said.outcomes.filter((one) => one instanceof HsmError && one.status === "NOT_HOLDER") as HsmError[];
  if (errors.length === 0 || errors.length < said.outcomes.length) return said;
  return errors.find((one) => one.maybeSigned) ?? errors[0];
}
