/** What only a gateway with a token behind it can show. Skipped without one. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { verify } from "node:crypto";
import { once } from "node:events";
import { afterEach, beforeEach, suite, test } from "node:test";

import { HsmError, type Key, type KeyManager, KeyManagerFactory } from "hsmcore-client";
import { createHsmcoreSigner } from "hsmcore-client/solana";

import { real } from "./place.js";

const text = (says: string): Buffer => Buffer.from(says);
const of = (status: string) => (error: unknown) => error instanceof HsmError && error.status === status;

function valid(message: Uint8Array, signature: Uint8Array, publicKey: Buffer): boolean {
  const der = Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), publicKey]);
  return verify(null, message, { key: der, format: "der", type: "spki" }, signature);
}

suite("with a token", { skip: real ? false : "HSMCORE_TEST_GATEWAY is not set", timeout: 110_000 }, () => {
  let manager: KeyManager;

  beforeEach(async () => {
    manager = KeyManagerFactory.create({ gateway: real! });
    await manager.initialize();
  });
  afterEach(() => manager.close());

  test("a signature comes with its key, its level and its record", async () => {
    const receipt = await manager.signWithReceipt(text("message"));
    assert.ok(valid(text("message"), receipt.signature, receipt.publicKey));
    assert.deepEqual([receipt.level, receipt.keyId], ["primary", await manager.getCurrentKeyId()]);
    assert.ok(await manager.verify(text("message"), receipt.signature));
    assert.ok(!(await manager.verify(text("another"), receipt.signature)));
  });

  test("a request says its trace", async () => {
    const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const receipt = await manager.signWithReceipt(text("traced"), { traceparent });
    assert.ok(valid(text("traced"), receipt.signature, receipt.publicKey));
  });

  test("a batch larger than the gateway's is signed in pieces", async () => {
    const messages = Array.from({ length: 3000 }, (_, n) => text(`message ${n}`));
    const { publicKey } = manager.currentKey();
    const outcomes = await manager.signMany(messages);
    outcomes.forEach((one, n) =>
      assert.ok(!(one instanceof HsmError) && valid(messages[n]!, one, publicKey), String(one)),
    );
  });

  test("errors are the gateway's own", async () => {
    await assert.rejects(manager.sign(Buffer.alloc(1_000_000)), of("MESSAGE_TOO_LARGE"));
    await assert.rejects(manager.deactivateKey("no such key"), HsmError);
    await assert.rejects(manager.verify(text("x"), Buffer.alloc(64), "no such key"), HsmError);
  });

  test("a request that is withdrawn ends at once, and the connection goes on", async () => {
    const control = new AbortController();
    const promise = manager.sign(text("withdrawn"), { signal: control.signal });
    control.abort();
    await assert.rejects(promise, of("CANCELLED"));
    assert.ok(valid(text("next"), await manager.sign(text("next")), manager.currentKey().publicKey));
  });

  test("a new key takes over under load: each signature is by the key that it says", async () => {
    const before = manager.currentKey();
    const signer = createHsmcoreSigner(manager);
    const rotated = once(manager, "key-rotated") as Promise<[{ previous: Key; current: Key }]>;
    let going = true;
    const used = new Set<string>();
    const caller = async (name: number): Promise<void> => {
      for (let n = 0; going; n++) {
        const message = text(`${name}-${n}`);
        const { signature, publicKey, keyId } = await manager.signWithReceipt(message);
        assert.ok(valid(message, signature, publicKey));
        used.add(keyId);
      }
    };
    const callers = Array.from({ length: 16 }, (_, name) => caller(name));
    const id = await manager.generateKey();
    await manager.setCurrentKeyId(id);
    assert.equal(await manager.getCurrentKeyId(), id);
    const [{ previous, current }] = await rotated;
    assert.deepEqual([previous.id, current.id], [before.id, id]);
    while (!used.has(id)) await manager.sign(text("one more"));
    going = false;
    await Promise.all(callers);
    assert.deepEqual([...used].sort(), [before.id, id].sort());

    await assert.rejects(signer.signMessages([{ content: text("x"), signatures: {} }]), of("KEY_NOT_CURRENT"));
    assert.equal(await signer.isAvailable(), false);
    const old = await manager.sign(text("y"));
    assert.ok(await manager.verify(text("y"), old, id));
    await manager.deactivateKey(before.id);
  });

  test("the counters of its cache are told", async () => {
    await manager.sign(text("again"));
    await manager.sign(text("again"));
    const stats = await manager.getCacheStats();
    assert.ok(Object.keys(stats).length > 0, JSON.stringify(stats));
  });
});
