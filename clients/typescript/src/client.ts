/** Requests of this process to the gateway: over how many connections, when, and for which key. */

import { Buffer } from "node:buffer";
import { EventEmitter } from "node:events";
import { setImmediate as nextTurn } from "node:timers/promises";

import { type BatchedSignature, readBatchProof } from "./batched.js";
import { Deadlines } from "./deadlines.js";
import { badArgument, closed, HsmError, lost } from "./errors.js";
import { Job, type JobFields, type Settler } from "./job.js";
import { hex, Link, type LinkOwner, type Slot } from "./link.js";
import { checked, DEFAULT_KEY, fieldsOf, MOST_MS, requireBytes } from "./options.js";
import type { ClientOptions, RequestOptions, SignBatchedOptions, SignManyOptions, SignOptions } from "./options.js";
import type { VerifyOptions } from "./options.js";
import { Route } from "./route.js";
import { isSignature } from "./signature.js";
import { Unsent } from "./unsent.js";
import * as wire from "./wire.js";
import type { Key, Level, Operation, Signed, TraceParent, Welcome } from "./wire.js";

const PROGRAM = `hsmcore-client/0.1.0 node/${process.versions.node}`;
/** Of a SIGN_MANY: what its frame has besides messages. */
const BATCH_HEAD_BYTES = 32;

/** A signature, and by what it was made. Of a key that the gateway does not list, id and public key are empty. */
export interface Receipt extends Signed {
  readonly keyId: string;
  readonly publicKey: Buffer;
}

export interface ClientEvents {
  connected: [{ client: string }];
  disconnected: [HsmError];
  unusable: [{ address: string; error: HsmError }];
  keys: [{ key: string; versions: readonly Key[] }[]];
  failover: [{ key: string; from: Level; to: Level }];
  "key-rotated": [{ key: string; previous: Key; current: Key }];
}

const NO_KEY = Buffer.alloc(0);
const NONE = {};

export class Client extends EventEmitter<ClientEvents> implements LinkOwner, Settler {
  private readonly links: Link[];
  private readonly route: Route;
  /** At which address `slots` were told. */
  private toldAt = 0;
  private readonly timeoutMs: number;
  private readonly connectTimeoutMs: number;
  private readonly maxWaiting: number;
  private readonly currentSpan: () => TraceParent | undefined;
  private readonly deadlines = new Deadlines(() => [...this.jobs()]);
  private readonly unsent = new Unsent((jobs) => this.again(...jobs));
  /** Refused by a key that is no longer current, until the gateway says which one is. */
  private readonly parked = new Set<Job>();
  private limits: Welcome | undefined;
  private most = 0;
  /** Credits that are in use, by key: the gateway grants them for each. */
  private readonly taken = new Map<string, number>();
  private unsettled = 0;
  private up = 0;
  private slots: ReadonlyMap<string, Slot> = new Map();
  private told = "";
  private readonly levels = new Map<string, Level>();
  private connecting: Promise<void> | undefined;
  private closing: Promise<void> | undefined;
  private idle: (() => void) | undefined;
  private opened: { resolve: () => void; reject: (error: HsmError) => void } | undefined;
  private lastError: HsmError | undefined;

  constructor(options: ClientOptions) {
    super();
    const { address, connections, timeoutMs, maxWaiting, currentSpan, ...settings } = checked(options);
    this.timeoutMs = timeoutMs;
    this.maxWaiting = maxWaiting;
    this.currentSpan = currentSpan;
    this.route = new Route(address, settings.maxBackoffMs, settings.connectTimeoutMs);
    this.links = Array.from({ length: connections }, () => new Link(settings, this.route, this, PROGRAM));
    this.connectTimeoutMs = settings.connectTimeoutMs;
  }

  /** Connect. Rejects if the gateway refuses this client or is not reached in time; the call may be repeated then. Idempotent. */
  connect(): Promise<void> {
    if (this.closing) return Promise.reject(closed("The client is closed."));
    this.connecting ??= new Promise<void>((resolve, reject) => {
      const fail = (error: HsmError): void => {
        this.opened = undefined;
        void Promise.all(this.links.map((link) => link.close())).then(() => {
          this.connecting = undefined;
          reject(error);
        });
      };
      const timer = setTimeout(
        () => fail(this.lastError ?? lost(`no gateway answered within ${this.connectTimeoutMs} ms`)),
        this.connectTimeoutMs,
      );
      this.opened = {
        resolve: () => (clearTimeout(timer), resolve()),
        reject: (error) => (clearTimeout(timer), fail(error)),
      };
      this.route.begin();
      for (const link of this.links) link.connect();
    });
    return this.connecting;
  }

  /** End: take no more requests, wait for the answers of those that were sent, disconnect. */
  close(): Promise<void> {
    this.closing ??= (async () => {
      this.opened?.reject(closed("The client is closed."));
      for (const job of [...this.unsent.all, ...this.parked]) job.fail(closed("The client was closed."), true);
      this.unsent.end();
      if (this.unsettled > 0) await new Promise<void>((resolve) => (this.idle = resolve));
      this.deadlines.end();
      await Promise.all(this.links.map((link) => link.close()));
    })();
    return this.closing;
  }

  // ---- what it is asked for ------------------------------------------------------------------------------------

  /** Not `async`: a promise for each signature is enough. */
  sign(message: Uint8Array, options: SignOptions = NONE): Promise<Receipt> {
    try {
      this.check(message);
      return this.job(wire.sign(message, fieldsOf(options)), options).promise as Promise<Receipt>;
    } catch (error) {
      return Promise.reject(error as Error);
    }
  }

  shown(job: Job, answer: unknown): unknown {
    if (!wire.isSign(job.frame)) return answer;
    const { version, level, auditSeq, signature } = answer as Signed;
    this.noteLevel(job.slot, level);
    return { signature, keyId: job.key?.id ?? "", publicKey: job.key?.publicKey ?? NO_KEY, version, level, auditSeq };
  }

  /** Have a message put into a batch of which only the root is signed. The proof is verified here. */
  async signBatched(message: Uint8Array, options: SignBatchedOptions = {}): Promise<BatchedSignature> {
    this.check(message);
    const { kind = "" } = fieldsOf(options);
    const { key = DEFAULT_KEY, timeoutMs, signal, traceparent } = options;
    if (this.limits && !this.versions(key).some(wire.batches)) {
      throw badArgument(
        `The gateway signs no batches with "${key}".`,
        'Add "batch-root" to policy.kinds of its configuration, "batch" to this client, or update the gateway.',
      );
    }
    const more = { ...(signal && { signal }), ...(traceparent && { traceparent }) };
    const asked = { key, ...(timeoutMs !== undefined && { timeoutMs }), ...more };
    const { promise } = this.job(wire.signBatched(message, { kind }), asked);
    const said = (await promise) as wire.Batched;
    const found = readBatchProof(said.publicKey, message, said.proof);
    if (!found || (kind !== "" && kind !== found.kind)) {
      const fault = { status: "SIGNATURE_INVALID", class: "MEMBER_DOWN", maybeSigned: true };
      throw new HsmError("The gateway's proof does not show that this message was signed.", fault);
    }
    return { ...said, index: found.index, root: found.root };
  }

  /** Have a batch signed. The outcomes are in the order of the messages; one that failed is an error. */
  async signMany(messages: readonly Uint8Array[], options: SignManyOptions = {}): Promise<(Buffer | HsmError)[]> {
    messages.forEach(this.check, this);
    const made = this.chunks(messages).map((chunk) => this.batch(chunk, options));
    return (await Promise.all(made)).flat();
  }

  /** Whether this key made the signature; without `keyId`: any version of it. Nothing is sent: the keys are those that the
   * gateway has told. */
  async verify(
    message: Uint8Array,
    signature: Uint8Array,
    { key = DEFAULT_KEY, keyId }: VerifyOptions = {},
  ): Promise<boolean> {
    this.requireOpen();
    [message, signature].forEach(requireBytes);
    const named = keyId === undefined ? this.versions(key) : [this.version(key, keyId)];
    for (const one of [...named].sort((a, b) => Number(b.current) - Number(a.current))) {
      if (isSignature(one, message, signature)) return true;
      await nextTurn(); // there may be many versions
    }
    return false;
  }

  /** Have something done with a key; returns what the gateway says about it. */
  async manage(operation: Operation, keyId = "", options: RequestOptions = {}): Promise<string> {
    return (await this.job(wire.manage(operation, keyId), options).promise) as string;
  }

  /** Whether the gateway answers, within the deadline of a request. */
  async ping({ timeoutMs = this.timeoutMs }: Pick<RequestOptions, "timeoutMs"> = {}): Promise<void> {
    const link = this.pick();
    if (!link) throw this.lastError ?? closed("The client is not connected.");
    await link.ping(timeoutMs);
  }

  /** The versions of a key, and the one that signs, as the gateway told last. */
  versions(key = DEFAULT_KEY): readonly Key[] {
    return [...(this.slots.get(key)?.byPublicKey.values() ?? [])];
  }

  current(key = DEFAULT_KEY): Key | undefined {
    return this.slots.get(key)?.current;
  }

  /** A version of a key by its id, of which hexadecimal may be spelled in any way. */
  private version(key: string, id: string): Key {
    const plain = /^[\s0-9a-f]*$/i.test(id) ? id.replace(/\s/g, "").toLowerCase() : id;
    const found = this.versions(key).find((one) => one.id === plain);
    if (found) return found;
    throw new HsmError(`"${key}" has no key ${id}.`, { status: "KEY_NOT_FOUND", class: "REQUEST_FATAL" });
  }

  private requireOpen(): void {
    if (this.closing) throw closed("The client is closed.");
    if (!this.limits)
      throw closed("The client is not connected.", "Call initialize() or connect() first, and wait for it.");
  }

  private check(message: Uint8Array): void {
    requireBytes(message);
    if (message.length === 0) throw badArgument("The message has no bytes.");
    const most = this.limits?.messageBytes ?? wire.MOST_BYTES;
    if (message.length > most) {
      const fault = { status: "MESSAGE_TOO_LARGE", class: "REQUEST_FATAL" };
      throw new HsmError(`The message has ${message.length} bytes; the gateway takes ${most}.`, fault);
    }
  }

  private job(frame: Buffer, options: RequestOptions & { keyId?: string }, more: JobFields = NONE): Job {
    this.requireOpen();
    if (this.unsent.size >= this.maxWaiting) {
      const fault = { status: "QUEUE_FULL", class: "RETRY", retryable: true };
      throw new HsmError(`${this.maxWaiting} requests wait to be sent.`, fault);
    }
    const { key: slot = DEFAULT_KEY, timeoutMs = this.timeoutMs, signal, keyId } = options;
    const { traceparent = this.currentSpan() } = options;
    if (!(timeoutMs > 0 && timeoutMs <= MOST_MS)) throw badArgument("timeoutMs must be a positive number.");
    const pin = keyId === undefined ? undefined : this.version(slot, keyId);
    this.unsettled++;
    const trace = (traceparent && wire.traceOf(traceparent)) || undefined;
    if (signal || trace || pin) more = { signal, trace, pin: pin && hex(pin), ...more };
    const job = new Job(frame, slot, timeoutMs, this, more);
    this.deadlines.watch(job);
    if (job.refusedBy) this.rekey(job);
    else if (!job.done) this.enqueue(job);
    return job;
  }

  private chunks(messages: readonly Uint8Array[]): Uint8Array[][] {
    const chunks: Uint8Array[][] = [];
    const most = Math.max(1, Math.min(this.limits?.batch ?? 1, this.most));
    let bytes = 0;
    for (const message of messages) {
      const last = chunks.at(-1);
      bytes += 4 + message.length;
      if (last && last.length < most && bytes <= wire.MOST_BYTES - BATCH_HEAD_BYTES) last.push(message);
      else {
        chunks.push([message]);
        bytes = 4 + message.length;
      }
    }
    return chunks;
  }

  private async batch(
    messages: Uint8Array[],
    options: SignManyOptions,
    before: JobFields = {},
  ): Promise<(Buffer | HsmError)[]> {
    const more = { weight: messages.length, ...before };
    const started = performance.now();
    const job = this.job(wire.signMany(messages, fieldsOf(options)), options, more);
    let outcomes: (Buffer | HsmError)[];
    try {
      ({ outcomes } = (await job.promise) as { outcomes: (Buffer | HsmError)[] });
    } catch (error) {
      if (!(error instanceof HsmError)) throw error;
      return messages.map(() => error);
    }
    if (outcomes.length !== messages.length) {
      return messages.map(() => lost("The gateway answered another batch.", { maybeSigned: true }));
    }
    if (job.uncertain) outcomes = outcomes.map((one) => (one instanceof HsmError ? one.asMaybeSigned() : one));
    // What another key has to sign, or another host: of the latter, what may have been signed only by the same key.
    const stale = ({ status, maybeSigned }: HsmError) =>
      status === "KEY_NOT_CURRENT" && !maybeSigned && job.pin === undefined && !job.refusedBy;
    const unheld = ({ status, maybeSigned }: HsmError) =>
      status === "NOT_HOLDER" && this.route.several && (!maybeSigned || job.key?.algorithm === "ed25519");
    const places = (is: (error: HsmError) => boolean) =>
      outcomes.flatMap((one, index) => (one instanceof HsmError && is(one) ? [index] : []));
    const late = places(stale);
    const rest = late.length > 0 ? late : places(unheld);
    if (rest.length === 0) return outcomes;
    const left = Math.max(1, (options.timeoutMs ?? this.timeoutMs) - (performance.now() - started));
    const uncertain = rest.some((index) => (outcomes[index] as HsmError).maybeSigned);
    const again = await this.batch(
      rest.map((index) => messages[index]!),
      { ...options, timeoutMs: left },
      {
        ...(late.length > 0 && job.key && { refusedBy: job.key }),
        ...(uncertain && job.key && { uncertain, pin: hex(job.key) }),
      },
    );
    rest.forEach((index, at) => (outcomes[index] = again[at]!));
    return outcomes;
  }

  /** Emit an event. An error of a listener is no business of what is going on here. */
  private tell<K extends keyof ClientEvents>(name: K, told: ClientEvents[K][0]): void {
    process.nextTick(() => (this as EventEmitter).emit(name, told));
  }

  private noteLevel(key: string, to: Level): void {
    const from = this.levels.get(key) ?? "";
    if (to === from || to === "") return;
    this.levels.set(key, to);
    if (from !== "") this.tell("failover", { key, from, to });
  }

  // ---- when requests are sent ----------------------------------------------------------------------------------

  private enqueue(job: Job): void {
    const line = this.unsent.line(job.slot);
    if (line.size > 0 || !this.sends(job, line)) line.add(job);
  }

  private pump(slot: string): void {
    const line = this.unsent.line(slot);
    for (const job of line) if (!this.sends(job, line)) return;
  }

  /** Send it, or park it, if there is room for it. Returns whether there was: it is in the line no more. */
  private sends(job: Job, line: Set<Job>): boolean {
    // A batch that is larger than all credits goes alone, and the gateway says what it thinks of it.
    const taken = this.taken.get(job.slot) ?? 0;
    const most = this.route.seeking ? Math.min(1, this.most) : this.most;
    if (most === 0 || (taken > 0 && taken + job.weight > most)) return false;
    const link = this.pick(job);
    if (!link && !(job.refusedBy && this.pick())) return false;
    line.delete(job);
    if (link) {
      this.taken.set(job.slot, taken + job.weight);
      link.send(job);
    } else this.parked.add(job);
    return true;
  }

  /** All that is not answered. */
  private *jobs(): Iterable<Job> {
    yield* this.unsent.all;
    yield* this.parked;
    for (const link of this.links) yield* link.open.values();
  }

  /** The connection with the fewest open requests; for a request that a key refused, one that knows of another key. */
  private pick(job?: Job): Link | undefined {
    let best: Link | undefined;
    for (const link of this.links) {
      if (job?.refusedBy && link.signsWith(job.slot, job.refusedBy)) continue;
      if (link.usable && (!best || link.open.size < best.open.size)) best = link;
    }
    return best;
  }

  settled(job: Job, early: boolean): void {
    this.unsent.delete(job);
    this.parked.delete(job);
    if (early) for (const link of this.links) link.cancel(job);
    if (--this.unsettled === 0) this.idle?.();
  }

  /** Why nothing can be sent now, if that is so. */
  trouble(): HsmError | undefined {
    return this.pick() ? undefined : this.lastError;
  }

  stays(link: Link): boolean {
    return this.links.some((one) => one !== link && one.usable && one.at === link.at);
  }

  left(at: number): void {
    for (const link of this.links) if (link.at === at) link.forsake();
  }

  strange(link: Link): boolean {
    if (link.at === this.toldAt) return false;
    return [...link.slots].some(([key, { byPublicKey: listed }]) => {
      const known = this.slots.get(key)?.byPublicKey;
      return known?.size && listed.size > 0 && ![...listed.keys()].some((one) => known.has(one));
    });
  }

  released({ slot, weight }: Job): void {
    this.taken.set(slot, (this.taken.get(slot) ?? 0) - weight);
    this.pump(slot);
  }

  again(...jobs: Job[]): void {
    this.unsent.addFirst(jobs);
    for (const slot of new Set(jobs.map((job) => job.slot))) this.pump(slot);
  }

  later(job: Job, ms: number): void {
    if (this.closing) return job.fail(closed("The client was closed."));
    this.unsent.rest(job, ms);
  }

  rekey(job: Job): void {
    const current = this.current(job.slot);
    if (job.done) return;
    if (!current || hex(current) !== hex(job.refusedBy!)) this.again(job);
    else this.parked.add(job);
  }

  credits(credits: number): void {
    this.most = credits;
    for (const slot of this.unsent.slots) this.pump(slot);
  }

  // ---- connections and keys ------------------------------------------------------------------------------------

  welcomed(link: Link, welcome: Welcome): void {
    this.limits = welcome;
    this.route.answers(link.at);
    if (this.up++ === 0) this.tell("connected", { client: welcome.client });
    this.opened?.resolve();
    this.opened = undefined;
    this.keysChanged(link);
    this.credits(welcome.credits);
  }

  lost(link: Link, error: HsmError, was: boolean): void {
    this.lastError = error;
    const { address, at } = link;
    if (!was && this.route.several && this.route.fails(at, error)) this.tell("unusable", { address, error });
    if (was && --this.up === 0 && !this.closing) this.tell("disconnected", error);
    // A refusal does not become better by asking again.
    if (this.route.several && this.route.rounds === 0) return;
    if (this.opened && error.status !== "HOST_LOST" && !error.retryable) this.opened.reject(error);
  }

  keysChanged(link: Link): void {
    const before = this.slots;
    this.slots = link.slots;
    this.toldAt = link.at;
    // Each connection is told on its own, so also where the news is none any more.
    for (const job of [...this.parked]) {
      this.parked.delete(job);
      this.rekey(job);
    }
    const versions = [...this.slots].map(([key, slot]) => ({ key, versions: [...slot.byPublicKey.values()] }));
    const text = JSON.stringify(
      versions.map((one) => [one.key, one.versions.map((each) => [hex(each), each.current])]),
    );
    if (text === this.told) return;
    this.told = text;
    for (const [key, { current }] of this.slots) {
      const previous = before.get(key)?.current;
      if (previous && current && hex(previous) !== hex(current)) this.tell("key-rotated", { key, previous, current });
    }
    this.tell("keys", versions);
  }
}
