/** The caller's span, on the way to the gateway. */

import assert from "node:assert/strict";
import { AsyncLocalStorage } from "node:async_hooks";
import { Buffer } from "node:buffer";
import { suite, test } from "node:test";

import { KeyManager, type TraceParent } from "hsmcore-client";

import { connected, dropsAfter, ends, gateway, signs, text } from "./fixture.js";

const [TRACE, SPAN] = ["4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"];
const PARENT = `00-${TRACE}-${SPAN}-01`;
const BYTES = Buffer.from(`${TRACE}${SPAN}01`, "hex");
const TRACED = 4;

/** A gateway that knows traces. Its `traces` has what each request says of its own, in their order. */
function knowing() {
  const traces: (Buffer | undefined)[] = [];
  gateway.kinds = 0x7fff;
  gateway.take = (one) => {
    traces.push(one.flags & TRACED ? one.body.subarray(0, 25) : undefined);
    gateway.serve(one.flags & TRACED ? { ...one, flags: one.flags & ~TRACED, body: one.body.subarray(25) } : one);
  };
  return traces;
}

suite("a trace", { timeout: 100_000 }, () => {
  test("is said with each request, and with the same one again", async () => {
    const traces = knowing();
    const serve = gateway.take;
    const client = await connected();
    const options = { traceparent: PARENT };
    await client.sign(text("a"), options);
    await client.sign(text("b"), { traceparent: { traceId: TRACE, spanId: SPAN, traceFlags: 1 } });
    await client.signMany([text("c"), text("d")], options);
    await client.manage("cache-stats", "", options);
    dropsAfter(gateway.seen.length + 1);
    const { take } = gateway;
    gateway.take = (one) => (take(one), (gateway.take = serve));
    await client.sign(text("e"), { ...options, position: 2n ** 53n });
    assert.deepEqual(
      traces,
      Array.from({ length: 5 }, () => BYTES),
    );
    assert.deepEqual(
      signs().map(({ flags }) => flags),
      [0, 0, TRACED | 1, 2 | 1],
    );
  });

  test("is that of the span that is current", async () => {
    const traces = knowing();
    const current = new AsyncLocalStorage<TraceParent>();
    const client = await connected({ currentSpan: () => current.getStore() });
    await current.run(PARENT, () => client.sign(text("a")));
    await current.run(`00-${"1".repeat(32)}-${SPAN}-00`, () => client.sign(text("b"), { traceparent: PARENT }));
    await client.sign(text("c"));
    assert.deepEqual(traces, [BYTES, BYTES, undefined]);
    const manager = new KeyManager({ address: gateway.address, currentSpan: () => PARENT });
    ends(manager.client);
    await manager.initialize();
    await manager.sign(text("d"));
    assert.deepEqual(traces.at(-1), BYTES);
  });

  test("that is none is ignored", async () => {
    const traces = knowing();
    const client = await connected();
    const changes = [
      ["00-", "01-"],
      ["00-", "ff-"],
      ["-01", "-1"],
      ["-01", "-01-00"],
      ["-01", "-01\n"],
      [TRACE, TRACE.toUpperCase()],
      [TRACE, "0".repeat(32)],
      [SPAN, "0".repeat(16)],
      [SPAN, `${SPAN}0`],
      [PARENT, ""],
      [PARENT, "x".repeat(100_000)],
    ] as const;
    for (const [part, other] of changes) await client.sign(text("m"), { traceparent: PARENT.replace(part, other) });
    for (const traceFlags of [-1, 256, 0.5]) {
      await client.sign(text("m"), { traceparent: { traceId: TRACE, spanId: SPAN, traceFlags } });
    }
    assert.deepEqual(
      traces.filter((one) => one !== undefined),
      [],
    );
    assert.equal(traces.length, changes.length + 3);
  });

  test("is said to no gateway that knows none", async () => {
    for (const kinds of [0xffff, 0x0100, 0x8100]) {
      gateway.kinds = kinds;
      const client = await connected();
      await client.sign(text("m"), { traceparent: PARENT });
    }
    assert.deepEqual(
      signs().map(({ flags }) => flags),
      [0, 0, 0],
    );
  });
});
