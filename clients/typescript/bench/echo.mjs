// A gateway that signs nothing: it answers each SIGN with 64 bytes, so that a measurement has the client alone in it.
// Usage: node bench/echo.mjs PATH; says "listening" when it does.
import { createServer } from "node:net";

function frame(type, request, body) {
  const made = Buffer.alloc(16 + body.length);
  made.writeUInt32LE(12 + body.length, 0);
  made[4] = type;
  made.writeBigUInt64LE(request, 8);
  made.set(body, 16);
  return made;
}

function welcome() {
  const fixed = Buffer.alloc(32);
  fixed.writeUInt16LE(1, 0);
  fixed.writeUInt32LE(65_536, 18); // credits
  fixed.writeUInt32LE(65_536, 22); // bytes of a message
  fixed.writeUInt16LE(1_024, 26); // messages of a batch
  fixed.writeUInt32LE(120_000, 28);
  const key = Buffer.alloc(8);
  key.writeUInt32LE(1, 2);
  key[6] = key[7] = 1;
  const parts = ["\x05bench", "\x01\x00\x07default", "\x01\x00"].map((text) => Buffer.from(text, "latin1"));
  const rest = [Buffer.from("\x01k\x20", "latin1"), Buffer.alloc(32, 7), Buffer.from([255, 255])];
  return frame(129, 0n, Buffer.concat([fixed, ...parts, key, ...rest]));
}

const answer = frame(
  130,
  0n,
  Buffer.concat([Buffer.from([1, 0, 0, 0, 1]), Buffer.alloc(8, 0xff), Buffer.alloc(64, 9)]),
);

createServer((socket) => {
  let rest = Buffer.alloc(0);
  socket.on("error", () => undefined);
  socket.on("data", (data) => {
    const buffer = rest.length > 0 ? Buffer.concat([rest, data]) : data;
    const out = [];
    let at = 0;
    while (buffer.length - at >= 16) {
      const after = at + 4 + buffer.readUInt32LE(at);
      if (after > buffer.length) break;
      if (buffer[at + 4] === 1) out.push(welcome());
      if (buffer[at + 4] === 2) {
        const made = Buffer.from(answer);
        buffer.copy(made, 8, at + 8, at + 16);
        out.push(made);
      }
      at = after;
    }
    rest = buffer.subarray(at);
    if (out.length > 0) socket.write(Buffer.concat(out));
  });
}).listen(process.argv[2], () => console.log("listening"));
