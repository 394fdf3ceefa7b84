/** The client against a gateway that breaks: who gets which answer, and what is sent again. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { verify } from "node:crypto";
import { once } from "node:events";
import { Socket } from "node:net";
import { afterEach, beforeEach, suite, test } from "node:test";

import { Client, type ClientOptions, HsmError, type Receipt } from "hsmcore-client";

import { error, makeKey, type Request, signed, TestGateway } from "./gateway.js";

let gateway: TestGateway;
let clients: Client[] = [];

beforeEach(async () => {
  gateway = new TestGateway();
  await gateway.listen();
});

afterEach(async () => {
  await Promise.all(clients.map((one) => one.close()));
  clients = [];
  await gateway.end();
});

async function connected(options: Partial<ClientOptions> = {}): Promise<Client> {
  const patient = { timeoutMs: 60_000, connectTimeoutMs: 60_000 };
  const client = new Client({ address: gateway.address, maxBackoffMs: 20, ...patient, ...options });
  clients.push(client);
  await client.connect();
  return client;
}

/** Wait until it is so; a test that waits in vain fails by its time limit. */
async function until(so: () => boolean): Promise<void> {
  while (!so()) await new Promise((resolve) => setImmediate(resolve));
}

const text = (says: string): Buffer => Buffer.from(says);
const signs = (): Request[] => gateway.seen.filter((one) => one.type === 2);
const fails = (check: Partial<HsmError>) => (thrown: unknown) => {
  assert.ok(thrown instanceof HsmError, String(thrown));
  assert.deepEqual(Object.fromEntries(Object.keys(check).map((name) => [name, thrown[name as keyof HsmError]])), check);
  return true;
};

function valid(message: Uint8Array, { signature, publicKey }: Pick<Receipt, "signature" | "publicKey">): boolean {
  const der = Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), publicKey]);
  return verify(null, message, { key: der, format: "der", type: "spki" }, signature);
}

suite("answers", { timeout: 100_000 }, () => {
  test("many requests of one turn are one write, and each gets its own signature", async (context) => {
    const client = await connected();
    const messages = Array.from({ length: 200 }, (_, n) => text(`message ${n}`));
    const write = context.mock.method(Socket.prototype, "write");
    const receipts = await Promise.all(messages.map((message) => client.sign(message)));
    receipts.forEach((receipt, n) => assert.ok(valid(messages[n]!, receipt)));
    assert.equal(new Set(signs().map((one) => one.request)).size, 200);
    const gateways = [...gateway.connections].map((one) => one.socket);
    const written = write.mock.calls
      .filter((call) => !gateways.includes(call.this as Socket))
      .map((call) => call.arguments[0] as Buffer);
    // All of them, then what need not be remembered.
    assert.equal(written.filter((data) => data[4] === 2).length, 1);
    assert.ok(written.length <= 2);
  });

  test("answers come in any order", async () => {
    const client = await connected();
    const held: Request[] = [];
    gateway.take = (one) => {
      if (one.type === 2) held.push(one);
    };
    const messages = ["a", "b", "c", "d"].map(text);
    const promises = messages.map((message) => client.sign(message));
    await until(() => held.length === 4);
    for (const one of held.toReversed()) gateway.serve(one);
    (await Promise.all(promises)).forEach((receipt, n) => assert.ok(valid(messages[n]!, receipt)));
  });

  test("an error says what the gateway says", async () => {
    const client = await connected();
    gateway.take = (one) =>
      one.connection.send(
        134,
        one.request,
        error("QUEUE_FULL", { flags: 1, kind: "RETRY", retryAfterMs: 40, text: "full" }),
      );
    const wanted = {
      status: "QUEUE_FULL",
      class: "RETRY",
      retryable: true,
      maybeSigned: false,
      retryAfterMs: 40,
      message: "full",
    };
    await assert.rejects(client.sign(text("x")), fails(wanted));
  });

  test("no more requests are open than the gateway gave credits, over all connections", async () => {
    gateway.credits = 10;
    const client = await connected({ connections: 3 });
    let [open, most] = [0, 0];
    const held: Request[] = [];
    gateway.take = (one) => {
      if (one.type !== 2) return;
      most = Math.max(most, ++open);
      held.push(one);
    };
    const promises = Array.from({ length: 100 }, (_, n) => client.sign(text(`${n}`)));
    for (let served = 0; served < 100; served++) {
      await until(() => held.length > 0);
      open--;
      gateway.serve(held.shift()!);
    }
    await Promise.all(promises);
    assert.equal(most, 10);
    assert.equal(gateway.greetings.length, 3);
    assert.equal(new Set(gateway.greetings.map((one) => one.nonce)).size, 3);
  });

  test("new credits let waiting requests go", async () => {
    gateway.credits = 0;
    const client = await connected();
    const promise = client.sign(text("x"));
    const four = Buffer.alloc(4);
    four.writeUInt32LE(5);
    for (const one of gateway.connections) one.send(136, 0, four);
    assert.ok(valid(text("x"), await promise));
  });

  test("more requests than may wait are refused at once", async () => {
    gateway.credits = 1;
    gateway.take = () => undefined;
    const client = await connected({ maxWaiting: 3, timeoutMs: 100 });
    const promises = Array.from({ length: 4 }, () => client.sign(text("x")));
    await assert.rejects(client.sign(text("x")), fails({ status: "QUEUE_FULL", retryable: true, maybeSigned: false }));
    for (const one of promises) await assert.rejects(one, fails({ status: "DEADLINE_EXCEEDED" }));
  });

  test("the gateway is told what it need not remember", async () => {
    const client = await connected();
    const promises = Array.from({ length: 100 }, (_, n) => client.sign(text(`${n}`)));
    await Promise.all(promises);
    await client.sign(text("last"));
    await until(() => gateway.seen.some((one) => one.type === 6 && one.request > 90));
    for (const { type, request } of gateway.seen) assert.ok(type !== 6 || request <= 101);
  });

  test("what cannot be signed is refused here", async () => {
    const client = await connected();
    await assert.rejects(client.sign("text" as never), fails({ status: "BAD_ARGUMENT" }));
    await assert.rejects(client.sign(Buffer.alloc(0)), fails({ status: "BAD_ARGUMENT" }));
    await assert.rejects(client.sign(Buffer.alloc(16_385)), fails({ status: "MESSAGE_TOO_LARGE" }));
    await assert.rejects(client.sign(text("x"), { key: "other" }), fails({ status: "POLICY_REFUSED" }));
    await assert.rejects(client.sign(text("x"), { keyId: "unknown" }), fails({ status: "KEY_NOT_FOUND" }));
    await assert.rejects(client.sign(text("x"), { timeoutMs: -1 }), fails({ status: "BAD_ARGUMENT" }));
    await assert.rejects(client.sign(text("x"), { kind: "other" as never }), fails({ status: "BAD_ARGUMENT" }));
    for (const position of [-1, 0.5, 2n ** 64n]) {
      await assert.rejects(client.sign(text("x"), { position }), fails({ status: "BAD_ARGUMENT" }));
    }
    await assert.rejects(client.signMany([text("x"), Buffer.alloc(0)]), fails({ status: "BAD_ARGUMENT" }));
    assert.deepEqual(await client.signMany([]), []);
    assert.equal(gateway.seen.length, 0);
  });

  test("a message that changes after the call is signed as it was", async () => {
    const client = await connected();
    const message = text("before");
    const promise = client.sign(message);
    message.write("behind");
    assert.ok(valid(text("before"), await promise));
  });
});

suite("deadlines and withdrawals", { timeout: 100_000 }, () => {
  test("a request that is not answered ends with its deadline, and is withdrawn", async () => {
    const client = await connected();
    gateway.take = (one) => void gateway.seen.push(one);
    const wanted = { status: "DEADLINE_EXCEEDED", retryable: true, maybeSigned: true };
    await assert.rejects(client.sign(text("x"), { timeoutMs: 30 }), fails(wanted));
    await until(() => gateway.seen.some((one) => one.type === 5));
    const [sign, cancel] = gateway.seen;
    assert.ok(sign!.body.readUInt32LE(1) <= 30);
    assert.equal(cancel!.request, sign!.request);
  });

  test("the gateway's word about the deadline counts, if it comes soon after", async ({ mock }) => {
    const client = await connected();
    const held: Request[] = [];
    gateway.take = (one) => void held.push(one);
    mock.timers.enable({ apis: ["setTimeout"] });
    const promise = client.sign(text("x"), { timeoutMs: 20 });
    await until(() => held.length === 1);
    mock.timers.tick(30);
    held[0]!.connection.send(134, held[0]!.request, error("DEADLINE_EXCEEDED", { flags: 1, kind: "RETRY" }));
    await assert.rejects(promise, fails({ status: "DEADLINE_EXCEEDED", maybeSigned: false }));

    const late = client.sign(text("x"), { timeoutMs: 20 });
    await until(() => held.length === 2);
    mock.timers.tick(300);
    await assert.rejects(late, fails({ status: "DEADLINE_EXCEEDED", maybeSigned: true }));
    mock.timers.reset();
  });

  test("an AbortSignal withdraws a request that was sent, whose credits are taken until it is answered", async () => {
    gateway.credits = 1;
    const client = await connected();
    gateway.take = (one) => void gateway.seen.push(one);
    const control = new AbortController();
    const promise = client.sign(text("x"), { signal: control.signal });
    await until(() => gateway.seen.length === 1);
    const next = client.sign(text("next"));
    control.abort("enough");
    await assert.rejects(promise, fails({ status: "CANCELLED", maybeSigned: true, cause: "enough" }));
    await until(() => gateway.seen.length === 2);
    assert.deepEqual(
      gateway.seen.map((one) => one.type),
      [2, 5],
    );
    gateway.take = gateway.serve;
    gateway.serve(gateway.seen[1]!);
    assert.ok(valid(text("next"), await next));
  });

  test("an AbortSignal keeps a request that waits from being sent", async () => {
    gateway.credits = 0;
    const client = await connected();
    const control = new AbortController();
    const promise = client.sign(text("x"), { signal: control.signal });
    control.abort();
    await assert.rejects(promise, fails({ status: "CANCELLED", maybeSigned: false }));
    await assert.rejects(client.sign(text("x"), { signal: AbortSignal.abort() }), fails({ status: "CANCELLED" }));
    assert.equal(gateway.seen.length, 0);
  });
});

suite("a connection that breaks", { timeout: 100_000 }, () => {
  test("the same gateway is asked again, with the same number, the same bytes and the flag", async () => {
    const client = await connected();
    gateway.take = (one) => {
      gateway.seen.push(one);
      if (gateway.seen.length === 2) {
        gateway.take = gateway.serve;
        gateway.drop();
      }
    };
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
      setTimeout(() => gateway.drop(), 20);
    };
    await assert.rejects(client.sign(text("x")), fails({ status: "HOST_LOST", maybeSigned: true }));
    assert.equal(gateway.seen.length, 1);
  });

  test("a verification is asked again as a new request, an operation on a key is not", async () => {
    const client = await connected();
    gateway.take = (one) => {
      gateway.seen.push(one);
      if (gateway.seen.length === 2) {
        gateway.take = gateway.serve;
        gateway.drop();
      }
    };
    const [verified, managed] = await Promise.allSettled([
      client.verify(text("x"), Buffer.alloc(64)),
      client.manage("generate"),
    ]);
    assert.deepEqual(verified, { status: "fulfilled", value: true });
    assert.ok(managed.status === "rejected" && fails({ status: "HOST_LOST", retryable: false })(managed.reason));
    assert.deepEqual(
      gateway.seen.map((one) => one.type),
      [4, 8, 4],
    );
    assert.notEqual(gateway.seen[0]!.request, gateway.seen[2]!.request);
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

  test("a connection without a sign of life is given up", async () => {
    const client = await connected({ pingMs: 20 });
    const silent = [...gateway.connections];
    gateway.take = (one) => {
      if (!silent.includes(one.connection)) gateway.serve(one);
    };
    assert.ok(valid(text("x"), await client.sign(text("x"))));
    assert.ok(gateway.greetings.length >= 2);
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

suite("the end", { timeout: 100_000 }, () => {
  const goaway = (): void => {
    const body = Buffer.from([100, 0, 0, 0, 4, ...text("over")]);
    for (const one of gateway.connections) one.send(137, 0, body);
  };

  test("a gateway that goes away answers what is open; what it refuses goes to the next one", async () => {
    const client = await connected();
    const held: Request[] = [];
    gateway.take = (one) => void held.push(one);
    const first = client.sign(text("first"));
    await until(() => held.length === 1);
    const second = client.sign(text("second"));
    goaway(); // the second is on its way
    await until(() => held.length === 2);
    const third = client.sign(text("third"));
    gateway.take = gateway.serve;
    held[1]!.connection.send(134, held[1]!.request, error("BUSY", { flags: 1, kind: "RETRY" }));
    gateway.serve(held[0]!);
    for (const [said, promise] of [
      ["first", first],
      ["second", second],
      ["third", third],
    ] as const) {
      assert.ok(valid(text(said), await promise));
    }
    assert.equal(gateway.greetings.length, 2);
  });

  test("a client that is closed waits for what was sent, and takes no more", async () => {
    gateway.credits = 1;
    const client = await connected();
    const held: Request[] = [];
    gateway.take = (one) => {
      if (one.type === 2) held.push(one);
      if (one.type === 7) gateway.serve(one);
    };
    const control = new AbortController();
    const withdrawn = client.sign(text("withdrawn"), { signal: control.signal });
    await until(() => held.length === 1);
    control.abort();
    await assert.rejects(withdrawn, fails({ status: "CANCELLED" }));
    gateway.serve(held.shift()!); // too late, and counted once
    await client.ping();
    const sent = client.sign(text("sent"));
    const waits = client.sign(text("waits"));
    await until(() => held.length === 1);
    let over = false;
    const closed = client.close().then(() => (over = true));
    await assert.rejects(waits, fails({ status: "CLOSED", maybeSigned: false }));
    await assert.rejects(client.sign(text("late")), fails({ status: "CLOSED" }));
    await new Promise((resolve) => setImmediate(resolve));
    assert.ok(!over);
    gateway.serve(held[0]!);
    assert.ok(valid(text("sent"), await sent));
    await closed;
    assert.ok((Reflect.get(client, "links") as object[]).every((link) => Reflect.get(link, "socket") === undefined));
    await until(() => gateway.connections.size === 0);
  });

  test("a gateway that is not there is said with its address and what to do", async () => {
    await gateway.stop();
    const client = new Client({ address: gateway.address, connectTimeoutMs: 1_000 });
    await assert.rejects(client.connect(), (thrown) => {
      assert.ok(fails({ status: "HOST_LOST", retryable: true })(thrown));
      assert.match(String(thrown), /sign\.sock.*ENOENT.*hsmcore gateway/);
      return true;
    });
    await assert.rejects(client.sign(text("x")), fails({ status: "CLOSED" }));
  });

  test("a gateway that comes a moment later is waited for", async () => {
    await gateway.stop();
    const client = new Client({ address: gateway.address, connectTimeoutMs: 60_000 });
    clients.push(client);
    const connecting = client.connect();
    await gateway.listen();
    await connecting;
    await client.ping();
  });

  test("a gateway that refuses this client is not asked again", async () => {
    gateway.greet = (connection) => {
      connection.send(134, 0, error("POLICY_REFUSED", { text: "uid 7 is no client" }));
      connection.socket.end();
    };
    const client = new Client({ address: gateway.address });
    await assert.rejects(client.connect(), fails({ status: "POLICY_REFUSED", message: "uid 7 is no client" }));
    assert.equal(gateway.greetings.length, 1);
  });

  test("an address that is none is refused", async () => {
    for (const address of ["sign.sock", "tls:host", "http://host:1"]) {
      await assert.rejects(new Client({ address }).connect(), fails({ status: "BAD_ARGUMENT" }));
    }
    assert.throws(() => new Client({ address: "unix:x", connections: 0 }), fails({ status: "BAD_ARGUMENT" }));
  });
});
