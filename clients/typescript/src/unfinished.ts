/** What the gateway answers to MANAGE 6: the payload that was bound last in a domain. */

import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";

import { badArgument } from "./errors.js";
import { KINDS, type Kind } from "./wire.js";

export interface Unfinished {
  readonly kind: Kind;
  readonly position: bigint;
  /** SHA-256 of the message. */
  readonly digest: Buffer;
  /** null: the gateway has not kept it. */
  readonly message: Buffer | null;
}

/** Read what the gateway says. Throws HsmError for what is none, also for a message that has not the digest. */
export function readUnfinished(text: string): Unfinished | null {
  const said = parsed(text);
  if (said === null) return null;
  const { kind, position, digest, message } = said as Record<string, unknown>;
  if (
    typeof kind !== "string" ||
    !(KINDS as readonly string[]).includes(kind || "?") ||
    typeof position !== "string" ||
    !/^[0-9]{1,19}$/.test(position) ||
    typeof digest !== "string" ||
    !/^[0-9a-f]{64}$/.test(digest) ||
    !(message === null || typeof message === "string")
  ) {
    throw unreadable();
  }
  const bytes = message === null ? null : Buffer.from(message, "base64");
  if (bytes && createHash("sha256").update(bytes).digest("hex") !== digest) throw unreadable();
  return { kind: kind as Kind, position: BigInt(position), digest: Buffer.from(digest, "hex"), message: bytes };
}

function parsed(text: string): object | null {
  try {
    const said: unknown = JSON.parse(text);
    if (typeof said === "object") return said;
  } catch {
    // It is no JSON: as below.
  }
  throw unreadable();
}

const unreadable = (): Error => badArgument("The gateway's answer says no unfinished payload.");
