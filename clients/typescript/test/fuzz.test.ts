/** What a hostile gateway may send: the golden vectors and the kept corpus of the parser in Python, changed at random. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

import * as wire from "hsmcore-client/wire";

const COUNT = Number(process.env["HSMCORE_TEST_FUZZ"] ?? 20_000);
const tests = new URL("../../../../tests/", import.meta.url);
const NUMBERS = [0, 1, 2, 11, 12, 13, 64, 65, 255, 256, 0xffff, 2 ** 20 - 1, 2 ** 20, 2 ** 20 + 1, 0xffff_ffff];

function seeds(): Buffer[] {
  const corpus = new URL("fuzz/corpus/wire/", tests);
  const kept = readdirSync(corpus).map((name) => readFileSync(new URL(name, corpus)));
  const vectors = JSON.parse(readFileSync(new URL("wire/vectors.json", tests), "utf8")) as Record<
    "frames" | "streams" | "refused",
    { hex: string }[]
  >;
  const golden = (["frames", "streams", "refused"] as const).flatMap((part) => vectors[part]);
  return [...kept, ...golden.map((one) => Buffer.from(one.hex, "hex"))];
}

/** Numbers below 2^32 that are the same in each run: mulberry32. */
function chance(seed: number): (below: number) => number {
  return (below) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), seed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

function changed(inputs: readonly Buffer[], any: (below: number) => number): Buffer {
  let data = Buffer.from(inputs[any(inputs.length)]!);
  for (let left = any(4); left >= 0; left--) {
    const at = any(data.length + 1);
    const other = inputs[any(inputs.length)]!;
    const number = Buffer.alloc(4);
    number.writeUInt32LE(NUMBERS[any(NUMBERS.length)]!);
    const bytes = number.subarray(0, 1 << any(3));
    if (at < data.length && any(2) === 0) data[at] = any(256);
    const pieces = [
      [data],
      [data.subarray(0, at)],
      [data.subarray(0, at), other],
      [data.subarray(0, at), bytes, data.subarray(at)],
      [data.subarray(0, at), bytes, data.subarray(at + bytes.length)],
      [data.subarray(0, at), data.subarray(at + any(8))],
    ][any(6)]!;
    data = Buffer.concat(pieces).subarray(0, 8192);
  }
  return data;
}

const readers: Record<number, (body: Buffer) => unknown> = {
  [wire.Type.WELCOME]: wire.readWelcome,
  [wire.Type.SIGNED]: wire.readSigned,
  [wire.Type.SIGNED_MANY]: wire.readSignedMany,
  [wire.Type.PONG]: wire.readPong,
  [wire.Type.ERROR]: wire.readError,
  [wire.Type.KEYS]: wire.readKeys,
  [wire.Type.CREDIT]: wire.readCredit,
  [wire.Type.GOAWAY]: wire.readGoaway,
  [wire.Type.DONE]: wire.readText,
  [wire.Type.BATCHED]: wire.readBatched,
};

/** The frames that say something, and whether the rest is refused. */
function outcome(pieces: readonly Buffer[]): { found: string[]; refused: boolean } {
  const [found, splitter] = [[] as string[], new wire.Splitter()];
  try {
    for (const piece of pieces) {
      splitter.feed(piece, (frame) => {
        if (frame.type !== wire.Type.VERIFIED) readers[frame.type]!(frame.body); // to which this client asks nothing
        found.push(`${frame.type} ${frame.slot} ${frame.request} ${frame.body.toString("hex")}`);
      });
    }
  } catch (error) {
    if (!(error instanceof wire.WireError)) throw error;
    return { found, refused: true };
  }
  return { found, refused: false };
}

test(`${COUNT} changed inputs are read or refused`, { timeout: 600_000 }, () => {
  const [inputs, any] = [seeds(), chance(21)];
  assert.ok(inputs.length > 80);
  const all = [...inputs, ...Array.from({ length: COUNT }, () => changed(inputs, any))];
  let [read, refused] = [0, 0];
  for (const data of all) {
    try {
      const whole = outcome([data]);
      const cuts = [any(data.length + 1), any(data.length + 1)].sort((a, b) => a - b);
      const pieces = [data.subarray(0, cuts[0]), data.subarray(cuts[0], cuts[1]), data.subarray(cuts[1])];
      assert.deepEqual(outcome(pieces), whole);
      read += whole.found.length;
      if (whole.refused) refused++;
    } catch (error) {
      throw new Error(`input ${data.toString("hex")}`, { cause: error });
    }
  }
  // Both ways are well trodden.
  assert.ok(read > COUNT / 20, `${read} read`);
  assert.ok(refused > COUNT / 20, `${refused} refused`);
});

test("a frame of which a length says much is no more memory than its bytes", () => {
  const [splitter, head] = [new wire.Splitter(), Buffer.alloc(16)];
  head.writeUInt32LE(wire.MOST_BYTES);
  head[4] = wire.Type.DONE;
  const before = process.memoryUsage().arrayBuffers;
  splitter.feed(head, () => assert.fail("it is not whole"));
  assert.ok(process.memoryUsage().arrayBuffers - before < wire.MOST_BYTES / 4);
});
