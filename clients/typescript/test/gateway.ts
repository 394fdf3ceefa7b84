/** A gateway for tests: speaks hsmcore-wire/1, signs with keys of its own, and breaks as it is told. */

import { Buffer } from "node:buffer";
import { createHash, generateKeyPairSync, type KeyObject, randomBytes, sign as signWith } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface Request {
  type: number;
  flags: number;
  slot: number;
  request: number;
  body: Buffer;
  connection: Connection;
}

export interface TestKey {
  version: number;
  current: boolean;
  algorithm: number;
  id: string;
  publicKey: Buffer;
  secret: KeyObject;
}

export function makeKey(version: number, algorithm = 1, current = true): TestKey {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const raw = publicKey.export({ format: "der", type: "spki" }).subarray(-32);
  return {
    version,
    current,
    algorithm,
    id: `key-${raw.toString("hex", 0, 4)}`,
    publicKey: Buffer.from(raw),
    secret: privateKey,
  };
}

export function frame(type: number, request: number, body: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(16);
  head.writeUInt32LE(12 + body.length, 0);
  head[4] = type;
  head.writeBigUInt64LE(BigInt(request), 8);
  return Buffer.concat([head, body]);
}

const u16 = (value: number): Buffer => {
  const made = Buffer.alloc(2);
  made.writeUInt16LE(value);
  return made;
};
const u32 = (value: number): Buffer => {
  const made = Buffer.alloc(4);
  made.writeUInt32LE(value);
  return made;
};
const text8 = (text: string): Buffer => Buffer.concat([Buffer.from([Buffer.byteLength(text)]), Buffer.from(text)]);

export function error(
  status: string,
  fields: { flags?: number; retryAfterMs?: number; kind?: string; text?: string } = {},
): Buffer {
  const text = Buffer.from(fields.text ?? "no");
  const head = [Buffer.from([fields.flags ?? 0]), u32(fields.retryAfterMs ?? 0), text8(status)];
  return Buffer.concat([...head, text8(fields.kind ?? "REQUEST_FATAL"), u16(text.length), text]);
}

export function signed(key: TestKey, message: Buffer, level = 1): Buffer {
  const record = Buffer.alloc(8, 0xff);
  return Buffer.concat([u32(key.version), Buffer.from([level]), record, signWith(null, message, key.secret)]);
}

const sha256 = (...parts: Buffer[]): Buffer => createHash("sha256").update(Buffer.concat(parts)).digest();

/** The proof of the first of two messages of a batch, as text. */
export function proofOf(key: TestKey, messages: [Buffer, Buffer], first = 7): string {
  const heads = messages.map((_, n) => Buffer.from([8, 0, 0, 0, 0, 0, 0, 0, first + n]));
  const leaves = messages.map((message, n) => sha256(Buffer.of(0), heads[n]!, sha256(message)));
  const root = sha256(Buffer.of(1), leaves[0]!, leaves[1]!).toString("base64");
  const signed = `tests/0\n2\n${root}\nhsmcore/batch-root/v1 ${first}\ntime 1\n`;
  const id = sha256(Buffer.from("tests/0\n\x01"), key.publicKey).subarray(0, 4);
  const line = Buffer.concat([id, signWith(null, Buffer.from(signed), key.secret)]).toString("base64");
  const head = `c2sp.org/tlog-proof@v1\nextra ${heads[0]!.toString("base64")}\nindex 0\n`;
  return `${head}${leaves[1]!.toString("base64")}\n\n${signed}\n— tests/0 ${line}\n`;
}

/** BATCHED. */
export const batched = (key: TestKey, proof: string, publicKey = key.publicKey): Buffer =>
  Buffer.concat([u32(3), u32(0), text8(key.id), Buffer.from([publicKey.length]), publicKey, Buffer.from(proof)]);

export class Connection {
  nonce = "";
  private rest = Buffer.alloc(0);

  constructor(
    readonly gateway: TestGateway,
    readonly socket: Socket,
  ) {
    socket.on("error", () => undefined);
    socket.on("data", (data: Buffer) => {
      this.rest = Buffer.concat([this.rest, data]);
      while (this.rest.length >= 16 && this.rest.length >= 4 + this.rest.readUInt32LE(0)) {
        const after = 4 + this.rest.readUInt32LE(0);
        const one = this.rest.subarray(0, after);
        this.rest = this.rest.subarray(after);
        const request = Number(one.readBigUInt64LE(8));
        this.take({
          type: one[4]!,
          flags: one[5]!,
          slot: one.readUInt16LE(6),
          request,
          body: one.subarray(16),
          connection: this,
        });
      }
    });
  }

  send(type: number, request: number, body?: Buffer): void {
    if (this.socket.writable) this.socket.write(frame(type, request, body));
  }

  sendKeys(): void {
    this.send(135, 0, this.gateway.keysBody());
  }

  private take(one: Request): void {
    if (one.type !== 1) return this.gateway.take(one);
    this.nonce = one.body.toString("hex", 2, 18);
    this.gateway.greetings.push(this);
    this.gateway.greet(this);
  }
}

/** `take` is what it does with a request; by default it signs. */
export class TestGateway {
  readonly folder = mkdtempSync(join(tmpdir(), "hsmcore-client-"));
  readonly address = `unix:${this.folder}/sign.sock`;
  instance = randomBytes(16);
  credits = 256;
  batch = 64;
  rememberMs = 120_000;
  messageBytes = 16_384;
  keys = [makeKey(1)];
  names = ["default"];
  kinds = 0xffff;
  greetings: Connection[] = [];
  seen: Request[] = [];
  connections = new Set<Connection>();
  private server: Server | undefined;

  take = (one: Request): void => this.serve(one);

  greet = (connection: Connection): void => {
    const limits = Buffer.concat([u32(this.credits), u32(this.messageBytes), u16(this.batch), u32(this.rememberMs)]);
    const slots = Buffer.concat([u16(this.names.length), ...this.names.map(text8)]);
    connection.send(129, 0, Buffer.concat([u16(1), this.instance, limits, text8("tests"), slots, this.keysBody()]));
  };

  keysBody(): Buffer {
    const made = this.keys.map((key) => {
      const head = Buffer.concat([u16(0), u32(key.version), Buffer.from([key.current ? 1 : 0, key.algorithm])]);
      return Buffer.concat([head, text8(key.id), Buffer.from([key.publicKey.length]), key.publicKey, u16(this.kinds)]);
    });
    return Buffer.concat([u16(made.length), ...made]);
  }

  serve(one: Request): void {
    this.seen.push(one);
    const { connection, request, body } = one;
    if (one.type === 2)
      return this.sign(one, body.readUInt32LE(13), body.subarray(17), (key, message) => signed(key, message));
    if (one.type === 3) {
      const version = body.readUInt32LE(5);
      const outcomes = messagesOf(body).map((message) => {
        const key = this.keys.find((each) => each.version === version && each.current);
        const outcome = key ? signWith(null, message, key.secret) : error("KEY_NOT_CURRENT");
        return Buffer.concat([Buffer.from([key ? 0 : 1]), u16(outcome.length), outcome]);
      });
      return connection.send(131, request, Buffer.concat([u32(version), u16(outcomes.length), ...outcomes]));
    }
    if (one.type === 4) return connection.send(132, request, Buffer.from([1])); // whatever the signature is
    if (one.type === 5) return connection.send(134, request, error("CANCELLED"));
    if (one.type === 7) return connection.send(133, request, body);
    if (one.type === 8) return connection.send(138, request, Buffer.from('{"hits": 3}'));
  }

  private sign(one: Request, version: number, message: Buffer, make: (key: TestKey, message: Buffer) => Buffer): void {
    const key = this.keys.find((each) => each.version === version);
    if (!key?.current) one.connection.send(134, one.request, error("KEY_NOT_CURRENT"));
    else one.connection.send(130, one.request, make(key, message));
  }

  async listen(): Promise<void> {
    this.server = createServer((socket) => {
      const connection = new Connection(this, socket);
      this.connections.add(connection);
      socket.on("close", () => this.connections.delete(connection));
    });
    await new Promise<void>((resolve) => this.server!.listen(this.address.slice(5), resolve));
  }

  /** Break every connection. */
  drop(): void {
    for (const one of this.connections) one.socket.destroy();
  }

  /** Another process in its place: nothing is remembered, and versions have other numbers. */
  become(keys = this.keys.map((key) => ({ ...key, version: key.version + 10 }))): void {
    this.instance = randomBytes(16);
    this.keys = keys;
    this.drop();
  }

  async stop(): Promise<void> {
    this.drop();
    if (this.server?.listening) await new Promise((resolve) => this.server!.close(resolve));
  }

  async end(): Promise<void> {
    await this.stop();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

export function messagesOf(body: Buffer): Buffer[] {
  const messages: Buffer[] = [];
  for (let at = 11; at < body.length;) {
    const length = body.readUInt32LE(at);
    messages.push(body.subarray(at + 4, at + 4 + length));
    at += 4 + length;
  }
  return messages;
}
