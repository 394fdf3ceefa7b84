/** The signed set of keys: which keys are good, and when. Manipulations: tests/integration/test_typescript.py. */

import assert from "node:assert/strict";
import { createHash, createPrivateKey, generateKeyPairSync, sign, type KeyObject } from "node:crypto";
import { suite, test } from "node:test";

import { KeySet, KeySetRefused } from "hsmcore-client";

const START = 1_800_000_000;
const MESSAGE = Buffer.from("message");

interface Pair {
  readonly raw: Buffer;
  readonly secret: KeyObject;
}

const pair = (number: number): Pair => {
  const head = Buffer.from("302e020100300506032b657004220420", "hex");
  const secret = createPrivateKey({
    key: Buffer.concat([head, Buffer.alloc(32, number)]),
    format: "der",
    type: "pkcs8",
  });
  return { secret, raw: Buffer.from(secret.export({ format: "jwk" })["x" as never] as string, "base64url") };
};
const [ONE, TWO, STRANGER] = [pair(1), pair(2), pair(3)];

const line = (version: number | "-", key: Pair, rest: string, algorithm = "ed25519") =>
  `key ${version} ${algorithm} ${key.raw.toString("base64")} ${rest}\n`;

function note(serial: number, keys: string, signers: readonly Pair[], domain = "tests", until = ""): string {
  const text = `§ hsmcore/key-set/v1\n${domain}/keys\n${serial}\ntime ${START}\n${until}kinds raw key-set\n${keys}`;
  const lines = signers.map(({ raw, secret }) => {
    const id = createHash("sha256").update(`${domain}/keys\n\x01`).update(raw).digest().subarray(0, 4);
    return `— ${domain}/keys ${Buffer.concat([id, sign(null, Buffer.from(text), secret)]).toString("base64")}\n`;
  });
  return `${text}\n${lines.join("")}`;
}

/** The proof of MESSAGE alone in a batch, of number 7. */
function proofBy({ raw, secret }: Pair, domain: string): Buffer {
  const hash = (...parts: Uint8Array[]) => createHash("sha256").update(Buffer.concat(parts)).digest();
  const head = Buffer.from([8, 0, 0, 0, 0, 0, 0, 0, 7]);
  const root = hash(Buffer.of(0), head, hash(MESSAGE)).toString("base64");
  const text = `${domain}/0\n1\n${root}\nhsmcore/batch-root/v1 7\ntime 1\n`;
  const id = hash(Buffer.from(`${domain}/0\n\x01`), raw).subarray(0, 4);
  const value = Buffer.concat([id, sign(null, Buffer.from(text), secret)]).toString("base64");
  return Buffer.from(
    `c2sp.org/tlog-proof@v1\nextra ${head.toString("base64")}\nindex 0\n\n${text}\n— ${domain}/0 ${value}\n`,
  );
}

const BEFORE = note(1, line(1, ONE, `current ${START} - - -`), [ONE]);
const DURING = note(
  2,
  line(1, ONE, `overlap ${START} ${START + 600} 2 -`) + line(2, TWO, `current ${START + 10} - - -`),
  [ONE, TWO],
);
const AFTER = note(
  3,
  line(1, ONE, `retired ${START} ${START + 600} 2 -`) + line(2, TWO, `current ${START + 10} - - -`),
  [TWO],
);
const refused = (says: RegExp) => (error: unknown) => error instanceof KeySetRefused && says.test(error.message);

suite("a set of keys", () => {
  test("is followed through a rotation: the old and the new key, then the new one alone", () => {
    const first = KeySet.trust(BEFORE, ONE.raw, "tests");
    const at = (now: number) => ({ now, skew: 0 });
    assert.ok(first.accepts(ONE.raw, at(START)) && !first.accepts(TWO.raw, at(START + 10)));
    const during = first.follow(DURING, at(START + 10));
    assert.deepEqual([during.serial, during.domain, during.kinds], [2n, "tests", ["raw", "key-set"]]);
    for (const [key, from] of [
      [ONE, START],
      [TWO, START + 10],
    ] as const) {
      assert.ok(!during.accepts(key.raw, at(from - 1)) && during.accepts(key.raw, at(from)));
      assert.ok(during.accepts(key.raw, { now: from - 300 }) && !during.accepts(key.raw, { now: from - 301 }));
    }
    assert.ok(during.accepts(ONE.raw, at(START + 600)) && !during.accepts(ONE.raw, at(START + 601)));
    assert.ok(during.accepts(TWO.raw, at(2 * START)));
    const after = KeySet.remembered(during.note).follow(Buffer.from(AFTER), at(START + 601));
    assert.ok(!after.accepts(ONE.raw, at(START + 100)) && after.accepts(TWO.raw, at(START + 601)));
    assert.deepEqual(after.entry(ONE.raw), {
      version: 1n,
      algorithm: "ed25519",
      publicKey: ONE.raw,
      state: "retired",
      notBefore: START,
      notAfter: START + 600,
      successor: 2n,
    });
    assert.equal(first.follow(BEFORE + DURING + AFTER, at(START + 100)).note, AFTER);
    assert.equal(after.follow(DURING + AFTER, at(START + 100)), after);
  });

  test("verifies a signature of a key that is good now, for a kind that the keys sign", () => {
    const found = KeySet.remembered(DURING);
    const by = (key: Pair) => sign(null, MESSAGE, key.secret);
    const now = START + 20;
    assert.equal(found.verify(MESSAGE, by(ONE), { now, kind: "raw" })?.version, 1n);
    assert.equal(found.verify(MESSAGE, by(TWO), { now })?.version, 2n);
    assert.equal(found.verify(MESSAGE, by(TWO), { now, kind: "tx-v0" }), undefined);
    assert.equal(found.verify(Buffer.from("other"), by(TWO), { now }), undefined);
    assert.equal(found.verify(MESSAGE, by(STRANGER), { now }), undefined);
    assert.equal(found.verify(MESSAGE, by(ONE), { now: START + 901 }), undefined);
    assert.equal(found.verify(MESSAGE, by(TWO).subarray(1), { now }), undefined);
  });

  test("says which batches of a retired key stay good, and how long it is good itself", () => {
    const good = `good until ${START + 3600}\n`;
    const text = (until: string, last: string) =>
      note(
        3,
        line(1, ONE, `retired ${START} ${START + 600} 2 -${last}`) + line(2, TWO, `current ${START} - - -`),
        [TWO],
        "tests",
        until,
      );
    const found = KeySet.remembered(text(good, " 7"));
    assert.deepEqual([found.goodUntil, found.entry(ONE.raw)?.lastBatched], [START + 3600, 7n]);
    const later = { now: START + 315_360_000 };
    const [seventh, other] = [proofBy(ONE, "tests"), proofBy(ONE, "test")];
    const by = found.verifyBatched(MESSAGE, seventh, { ...later, kind: "raw" });
    assert.deepEqual([by?.key.version, by?.says.index], [1n, 7n]);
    assert.equal(found.verifyBatched(MESSAGE, proofBy(TWO, "tests"), later)?.key.version, 2n);
    assert.equal(found.verifyBatched(MESSAGE, other, later), undefined, "of another domain");
    assert.equal(found.verifyBatched(MESSAGE, seventh, { ...later, kind: "tx-v0" }), undefined);
    assert.equal(found.verifyBatched(Buffer.from("other"), seventh, later), undefined);
    assert.equal(found.verifyBatched(MESSAGE, proofBy(STRANGER, "tests"), later), undefined);
    for (const last of ["", " 6"])
      assert.equal(KeySet.remembered(text("", last)).verifyBatched(MESSAGE, seventh, later), undefined);
    for (const [now, fresh] of [
      [START + 3900, true],
      [START + 3901, false],
    ] as const) {
      assert.equal(found.accepts(TWO.raw, { now, fresh: true }), fresh);
      assert.equal(found.verifyBatched(MESSAGE, seventh, { now, fresh: true }) !== undefined, fresh);
      assert.ok(
        found.accepts(TWO.raw, { now }) && !KeySet.remembered(text("", "")).accepts(TWO.raw, { now, fresh: true }),
      );
    }
  });

  test("verifies ECDSA with a low s", () => {
    for (const [algorithm, namedCurve] of [
      ["ecdsa-p256", "prime256v1"],
      ["ecdsa-secp256k1", "secp256k1"],
    ] as const) {
      const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve });
      const raw = publicKey.export({ format: "der", type: "spki" }).subarray(-65);
      const key = { raw, secret: privateKey };
      const keys = line(1, ONE, `current ${START} - - -`) + line("-", key, `emergency ${START} - - -`, algorithm);
      const found = KeySet.remembered(note(1, keys, [ONE]));
      const signatures = Array.from({ length: 64 }, () =>
        sign("sha256", MESSAGE, { key: privateKey, dsaEncoding: "ieee-p1363" }),
      );
      const good = signatures.map((one) => found.verify(MESSAGE, one, { now: START })?.state);
      const low = signatures.map((one) => (one[32]! < 0x80 ? "emergency" : undefined));
      assert.deepEqual(good, low);
      assert.ok(good.includes("emergency") && good.includes(undefined));
    }
  });

  test("is refused where it is not to be believed", () => {
    const known = KeySet.remembered(DURING);
    const now = { now: START + 20 };
    assert.throws(() => KeySet.trust(BEFORE, TWO.raw), refused(/has not signed it/));
    assert.throws(() => KeySet.trust(BEFORE, ONE.raw, "other"), refused(/of tests, not of other/));
    assert.throws(() => known.follow(BEFORE, now), refused(/older/), "a rollback");
    const other = note(2, line(2, TWO, `current ${START} - - -`), [TWO]);
    assert.throws(() => known.follow(other, now), refused(/two sets of serial 2/));
    const theirs = note(3, line(3, STRANGER, `current ${START} - - -`), [STRANGER]);
    assert.throws(() => known.follow(theirs, now), refused(/no key that is trusted/));
    assert.throws(
      () => known.follow(note(3, line(2, TWO, `current ${START} - - -`), [TWO], "else"), now),
      refused(/of else/),
    );
    const late = note(3, line(3, STRANGER, `current ${START} - - -`), [STRANGER, ONE]);
    for (const moment of [now, { now: START + 901 }]) {
      assert.throws(() => known.follow(late, moment), refused(/no key that is trusted/), "by a key in overlap");
    }
    const far = (step: number) => note(2 + step, line(2, TWO, `current ${START} - - -`), [TWO]);
    assert.equal(known.follow(far(2 ** 20), now).serial, 2n + 2n ** 20n);
    assert.throws(() => known.follow(far(2 ** 20 + 1), now), refused(/more than 2\^20/));
    for (const bad of ["", "x", Buffer.from([0xff]), DURING.replace("tests", "testy")]) {
      assert.throws(() => known.follow(bad, now), KeySetRefused);
    }
  });
});
