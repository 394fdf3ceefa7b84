/** The addresses of a client's gateways, of which one is used at a time: which one is next, and when. */

import { badArgument, type HsmError } from "./errors.js";

const FIRST_PAUSE_MS = 10;
/** The longest pause at a Unix socket that is the only address: to connect there costs microseconds. Not after a refusal,
 * which the gateway records. */
const NEAR_MS = 50;
/** The longest pause while gateways answer, of which none holds the epoch. */
const SEEKING_MS = 500;
/** How long a gateway may take for its first word, where there are others: at first; twice as long in each round. */
const TRY_MS = 1_000;

export class Route {
  readonly addresses: readonly string[];
  /** Where connections are made now. */
  at = 0;
  /** How often all addresses were tried since a gateway was of use. */
  rounds = 0;
  /** Whether a host that does not hold the epoch has refused a request, and no gateway has signed since. Requests then
   * go one at a time: each may be refused as well. */
  seeking = false;
  private notBefore = 0;
  private readonly tried = new Set<number>();
  private readonly problems = new Map<number, HsmError>();

  /** `listed`: addresses, or one string with commas between them. */
  constructor(
    listed: string | readonly string[],
    private readonly maxBackoffMs: number,
    private readonly connectTimeoutMs: number,
  ) {
    this.addresses = [...new Set(typeof listed === "string" ? listed.split(/,\s*(?=unix:|tls:)/) : listed)];
    if (this.addresses.length === 0) throw badArgument("The list of addresses is empty.");
  }

  get several(): boolean {
    return this.addresses.length > 1;
  }

  get tryMs(): number {
    return this.several ? Math.min(this.connectTimeoutMs, TRY_MS * 2 ** this.rounds) : this.connectTimeoutMs;
  }

  /** How long to wait before the next connection is made. */
  get pauseMs(): number {
    return Math.max(jittered(FIRST_PAUSE_MS), this.notBefore - performance.now());
  }

  /** A gateway is of use. */
  begin(): void {
    this.tried.clear();
    this.rounds = 0;
  }

  /** A connection is there. */
  answers(at: number): void {
    this.problems.delete(at);
  }

  /** No connection can be made there. Returns whether that is news. */
  fails(at: number, error: HsmError): boolean {
    const before = this.problems.get(at);
    this.problems.set(at, error);
    return before?.status !== error.status;
  }

  /** The host at an address does not hold the epoch: go on, to the holder if it is known by its name. Returns whether
   * requests are to go on, too. */
  refused(at: number, holder: string): boolean {
    if (!this.several) return false;
    const named = this.named(holder);
    if (at === this.at && !(named.length === 1 && named[0] === at)) {
      // else it is the holder, and not sure of it
      if (!this.seeking) this.begin();
      this.seeking = true;
      this.next(at, named);
    }
    return true;
  }

  /** Go on to the next address that was not tried, unless another connection has, or has no trouble here (`stay`). When
   * all were tried, the next round begins some time later. `refused`: by the gateway, in its own words. */
  next(at: number, first: readonly number[] = [], stay = false, refused = true): void {
    const now = performance.now();
    if (at !== this.at || now < this.notBefore) return;
    this.tried.add(at);
    const count = this.addresses.length;
    const all = Array.from({ length: count - 1 }, (_, step) => (at + 1 + step) % count);
    const others = stay || count === 1 ? [at] : all;
    let left = others.filter((one) => !this.tried.has(one));
    if (left.length === 0) {
      this.tried.clear();
      left = others;
      const heard = this.several && this.problems.size < count;
      const near = !this.several && !refused && this.addresses[0]!.startsWith("unix:");
      const longest = near ? NEAR_MS : heard ? SEEKING_MS : this.maxBackoffMs;
      this.notBefore = now + jittered(Math.min(longest, this.maxBackoffMs, FIRST_PAUSE_MS * 2 ** this.rounds++));
    }
    this.at = first.find((one) => left.includes(one)) ?? left[0]!;
  }

  /** The addresses that are, by their names, a host's of the fleet: its name is the host of the address or its first
   * label, or the name of a socket's folder or file. */
  private named(host: string): number[] {
    return this.addresses.flatMap((address, at) => (host !== "" && namesOf(address).includes(host) ? [at] : []));
  }
}

/** Several that lost one gateway do not come back all at once. */
const jittered = (ms: number): number => ms * (0.5 + Math.random() / 2);

function namesOf(address: string): string[] {
  if (address.startsWith("unix:")) {
    const [file = "", folder = ""] = address.slice(5).split("/").reverse();
    return [folder, file.replace(/\.sock$/, "")];
  }
  const host = address.replace(/^tls:/, "").replace(/:\d+$/, "");
  return [host, host.split(".")[0]!];
}
