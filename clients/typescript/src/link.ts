/** What one connection to the gateway carries: requests, which are sent again on the next one whenever it breaks. */

import type { Buffer } from "node:buffer";
import { randomBytes } from "node:crypto";

import { CLOSE_MS, Connection, type ConnectionOptions, type ConnectionOwner } from "./connection.js";
import { HsmError, lost } from "./errors.js";
import { type Job } from "./job.js";
import type { Route } from "./route.js";
import * as wire from "./wire.js";
import { type Frame, type Key, Type, type Welcome, WireError } from "./wire.js";

/** Answers after which the gateway is told what it need not remember any more. */
const ACK_EVERY = 32;
const MOST_DOUBLINGS = 3;
/** How soon a holder is asked again that is not sure to be one. */
const DOUBT_MS = 20;
const RUNNING = "Is `hsmcore gateway` running there?";
const TRUSTED =
  "Can caFile, certFile and keyFile be read, are they in time, and of authorities that the two sides trust? " +
  "A gateway says in its audit log whom it refused, and why.";

export interface LinkOptions extends ConnectionOptions {
  connectTimeoutMs: number;
  /** The longest pause between attempts to connect. */
  maxBackoffMs: number;
}

/** What a link tells its client. */
export interface LinkOwner {
  /** Whether another connection to its gateway is as it should be. */
  stays(link: Link): boolean;
  /** Whether this is no gateway of the fleet: it lists other keys than the one at another address did. */
  strange(link: Link): boolean;
  welcomed(link: Link, welcome: Welcome): void;
  lost(link: Link, error: HsmError, was: boolean): void;
  keysChanged(link: Link): void;
  credits(credits: number): void;
  /** A request is off the connection: its credits are free. */
  released(job: Job): void;
  /** The gateway at this address does not hold the epoch: no connection to it is of use. */
  left(at: number): void;
  /** Send it again as a new request, but not before so many milliseconds. */
  later(job: Job, ms: number): void;
  /** Send it again as a new request, before others. */
  again(job: Job): void;
  /** The key that it was for is no longer the current one. */
  rekey(job: Job): void;
}

/** A key manager of the gateway, as this connection numbers it. */
export interface Slot {
  readonly number: number;
  readonly current: Key | undefined;
  readonly byPublicKey: ReadonlyMap<string, Key>;
}

export const hex = (key: Key): string => key.publicKey.toString("hex");

export class Link implements ConnectionOwner {
  /** Requests that were sent and not answered, in the order of their numbers. */
  readonly open = new Map<number, Job>();
  slots: ReadonlyMap<string, Slot> = new Map();
  isReady = false;
  private draining = false;
  private traces = false;
  private names: readonly string[] = [];
  private readonly nonce = randomBytes(16);
  private instance = "";
  private rememberMs = 0;
  private next = 1;
  private answered = 0;
  /** Where in the route it is. */
  at = 0;
  private useful = false;
  private closing = false;
  private timer: NodeJS.Timeout | undefined;
  private readonly connection: Connection;

  constructor(
    options: LinkOptions,
    private readonly route: Route,
    private readonly owner: LinkOwner,
    private readonly program: string,
  ) {
    this.connection = new Connection(options, this);
  }

  /** Whether it takes new requests. */
  get usable(): boolean {
    return this.isReady && !this.draining;
  }

  /** Whether this is the current key, as far as this connection was told. */
  signsWith(slot: string, key: Key): boolean {
    const current = this.slots.get(slot)?.current;
    return current !== undefined && hex(current) === hex(key);
  }

  // ---- the connection ------------------------------------------------------------------------------------------

  connect = (): void => {
    this.at = this.route.at;
    this.useful = this.closing = false;
    this.connection.open(this.address, wire.hello(this.nonce, this.program), this.route.tryMs);
  };

  /** Disconnect, until `connect` is called again. */
  async close(): Promise<void> {
    this.closing = true;
    clearTimeout(this.timer);
    // What was answered need not be remembered any more.
    if (this.isReady && this.open.size === 0) this.connection.write(wire.ack(this.next));
    await this.connection.close();
  }

  get address(): string {
    return this.route.addresses[this.at]!;
  }

  gone(reason: unknown): void {
    clearTimeout(this.timer);
    const was = this.isReady;
    const sound = was && this.useful && !this.draining;
    this.isReady = this.draining = false;
    for (const job of [...this.open.values()]) {
      // Requests for signatures are kept, to be sent again: see resend. Of others, no answer is remembered.
      if (job.signs && !job.done) continue;
      this.release(job);
      job.fail(lost("The connection broke before the gateway answered.", { retryable: false, cause: reason }));
    }
    const says = reason instanceof Error ? reason.message : String(reason);
    const error =
      reason instanceof HsmError && reason.status !== "HOST_LOST"
        ? reason
        : lost(`${this.address}: ${says}`, {
            cause: reason,
            hint: this.address.startsWith("tls:") ? `${RUNNING} ${TRUSTED}` : RUNNING,
          });
    this.connection.pings.lost(error);
    if (!this.closing) {
      if (was && this.useful && !this.route.seeking) this.route.begin();
      if (!sound) this.route.next(this.at, [], this.owner.stays(this), error.status !== "HOST_LOST");
      this.timer = setTimeout(this.connect, sound ? 0 : this.route.pauseMs);
    }
    this.owner.lost(this, error, was);
  }

  /** Resolves when the gateway answers on this connection; rejects when the connection breaks, or the time is over. */
  ping(timeoutMs: number): Promise<void> {
    return this.connection.pings.ask(timeoutMs);
  }

  // ---- requests ------------------------------------------------------------------------------------------------

  /** Send a request, or fail it if it cannot be sent here. */
  send(job: Job): void {
    const problem = this.stamp(job);
    if (problem) {
      job.fail(problem);
      this.owner.released(job);
      return;
    }
    job.request = this.next++;
    this.put(job, false);
    this.open.set(job.request, job);
  }

  /** Tell the gateway that a request is of no more interest. Its credits are free when it answers. */
  cancel(job: Job): void {
    if (this.isReady && this.open.get(job.request) === job) this.connection.write(wire.cancel(job.request));
  }

  private put(job: Job, again: boolean): void {
    const slot = this.slots.get(job.slot)!.number;
    if (job.signs) wire.stampAgain(job.frame, again);
    const made = wire.stamp(job.frame, job.request, slot);
    this.connection.write(job.trace && this.traces ? wire.traced(made, job.trace) : made);
  }

  private stamp(job: Job): HsmError | undefined {
    const slot = this.slots.get(job.slot);
    const fatal = { class: "REQUEST_FATAL" };
    if (!slot) {
      const hint = `It offers ${[...this.slots.keys()].join(", ") || "none"}.`;
      return new HsmError(`The gateway offers this client no key manager "${job.slot}".`, {
        ...fatal,
        status: "POLICY_REFUSED",
        hint,
      });
    }
    if (!job.signs) return undefined;
    const key = job.pin === undefined ? slot.current : slot.byPublicKey.get(job.pin);
    if (!key && job.pin !== undefined) {
      return new HsmError(`The gateway lists no such key of "${job.slot}".`, {
        ...fatal,
        status: "KEY_NOT_FOUND",
      });
    }
    job.sentAt = performance.now();
    if (wire.isBatched(job.frame)) {
      // The key is the one that signs when the batch closes. Without a key it is not sent to another gateway process,
      // which would give it another place.
      wire.stampTimeout(job.frame, job.leftMs);
      return undefined;
    }
    job.key = key;
    // None is known to sign, as in an emergency: the gateway chooses, and an answer that is lost is lost for good.
    wire.stampVersion(job.frame, key?.version ?? 0);
    wire.stampTimeout(job.frame, job.leftMs);
    return undefined;
  }

  private release(job: Job): void {
    this.open.delete(job.request);
    this.owner.released(job);
  }

  /** Send what is open again, on a new connection. */
  private resend(same: boolean): void {
    const now = performance.now();
    for (const job of [...this.open.values()]) {
      if (!same || now - job.sentAt >= this.rememberMs) {
        // It is remembered nowhere: only a signature that comes out the same may be asked for again, by the same key.
        job.uncertain = true;
        const key = job.key && this.slots.get(job.slot)?.byPublicKey.get(hex(job.key));
        if (key?.algorithm !== "ed25519") {
          this.release(job);
          job.fail(
            lost("The gateway was lost with the request, and a second signature could differ.", {
              maybeSigned: true,
            }),
          );
          continue;
        }
        job.key = key;
        job.sentAt = now;
        wire.stampVersion(job.frame, key.version);
      }
      this.put(job, true);
    }
  }

  // ---- what the gateway says -----------------------------------------------------------------------------------

  take(frame: Frame): void {
    const { type, body } = frame;
    if (!this.isReady) {
      if (type !== Type.WELCOME) throw new WireError(`type ${type} before WELCOME`);
      this.welcome(wire.readWelcome(body));
      return;
    }
    switch (type) {
      case Type.KEYS:
        this.learn(wire.readKeys(body));
        return this.owner.keysChanged(this);
      case Type.CREDIT:
        return this.owner.credits(wire.readCredit(body));
      case Type.PONG:
        this.useful = true;
        return this.connection.pings.answered(wire.readPong(body));
      case Type.GOAWAY:
        wire.readGoaway(body);
        this.draining = true;
        return this.leave();
      case Type.WELCOME:
        throw new WireError("a second WELCOME");
      default: {
        const job = this.open.get(frame.request);
        if (job) this.answer(job, type, body);
        else if (frame.request >= this.next)
          throw new WireError(`an answer to request ${frame.request}, which was not made`);
      }
    }
  }

  private welcome(found: Welcome): void {
    this.names = found.slots;
    this.learn(found.keys);
    if (this.owner.strange(this)) {
      const fault = { status: "KEY_MISMATCH", class: "MEMBER_DOWN", hint: "Take it off the list." };
      this.connection.destroy(new HsmError(`${this.address} lists other keys: it is of another fleet.`, fault));
      return;
    }
    const instance = found.instance.toString("hex");
    const same = instance === this.instance;
    this.instance = instance;
    this.rememberMs = found.rememberMs;
    this.isReady = true;
    this.resend(same);
    this.owner.welcomed(this, found);
  }

  private learn(keys: readonly Key[]): void {
    this.traces = keys.some(wire.traces);
    const bySlot = new Map<number, Key[]>();
    for (const key of keys) {
      const own = bySlot.get(key.slot);
      if (own) own.push(key);
      else bySlot.set(key.slot, [key]);
    }
    const of = (number: number): Slot => {
      const own = bySlot.get(number) ?? [];
      return {
        number,
        current: own.find((key) => key.current),
        byPublicKey: new Map(own.map((key) => [hex(key), key])),
      };
    };
    this.slots = new Map(this.names.map((name, number) => [name, of(number)]));
  }

  private answer(job: Job, type: number, body: Buffer): void {
    const value = job.read(type, body);
    if (!(value instanceof HsmError)) {
      this.useful = true;
      if (job.signs) this.route.seeking = false;
    }
    // Before its credits are free: no other request is to be sent here.
    const moves = value instanceof HsmError && value.status === "NOT_HOLDER" && this.isTurnedAway(value);
    this.release(job);
    if (value instanceof HsmError) {
      if (!moves || !this.goesOn(job, value)) this.refused(job, value);
    } else {
      if (type === Type.SIGNED && !job.key) job.key = this.version(job.slot, (value as wire.Signed).version);
      job.answer(value);
    }
    if (++this.answered >= ACK_EVERY) {
      this.answered = 0;
      const [lowest = this.next] = this.open.keys();
      this.connection.write(wire.ack(lowest));
    }
    this.leave();
  }

  private version(slot: string, version: number): Key | undefined {
    return [...(this.slots.get(slot)?.byPublicKey.values() ?? [])].find((key) => key.version === version);
  }

  private refused(job: Job, error: HsmError): void {
    const clean = !error.maybeSigned && !job.uncertain && !job.done;
    if (clean) job.sentAt = 0;
    if (clean && this.draining && error.retryable) this.owner.again(job);
    else if (clean && error.status === "QUEUE_FULL" && error.retryable && this.rests(job, error)) return;
    else if (clean && error.status === "KEY_NOT_CURRENT" && job.pin === undefined && !job.refusedBy && job.key) {
      job.refusedBy = job.key;
      job.refusal = error;
      this.owner.rekey(job);
    } else job.fail(error);
  }

  /** A host without the epoch has refused a request. Returns whether requests go on: to the next one, or again to this
   * one, if it is the holder and not sure of it. */
  private isTurnedAway(error: HsmError): boolean {
    const goesOn = this.route.refused(this.at, error.holder);
    if (goesOn && this.route.at !== this.at) this.owner.left(this.at);
    return goesOn;
  }

  /** Whether such a request does. What may have been signed is sent for the same key only, and only for Ed25519. */
  private goesOn(job: Job, error: HsmError): boolean {
    if (!job.signs || job.done) return false;
    if (error.maybeSigned || job.uncertain) {
      if (wire.isBatched(job.frame) || job.key?.algorithm !== "ed25519") return false;
      job.pin = hex(job.key);
      job.uncertain = true;
    } else job.sentAt = 0;
    job.refusal = error;
    if (this.route.at !== this.at) this.owner.again(job);
    else this.owner.later(job, DOUBT_MS * (1 + Math.random()) * 2 ** Math.min(job.refusals++, MOST_DOUBLINGS));
    return true;
  }

  /** Whether a request for which there is no room is sent again: the gateway says when there may be some, and that is
   * before the deadline. Each time it waits longer: many may have been told the same. */
  private rests(job: Job, error: HsmError): boolean {
    const ms = error.retryAfterMs * (1 + Math.random() / 2) * 2 ** Math.min(job.refusals++, MOST_DOUBLINGS);
    if (ms === 0 || ms >= job.deadline - performance.now()) return false;
    this.owner.later(job, ms);
    return true;
  }

  /** Send no more here, and connect to the next gateway once all is answered. */
  forsake(): void {
    if (!this.isReady || this.draining) return;
    this.draining = true;
    this.timer = setTimeout(() => this.connection.destroy(), CLOSE_MS);
    this.leave();
  }

  /** End a connection that is to end, once nothing is open on it. */
  private leave(): void {
    if (this.draining && this.open.size === 0) this.connection.end();
  }
}
