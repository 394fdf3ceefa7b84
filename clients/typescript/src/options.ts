/** What callers give a client, checked. */

import { badArgument } from "./errors.js";
import type { LinkOptions } from "./link.js";
import { KINDS, type Kind, type SignFields, type TraceParent } from "./wire.js";

export const DEFAULT_KEY = "default";
/** Of the options that are numbers. A gateway allows a client 256 connections; Node's timers end at 2^31 ms. */
export const MOST_MS = 2 ** 30;
const BOUNDS = {
  connections: [1, 64],
  timeoutMs: [1, MOST_MS],
  maxWaiting: [1, 2 ** 24],
  connectTimeoutMs: [1, MOST_MS],
  maxBackoffMs: [1, MOST_MS],
  pingMs: [10, MOST_MS],
} as const;

export interface ClientOptions extends Partial<LinkOptions> {
  /** "unix:/path" or "tls:host:port"; of several gateways, such as a fleet's, a list, or a string with commas. */
  address: string | readonly string[];
  /** How many connections to spread the requests over. */
  connections?: number;
  /** The deadline of a request that is given none. */
  timeoutMs?: number;
  /** How many requests may wait for credits or for a connection. */
  maxWaiting?: number;
  /** The span that is current, for requests that say none: `() => trace.getActiveSpan()?.spanContext()`, of
   * `@opentelemetry/api`. */
  currentSpan?: () => TraceParent | undefined;
}

export interface RequestOptions {
  /** The name of the key manager in the gateway's configuration. */
  key?: string;
  timeoutMs?: number;
  signal?: AbortSignal;
  /** The caller's span. The gateway's spans are its children, and the audit record has its trace id. What is no valid one
   * of version 00 is ignored. */
  traceparent?: TraceParent;
}

export interface VerifyOptions extends Pick<RequestOptions, "key"> {
  keyId?: string;
}

export interface SignBatchedOptions extends RequestOptions {
  kind?: Kind;
}

export interface SignManyOptions extends RequestOptions {
  kind?: Kind;
  /** Sign with this version of the key, or not at all. Without it: with the one that is current when it is signed. */
  keyId?: string;
}

export interface SignOptions extends SignManyOptions {
  /** The place in its chain that the message must say. `payload` makes a message that says it. */
  position?: number | bigint;
}

/** The options of a client with those that were left out. Throws BAD_ARGUMENT. */
export function checked({
  connections = 1,
  timeoutMs = 10_000,
  maxWaiting = 16_384,
  connectTimeoutMs = 5_000,
  maxBackoffMs = 2_000,
  pingMs = 5_000,
  currentSpan = () => undefined,
  ...rest
}: ClientOptions) {
  const numbers = { connections, timeoutMs, maxWaiting, connectTimeoutMs, maxBackoffMs, pingMs };
  for (const [name, [least, most]] of Object.entries(BOUNDS)) {
    const value = numbers[name as keyof typeof numbers];
    if (!Number.isSafeInteger(value) || value < least || value > most) {
      throw badArgument(`${name} must be a whole number from ${least} to ${most}.`);
    }
  }
  return { ...rest, ...numbers, currentSpan };
}

export function requireBytes(given: Uint8Array): void {
  if (given instanceof Uint8Array) return;
  throw badArgument(
    "A message and a signature must be a Buffer or another Uint8Array.",
    'Of a text: Buffer.from(text, "utf8").',
  );
}

const LAST = 2n ** 64n - 1n;
const NONE: SignFields = {};

export function fieldsOf({ kind, position }: SignOptions): SignFields {
  if (kind !== undefined && !KINDS.includes(kind)) throw badArgument(`There is no kind "${kind as string}".`);
  if (position === undefined) return kind ? { kind } : NONE;
  const whole = typeof position === "bigint" || Number.isSafeInteger(position);
  if (!whole || position < 0 || position > LAST) {
    throw badArgument("position must be a whole number of at most 64 bits.");
  }
  return { ...(kind && { kind }), position };
}
