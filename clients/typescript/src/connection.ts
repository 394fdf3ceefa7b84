/** A connection to a gateway: bytes in and out, signs of life, an end. What they mean, its owner knows. */

import { Buffer } from "node:buffer";
import { readFileSync } from "node:fs";
import { connect as connectNet, isIP, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";

import { badArgument, HsmError, lost } from "./errors.js";
import { Pings } from "./pings.js";
import { type Frame, readError, Splitter, Type, WireError } from "./wire.js";

/** How long a gateway may take to close its side. */
export const CLOSE_MS = 1_000;
const READ_BYTES = 1 << 16;

export interface ConnectionOptions {
  /** Of the gateway's certificate, and our own; PEM files, read for each connection. */
  caFile?: string;
  certFile?: string;
  keyFile?: string;
  /** The name in the gateway's certificate, if it is not the host of the address. */
  serverName?: string;
  /** A connection without a sign of life is tested after so long, and given up after twice that. */
  pingMs: number;
}

export interface ConnectionOwner {
  /** Whether the gateway has said its first word. */
  readonly isReady: boolean;
  /** Throws WireError. */
  take(frame: Frame): void;
  /** It has ended, or was not made. */
  gone(reason: unknown): void;
}

/** One after the other: `open` again when it is gone. */
export class Connection {
  readonly pings = new Pings((frame) => this.write(frame));
  private socket: Socket | undefined;
  private out: Buffer[] = [];
  private quiet = false;
  private heardAt = 0;
  private waiting: NodeJS.Timeout | undefined;
  private pulse: NodeJS.Timeout | undefined;

  constructor(
    private readonly options: ConnectionOptions,
    private readonly owner: ConnectionOwner,
  ) {}

  /** Connect, and begin with `hello`. The gateway has `tryMs` for its first word. */
  open(address: string, hello: Buffer, tryMs: number): void {
    let reason: unknown = "the gateway closed the connection";
    const { owner } = this;
    const splitter = new Splitter();
    let socket: Socket;
    const hear = (data: Buffer): void => {
      this.quiet = false;
      this.heardAt = performance.now();
      try {
        splitter.feed(data, take);
      } catch (error) {
        if (!(error instanceof WireError)) throw error;
        socket.destroy(error);
      }
      if (owner.isReady) clearTimeout(waiting);
    };
    try {
      socket = dial(address, this.options, hear);
    } catch (error) {
      owner.gone(error);
      return;
    }
    const take = (frame: Frame): void => {
      if (frame.type === Type.ERROR && frame.request === 0) reason = readError(frame.body);
      else owner.take(frame);
    };
    this.socket = socket;
    const waiting = setTimeout(() => socket.destroy(lost(`no word from it within ${tryMs} ms`)), tryMs);
    this.waiting = waiting;
    this.pulse = setInterval(this.beat, this.options.pingMs).unref();
    socket.on("data", hear); // by TLS, and where `onread` is unknown
    socket.on("error", (error) => {
      if (!(reason instanceof HsmError)) reason = error;
    });
    socket.on("close", () => {
      clearTimeout(waiting);
      clearInterval(this.pulse);
      this.socket = undefined;
      this.out = [];
      owner.gone(reason);
    });
    socket.write(hello);
  }

  /** One write for all frames of a turn of the event loop. */
  write(made: Buffer): void {
    if (this.out.push(made) === 1) setImmediate(this.flush);
  }

  /** Write no more. The gateway ends the connection then. */
  end(): void {
    this.socket?.end();
  }

  /** Break it, for this reason. */
  destroy(error?: Error): void {
    this.socket?.destroy(error);
  }

  /** End it, and wait until it is gone. A gateway that does not close its side keeps nobody waiting. */
  async close(): Promise<void> {
    clearTimeout(this.waiting);
    const { socket } = this;
    if (!socket) return;
    this.flush();
    if (this.owner.isReady) socket.end();
    else socket.destroy();
    const timer = setTimeout(() => socket.destroy(), CLOSE_MS);
    await new Promise((resolve) => socket.once("close", resolve));
    clearTimeout(timer);
  }

  private readonly beat = (): void => {
    if (this.quiet) this.destroy(lost("no sign of life"));
    else if (this.owner.isReady && performance.now() - this.heardAt >= this.options.pingMs) {
      this.quiet = true;
      this.pings.send();
    }
  };

  private readonly flush = (): void => {
    const { out, socket } = this;
    if (out.length === 0) return;
    this.out = [];
    if (socket?.writable) socket.write(out.length === 1 ? out[0]! : Buffer.concat(out));
  };
}

/** `hear` gets what comes, in a buffer that may be another read's as soon as it returns: a buffer for each read is most of
 * what a garbage collector would have to do. */
function dial(
  address: string,
  { caFile, certFile, keyFile, serverName }: ConnectionOptions,
  hear: (data: Buffer) => void,
): Socket {
  if (address.startsWith("unix:")) {
    const callback = (bytes: number, buffer: Uint8Array): boolean => {
      hear((buffer as Buffer).subarray(0, bytes));
      return true;
    };
    return connectNet({ path: address.slice(5), onread: { buffer: Buffer.allocUnsafe(READ_BYTES), callback } });
  }
  const found = /^tls:(?:\[([^\]]+)\]|([^:]+)):(\d+)$/.exec(address);
  if (!found) throw badArgument(`${address}: no address`, 'Give "unix:/path" or "tls:host:port".');
  const host = found[1] ?? found[2]!;
  const read = (file: string | undefined) => (file === undefined ? undefined : readFileSync(file));
  return connectTls({
    host,
    port: Number(found[3]),
    // An IP address is no server name (RFC 6066); Node compares it with the certificate all the same.
    servername: serverName ?? (isIP(host) ? "" : host),
    ca: read(caFile),
    cert: read(certFile),
    key: read(keyFile),
    minVersion: "TLSv1.3",
    ALPNProtocols: ["hsmcore-wire/1"],
  }).setNoDelay();
}
