/** A client of several gateways, of which one holds the epoch. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { sign as signWith } from "node:crypto";
import { basename } from "node:path";
import { afterEach, beforeEach, suite, test } from "node:test";

import { Client, type ClientOptions, HsmError } from "hsmcore-client";

import { ends, fails, text, until, valid } from "./fixture.js";
import { error, makeKey, messagesOf, type Request, TestGateway } from "./gateway.js";

let gateways: TestGateway[] = [];

/** Its host's name in the fleet. */
const nameOf = (gateway: TestGateway): string => basename(gateway.folder);
const signsAt = (gateway: TestGateway): Request[] => gateway.seen.filter((one) => one.type === 2 || one.type === 3);

/** NOT_HOLDER. */
function unheld(holder = "", flags = 1): Buffer {
  return error("NOT_HOLDER", { flags, kind: "RETRY", text: `held elsewhere${holder && `\nholder: ${holder}`}` });
}

/** Have a gateway hold no epoch: which messages of a batch does it refuse? */
function refuses(gateway: TestGateway, holder = "", flags = 1, which = (_: Buffer): boolean => true): void {
  gateway.take = (one) => {
    if (one.type !== 2 && one.type !== 3) return gateway.serve(one);
    gateway.seen.push(one);
    if (one.type === 2) return one.connection.send(134, one.request, unheld(holder, flags));
    const outcomes = messagesOf(one.body).map((message) => {
      const outcome = which(message) ? unheld(holder, flags) : signWith(null, message, gateway.keys[0]!.secret);
      return Buffer.concat([
        Buffer.from([which(message) ? 1 : 0, outcome.length & 0xff, outcome.length >> 8]),
        outcome,
      ]);
    });
    const head = Buffer.alloc(6);
    head.writeUInt32LE(one.body.readUInt32LE(5), 0);
    head.writeUInt16LE(outcomes.length, 4);
    one.connection.send(131, one.request, Buffer.concat([head, ...outcomes]));
  };
}

const serves = (gateway: TestGateway): void => void (gateway.take = (one) => gateway.serve(one));
const accepted = (): number => gateways.reduce((sum, one) => sum + one.greetings.length, 0);

async function connected(options: Partial<ClientOptions> = {}): Promise<Client> {
  const address = gateways.map((one) => one.address);
  const client = ends(new Client({ address, timeoutMs: 60_000, connectTimeoutMs: 60_000, ...options }));
  await client.connect();
  return client;
}

suite("several gateways", { timeout: 100_000 }, () => {
  beforeEach(async () => {
    const keys = [makeKey(1)];
    gateways = [new TestGateway(), new TestGateway(), new TestGateway()];
    for (const one of gateways) {
      one.keys = keys;
      await one.listen();
    }
  });

  afterEach(async () => {
    await Promise.all(gateways.map((one) => one.end()));
  });

  test("dead addresses are passed over, and told once", async () => {
    const alive = gateways[2]!;
    const client = ends(
      new Client({ address: `unix:/nowhere/at/all, unix:/nowhere/else,${alive.address}`, timeoutMs: 60_000 }),
    );
    const told: string[] = [];
    client.on("unusable", ({ address }) => told.push(address));
    await client.connect();
    assert.ok(valid(text("x"), await client.sign(text("x"))));
    refuses(alive);
    const later = client.sign(text("y"));
    await until(() => alive.greetings.length >= 4);
    serves(alive);
    assert.ok(valid(text("y"), await later));
    assert.deepEqual(told, ["unix:/nowhere/at/all", "unix:/nowhere/else"]);
  });

  test("the holder is next if its name is known", async () => {
    const [first, second, third] = gateways as [TestGateway, TestGateway, TestGateway];
    const client = await connected({ connections: 3 });
    refuses(first, nameOf(third));
    const messages = Array.from({ length: 100 }, (_, n) => text(`${n}`));
    const receipts = await Promise.all(messages.map((message) => client.sign(message)));
    receipts.forEach((receipt, n) => assert.ok(valid(messages[n]!, receipt)));
    assert.equal(second.greetings.length, 0);
    await until(() => first.connections.size === 0 && third.connections.size === 3);
  });

  test("without a name the next ones are asked in turn", async () => {
    const [first, second, third] = gateways as [TestGateway, TestGateway, TestGateway];
    for (const one of [first, second]) refuses(one, "a host without an address");
    const client = await connected();
    assert.ok(valid(text("x"), await client.sign(text("x"))));
    assert.deepEqual(
      [first, second, third].map((one) => signsAt(one).length),
      [1, 1, 1],
    );
  });

  test("of a batch, those are signed by the next one that were refused", async () => {
    const [first, second] = gateways as [TestGateway, TestGateway];
    const client = await connected();
    const messages = Array.from({ length: 20 }, (_, n) => text(`${n}`));
    refuses(first, nameOf(second), 3, (message) => Number(message) % 2 === 0);
    for (const wanted of [10, 20]) {
      const outcomes = await client.signMany(messages);
      const publicKey = first.keys[0]!.publicKey;
      outcomes.forEach((one, n) => {
        assert.ok(!(one instanceof HsmError), String(one));
        assert.ok(valid(messages[n]!, { signature: one, publicKey }));
      });
      assert.equal(messagesOf(signsAt(second).at(-1)!.body).length, wanted);
    }
  });

  test("a fleet without a holder is not stormed", async () => {
    const client = await connected();
    for (const one of gateways) refuses(one);
    const asked = Array.from({ length: 500 }, (_, n) => client.sign(text(`${n}`), { timeoutMs: 1_500 }));
    for (const one of await Promise.allSettled(asked)) {
      assert.equal(one.status, "rejected");
      const { status, retryable, maybeSigned } = (one as PromiseRejectedResult).reason as HsmError;
      assert.ok(status === "NOT_HOLDER" || status === "DEADLINE_EXCEEDED", status);
      assert.deepEqual([retryable, maybeSigned], [true, false]);
    }
    // At first what the credits allow, then one for each look at a gateway: some rounds in 1.5 s, or fewer.
    const tries = gateways.reduce((sum, one) => sum + signsAt(one).length, 0);
    assert.ok(tries <= gateways[0]!.credits + 3 * 14, `${tries}`);
    serves(gateways[1]!);
    await Promise.all(Array.from({ length: 50 }, (_, n) => client.sign(text(`${n}`))));
  });

  test("a holder that is not sure of it is asked again", async () => {
    const [first] = gateways as [TestGateway];
    const client = await connected();
    refuses(first, nameOf(first));
    const asked = client.sign(text("block"));
    await until(() => signsAt(first).length >= 3);
    serves(first);
    assert.ok(valid(text("block"), await asked));
    assert.deepEqual(
      gateways.map((one) => one.greetings.length),
      [1, 0, 0],
    );
  });

  test("what may have been signed is signed again by the same Ed25519 key only", async () => {
    const [first, second] = gateways as [TestGateway, TestGateway];
    refuses(first, nameOf(second), 3);
    const client = await connected();
    assert.ok(valid(text("withheld"), await client.sign(text("withheld"))));
    second.keys = [{ ...second.keys[0]!, current: false }, makeKey(2)];
    await client.close();
    const other = await connected();
    await assert.rejects(other.sign(text("withheld, too")), fails({ status: "KEY_NOT_CURRENT", maybeSigned: true }));
    await other.close();
    for (const one of gateways) one.keys = [makeKey(1, 2)];
    const ecdsa = await connected();
    await assert.rejects(ecdsa.sign(text("once")), fails({ status: "NOT_HOLDER", maybeSigned: true, retryable: true }));
  });

  test("one address is refused at once", async () => {
    const [first] = gateways as [TestGateway];
    const client = await connected({ address: first.address });
    refuses(first, "signer-2");
    const says = { status: "NOT_HOLDER", holder: "signer-2", retryable: true, maybeSigned: false };
    await assert.rejects(client.sign(text("x")), fails(says));
    const [outcome] = await client.signMany([text("x")]);
    fails(says)(outcome);
    assert.equal(signsAt(first).length, 2);
  });

  test("a gateway of another fleet is passed over", async () => {
    const [first, strange, third] = gateways as [TestGateway, TestGateway, TestGateway];
    strange.keys = [makeKey(1)];
    const client = await connected();
    const told: HsmError[] = [];
    client.on("unusable", ({ error }) => told.push(error));
    refuses(first);
    assert.ok(valid(text("x"), await client.sign(text("x"))));
    refuses(third);
    const asked = client.sign(text("y"));
    await until(() => strange.greetings.length >= 3);
    serves(first);
    await asked;
    assert.equal(signsAt(strange).length, 0);
    assert.deepEqual(
      told.map(({ status }) => status),
      ["KEY_MISMATCH"],
    );
  });

  test("a client that is closed while it moves leaves nothing", async () => {
    for (const one of gateways) refuses(one);
    const left = (): string[] =>
      process.getActiveResourcesInfo().filter((name) => /Timeout|PipeWrap|PipeConnect|TCPSocket/.test(name));
    await until(() => gateways.every((one) => one.connections.size === 0));
    let before = Infinity; // what the tests before this one leave goes by and by
    for (let more = 1; more < 8; more++) {
      const address = ["unix:/nowhere/at/all", ...gateways.map((one) => one.address)];
      before = Math.min(before, left().length);
      const client = new Client({ address, connections: 2, timeoutMs: 300 });
      await client.connect();
      const seen = accepted();
      const asked = Promise.allSettled([1, 2, 3].map((n) => client.sign(text(`${n}`))));
      await until(() => accepted() >= seen + more);
      await client.close();
      for (const one of await asked) assert.equal(one.status, "rejected");
      await until(() => gateways.every((one) => one.connections.size === 0));
      await until(() => left().length <= before);
    }
  });
});
