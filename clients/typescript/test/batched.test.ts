/** Batched signatures: what the client makes of a gateway's proofs. */

import assert from "node:assert/strict";
import { suite, test } from "node:test";

import { readBatchProof, verifyBatched } from "hsmcore-client";

import { connected, fails, gateway, text } from "./fixture.js";
import { batched, makeKey, proofOf } from "./gateway.js";

const [MESSAGE, OTHER] = [text("message"), text("other")];
const of9 = () => gateway.seen.filter((one) => one.type === 9);

/** A client of a gateway that signs batches, and answers with this proof, as by this key. */
async function answered(proof: string, key = gateway.keys[0]!) {
  gateway.kinds = 0x8100;
  gateway.take = (one) => {
    gateway.seen.push(one);
    if (one.type === 9) one.connection.send(139, one.request, batched(key, proof));
  };
  return connected();
}

suite("a batched signature", { timeout: 100_000 }, () => {
  test("is handed out with what its proof says", async () => {
    const key = gateway.keys[0]!;
    const proof = proofOf(key, [MESSAGE, OTHER]);
    const client = await answered(proof);
    const found = await client.signBatched(MESSAGE, { kind: "raw", timeoutMs: 5_000 });
    assert.deepEqual([found.index, found.keyId, found.auditSeq], [7n, key.id, 3n]);
    assert.ok(found.publicKey.equals(key.publicKey));
    assert.equal(found.proof.toString(), proof);
    assert.ok(verifyBatched(found.publicKey, MESSAGE, found.proof, { domain: "tests", kind: "raw", epoch: 0n }));
    for (const wanted of [{ domain: "test" }, { kind: "tx-v0" }, { epoch: 1n }] as const) {
      assert.ok(!verifyBatched(found.publicKey, MESSAGE, found.proof, wanted));
    }
    const says = readBatchProof(found.publicKey, MESSAGE, found.proof)!;
    assert.deepEqual([says.epoch, says.size, says.timeNs, says.root], [0n, 2n, 1n, found.root]);
    const [asked] = of9();
    assert.deepEqual([asked!.flags, asked!.body[0], asked!.body.subarray(5)], [0, 8, MESSAGE]);
  });

  test("is refused where its proof shows nothing", async () => {
    const [key, stranger] = [gateway.keys[0]!, makeKey(2)];
    const good = proofOf(key, [MESSAGE, OTHER]);
    const foreign = proofOf(stranger, [MESSAGE, OTHER]);
    const wrong = [
      "",
      proofOf(key, [OTHER, MESSAGE]),
      foreign,
      good.slice(0, -1),
      `${good}\n`,
      good.replace("index 0", "index 1"),
      good.slice(0, good.indexOf("—")) + foreign.slice(foreign.indexOf("—")),
    ];
    for (const proof of wrong) {
      const client = await answered(proof, key);
      await assert.rejects(
        client.signBatched(MESSAGE),
        fails({ status: "SIGNATURE_INVALID", maybeSigned: true, retryable: false }),
      );
    }
    const client = await answered(good, key);
    await assert.rejects(client.signBatched(MESSAGE, { kind: "tx-v0" }), fails({ status: "SIGNATURE_INVALID" }));
    await client.signBatched(MESSAGE);
  });

  test("is asked of no gateway that signs no batches", async () => {
    for (const kinds of [0xffff, 0x0100]) {
      gateway.kinds = kinds;
      const client = await connected();
      await assert.rejects(client.signBatched(MESSAGE), fails({ status: "BAD_ARGUMENT", maybeSigned: false }));
    }
    assert.equal(of9().length, 0);
  });

  test("is asked again of the same gateway, and of no other one", async () => {
    const client = await answered(proofOf(gateway.keys[0]!, [MESSAGE, OTHER]));
    const serve = gateway.take;
    const first = (then: () => void) => {
      gateway.take = (one) => {
        gateway.seen.push(one);
        gateway.take = serve;
        then();
      };
    };
    first(() => gateway.drop());
    await client.signBatched(MESSAGE);
    const [before, after] = of9();
    assert.deepEqual([before!.request, before!.flags, after!.flags], [after!.request, 0, 2]);
    first(() => gateway.become());
    await assert.rejects(client.signBatched(MESSAGE), fails({ status: "HOST_LOST", maybeSigned: true }));
    assert.equal(of9().length, 3);
  });
});
