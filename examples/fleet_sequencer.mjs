// Signs a chain of blocks with the gateways of a fleet: whichever host holds the epoch signs, and when another host takes
// over, the next block is signed there. Run it, and drain or kill the host that signs.
//
//   node examples/fleet_sequencer.mjs tls:signer-1.example:7443,tls:signer-2.example:7443 my-rollup [first position]
//
// For tls: the files are in CERT, KEY and CA. In a project of your own: import … from "hsmcore-client".

import { createHash } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import { KeyManagerFactory, payload } from "../clients/typescript/dist/esm/index.js";

const [address, domain, first = "0"] = process.argv.slice(2);
const { CERT, KEY, CA } = process.env;
const files = CERT ? { certFile: CERT, keyFile: KEY, caFile: CA } : {};

const keyManager = KeyManagerFactory.create({ gateway: { address, ...files } });
keyManager.on("unusable", ({ address, error }) => console.error(`${address}: ${error.message}`));
await keyManager.initialize();

let going = true;
process.on("SIGTERM", () => (going = false));
for (let position = Number(first); going; position++) {
  const digest = createHash("sha256").update(`what is in block ${position}`).digest();
  const block = payload("block", domain, position, digest);
  while (going) {
    try {
      const signature = await keyManager.sign(block, { kind: "block" }); // through a takeover, within 10 s
      console.log(position, signature.toString("hex"));
      break;
    } catch (error) {
      // The same block again, and no other one at this position, whatever became of it.
      console.error(`block ${position}: ${error.message}`);
      if (!error.retryable && !error.maybeSigned) throw error;
    }
  }
  await sleep(20);
}
await keyManager.close();
