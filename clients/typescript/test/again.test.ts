/** What is sent again when a connection breaks or a key changes, and what never is. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { once } from "node:events";
import { suite, test } from "node:test";

import { HsmError } from "hsmcore-client";

import { connected, dropsAfter, fails, gateway, signs, text, until, valid } from "./fixture.js";
import { error, makeKey, signed } from "./gateway.js";

suite("a connection that breaks", { timeout: 100_000 }, () => {
  test("the same gateway is asked again, with the same number, the same bytes and the flag", async () => {
    const client = await connected();
    dropsAfter(2);
    const messages = [text("one"), text("two")];
    const receipts = await Promise.all(messages.map((message) => client.sign(message)));
    receipts.forEach((receipt, n) => assert.ok(valid(messages[n]!, receipt)));
    const [first, second, third, fourth] = signs();
    for (const [before, after] of [
      [first, third],
      [second, fourth],
    ]) {
      assert.deepEqual([before!.request, before!.flags, before!.body], [after!.request, 0, after!.body]);
      assert.equal(after!.flags, 2);
    }
    assert.equal(gateway.greetings[0]!.nonce, gateway.greetings[1]!.nonce);
  });

  test("another gateway is asked again under its own number of the same Ed25519 key", async () => {
    const client = await connected();
    gateway.take = (one) => {
      gateway.seen.push(one);
      gateway.take = gateway.serve;
      gateway.become();
    };
    assert.ok(valid(text("x"), await client.sign(text("x"))));
    const [before, after] = signs();
    assert.deepEqual([before!.body.readUInt32LE(13), after!.body.readUInt32LE(13)], [1, 11]);
  });

  test("another gateway is not asked again for a signature that could differ", async () => {
    gateway.keys = [makeKey(1, 2)];
    const client = await connected();
    gateway.take = (one) => {
      gateway.seen.push(one);
      gateway.become();
    };
    await assert.rejects(client.sign(text("x")), fails({ status: "HOST_LOST", maybeSigned: true, retryable: false }));
    assert.equal(gateway.seen.length, 1);
  });

  test("what the first gateway may have signed is not signed under the key of the second", async () => {
    const client = await connected();
    const [old] = gateway.keys;
    gateway.take = (one) => {
      gateway.seen.push(one);
      gateway.take = gateway.serve;
      gateway.become([{ ...old!, version: 5, current: false }, makeKey(6)]);
    };
    await assert.rejects(client.sign(text("x")), fails({ status: "KEY_NOT_CURRENT", maybeSigned: true }));
    assert.deepEqual(
      signs().map((one) => one.body.readUInt32LE(13)),
      [1, 5],
    );
    assert.ok(valid(text("y"), await client.sign(text("y"))));
  });

  test("what is not remembered any more is asked again only where it cannot differ", async () => {
    gateway.keys = [makeKey(1, 2)];
    gateway.rememberMs = 1;
    const client = await connected();
    gateway.take = (one) => {
      gateway.seen.push(one);
      // Not for what a client says as it closes: this test is over by then, and the next one has a gateway.
      if (one.type === 2) setTimeout(() => gateway.drop(), 20);
    };
    await assert.rejects(client.sign(text("x")), fails({ status: "HOST_LOST", maybeSigned: true }));
    assert.equal(gateway.seen.length, 1);
  });

  test("an operation on a key is not asked again", async () => {
    const client = await connected();
    dropsAfter(1);
    await assert.rejects(client.manage("generate"), fails({ status: "HOST_LOST", retryable: false }));
    assert.ok(valid(text("x"), await client.sign(text("x"))));
    assert.deepEqual(
      gateway.seen.map((one) => one.type),
      [8, 2],
    );
  });

  test("a gateway that says what it may not is left, and asked again", async () => {
    const client = await connected();
    gateway.take = (one) => {
      gateway.take = gateway.serve;
      one.connection.send(132, one.request, Buffer.from([1]));
    };
    assert.ok(valid(text("x"), await client.sign(text("x"))));
    assert.equal(gateway.greetings.length, 2);
  });

  test("a Unix socket is tried again at once, a gateway that refuses is not", async (t) => {
    const { setTimeout } = globalThis;
    const client = await connected({ maxBackoffMs: 2_000 });
    const [link] = client["links"];
    const waits: number[] = [];
    t.mock.method(globalThis, "setTimeout", ((work: () => void, ms = 0) => {
      if (work === link!.connect) waits.push(ms);
      return setTimeout(work, ms);
    }) as typeof setTimeout);
    await gateway.stop();
    await until(() => waits.length >= 12);
    assert.ok(Math.max(...waits) <= 50, `${waits}`);
    await gateway.listen();
    assert.ok(valid(text("x"), await client.sign(text("x"))));
    waits.length = 0;
    gateway.greet = (connection) => {
      connection.send(134, 0, error("POLICY_REFUSED"));
      connection.socket.end();
    };
    gateway.drop();
    await until(() => waits.some((ms) => ms > 50));
  });

  test("a connection without a sign of life is given up", async () => {
    const client = await connected({ pingMs: 20 });
    const silent = [...gateway.connections];
    gateway.take = (one) => {
      if (!silent.includes(one.connection)) gateway.serve(one);
    };
    assert.ok(valid(text("x"), await client.sign(text("x"))));
    assert.ok(gateway.greetings.length >= 2);
  });

  test("a PONG that is lost with its connection keeps no later one from being awaited", async () => {
    const client = await connected();
    let pings = 0;
    gateway.take = (one) => {
      if (one.type !== 7) gateway.serve(one);
      else pings++;
    };
    const asked = [client.ping(), client.ping()];
    await until(() => pings === 2);
    gateway.take = gateway.serve;
    gateway.drop();
    for (const one of asked) await assert.rejects(one, fails({ status: "HOST_LOST", retryable: true }));
    assert.ok(valid(text("x"), await client.sign(text("x"))));
    await client.ping();
  });

  test("a PONG belongs to its PING, and one that does not come is awaited until the deadline", async () => {
    const client = await connected();
    let first = true;
    gateway.take = (one) => {
      if (!first) gateway.serve(one);
      first = false;
    };
    const lost = client.ping({ timeoutMs: 200 });
    await client.ping();
    await assert.rejects(lost, fails({ status: "HOST_LOST" }));
  });

  test("a deadline that passes without a gateway says why there is none", async () => {
    const client = await connected();
    await gateway.stop();
    await once(client, "disconnected");
    await assert.rejects(client.sign(text("x"), { timeoutMs: 50 }), (thrown) => {
      assert.ok(fails({ status: "DEADLINE_EXCEEDED", maybeSigned: false })(thrown));
      return fails({ status: "HOST_LOST" })((thrown as HsmError).cause);
    });
  });

  test("requests wait for a gateway that starts again", async () => {
    const client = await connected();
    await gateway.stop();
    await once(client, "disconnected");
    const promise = client.sign(text("x"));
    await gateway.listen();
    assert.ok(valid(text("x"), await promise));
  });

  test("every promise is settled once, and nothing is signed by two keys, over many breaks", async () => {
    gateway.credits = 64;
    const client = await connected({ connections: 4 });
    const signers = new Map<string, Set<string>>();
    let [count, number] = [0, 0];
    gateway.take = (one) => {
      if (one.type === 2) {
        const key = gateway.keys.find((each) => each.version === one.body.readUInt32LE(13));
        const message = one.body.toString("latin1", 17);
        if (key?.current) signers.set(message, (signers.get(message) ?? new Set()).add(key.id));
        // The signature is made, and its answer is lost with all connections; now and then with the key.
        if (++count % 50 === 0) {
          if (number++ % 3 === 2)
            gateway.become([
              ...gateway.keys.map((each) => ({ ...each, version: each.version + 100, current: false })),
              makeKey(1),
            ]);
          else if (number % 3 === 2) gateway.become();
          else gateway.drop();
        }
      }
      if (one.connection.socket.writable) gateway.serve(one);
    };
    const settled = new Map<number, number>();
    const note = (n: number) => settled.set(n, (settled.get(n) ?? 0) + 1);
    const outcomes = await Promise.all(
      Array.from({ length: 1000 }, (_, n) =>
        client.sign(text(`${n}`)).then(
          (receipt) => (note(n), valid(text(`${n}`), receipt)),
          (thrown: unknown) => (note(n), fails({ status: "KEY_NOT_CURRENT", maybeSigned: true })(thrown)),
        ),
      ),
    );
    assert.ok(number >= 10);
    assert.ok(outcomes.every(Boolean));
    assert.deepEqual(
      [...settled.values()],
      Array.from({ length: 1000 }, () => 1),
    );
    for (const [message, keys] of signers) assert.equal(keys.size, 1, message);
  });
});

suite("keys", { timeout: 100_000 }, () => {
  test("a request that was for the old key is made once more for the new one, when it is known", async () => {
    const client = await connected();
    const [old] = gateway.keys;
    gateway.keys = [{ ...old!, current: false }, makeKey(2)];
    const rotated = once(client, "key-rotated");
    const promise = client.sign(text("x"));
    await until(() => signs().length === 1);
    for (const one of gateway.connections) one.sendKeys();
    const receipt = await promise;
    assert.equal(receipt.keyId, gateway.keys[1]!.id);
    assert.ok(valid(text("x"), receipt));
    const [{ key, previous, current }] = (await rotated) as [
      { key: string; previous: { id: string }; current: { id: string } },
    ];
    assert.deepEqual([key, previous.id, current.id], ["default", old!.id, gateway.keys[1]!.id]);
  });

  test("it is made on a connection that was told of the new key, or waits for one", async () => {
    const client = await connected({ connections: 3 });
    await until(() => gateway.connections.size === 3);
    const [old] = gateway.keys;
    gateway.keys = [{ ...old!, current: false }, makeKey(2)];
    const promises = Array.from({ length: 30 }, (_, n) => client.sign(text(`${n}`)));
    await until(() => signs().length === 30);
    [...gateway.connections][1]!.sendKeys();
    (await Promise.all(promises)).forEach((receipt, n) => assert.ok(valid(text(`${n}`), receipt)));
    assert.equal(signs().length, 60);
  });

  test("it is made no more than once again, and not for a key that the caller insists on", async () => {
    const client = await connected();
    gateway.take = (one) => {
      gateway.seen.push(one);
      if (one.type !== 2) return;
      gateway.keys = [makeKey(gateway.keys[0]!.version + 1)];
      one.connection.sendKeys();
      one.connection.send(134, one.request, error("KEY_NOT_CURRENT"));
    };
    await assert.rejects(client.sign(text("x")), fails({ status: "KEY_NOT_CURRENT", maybeSigned: false }));
    assert.equal(signs().length, 2);
    await assert.rejects(client.sign(text("x"), { keyId: gateway.keys[0]!.id }), fails({ status: "KEY_NOT_CURRENT" }));
    assert.equal(signs().length, 3);
  });

  test("nor if the gateway may have signed it", async () => {
    const client = await connected();
    gateway.take = (one) => {
      gateway.seen.push(one);
      gateway.keys = [makeKey(2)];
      one.connection.sendKeys();
      one.connection.send(134, one.request, error("KEY_NOT_CURRENT", { flags: 2 }));
    };
    await assert.rejects(client.sign(text("x")), fails({ status: "KEY_NOT_CURRENT", maybeSigned: true }));
    assert.equal(signs().length, 1);
  });

  test("of a batch, what was for the old key is made once more for the new one", async () => {
    const client = await connected();
    const [old] = gateway.keys;
    gateway.keys = [{ ...old!, current: false }, makeKey(2)];
    const messages = Array.from({ length: 100 }, (_, n) => text(`${n}`));
    const promise = client.signMany(messages);
    await until(() => gateway.seen.filter((one) => one.type === 3).length === 2);
    for (const one of gateway.connections) one.sendKeys();
    const outcomes = await promise;
    const { publicKey } = gateway.keys[1]!;
    outcomes.forEach((one, n) =>
      assert.ok(!(one instanceof HsmError) && valid(messages[n]!, { signature: one, publicKey })),
    );
  });

  test("a batch has its errors where its signatures would be", async () => {
    const client = await connected();
    const key = gateway.keys[0]!;
    gateway.take = (one) => {
      const refused = error("POLICY_REFUSED", { text: "raw" });
      const good = signed(key, text("a")).subarray(13);
      const parts = [Buffer.from([1, 0, 0, 0, 2, 0, 0, 64, 0]), good, Buffer.from([1, refused.length, 0]), refused];
      one.connection.send(131, one.request, Buffer.concat(parts));
    };
    const [first, second] = await client.signMany([text("a"), text("b")]);
    assert.ok(first instanceof Buffer && valid(text("a"), { signature: first, publicKey: key.publicKey }));
    assert.ok(fails({ status: "POLICY_REFUSED", message: "raw" })(second));
  });

  test("while no key is known to sign, the gateway chooses, and what is lost is not made again", async () => {
    gateway.keys = [makeKey(1, 1, false)];
    const client = await connected();
    gateway.take = (one) => one.connection.send(130, one.request, signed(gateway.keys[0]!, one.body.subarray(17), 3));
    const receipt = await client.sign(text("x"));
    assert.deepEqual([receipt.level, receipt.keyId], ["emergency", gateway.keys[0]!.id]);
    gateway.take = (one) => {
      gateway.seen.push(one);
      gateway.become();
    };
    await assert.rejects(client.sign(text("x")), fails({ status: "HOST_LOST", maybeSigned: true }));
    assert.deepEqual(
      signs().map((one) => one.body.readUInt32LE(13)),
      [0],
    );
  });

  test("a failover is told", async () => {
    const client = await connected();
    let level = 1;
    gateway.take = (one) =>
      one.connection.send(130, one.request, signed(gateway.keys[0]!, one.body.subarray(17), level));
    await client.sign(text("a"));
    const told = once(client, "failover");
    level = 2;
    await client.sign(text("b"));
    assert.deepEqual(await told, [{ key: "default", from: "primary", to: "secondary" }]);
  });
});
