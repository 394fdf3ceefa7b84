/** Ordered payloads: the bytes of tests/vectors/payloads.json. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { readFileSync } from "node:fs";
import { suite, test } from "node:test";

import { HsmError, payload, type OrderedKind } from "hsmcore-client";

const file = new URL("../../../../tests/vectors/payloads.json", import.meta.url);
const { good } = JSON.parse(readFileSync(file, "utf8")) as { good: Record<string, string>[] };
const bytes = (hex = "") => Buffer.from(hex, "hex");

suite("payload", () => {
  test("makes the bytes that the gateway reads", () => {
    for (const { kind = "", domain = "", position = "", digest, payload: wanted } of good) {
      const made = payload(kind as OrderedKind, domain, BigInt(position), bytes(digest));
      assert.equal(made.toString("hex"), wanted);
      if (Number.isSafeInteger(Number(position))) {
        assert.deepEqual(payload(kind as OrderedKind, domain, Number(position), new Uint8Array(bytes(digest))), made);
      }
    }
    assert.ok(good.length >= 5);
  });

  test("refuses what is none", () => {
    const digest = Buffer.alloc(32);
    const wrong: [unknown, unknown, unknown, unknown][] = [
      ...["raw", "toString", 1, undefined].map(
        (kind) => [kind, "d", 1, digest] as [unknown, unknown, unknown, unknown],
      ),
      ...["", "a b", "a+b", "a\n", "é", "a".repeat(65), 1].map((domain) => ["block", domain, 1, digest] as never),
      ...[-1, -1n, 2n ** 63n, 2 ** 53, 1.5, NaN, "1", null].map((at) => ["block", "d", at, digest] as never),
      ...[Buffer.alloc(31), Buffer.alloc(33), "a".repeat(32), undefined].map((one) => ["block", "d", 1, one] as never),
    ];
    for (const [kind, domain, position, one] of wrong) {
      assert.throws(
        () => payload(kind as never, domain as never, position as never, one as never),
        (error: unknown) => error instanceof HsmError && error.status === "BAD_ARGUMENT",
      );
    }
  });
});
