// Signatures a second through the client, or through it alone (bench/echo.mjs) without an address:
// node bench/throughput.mjs [--address unix:/run/hsmcore/sign.sock] [--open 256] [--connections 4] [--bytes 200]
// [--seconds 3] [--rounds 5] [--batch 1]
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { Client } from "hsmcore-client";

const { values } = parseArgs({
  options: {
    address: { type: "string" },
    key: { type: "string", default: "default" },
    ...Object.fromEntries(
      Object.entries({ open: 256, connections: 4, bytes: 200, seconds: 3, rounds: 5, batch: 1 }).map(
        ([name, number]) => [name, { type: "string", default: String(number) }],
      ),
    ),
  },
});
const { open, connections, bytes, seconds, rounds, batch } = Object.fromEntries(
  Object.entries(values).map(([name, value]) => [name, Number(value)]),
);

const folder = mkdtempSync(join(tmpdir(), "hsmcore-bench-"));
let { address } = values;
let echo;
if (address === undefined) {
  address = `unix:${folder}/echo.sock`;
  echo = spawn(process.execPath, [fileURLToPath(new URL("echo.mjs", import.meta.url)), `${folder}/echo.sock`]);
  await once(echo.stdout, "data");
}

const client = new Client({ address, connections });
await client.connect();
const percentile = (sorted, share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
const rates = [];
for (let round = 0; round <= rounds; round++) {
  const delays = [];
  const end = performance.now() + seconds * 1000;
  let [done, number] = [0, 0];
  const message = () => {
    const made = Buffer.alloc(bytes, 0x2a);
    made.writeDoubleLE(round * 1e9 + number++, 0); // no two are the same: a gateway may have a cache
    return made;
  };
  const started = performance.now();
  const cpu = process.cpuUsage();
  const caller = async () => {
    while (performance.now() < end) {
      const from = performance.now();
      if (batch > 1) await client.signMany(Array.from({ length: batch }, message), { key: values.key });
      else await client.sign(message(), { key: values.key });
      delays.push(performance.now() - from);
      done += batch;
    }
  };
  await Promise.all(Array.from({ length: Math.max(1, Math.floor(open / batch)) }, caller));
  const rate = done / ((performance.now() - started) / 1000);
  const used = process.cpuUsage(cpu);
  delays.sort((a, b) => a - b);
  const [p50, p99] = [percentile(delays, 0.5), percentile(delays, 0.99)].map((ms) => ms.toFixed(3));
  const each = ((used.user + used.system) / done).toFixed(1);
  const name = round === 0 ? "warm-up" : `round ${round}`;
  console.log(`${name}: ${Math.round(rate)}/s, p50 ${p50} ms, p99 ${p99} ms, ${each} µs CPU each`);
  if (round > 0) rates.push(rate);
}
rates.sort((a, b) => a - b);
console.log(
  `median ${Math.round(percentile(rates, 0.5))}/s of ${rounds} rounds of ${seconds} s: ` +
    `${open} open, ${connections} connections, ${bytes} bytes`,
);
await client.close();
echo?.kill();
rmSync(folder, { recursive: true, force: true });
