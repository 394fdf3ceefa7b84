/** For tests of the client against a gateway that breaks: one gateway for each test, and clients that end with it. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { verify } from "node:crypto";
import { afterEach, beforeEach } from "node:test";

import { Client, type ClientOptions, HsmError, type Receipt } from "hsmcore-client";

import { type Request, TestGateway } from "./gateway.js";

export let gateway: TestGateway;
let clients: Client[] = [];

/** Have a client end with the test. */
export function ends(client: Client): Client {
  clients.push(client);
  return client;
}

beforeEach(async () => {
  gateway = new TestGateway();
  await gateway.listen();
});

afterEach(async () => {
  await Promise.all(clients.map((one) => one.close()));
  clients = [];
  await gateway.end();
});

export async function connected(options: Partial<ClientOptions> = {}): Promise<Client> {
  const patient = { timeoutMs: 60_000, connectTimeoutMs: 60_000 };
  const client = ends(new Client({ address: gateway.address, maxBackoffMs: 20, ...patient, ...options }));
  await client.connect();
  return client;
}

/** Have the gateway answer none of its first `count` requests, break all connections then, and serve what follows. */
export function dropsAfter(count: number): void {
  gateway.take = (one) => {
    gateway.seen.push(one);
    if (gateway.seen.length < count) return;
    gateway.take = gateway.serve;
    gateway.drop();
  };
}

/** Wait until it is so; a test that waits in vain fails by its time limit. */
export async function until(so: () => boolean): Promise<void> {
  while (!so()) await new Promise((resolve) => setImmediate(resolve));
}

export const text = (says: string): Buffer => Buffer.from(says);
export const signs = (): Request[] => gateway.seen.filter((one) => one.type === 2);
export const fails = (check: Partial<HsmError>) => (thrown: unknown) => {
  assert.ok(thrown instanceof HsmError, String(thrown));
  assert.deepEqual(Object.fromEntries(Object.keys(check).map((name) => [name, thrown[name as keyof HsmError]])), check);
  return true;
};

export function valid(
  message: Uint8Array,
  { signature, publicKey }: Pick<Receipt, "signature" | "publicKey">,
): boolean {
  const der = Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), publicKey]);
  return verify(null, message, { key: der, format: "der", type: "spki" }, signature);
}
