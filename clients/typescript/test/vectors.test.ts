/** Signatures on the edge of the rules, and Wycheproof's: tests/vectors. A set of keys judges them; of a batch, the same code does. */

import assert from "node:assert/strict";
import { createHash, createPrivateKey, sign } from "node:crypto";
import { readFileSync } from "node:fs";
import { suite, test } from "node:test";

import { KeySet, verifyPosition } from "hsmcore-client";

const START = 1_800_000_000;
const ORDERS = {
  "ecdsa-p256": 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n,
  "ecdsa-secp256k1": 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n,
};
const read = (name: string) =>
  JSON.parse(readFileSync(new URL(`../../../../tests/vectors/${name}.json`, import.meta.url), "utf8")) as unknown;
const bytes = (hex: string) => Buffer.from(hex, "hex");

const secret = createPrivateKey({
  key: Buffer.concat([bytes("302e020100300506032b657004220420"), Buffer.alloc(32, 1)]),
  format: "der",
  type: "pkcs8",
});
const own = Buffer.from(secret.export({ format: "jwk" })["x" as never] as string, "base64url");

/** A set of keys with another one beside that which signs it. */
function setWith(key: Buffer, algorithm: string): KeySet {
  const line = (raw: Buffer, what: string, state: string) =>
    `key - ${what} ${raw.toString("base64")} ${state} ${START} - - -\n`;
  const keys = line(own, "ed25519", "current") + line(key, algorithm, "other");
  const text = `§ hsmcore/key-set/v1\ntests/keys\n1\ntime ${START}\nkinds raw\n${keys}`;
  const id = createHash("sha256").update("tests/keys\n\x01").update(own).digest().subarray(0, 4);
  const value = Buffer.concat([id, sign(null, Buffer.from(text), secret)]).toString("base64");
  return KeySet.remembered(`${text}\n— tests/keys ${value}\n`);
}

interface Rule {
  readonly name: string;
  readonly key: string;
  readonly message: string;
  readonly signature: string;
  readonly valid: boolean;
}

const isGood = (set: KeySet, message: string, signature: string): boolean =>
  set.verify(bytes(message), bytes(signature), { now: START }) !== undefined;

/** Number, message, signature and result of each vector, with a set that has its key. */
function* wycheproof(algorithm: string): Generator<[KeySet, [number, string, string, string]]> {
  const { keys } = read(`wycheproof/${algorithm}`) as { keys: Record<string, [number, string, string, string][]> };
  for (const [key, vectors] of Object.entries(keys)) {
    const set = setWith(bytes(key), algorithm);
    for (const vector of vectors) yield [set, vector];
  }
}

suite("a verifier takes what Solana takes, and one spelling of each signature", () => {
  test("Ed25519 on the edge of the rules", () => {
    const cases = read("ed25519_rules") as Rule[];
    const found = cases.map(({ key, message, signature }) =>
      isGood(setWith(bytes(key), "ed25519"), message, signature),
    );
    assert.deepEqual(
      cases.filter(({ valid }, number) => valid !== found[number]).map(({ name }) => name),
      [],
    );
    assert.ok(found.includes(true) && found.includes(false));
  });

  test("Ed25519, Wycheproof's", () => {
    const good = new Set(["valid", "MixedOrderPublicKey"]);
    let count = 0;
    for (const [set, [number, message, signature, result]] of wycheproof("ed25519")) {
      assert.equal(isGood(set, message, signature), good.has(result), `number ${number}`);
      count++;
    }
    assert.equal(count, 210);
  });

  for (const [algorithm, order] of Object.entries(ORDERS)) {
    test(`${algorithm}, Wycheproof's: those with a low s`, () => {
      let taken = 0;
      for (const [set, [number, message, signature, result]] of wycheproof(algorithm)) {
        const low = signature.length === 128 && BigInt(`0x${signature.slice(64)}`) <= order / 2n;
        assert.equal(isGood(set, message, signature), result === "valid" && low, `number ${number}`);
        taken += Number(result === "valid" && low);
      }
      assert.ok(taken > 50);
    });
  }
});

test("a position of a public log is what its witnesses have seen", () => {
  const text = readFileSync(new URL("../../../../tests/vectors/positions.json", import.meta.url), "utf8");
  const whole = text.replace(/"position": (\d+)/g, '"position": "$1"'); // one is beyond 2^53
  const cases = JSON.parse(whole) as {
    readonly name: string;
    readonly policy: string;
    readonly digest: string;
    readonly position: string;
    readonly proof: string;
    readonly seen: number | null;
  }[];
  const judged = cases.map((one) => {
    const given = [Buffer.from(one.policy), bytes(one.digest), BigInt(one.position), Buffer.from(one.proof)] as const;
    return [one.name, verifyPosition(...given) ?? null];
  });
  assert.deepEqual(
    judged,
    cases.map((one) => [one.name, one.seen]),
  );
  assert.ok(cases.length > 20);
});
