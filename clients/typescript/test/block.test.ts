/** Blocks and batches of a key that a policy limits. Skipped without a gateway that has a token. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { suite, test } from "node:test";

import { HsmError, KeyManagerFactory, payload, verifyBatched } from "hsmcore-client";

import { real } from "./place.js";

const of = (status: string, says: RegExp) => (error: unknown) =>
  error instanceof HsmError && error.status === status && says.test(error.message);

suite("with a policy", { skip: real ? false : "HSMCORE_TEST_GATEWAY is not set", timeout: 110_000 }, () => {
  test("the gateway reads what a payload was made of, and any bytes are in a batch", async () => {
    const manager = KeyManagerFactory.create({ gateway: real! });
    await manager.initialize();
    try {
      const [one, other] = [Buffer.alloc(32, 1), Buffer.alloc(32, 2)];
      const block = payload("block", "chain", 7, one);
      await manager.sign(block, { kind: "block", position: 7n });
      await manager.sign(block);
      await assert.rejects(manager.sign(block, { position: 8 }), of("POLICY_REFUSED", /says position 7/));
      await assert.rejects(manager.sign(payload("block", "chain", 7n, other)), of("DOUBLE_SIGN", /./));
      await assert.rejects(manager.sign(payload("block", "other", 9, one)), of("POLICY_REFUSED", /domain/));
      await assert.rejects(manager.sign(one, { kind: "block", position: 9 }), of("POLICY_REFUSED", /hsmcore\.payload/));
      for (const message of [Buffer.from("é"), Buffer.of(0x82, 0xa1, 0x61, 7), block]) {
        const signed = await manager.client.signBatched(message);
        assert.ok(verifyBatched(signed.publicKey, message, signed.proof, { domain: "chain", kind: "raw" }));
        await assert.rejects(manager.client.signBatched(message, { kind: "digest32" }), of("POLICY_REFUSED", /leaf/));
      }
    } finally {
      await manager.close();
    }
  });
});
