/** A key manager behind the gateway, with the calls of the sequencer's own. */

import { Buffer } from "node:buffer";
import { EventEmitter, once } from "node:events";

import type { BatchedSignature } from "./batched.js";
import { Client, type ClientEvents, type Receipt } from "./client.js";
import { badArgument, HsmError } from "./errors.js";
import { type ClientOptions, DEFAULT_KEY, type RequestOptions } from "./options.js";
import type { SignBatchedOptions, SignManyOptions, SignOptions } from "./options.js";
import { readUnfinished, type Unfinished } from "./unfinished.js";
import type { Key } from "./wire.js";

/** How to reach the gateway, and which of its key managers is meant. */
export interface GatewayOptions extends Omit<ClientOptions, "address"> {
  /** Default: the environment variable HSMCORE_GATEWAY. */
  address?: string | readonly string[];
  key?: string;
}

/** `keyManager` of the sequencer's configuration. What stands beside `gateway` is for the gateway process. */
export interface KeyManagerConfig {
  gateway?: GatewayOptions;
  [other: string]: unknown;
}

const OPTIONS = [
  ..."address key caFile certFile keyFile serverName connections timeoutMs maxWaiting".split(" "),
  ..."connectTimeoutMs maxBackoffMs pingMs currentSpan".split(" "),
];

/** How long the gateway may take to tell of a key that was made the current one. */
const TOLD_MS = 3_000;

type Events = ClientEvents & { initialized: []; closed: [] };
type Own<T> = Omit<T, "key">;

export class KeyManager extends EventEmitter<Events> {
  /** What is below: several keys over one connection, batches of requests. */
  readonly client: Client;
  private readonly key: string;
  private initializing: Promise<void> | undefined;
  private closing: Promise<void> | undefined;

  constructor(options: ClientOptions, key = DEFAULT_KEY) {
    super();
    this.key = key;
    this.client = new Client(options);
    for (const name of ["connected", "disconnected", "unusable", "keys", "failover", "key-rotated"] as const) {
      (this.client as EventEmitter).on(name, (told: unknown) => (this as EventEmitter).emit(name, told));
    }
  }

  /** Connect to the gateway. A call that failed may be repeated. */
  initialize(): Promise<void> {
    this.initializing ??= this.client.connect().then(
      () => void this.emit("initialized"),
      (error: unknown) => {
        this.initializing = undefined;
        throw error;
      },
    );
    return this.initializing;
  }

  /** Wait for the answers to what was sent, and disconnect. The gateway's key manager stays as it is. */
  close(): Promise<void> {
    this.closing ??= this.client.close().then(() => void this.emit("closed"));
    return this.closing;
  }

  async sign(message: Uint8Array, options?: Own<SignOptions>): Promise<Buffer> {
    return (await this.signWithReceipt(message, options)).signature;
  }

  /** Sign, and say by which key, at which level of failover and under which audit record. */
  signWithReceipt(message: Uint8Array, options?: Own<SignOptions>): Promise<Receipt> {
    return this.client.sign(message, { ...options, key: this.key });
  }

  /** Sign a message with others: the HSM signs the root of a whole batch, and `proof` shows that the message is in it. */
  signBatched(message: Uint8Array, options?: Own<SignBatchedOptions>): Promise<BatchedSignature> {
    return this.client.signBatched(message, { ...options, key: this.key });
  }

  /** Sign a batch: an outcome for each message, which is an error where it failed. */
  signMany(messages: readonly Uint8Array[], options?: Own<SignManyOptions>): Promise<(Buffer | HsmError)[]> {
    return this.client.signMany(messages, { ...options, key: this.key });
  }

  /** Whether the signature is one by this key; without `keyId`: by any version of it. */
  verify(message: Uint8Array, signature: Uint8Array, keyId?: string): Promise<boolean> {
    return this.client.verify(message, signature, { ...(keyId !== undefined && { keyId }), key: this.key });
  }

  /** Generate a version of the key, which does not sign yet. Returns its id. */
  generateKey(options?: Own<RequestOptions>): Promise<string> {
    return this.client.manage("generate", "", { ...options, key: this.key });
  }

  async getCurrentKeyId(): Promise<string> {
    return this.currentKey().id;
  }

  async setCurrentKeyId(keyId: string, options?: Own<RequestOptions>): Promise<void> {
    await this.client.manage("set-current", keyId, { ...options, key: this.key });
    // The gateway tells of its keys on its own, soon after: until then, getCurrentKeyId would give the old one.
    const signal = AbortSignal.timeout(TOLD_MS);
    while (this.client.current(this.key)?.id !== keyId && !signal.aborted) {
      await once(this.client, "keys", { signal }).catch(() => undefined);
    }
  }

  async deactivateKey(keyId: string, options?: Own<RequestOptions>): Promise<void> {
    await this.client.manage("deactivate", keyId, { ...options, key: this.key });
  }

  /** The private key of a version, wrapped by the HSM, never plain. */
  async exportKeyBackup(keyId: string, options?: Own<RequestOptions>): Promise<Buffer> {
    return Buffer.from(await this.client.manage("export", keyId, { ...options, key: this.key }), "base64");
  }

  /** The payload that was bound last in a domain, such as "my-rollup/block", and may not have been handed out: a process
   * that takes over signs it first. null: there is none. A gateway of an earlier release closes the connection. */
  async unfinished(domain: string, options?: Own<RequestOptions>): Promise<Unfinished | null> {
    return readUnfinished(await this.client.manage("unfinished", domain, { ...options, key: this.key }));
  }

  /** Counters of the gateway's signature cache. */
  async getCacheStats(options?: Own<RequestOptions>): Promise<Record<string, unknown>> {
    return JSON.parse(await this.client.manage("cache-stats", "", { ...options, key: this.key })) as Record<
      string,
      unknown
    >;
  }

  /** The version of the key that signs now. */
  currentKey(): Key {
    const found = this.client.current(this.key);
    if (found) return found;
    const fault = {
      status: "KEY_NOT_FOUND",
      class: "REQUEST_FATAL",
      hint: "Call initialize() first, and wait for it.",
    };
    throw new HsmError(`The gateway told of no current key of "${this.key}".`, fault);
  }
}

export class KeyManagerFactory {
  /** Make a key manager from `keyManager` of the sequencer's configuration. `gateway` in it says how to reach it. */
  static create(config: KeyManagerConfig = {}): KeyManager {
    const { address = process.env["HSMCORE_GATEWAY"], key, ...rest } = config.gateway ?? {};
    const unknown = Object.keys(rest).find((name) => !OPTIONS.includes(name));
    if (unknown !== undefined)
      throw badArgument(`keyManager.gateway has no option "${unknown}".`, `There are ${OPTIONS.join(", ")}.`);
    if (!address) {
      throw badArgument(
        "Where is the gateway?",
        "Set keyManager.gateway.address, or HSMCORE_GATEWAY in the environment, to an address at " +
          'which `hsmcore gateway` listens, "unix:/run/hsmcore/sign.sock" or "tls:host:port", or to several with commas.',
      );
    }
    return new KeyManager({ address, ...rest }, key);
  }
}
