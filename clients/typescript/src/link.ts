/** One connection to the gateway, opened again whenever it breaks, and the requests that it carries. */

import { Buffer } from "node:buffer";
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { connect as connectNet, isIP, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";

import { badArgument, HsmError, lost } from "./errors.js";
import { type Job } from "./job.js";
import { Pings } from "./pings.js";
import type { Route } from "./route.js";
import * as wire from "./wire.js";
import { type Frame, type Key, Splitter, Type, type Welcome, WireError } from "./wire.js";

/** Answers after which the gateway is told what it need not remember any more. */
const ACK_EVERY = 32;
const CLOSE_MS = 1_000;
const MOST_DOUBLINGS = 3;
/** How soon a holder is asked again that is not sure to be one. */
const DOUBT_MS = 20;
const RUNNING = "Is `hsmcore gateway` running there?";
const TRUSTED =
  "Can caFile, certFile and keyFile be read, are they in time, and of authorities that the two sides trust? " +
  "A gateway says in its audit log whom it refused, and why.";

export interface LinkOptions {
  /** Of the gateway's certificate, and our own; PEM files, read for each connection. */
  caFile?: string;
  certFile?: string;
  keyFile?: string;
  /** The name in the gateway's certificate, if it is not the host of the address. */
  serverName?: string;
  connectTimeoutMs: number;
  /** The longest pause between attempts to connect. */
  maxBackoffMs: number;
  /** A connection without a sign of life is tested after so long, and given up after twice that. */
  pingMs: number;
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

export class Link {
  /** Requests that were sent and not answered, in the order of their numbers. */
  readonly open = new Map<number, Job>();
  slots: ReadonlyMap<string, Slot> = new Map();
  private ready = false;
  private draining = false;
  private traces = false;
  private names: readonly string[] = [];
  private readonly nonce = randomBytes(16);
  private instance = "";
  private rememberMs = 0;
  private next = 1;
  private socket: Socket | undefined;
  private out: Buffer[] = [];
  private answered = 0;
  /** Where in the route it is. */
  at = 0;
  private useful = false;
  private closing = false;
  private quiet = false;
  private heardAt = 0;
  private timer: NodeJS.Timeout | undefined;
  private pulse: NodeJS.Timeout | undefined;
  private readonly pings = new Pings((frame) => this.write(frame));

  constructor(
    private readonly options: LinkOptions,
    private readonly route: Route,
    private readonly owner: LinkOwner,
    private readonly program: string,
  ) {}

  /** Whether it takes new requests. */
  get usable(): boolean {
    return this.ready && !this.draining;
  }

  /** Whether this is the current key, as far as this connection was told. */
  signsWith(slot: string, key: Key): boolean {
    const current = this.slots.get(slot)?.current;
    return current !== undefined && hex(current) === hex(key);
  }

  // ---- the connection ------------------------------------------------------------------------------------------

  connect = (): void => {
    let reason: unknown = "the gateway closed the connection";
    const { pingMs } = this.options;
    const { tryMs } = this.route;
    this.at = this.route.at;
    this.useful = this.closing = false;
    const splitter = new Splitter();
    let socket: Socket;
    try {
      socket = this.dial();
    } catch (error) {
      this.gone(error);
      return;
    }
    const take = (frame: Frame): void => {
      if (frame.type === Type.ERROR && frame.request === 0) reason = wire.readError(frame.body);
      else this.take(frame);
    };
    this.socket = socket;
    const waiting = setTimeout(() => socket.destroy(lost(`no word from it within ${tryMs} ms`)), tryMs);
    this.timer = waiting;
    this.pulse = setInterval(this.beat, pingMs).unref();
    socket.on("data", (data: Buffer) => {
      this.quiet = false;
      this.heardAt = performance.now();
      try {
        splitter.feed(data, take);
      } catch (error) {
        if (!(error instanceof WireError)) throw error;
        socket.destroy(error);
      }
      if (this.ready) clearTimeout(waiting);
    });
    socket.on("error", (error) => {
      if (!(reason instanceof HsmError)) reason = error;
    });
    socket.on("close", () => this.gone(reason));
    socket.write(wire.hello(this.nonce, this.program));
  };

  /** Disconnect, until `connect` is called again. */
  async close(): Promise<void> {
    this.closing = true;
    clearTimeout(this.timer);
    const { socket } = this;
    if (!socket) return;
    // What was answered need not be remembered any more.
    if (this.ready && this.open.size === 0) this.write(wire.ack(this.next));
    this.flush();
    if (this.ready) socket.end();
    else socket.destroy();
    // A gateway that does not close its side keeps nobody waiting.
    const timer = setTimeout(() => socket.destroy(), CLOSE_MS);
    await new Promise((resolve) => socket.once("close", resolve));
    clearTimeout(timer);
  }

  get address(): string {
    return this.route.addresses[this.at]!;
  }

  private dial(): Socket {
    const { caFile, certFile, keyFile, serverName } = this.options;
    const { address } = this;
    if (address.startsWith("unix:")) return connectNet({ path: address.slice(5) });
    const found = /^tls:(?:\[([^\]]+)\]|([^:]+)):(\d+)$/.exec(address);
    if (!found) throw badArgument(`${address}: no address`, 'Give "unix:/path" or "tls:host:port".');
    const host = found[1] ?? found[2]!;
    const read = (file: string | undefined) => (file === undefined ? undefined : readFileSync(file));
    return connectTls({
      host,
      port: Number(found[3]),
      // An IP address is no server name (RFC 6066); Node compares it with the certificate all the same.
      servername: serverName ?? (isIP(host) ? "" : host),
      ca: read(caFile),
      cert: read(certFile),
      key: read(keyFile),
      minVersion: "TLSv1.3",
      ALPNProtocols: ["hsmcore-wire/1"],
    }).setNoDelay();
  }

  private gone(reason: unknown): void {
    clearTimeout(this.timer);
    clearInterval(this.pulse);
    const was = this.ready;
    const sound = was && this.useful && !this.draining;
    this.ready = this.draining = false;
    this.socket = undefined;
    this.out = [];
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
    this.pings.lost(error);
    if (!this.closing) {
      if (was && this.useful && !this.route.seeking) this.route.begin();
      if (!sound) this.route.next(this.at, [], this.owner.stays(this), error.status !== "HOST_LOST");
      this.timer = setTimeout(this.connect, sound ? 0 : this.route.pauseMs);
    }
    this.owner.lost(this, error, was);
  }

  private readonly beat = (): void => {
    if (this.quiet) this.socket?.destroy(lost("no sign of life"));
    else if (this.ready && performance.now() - this.heardAt >= this.options.pingMs) {
      this.quiet = true;
      this.pings.send();
    }
  };

  /** Resolves when the gateway answers on this connection; rejects when the connection breaks, or the time is over. */
  ping(timeoutMs: number): Promise<void> {
    return this.pings.ask(timeoutMs);
  }

  /** One write for all frames of a turn of the event loop. */
  private write(made: Buffer): void {
    if (this.out.push(made) === 1) setImmediate(this.flush);
  }

  private readonly flush = (): void => {
    const { out, socket } = this;
    if (out.length === 0) return;
    this.out = [];
    if (socket?.writable) socket.write(out.length === 1 ? out[0]! : Buffer.concat(out));
  };

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
    if (this.ready && this.open.get(job.request) === job) this.write(wire.cancel(job.request));
  }

  private put(job: Job, again: boolean): void {
    const slot = this.slots.get(job.slot)!.number;
    if (job.signs) wire.stampAgain(job.frame, again);
    const made = wire.stamp(job.frame, job.request, slot);
    this.write(job.trace && this.traces ? wire.traced(made, job.trace) : made);
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

  private take(frame: Frame): void {
    const { type, body } = frame;
    if (!this.ready) {
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
        return this.pings.answered(wire.readPong(body));
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
      this.socket?.destroy(new HsmError(`${this.address} lists other keys: it is of another fleet.`, fault));
      return;
    }
    const instance = found.instance.toString("hex");
    const same = instance === this.instance;
    this.instance = instance;
    this.rememberMs = found.rememberMs;
    this.ready = true;
    this.heardAt = performance.now();
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
    const number = Number(job.frame.readBigUInt64LE(8));
    let value = type === Type.ERROR ? wire.readError(body, number) : readAnswer(job.frame[4]!, type, body);
    // A batch of which no message has found the holder was refused as a whole.
    if (type === Type.SIGNED_MANY) value = unheld(value as { outcomes: (Buffer | HsmError)[] });
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
      this.write(wire.ack(lowest));
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
    if (!this.ready || this.draining) return;
    this.draining = true;
    this.timer = setTimeout(() => this.socket?.destroy(), CLOSE_MS);
    this.leave();
  }

  /** End a connection that is to end, once nothing is open on it. */
  private leave(): void {
    if (this.draining && this.open.size === 0) this.socket?.end();
  }
}

/** What SIGNED_MANY says, or the error of all its messages if none has found the host that holds the epoch. */
function unheld(said: { outcomes: (Buffer | HsmError)[] }): unknown {
  const errors = said.outcomes.filter((one) => one instanceof HsmError && one.status === "NOT_HOLDER") as HsmError[];
  if (errors.length === 0 || errors.length < said.outcomes.length) return said;
  return errors.find((one) => one.maybeSigned) ?? errors[0];
}

/** The answer's value, if it is one to this type of request. */
function readAnswer(asked: number, type: number, body: Buffer): unknown {
  if (asked === Type.SIGN && type === Type.SIGNED) return wire.readSigned(body);
  if (asked === Type.SIGN_MANY && type === Type.SIGNED_MANY) return wire.readSignedMany(body);
  if (asked === Type.SIGN_BATCHED && type === Type.BATCHED) return wire.readBatched(body);
  if (asked === Type.MANAGE && type === Type.DONE) return wire.readText(body);
  throw new WireError(`type ${type} answers type ${asked}`);
}
