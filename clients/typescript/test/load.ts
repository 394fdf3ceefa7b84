/** Has messages signed without end, for a test that kills the gateway. Commands come as lines: "wait N" answers "done"
 * after N more signatures, "rotate" after a new key has taken over, "end" with what became of all of them, as JSON. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { verify } from "node:crypto";
import { createInterface } from "node:readline";

import { Client, HsmError, payload } from "hsmcore-client";

import { real } from "./place.js";

const CALLERS = 48;
const der = Buffer.from("302a300506032b6570032100", "hex");

// A gateway that starts again is waited for, however slow the machine is.
const client = new Client({ timeoutMs: 120_000, maxBackoffMs: 100, ...real! });
await client.connect();

let [made, settled, signed, going] = [0, 0, 0, true];
const twice: string[] = [];
const failed: Record<string, number> = {};

/** `domain`: of state roots. */
async function caller(name: number, domain = ""): Promise<void> {
  for (let n = 0; going; n++) {
    const message = domain
      ? payload("state-root", domain, n, Buffer.alloc(32, n))
      : Buffer.from(`node ${name}, message ${n}`);
    made++;
    let times = 0;
    const note = (): void => {
      if (++times > 1) twice.push(message.toString("hex"));
    };
    await client.sign(message).then(
      ({ signature, publicKey }) => {
        note();
        signed++;
        assert.ok(
          verify(null, message, { key: Buffer.concat([der, publicKey]), format: "der", type: "spki" }, signature),
        );
      },
      (error: unknown) => {
        note();
        const says =
          error instanceof HsmError ? `${error.status}${error.maybeSigned ? ", maybe signed" : ""}` : String(error);
        failed[says] = (failed[says] ?? 0) + 1;
      },
    );
    settled++;
  }
}

async function rotate(): Promise<void> {
  const id = await client.manage("generate");
  await client.manage("set-current", id);
}

const domain = process.env["HSMCORE_TEST_BLOCKS"];
const callers = Array.from({ length: CALLERS }, (_, name) => caller(name));
if (domain) callers.push(caller(CALLERS, domain));
for await (const line of createInterface({ input: process.stdin })) {
  const [command, number] = line.split(" ");
  if (command === "end") break;
  if (command === "rotate") await rotate();
  const until = signed + Number(number ?? 0);
  while (signed < until) await new Promise((resolve) => setTimeout(resolve, 2));
  console.log("done");
}
going = false;
await Promise.all(callers);
await client.close();
console.log(JSON.stringify({ made, settled, signed, twice, failed }));
