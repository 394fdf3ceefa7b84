/** The golden vectors of the protocol: tests/wire/vectors.json. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { readFileSync } from "node:fs";
import { suite, test } from "node:test";

import { HsmError } from "hsmcore-client";
import * as wire from "hsmcore-client/wire";

type Says = Record<string, any>;
interface Fill {
  byte: string;
  times: number;
}
interface Vector {
  name: string;
  from: string;
  type: keyof typeof wire.Type;
  flags: number;
  slot: number;
  request: string;
  hex: string;
  says: Says;
  fill?: Fill;
  by?: string;
  frames?: [string, string][];
}

const file = new URL("../../../../tests/wire/vectors.json", import.meta.url);
const vectors = JSON.parse(readFileSync(file, "utf8")) as Record<"frames" | "streams" | "refused", Vector[]>;
/** What this client neither asks nor is told: it verifies by itself. */
const isSpoken = ({ hex }: Vector): boolean =>
  ![wire.Type.VERIFY, wire.Type.VERIFIED].includes(parseInt(hex.slice(8, 10), 16) as 4);

const filled = (fill?: Fill): Buffer =>
  fill ? Buffer.alloc(fill.times, Buffer.from(fill.byte, "hex")) : Buffer.alloc(0);
const bytes = (value: string | Fill): Buffer => (typeof value === "string" ? Buffer.from(value, "hex") : filled(value));
const whole = (vector: Vector): Buffer => Buffer.concat([Buffer.from(vector.hex, "hex"), filled(vector.fill)]);

function fields(says: Says): wire.SignFields {
  const position = says["position"] == null ? {} : { position: BigInt(says["position"] as string) };
  return { kind: says["kind"], timeoutMs: says["timeout_ms"], version: says["version"], ...position };
}

function encoded({ type, says, slot, request, flags }: Vector): Buffer {
  const made = {
    HELLO: () => wire.hello(bytes(says["nonce"]), says["program"]),
    SIGN: () => wire.sign(bytes(says["message"]), fields(says)),
    SIGN_MANY: () => wire.signMany(says["messages"].map(bytes), fields(says)),
    SIGN_BATCHED: () => wire.signBatched(bytes(says["message"]), fields(says)),
    CANCEL: () => wire.cancel(0),
    ACK: () => wire.ack(0),
    PING: () => wire.ping(bytes(says["data"])),
    MANAGE: () => wire.manage(says["operation"], says["key_id"]),
  }[type as "HELLO"]();
  if (flags & wire.AGAIN) wire.stampAgain(made, true);
  // Numbers beyond those of JavaScript are in the vectors, and in no client: it would need centuries to count so far.
  const safe = Number.isSafeInteger(Number(request));
  wire.stamp(made, safe ? Number(request) : 0, slot);
  if (!safe) made.writeBigUInt64LE(BigInt(request), 8);
  return says["traceparent"] ? wire.traced(made, wire.traceOf(says["traceparent"])!) : made;
}

function refusal(error: HsmError): Says {
  const { retryable, maybeSigned, retryAfterMs, status, message, holder } = error;
  const says = { retryable, maybe_signed: maybeSigned, retry_after_ms: retryAfterMs, status, class: error.class };
  return { ...says, text: message, holder };
}

const keyOf = (key: wire.Key): Says => {
  const { publicKey, ...rest } = key;
  return { ...rest, public_key: publicKey.toString("hex") };
};

const readers: Record<string, (body: Buffer) => Says> = {
  PONG: (body) => (wire.readPong(body), { data: body.toString("hex") }),
  WELCOME: (body) => {
    const { instance, credits, messageBytes, batch, rememberMs, client, slots, keys } = wire.readWelcome(body);
    const limits = { credits, message_bytes: messageBytes, batch, remember_ms: rememberMs };
    return { instance: instance.toString("hex"), ...limits, client, slots, keys: keys.map(keyOf) };
  },
  SIGNED: (body) => {
    const { version, level, auditSeq, signature } = wire.readSigned(body);
    return { version, level, audit_seq: auditSeq?.toString() ?? null, signature: signature.toString("hex") };
  },
  SIGNED_MANY: (body) => {
    const { version, outcomes } = wire.readSignedMany(body);
    const said = outcomes.map((one) =>
      one instanceof HsmError ? { error: refusal(one) } : { signature: one.toString("hex") },
    );
    return { version, outcomes: said };
  },
  BATCHED: (body) => {
    const { auditSeq, keyId, publicKey, proof } = wire.readBatched(body);
    const key = { key_id: keyId, public_key: publicKey.toString("hex") };
    return { audit_seq: auditSeq?.toString() ?? null, ...key, proof: proof.toString("hex") };
  },
  ERROR: (body) => refusal(wire.readError(body)),
  KEYS: (body) => ({ keys: wire.readKeys(body).map(keyOf) }),
  CREDIT: (body) => ({ credits: wire.readCredit(body) }),
  GOAWAY: (body) => {
    const { leftMs, reason } = wire.readGoaway(body);
    return { left_ms: leftMs, reason };
  },
  DONE: (body) => ({ text: wire.readText(body) }),
};
const names = new Map<number, string>(Object.entries(wire.Type).map(([name, number]) => [number, name]));

function split(data: Buffer, ...cuts: number[]): wire.Frame[] {
  const found: wire.Frame[] = [];
  const splitter = new wire.Splitter();
  let at = 0;
  for (const cut of [...cuts, data.length]) {
    const read = Buffer.from(data.subarray(at, cut));
    splitter.feed(read, (one) => found.push({ ...one, body: Buffer.from(one.body) }));
    read.fill(0xee); // the next read may lie there
    at = cut;
  }
  return found;
}

suite("golden vectors", () => {
  for (const vector of vectors.frames.filter(isSpoken)) {
    test(vector.name, () => {
      if (vector.from === "client") {
        assert.deepEqual(encoded(vector), whole(vector));
        return;
      }
      const [frame, ...more] = split(whole(vector));
      assert.ok(frame);
      assert.equal(more.length, 0);
      assert.equal(names.get(frame.type), vector.type);
      assert.deepEqual([frame.slot, frame.request], [vector.slot, Number(vector.request)]);
      assert.deepEqual(readers[vector.type]!(frame.body), vector.says);
    });
  }

  for (const vector of vectors.streams.filter((one) => one.from === "gateway")) {
    test(vector.name, () => {
      const data = whole(vector);
      const wanted = vector.frames!.map(([type, request]) => [type, Number(request)]);
      const found = (frames: wire.Frame[]) => frames.map((one) => [names.get(one.type), one.request]);
      assert.deepEqual(found(split(data)), wanted);
      for (let cut = 1; cut < data.length; cut++) assert.deepEqual(found(split(data, cut)), wanted);
      assert.deepEqual(found(split(data, ...Array.from(data.keys()))), wanted);
    });
  }

  for (const vector of vectors.refused.filter((one) => one.by === "client" && isSpoken(one))) {
    test(`refused: ${vector.name}`, () => {
      assert.throws(
        () => split(whole(vector)).forEach((frame) => readers[names.get(frame.type)!]!(frame.body)),
        wire.WireError,
      );
    });
  }
});

test("a request larger than a frame is refused before it is sent", () => {
  assert.throws(() => wire.sign(Buffer.alloc(wire.MOST_BYTES)), wire.WireError);
  assert.throws(() => wire.manage("export", "k".repeat(256)), wire.WireError);
});
