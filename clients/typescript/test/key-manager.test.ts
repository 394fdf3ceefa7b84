/** The factory and its key manager, and the two forms of the package. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { execFile } from "node:child_process";
import { generateKeyPairSync, sign } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, suite, test } from "node:test";
import { promisify } from "node:util";

import { HsmError, KeyManagerFactory } from "hsmcore-client";

import { error, makeKey, TestGateway, type TestKey } from "./gateway.js";

let gateway: TestGateway;

beforeEach(async () => {
  gateway = new TestGateway();
  await gateway.listen();
});
afterEach(() => gateway.end());

suite("the factory", { timeout: 100_000 }, () => {
  test("takes the gateway's address from the configuration, else from the environment", async () => {
    const own = KeyManagerFactory.create({
      type: "aws-cloudhsm",
      config: { password: "x" },
      gateway: { address: gateway.address },
    });
    await own.initialize();
    await own.close();
    process.env["HSMCORE_GATEWAY"] = gateway.address;
    try {
      const other = KeyManagerFactory.create({ type: "softhsm" });
      await other.initialize();
      await other.close();
    } finally {
      delete process.env["HSMCORE_GATEWAY"];
    }
    assert.equal(gateway.greetings.length, 2);
  });

  test("says what to do without an address, and what it does not know", () => {
    assert.throws(
      () => KeyManagerFactory.create({ type: "softhsm" }),
      /keyManager\.gateway\.address.*HSMCORE_GATEWAY.*unix:/,
    );
    const misspelt = { gateway: { address: "unix:x", adress: "unix:y" } } as never;
    assert.throws(() => KeyManagerFactory.create(misspelt), /no option "adress"/);
  });

  test("has the options that its README lists", () => {
    const page = readFileSync(new URL("../../README.md", import.meta.url), "utf8");
    const rows = [...page.matchAll(/^\| (`\w+`(?:, `\w+`)*) \| /gm)].flatMap((row) =>
      row[1]!.replaceAll("`", "").split(", "),
    );
    const listed = rows.slice(0, rows.indexOf("retryable"));
    assert.throws(
      () => KeyManagerFactory.create({ gateway: { address: "unix:x", other: 1 } as never }),
      (error) => error instanceof HsmError && (assert.equal(error.hint, `There are ${listed.join(", ")}.`), true),
    );
  });

  test("keeps nothing of the HSM's own configuration", () => {
    const manager = KeyManagerFactory.create({
      config: { password: "hush-hush" },
      gateway: { address: gateway.address },
    });
    const seen = new Set<unknown>();
    const walk = (value: unknown): void => {
      assert.notEqual(value, "hush-hush");
      if (typeof value !== "object" || value === null || seen.has(value)) return;
      seen.add(value);
      Object.values(value).forEach(walk);
    };
    walk(manager);
    assert.ok(seen.size > 5);
  });
});

suite("the key manager", { timeout: 100_000 }, () => {
  test("initializes again after it has failed", async () => {
    const options = { address: gateway.address, connections: 2, connectTimeoutMs: 50 };
    const manager = KeyManagerFactory.create({ gateway: options });
    await gateway.stop();
    await assert.rejects(Promise.all([manager.initialize(), manager.initialize()]), /gateway/);
    await assert.rejects(manager.sign(Buffer.from("x")), /initialize/);
    const { greet } = gateway;
    gateway.greet = (connection) => connection.send(134, 0, error("POLICY_REFUSED"));
    await gateway.listen();
    await assert.rejects(manager.initialize(), (thrown) => thrown instanceof HsmError);
    gateway.greet = greet;
    for (let ready = false; !ready;) {
      await manager.initialize().then(
        () => (ready = true),
        () => undefined, // on a busy machine
      );
    }
    assert.equal((await manager.sign(Buffer.from("x"))).length, 64);
    await manager.close();
  });

  test("verifies by itself, under each version that the gateway has told", async () => {
    const [first, second, stranger] = [makeKey(1, 1, false), makeKey(2), makeKey(3)];
    second.id = "0aff";
    gateway.keys = [first, second];
    const manager = KeyManagerFactory.create({ gateway: { address: gateway.address } });
    const message = Buffer.from("x");
    const by = (key: TestKey) => sign(null, message, key.secret);
    await assert.rejects(manager.verify(message, by(first)), /initialize/);
    await manager.initialize();
    assert.ok(await manager.verify(message, by(first)));
    assert.ok(await manager.verify(message, new Uint8Array(by(second)), ` 0A ff`));
    assert.ok(await manager.verify(message, by(first), first.id));
    for (const [signature, id] of [
      [by(stranger)],
      [by(first), second.id],
      [Buffer.alloc(64)],
      [by(first).subarray(1)],
      [Buffer.alloc(0)],
    ] as const) {
      assert.equal(await manager.verify(message, signature, id), false);
    }
    assert.equal(await manager.verify(Buffer.alloc(0), by(first)), false);
    const unknown = (error: unknown) => error instanceof HsmError && error.status === "KEY_NOT_FOUND";
    await assert.rejects(manager.verify(message, by(stranger), stranger.id), unknown);
    for (const wrong of [undefined, "x", [1]] as never[]) {
      await assert.rejects(manager.verify(wrong, by(first)), /Uint8Array/);
      await assert.rejects(manager.verify(message, wrong), /Uint8Array/);
    }
    assert.deepEqual(gateway.seen, [], "nothing was asked"); // and it would call all good
    await manager.close();
    await assert.rejects(manager.verify(message, by(first)), /closed/);
  });

  test("verifies ECDSA as strictly as the signer: a low s, a point of the curve", async () => {
    const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "secp256k1" });
    const point = publicKey.export({ format: "der", type: "spki" }).subarray(-65);
    const told = (raw: Buffer) => ({ ...makeKey(1, 3), publicKey: Buffer.from(raw), secret: privateKey });
    const message = Buffer.from("x");
    const order = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n;
    const made = sign("sha256", message, { key: privateKey, dsaEncoding: "ieee-p1363" });
    const s = BigInt(`0x${made.toString("hex", 32)}`);
    const other = Buffer.concat([made.subarray(0, 32), Buffer.from((order - s).toString(16).padStart(64, "0"), "hex")]);
    const [low, high] = s <= order / 2n ? [made, other] : [other, made];
    const off = Buffer.from(point);
    off[64]! ^= 1;
    for (const [raw, signature, good] of [
      [point, low, true],
      [point, high, false],
      [off, low, false],
    ] as const) {
      gateway.keys = [told(raw)];
      const manager = KeyManagerFactory.create({ gateway: { address: gateway.address } });
      await manager.initialize();
      assert.equal(await manager.verify(message, signature), good);
      await manager.close();
    }
  });

  test("does what the sequencer asks it for", async () => {
    gateway.keys = [makeKey(1), makeKey(2, 1, false)];
    const manager = KeyManagerFactory.create({ gateway: { address: gateway.address } });
    const told: string[] = [];
    for (const name of ["initialized", "connected", "disconnected", "keys", "closed"] as const)
      manager.on(name, () => told.push(name));
    assert.throws(() => manager.currentKey(), HsmError);
    await assert.rejects(manager.sign(Buffer.from("x")), /initialize/);
    await Promise.all([manager.initialize(), manager.initialize()]);
    assert.equal((await manager.sign(Buffer.from("x"))).length, 64);
    assert.equal(await manager.getCurrentKeyId(), gateway.keys[0]!.id);
    assert.deepEqual(await manager.getCacheStats(), { hits: 3 });
    await manager.deactivateKey("some");
    assert.equal(await manager.generateKey(), '{"hits": 3}');
    const { body } = gateway.seen.find((one) => one.type === 8 && one.body[0] === 3)!;
    assert.equal(body.toString("latin1", 2), "some");
    await manager.close();
    assert.deepEqual(told, ["connected", "keys", "initialized", "closed"]);
    await assert.rejects(manager.sign(Buffer.from("x")), /closed/);
  });

  test("tells of a key that it has made the current one", async () => {
    const [first, second] = [makeKey(1), makeKey(2, 1, false)];
    gateway.keys = [first, second];
    const manager = KeyManagerFactory.create({ gateway: { address: gateway.address } });
    await manager.initialize();
    gateway.take = (one) => {
      gateway.keys = [
        { ...first, current: false },
        { ...second, current: true },
      ];
      one.connection.send(138, one.request);
      one.connection.sendKeys();
    };
    const rotated = once(manager, "key-rotated");
    await manager.setCurrentKeyId(second.id);
    assert.equal(await manager.getCurrentKeyId(), second.id);
    assert.equal((await rotated)[0].current.id, second.id);
    await manager.close();
  });
});

suite("the package", { timeout: 60_000 }, () => {
  test("is the same for import and require", async () => {
    const require = createRequire(import.meta.url);
    for (const name of ["hsmcore-client", "hsmcore-client/solana", "hsmcore-client/wire"]) {
      const [esm, cjs] = [(await import(name)) as object, require(name) as object];
      assert.deepEqual(
        Object.keys(cjs)
          .filter((each) => each !== "__esModule")
          .sort(),
        Object.keys(esm).sort(),
      );
    }
    const { KeyManagerFactory: Factory } = require("hsmcore-client") as {
      KeyManagerFactory: typeof KeyManagerFactory;
    };
    const manager = Factory.create({ gateway: { address: gateway.address } });
    await manager.initialize();
    assert.equal((await manager.sign(Buffer.from("x"))).length, 64);
    await manager.close();
  });

  test("needs nothing at run time but Node's own modules", async () => {
    const inventory = 'process.on("exit", () => console.log(Object.keys(require.cache).join("\\n")));';
    const program = `${inventory} for (const name of ["", "/solana", "/wire"]) require("hsmcore-client" + name);`;
    const cwd = fileURLToPath(new URL("../..", import.meta.url));
    const { stdout } = await promisify(execFile)(process.execPath, ["-e", program], { cwd });
    const loaded = stdout.trim().split("\n");
    assert.ok(loaded.length >= 7);
    assert.deepEqual(
      loaded.filter((file) => !file.includes("/dist/cjs/")),
      [],
    );
  });

  test("does its work whatever a listener throws", async () => {
    const program = `
      import { KeyManagerFactory } from "hsmcore-client";
      const thrown = [];
      process.on("uncaughtException", (error) => thrown.push(error.message));
      const manager = KeyManagerFactory.create();
      for (const name of ["connected", "keys"]) manager.on(name, () => { throw new Error(name); });
      await manager.initialize();
      const signature = await manager.sign(Buffer.from("x"), { timeoutMs: 1000 });
      await manager.close();
      console.log(signature.length, thrown.join());
    `;
    const cwd = fileURLToPath(new URL("../..", import.meta.url));
    const env = { ...process.env, HSMCORE_GATEWAY: gateway.address };
    const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "-e", program], {
      cwd,
      env,
    });
    assert.equal(stdout, "64 connected,keys\n");
  });

  test("ends with its last key manager: nothing keeps the process", async () => {
    const program = `
      import { KeyManagerFactory } from "hsmcore-client";
      const manager = KeyManagerFactory.create();
      await manager.initialize();
      await manager.sign(Buffer.from("x"));
      await manager.close();
    `;
    const cwd = fileURLToPath(new URL("../..", import.meta.url));
    const env = { ...process.env, HSMCORE_GATEWAY: gateway.address };
    const args = ["--input-type=module", "-e", program];
    const { stderr } = await promisify(execFile)(process.execPath, args, { cwd, env, timeout: 60_000 });
    assert.equal(stderr, "");
  });
});
