/** What frames speak of: keys, kinds, signatures. */

import type { Buffer } from "node:buffer";

export const KINDS = [
  "",
  "tx-legacy",
  "tx-v0",
  "tx-v1",
  "off-chain",
  "block",
  "state-root",
  "digest32",
  "raw",
  "prehashed",
] as const;
export const ALGORITHMS = ["", "ed25519", "ecdsa-p256", "ecdsa-secp256k1"] as const;
export const LEVELS = ["", "primary", "secondary", "emergency"] as const;
export const OPERATIONS = [
  "",
  "generate",
  "set-current",
  "deactivate",
  "cache-stats",
  "export",
  "unfinished",
  "versions",
] as const;

/** What a message is; "" says nothing. */
export type Kind = (typeof KINDS)[number];
export type Algorithm = (typeof ALGORITHMS)[number];
/** The level of failover that signed; "": unknown. */
export type Level = (typeof LEVELS)[number];
export type Operation = (typeof OPERATIONS)[number];

/** A version of a key. `version` is its number, `kinds` has bit n for kind n; see `batches`. */
export interface Key {
  readonly slot: number;
  readonly version: number;
  readonly current: boolean;
  readonly algorithm: Algorithm;
  readonly id: string;
  readonly publicKey: Buffer;
  readonly kinds: number;
}

const [TRACES, BATCHES, ALL_KINDS] = [0x4000, 0x8000, 0xffff];

/** Whether the gateway signs batches with this key. One of an earlier release sets the bit only with all others. */
export const batches = ({ kinds }: Key): boolean => (kinds & BATCHES) !== 0 && kinds !== ALL_KINDS;

/** Whether the gateway takes traces; as `batches`. */
export const traces = ({ kinds }: Key): boolean => (kinds & TRACES) !== 0 && kinds !== ALL_KINDS;

export interface Welcome {
  readonly instance: Buffer;
  readonly credits: number;
  readonly messageBytes: number;
  readonly batch: number;
  readonly rememberMs: number;
  readonly client: string;
  readonly slots: readonly string[];
  readonly keys: readonly Key[];
}

export interface Signed {
  readonly version: number;
  readonly level: Level;
  /** The number of the audit record, or null without one. */
  readonly auditSeq: bigint | null;
  readonly signature: Buffer;
}

/** A place in a batch, as the gateway says; nothing of it is verified. */
export interface Batched {
  readonly auditSeq: bigint | null;
  readonly keyId: string;
  readonly publicKey: Buffer;
  readonly proof: Buffer;
}

export interface SignFields {
  kind?: Kind;
  timeoutMs?: number;
  position?: number | bigint;
  version?: number;
}
