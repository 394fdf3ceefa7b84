/** What the gateway says was bound last, and the number of a request that it refuses. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { afterEach, beforeEach, suite, test } from "node:test";

import { HsmError, type KeyManager, KeyManagerFactory } from "hsmcore-client";

import { error, TestGateway } from "./gateway.js";

const message = Buffer.from("block 7");
const digest = createHash("sha256").update(message).digest("hex");
const good = { kind: "block", position: "9007199254740993", digest, message: message.toString("base64") };

let gateway: TestGateway;
let manager: KeyManager;

beforeEach(async () => {
  gateway = new TestGateway();
  await gateway.listen();
  manager = KeyManagerFactory.create({ gateway: { address: gateway.address } });
  await manager.initialize();
});
afterEach(async () => {
  await manager.close();
  await gateway.end();
});

const says = (text: string): void => {
  gateway.take = (one) => {
    gateway.seen.push(one);
    one.connection.send(138, one.request, Buffer.from(text));
  };
};

suite("unfinished", { timeout: 100_000 }, () => {
  test("is what was bound, or nothing", async () => {
    says(JSON.stringify(good));
    assert.deepEqual(await manager.unfinished("my-rollup/block"), {
      kind: "block",
      position: 9007199254740993n,
      digest: Buffer.from(digest, "hex"),
      message,
    });
    const { type, body } = gateway.seen.at(-1)!;
    assert.deepEqual([type, body[0], body.toString("latin1", 2)], [8, 6, "my-rollup/block"]);
    says(JSON.stringify({ ...good, message: null }));
    assert.equal((await manager.unfinished("my-rollup/block"))!.message, null);
    says("null");
    assert.equal(await manager.unfinished("my-rollup/block"), null);
  });

  test("of a gateway that lies is refused", async () => {
    const changes: object[] = [
      ...["", "no kind", 1].map((kind) => ({ kind })),
      ...[7, "-1", "1e3", ""].map((position) => ({ position })),
      ...["00", digest.toUpperCase(), null].map((other) => ({ digest: other })),
      ...[Buffer.from("another").toString("base64"), 1].map((other) => ({ message: other })),
    ];
    const texts = changes.map((change) => JSON.stringify({ ...good, ...change }));
    for (const text of [...texts, "", "{", "{}", "[]", "1", '"x"']) {
      says(text);
      await assert.rejects(manager.unfinished("my-rollup/block"), HsmError, text);
    }
  });
});

test("a refusal has the number of its request, by which its records are found", async () => {
  gateway.take = (one) => {
    gateway.seen.push(one);
    one.connection.send(134, one.request, error("POLICY_REFUSED"));
  };
  await assert.rejects(manager.sign(message), (thrown) => {
    assert.ok(thrown instanceof HsmError);
    assert.equal(thrown.request, gateway.seen.at(-1)!.request);
    return true;
  });
});
