/** The client against a gateway that breaks: who gets which answer, and when. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { Socket } from "node:net";
import { suite, test } from "node:test";

import { Client, type HsmError } from "hsmcore-client";

import { connected, ends, fails, gateway, signs, text, until, valid } from "./fixture.js";
import { error, type Request } from "./gateway.js";

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

  test("a client that ends says that nothing need be remembered", async () => {
    const client = await connected();
    await client.sign(text("x"));
    await client.close();
    await until(() => gateway.seen.some((one) => one.type === 6 && one.request === 2));
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
    // Repeated until its deadline, which is a minute by default here.
    await assert.rejects(client.sign(text("x"), { timeoutMs: 500 }), fails(wanted));
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

  test("what the gateway has no room for is sent again when it says so", async () => {
    let refused = 0;
    gateway.take = (one) => {
      if (one.type === 6 || refused++ >= 30) return gateway.serve(one);
      const full = error("QUEUE_FULL", { flags: 1, retryAfterMs: 10, kind: "RETRY" });
      one.connection.send(134, one.request, full);
    };
    const client = await connected();
    const promises = Array.from({ length: 10 }, (_, n) => client.sign(text(`${n}`)));
    assert.equal(await client.manage("cache-stats"), '{"hits": 3}');
    (await Promise.all(promises)).forEach((one, n) => assert.ok(valid(text(`${n}`), one)));
    assert.ok(refused >= 41);
    const numbers = gateway.seen.filter((one) => one.type === 2).map((one) => one.request);
    assert.equal(new Set(numbers).size, numbers.length);
  });

  test("that it has no room is said at once if there is none before the deadline", async () => {
    gateway.take = (one) =>
      one.connection.send(134, one.request, error("QUEUE_FULL", { flags: 1, retryAfterMs: 90_000, kind: "RETRY" }));
    const client = await connected();
    const expected = { status: "QUEUE_FULL", retryable: true, retryAfterMs: 90_000, maybeSigned: false };
    await assert.rejects(client.sign(text("x")), fails(expected));
  });

  test("requests for one key wait for none of another", async () => {
    const held: Request[] = [];
    gateway.names = ["default", "hangs"];
    gateway.credits = 2;
    gateway.take = (one) => (one.slot === 1 ? void held.push(one) : gateway.serve(one));
    const client = await connected();
    const hang = Array.from({ length: 5 }, () => client.sign(text("x"), { key: "hangs" }));
    await until(() => held.length === 2);
    const signed = await Promise.all(Array.from({ length: 20 }, (_, n) => client.sign(text(`${n}`))));
    signed.forEach((one, n) => assert.ok(valid(text(`${n}`), one)));
    assert.equal(held.length, 2);
    gateway.take = gateway.serve;
    held.forEach((one) => gateway.serve(one));
    for (const one of hang) await assert.rejects(one, fails({ status: "KEY_NOT_CURRENT" })); // it has none
  });

  test("one signal may be that of many requests", async () => {
    const warned: Error[] = [];
    const note = (warning: Error): void => void warned.push(warning);
    process.on("warning", note);
    const client = await connected();
    const { signal } = new AbortController();
    await Promise.all(Array.from({ length: 50 }, (_, n) => client.sign(text(`${n}`), { signal })));
    await new Promise((resolve) => setImmediate(resolve));
    process.off("warning", note);
    assert.deepEqual(warned, []);
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
    mock.timers.reset();
  });

  test("requests with deadlines in any order share a timer, and none fails before its own", async ({ mock }) => {
    const client = await connected();
    gateway.take = () => undefined;
    const timers = mock.method(globalThis, "setTimeout");
    const late = [120, 20, ...Array<number>(50).fill(70)].map(async (timeoutMs) => {
      const began = performance.now();
      await assert.rejects(client.sign(text("x"), { timeoutMs }), fails({ status: "DEADLINE_EXCEEDED" }));
      assert.ok(performance.now() - began >= timeoutMs);
    });
    assert.equal(timers.mock.callCount(), 2);
    await Promise.all(late);
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
    const client = ends(new Client({ address: gateway.address, connectTimeoutMs: 60_000 }));
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

  test("of TLS, a file that is missing is named, and the hint leads to the files", async () => {
    const client = new Client({ address: "tls:127.0.0.1:1", caFile: "/absent.pem", connectTimeoutMs: 50 });
    await assert.rejects(client.connect(), ({ message, hint }: HsmError) => {
      assert.match(message, /\/absent\.pem/);
      assert.match(hint, /caFile, certFile and keyFile/);
      return true;
    });
  });

  test("an address that is none is refused", async () => {
    for (const address of ["sign.sock", "tls:host", "http://host:1"]) {
      await assert.rejects(new Client({ address }).connect(), fails({ status: "BAD_ARGUMENT" }));
    }
    const names = ["connections", "timeoutMs", "maxWaiting", "connectTimeoutMs", "maxBackoffMs", "pingMs"];
    for (const name of names) {
      for (const wrong of [0, -1, 1.5, NaN, Infinity, 2 ** 31, "1", null]) {
        const options = { address: "unix:x", [name]: wrong };
        assert.throws(() => new Client(options as never), fails({ status: "BAD_ARGUMENT" }), `${name}: ${wrong}`);
      }
      new Client({ address: "unix:x", [name]: undefined } as never);
    }
    assert.throws(() => new Client({ address: "unix:x", connections: 65 }), fails({ status: "BAD_ARGUMENT" }));
    assert.throws(() => new Client({ address: "unix:x", pingMs: 9 }), fails({ status: "BAD_ARGUMENT" }));
  });
});
