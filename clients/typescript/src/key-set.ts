/** The signed set of keys, for verifiers: which keys are good now. docs/KEYSET.md has the format and the rules. */

import { Buffer, isUtf8 } from "node:buffer";

import { type BatchProof, isSignedBy, shownBy } from "./batched.js";
import { isSigned, MOST_BYTES, type Signature, SIGNATURES, signaturesOf } from "./note.js";
import { isSignature } from "./signature.js";
import type { Algorithm, Kind } from "./wire.js";

export type KeyState = "next" | "current" | "overlap" | "retired" | "other" | "emergency";

/** A key of a set. Times are Unix seconds. */
export interface KeyEntry {
  /** In the key ring; undefined: the key is in no ring. */
  readonly version?: bigint;
  readonly algorithm: Exclude<Algorithm, "">;
  readonly publicKey: Buffer;
  readonly state: KeyState;
  readonly notBefore: number;
  readonly notAfter?: number;
  /** The version that signed after it. */
  readonly successor?: bigint;
  /** SHA-256 of what the device says of the key. */
  readonly evidence?: Buffer;
  /** Of a retired key: no batch that it signed has a higher index. Undefined: no proof of its batches is good any more. */
  readonly lastBatched?: bigint;
}

/** When a signature is looked at. */
export interface KeySetMoment {
  /** Unix seconds; this clock's, unless it is given. */
  readonly now?: number;
  /** Seconds that this clock may differ from the signer's: 300, unless they are given. */
  readonly skew?: number;
  /** Whether the set must not be past its `good until`, which it must have then. */
  readonly fresh?: boolean;
}

/** The key that signed a batch, and what the proof says. */
export interface BatchedBy {
  readonly key: KeyEntry;
  readonly says: BatchProof;
}

/** A set of keys that is not to be believed. The message says why. */
export class KeySetRefused extends Error {
  override readonly name = "KeySetRefused";
}

const FIRST = "§ hsmcore/key-set/v1\n";
const NUMBER = "(?:0|[1-9][0-9]{0,18})";
const HASH = "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=";
const POINT = "[A-Za-z0-9+/]{86}[AEIMQUYcgkosw048]=";
const KEY = new RegExp(
  `^(?=key \\S+ ed25519 \\S+ retired |.*[-=]$)key (-|${NUMBER}) (?:(ed25519) (${HASH})|(?!ed25519 )([a-z0-9-]{1,32}) (${POINT})) ` +
    `(?:(next|current|other|emergency) (${NUMBER}) -|(overlap|retired) (${NUMBER}) (${NUMBER})) ` +
    `(-|${NUMBER}) (-|${HASH})(?: (${NUMBER}))?$`,
);
const NOTE = new RegExp(
  `^(${FIRST}([!-*,-~]{1,64})/keys\\n(${NUMBER})\\ntime (${NUMBER})\\n(?:good until (${NUMBER})\\n)?` +
    `kinds((?: [a-z0-9-]{1,32}){1,64})\\n((?:key [^\\n]*\\n)+))\\n(${SIGNATURES})$`,
);
/** Serials from one set to the next: a stolen key uses up no more of them at a time. */
const MOST_STEP = 2n ** 20n;

/** The keys whose signatures are good. Made by `trust` or `remembered`; `follow` returns a newer one. */
export class KeySet {
  readonly domain: string;
  /** It only grows: a verifier keeps the newest set that it has seen, and takes none with a lower one. */
  readonly serial: bigint;
  /** When it was made, by the signer's clock: Unix seconds. */
  readonly time: number;
  /** When the signer will have made a newer one, even if nothing has changed: Unix seconds. Undefined: it does not say. */
  readonly goodUntil?: number;
  /** The kinds of payload that the keys sign. */
  readonly kinds: readonly string[];
  readonly keys: readonly KeyEntry[];
  readonly #text: string;
  readonly #signatures: readonly Signature[];

  /** `note`: what was signed, with its signatures. */
  private constructor(readonly note: string) {
    const [, text = "", domain = "", serial = "", time = "", until, kinds = "", keys = "", signatures = ""] =
      (Buffer.byteLength(note) <= MOST_BYTES && NOTE.exec(note)) || [];
    if (text === "") throw new KeySetRefused("not a set of keys");
    this.#text = text;
    this.domain = domain;
    this.serial = BigInt(serial);
    this.time = Number(time);
    if (until !== undefined) this.goodUntil = Number(until);
    this.kinds = kinds.slice(1).split(" ");
    this.keys = linesOf(keys).map(entryOf);
    const read = signaturesOf(signatures);
    if (!read) throw new KeySetRefused("not base64");
    this.#signatures = read;
    const publics = new Set(this.keys.map((key) => key.publicKey.toString("hex")));
    const versions = this.keys.flatMap((key) => key.version ?? []);
    const [current, ...more] = this.keys.filter((key) => key.state === "current");
    const once = publics.size === this.keys.length && new Set(versions).size === versions.length;
    if (!once || !current || more.length > 0) throw new KeySetRefused("it names a key twice, or no current one");
    if (!this.#signedBy(this.keys).includes(current)) throw new KeySetRefused("its current key has not signed it");
  }

  /** Begin with a note that an Ed25519 key has signed which is known from elsewhere. Throws KeySetRefused. */
  static trust(note: string | Uint8Array, publicKey: Uint8Array, domain?: string): KeySet {
    const found = KeySet.remembered(note);
    if (found.domain !== (domain ?? found.domain))
      throw new KeySetRefused(`it is of ${found.domain}, not of ${domain}`);
    const known: KeyEntry = { algorithm: "ed25519", publicKey: Buffer.from(publicKey), state: "other", notBefore: 0 };
    if (found.#signedBy([known]).length === 0) throw new KeySetRefused("the key has not signed it");
    return found;
  }

  /** The set of a note that this verifier accepted before, and kept. Throws KeySetRefused. */
  static remembered(note: string | Uint8Array): KeySet {
    return new KeySet(textOf(note));
  }

  /** The newest set that notes lead to, which stand one after the other as `/keys?since=` gives them; this one, if it is
   * the newest. Throws KeySetRefused for a set that no next or current key of the one before it has signed, one whose
   * serial is more than 2^20 higher, another one of the same serial, and an older one at the end. The moment is no longer
   * needed. */
  follow(notes: string | Uint8Array, _moment: KeySetMoment = {}): KeySet {
    const [head, ...rest] = textOf(notes).split(FIRST);
    if (head !== "" || rest.length === 0) throw new KeySetRefused("there is no note");
    const last = rest.pop();
    let latest: KeySet = this;
    for (const one of rest) latest = latest.#next(new KeySet(FIRST + one), false);
    return latest.#next(new KeySet(FIRST + last), true);
  }

  /** What it says of a key. */
  entry(publicKey: Uint8Array): KeyEntry | undefined {
    return this.keys.find((key) => key.publicKey.equals(publicKey));
  }

  /** Whether a signature that is made now may be of this key; and, where `kind` is given, of a payload of this kind. */
  accepts(publicKey: Uint8Array, moment: KeySetMoment & { kind?: Kind } = {}): boolean {
    const key = this.entry(publicKey);
    if (!key || key.state === "retired") return false;
    const { now = Date.now() / 1000, skew = 300, kind } = moment;
    const good = key.notBefore - skew <= now && (key.notAfter === undefined || now <= key.notAfter + skew);
    return good && this.#isFresh(moment) && (kind === undefined || this.kinds.includes(kind));
  }

  #isFresh({ now = Date.now() / 1000, skew = 300, fresh = false }: KeySetMoment): boolean {
    return !fresh || (this.goodUntil !== undefined && now <= this.goodUntil + skew);
  }

  /** The key that made a signature; undefined if no key did that is accepted now. */
  verify(
    message: Uint8Array,
    signature: Uint8Array,
    moment: KeySetMoment & { kind?: Kind } = {},
  ): KeyEntry | undefined {
    return this.keys.find((key) => this.accepts(key.publicKey, moment) && isSignature(key, message, signature));
  }

  /** The key that signed the batch of a message, and what the proof says; undefined unless the batch is of this domain, and
   * its key is accepted now or was retired after it had signed that batch. `kind`: of the message. */
  verifyBatched(
    message: Uint8Array,
    proof: Uint8Array,
    moment: KeySetMoment & { kind?: Kind } = {},
  ): BatchedBy | undefined {
    const { kind, ...when } = moment;
    const shown = shownBy(message, proof);
    const key = shown && this.keys.find(({ publicKey }) => isSignedBy(shown, publicKey));
    if (!key || shown.says.domain !== this.domain || shown.says.kind !== (kind ?? shown.says.kind)) return undefined;
    const past = key.lastBatched !== undefined && shown.says.index <= key.lastBatched && this.#isFresh(when);
    return past || this.accepts(key.publicKey, when) ? { key, says: shown.says } : undefined;
  }

  #next(found: KeySet, isLast: boolean): KeySet {
    if (found.domain !== this.domain) throw new KeySetRefused(`it is of ${found.domain}, not of ${this.domain}`);
    if (found.serial < this.serial && !isLast) return this; // a step that was gone before
    if (found.serial < this.serial) {
      throw new KeySetRefused(`it is older than one that was accepted: serial ${found.serial} after ${this.serial}`);
    }
    if (found.serial === this.serial) {
      if (found.#text !== this.#text) throw new KeySetRefused(`there are two sets of serial ${this.serial}`);
      return this;
    }
    if (found.serial > this.serial + MOST_STEP) {
      throw new KeySetRefused(`serial ${found.serial} is more than 2^20 after ${this.serial}`);
    }
    // Not "overlap": a key may have been rotated away because it may be stolen.
    const trusted = this.keys.filter(({ state }) => state === "next" || state === "current");
    if (found.#signedBy(trusted).length === 0) {
      throw new KeySetRefused(`no key that is trusted has signed serial ${found.serial}`);
    }
    return found;
  }

  /** Those of some keys that signed it. A wrong signature of one of them, or of its own, is refused. */
  #signedBy(keys: readonly KeyEntry[]): KeyEntry[] {
    const origin = `${this.domain}/keys`;
    return keys.filter((key) => {
      if (key.algorithm !== "ed25519" || key.publicKey.length !== 32) return false;
      const signed = isSigned(this.#text, this.#signatures, origin, key.publicKey);
      if (signed === undefined) throw new KeySetRefused("a signature is wrong");
      return signed;
    });
  }
}

function textOf(note: string | Uint8Array): string {
  if (typeof note === "string") return note;
  if (!isUtf8(note)) throw new KeySetRefused("not UTF-8");
  return Buffer.from(note).toString();
}

/** Lines that each end with a newline. */
const linesOf = (text: string): string[] => text.split("\n").slice(0, -1);

function entryOf(line: string): KeyEntry {
  const [, version, ed25519, raw, curve, point, open, since, closed, from, until, after, evidence, last] =
    KEY.exec(line) ?? [];
  if (version === undefined) throw new KeySetRefused("not the line of a key");
  return {
    ...(version === "-" ? {} : { version: BigInt(version) }),
    algorithm: (ed25519 ?? curve) as KeyEntry["algorithm"],
    publicKey: Buffer.from(raw ?? point!, "base64"),
    state: (open ?? closed) as KeyState,
    notBefore: Number(since ?? from),
    ...(until === undefined ? {} : { notAfter: Number(until) }),
    ...(after === "-" ? {} : { successor: BigInt(after!) }),
    ...(evidence === "-" ? {} : { evidence: Buffer.from(evidence!, "base64") }),
    ...(last === undefined ? {} : { lastBatched: BigInt(last) }),
  };
}
