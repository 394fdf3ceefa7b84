/** A rotation that the application does itself, with backups of its keys: what its key manager must have for that.
 * Skipped without a gateway that has a token. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { readFileSync } from "node:fs";
import { suite, test } from "node:test";

import { HsmError, KeyManagerFactory, type KeyManager, type KeyManagerConfig } from "hsmcore-client";

import { real } from "./place.js";

const seed = new URL("../../test/sequencer.json", import.meta.url);
interface Rotation {
  backupEnabled: boolean;
  backupLocation: string;
}
const customers = (
  JSON.parse(readFileSync(seed, "utf8")) as { sequencer: { keyManager: KeyManagerConfig & { keyRotation: Rotation } } }
).sequencer.keyManager;

/** It knows key managers, and nothing of gateways. */
class KeyRotationSystem {
  readonly stored = new Map<string, Buffer>();

  constructor(
    private readonly keyManager: KeyManager,
    private readonly config: Rotation,
  ) {}

  async rotate(): Promise<{ before: string; after: string }> {
    const before = await this.keyManager.getCurrentKeyId();
    const after = await this.keyManager.generateKey();
    if (this.config.backupEnabled) {
      this.stored.set(`${this.config.backupLocation}/${after}`, await this.keyManager.exportKeyBackup(after));
    }
    await this.keyManager.setCurrentKeyId(after);
    return { before, after };
  }

  async retire(keyId: string): Promise<void> {
    await this.keyManager.deactivateKey(keyId);
  }
}

suite("with a token", { skip: real ? false : "HSMCORE_TEST_GATEWAY is not set", timeout: 110_000 }, () => {
  test("the customer's configuration rotates, with a backup of each key", async () => {
    const manager = KeyManagerFactory.create({ ...customers, gateway: real! });
    await manager.initialize();
    const system = new KeyRotationSystem(manager, customers.keyRotation);
    const old = Buffer.from("before");
    const signature = await manager.sign(old);
    for (let round = 0; round < 2; round++) {
      const { before, after } = await system.rotate();
      assert.notEqual(before, after);
      assert.equal(await manager.getCurrentKeyId(), after);
      const message = Buffer.from(`round ${round}`);
      assert.ok(await manager.verify(message, await manager.sign(message), after));
      if (round > 0) await system.retire(before);
      const blob = system.stored.get(`s3://layer2-key-backups/${after}`)!;
      assert.ok(blob.includes(after), "the backup names its key");
    }
    assert.ok(await manager.verify(old, signature));
    await assert.rejects(manager.exportKeyBackup("no such key"), (error) => {
      assert.ok(error instanceof HsmError);
      return !error.maybeSigned && error.class === "REQUEST_FATAL";
    });
    await manager.close();
  });
});
