/** A signer for @solana/kit, and for transactions of web3.js 1, whose key is behind the gateway. */

import type { Address, SignatureBytes } from "@solana/kit" with { "resolution-mode": "import" };
import type { SignerError as KeychainError, SignerErrorCode, SolanaSigner } from "@solana/keychain-core" with {
  "resolution-mode": "import",
};

import { Buffer } from "node:buffer";

import { HsmError } from "./errors.js";
import type { KeyManager } from "./key-manager.js";
import type { Key } from "./wire.js";

type Transactions = Parameters<SolanaSigner["signTransactions"]>[0];
type Messages = Parameters<SolanaSigner["signMessages"]>[0];
type Dictionaries = ReturnType<SolanaSigner["signMessages"]>;
type Config = { readonly abortSignal?: AbortSignal };

interface PublicKeyLike {
  toBase58(): string;
}

/** What a transaction of web3.js 1 has, of either sort. */
export interface Web3Transaction {
  addSignature(publicKey: never, signature: never): void;
  serializeMessage?(): Uint8Array;
  signatures: readonly unknown[];
  message?: {
    serialize(): Uint8Array;
    staticAccountKeys: readonly PublicKeyLike[];
    header: { numRequiredSignatures: number };
  };
}

export interface HsmcoreSigner extends SolanaSigner {
  signTransactions(transactions: Transactions, config?: Config): Dictionaries;
  signMessages(messages: Messages, config?: Config): Dictionaries;
  /** Add our signature to a transaction of web3.js 1. */
  signTransaction<T extends Web3Transaction>(transaction: T, config?: Config): Promise<T>;
}

/** Of a status. Every other one is SIGNER_NOT_AVAILABLE if it is retryable, else SIGNER_SIGNING_FAILED. */
const CODES: Readonly<Record<string, SignerErrorCode>> = {
  ALGORITHM_UNSUPPORTED: "SIGNER_INVALID_PUBLIC_KEY",
  CLOSED: "SIGNER_NOT_AVAILABLE",
  HOST_LOST: "SIGNER_NOT_AVAILABLE",
  KEY_NOT_FOUND: "SIGNER_CONFIG_ERROR",
  MESSAGE_TOO_LARGE: "SIGNER_SERIALIZATION_ERROR",
};

/** An error of a signer: an HsmError that has what @solana/keychain-core's SignerError has. It is none by `instanceof`,
 * for this package does not load that one: go by `name` and `code`. */
export class SignerError extends HsmError implements KeychainError {
  override readonly name = "SignerError";
  readonly code: SignerErrorCode;
  readonly context: Record<string, unknown>;

  constructor(error: HsmError) {
    super(error.message, { ...error, cause: error });
    const { message, status, retryable, maybeSigned, retryAfterMs } = error;
    this.code = CODES[status] ?? (retryable ? "SIGNER_NOT_AVAILABLE" : "SIGNER_SIGNING_FAILED");
    this.context = { message, status, retryable, maybeSigned, retryAfterMs };
  }
}

const explained = (error: unknown): unknown => (error instanceof HsmError ? new SignerError(error) : error);

const ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

function base58(data: Uint8Array): string {
  let number = BigInt(`0x${Buffer.from(data).toString("hex")}`);
  let text = "";
  for (; number > 0n; number /= 58n) text = ALPHABET[Number(number % 58n)]! + text;
  return "1".repeat(data.findIndex((byte) => byte !== 0)) + text;
}

function refuse(message: string, status = "BAD_ARGUMENT"): SignerError {
  return new SignerError(new HsmError(message, { status, class: "REQUEST_FATAL" }));
}

function currentKey(manager: KeyManager): Key {
  try {
    return manager.currentKey();
  } catch (error) {
    throw explained(error);
  }
}

/** Make a signer of the key that is current now. A signer's address does not change: after a rotation it refuses, for
 * what it is asked to sign names the old address. Make another one then: see the event "key-rotated". */
export function createHsmcoreSigner(manager: KeyManager): HsmcoreSigner {
  const key = currentKey(manager);
  if (key.algorithm !== "ed25519") {
    throw refuse(`Solana's signatures are Ed25519, and the key's are ${key.algorithm}.`, "ALGORITHM_UNSUPPORTED");
  }
  const address = base58(key.publicKey) as Address;

  // What a message is, the gateway sees in its bytes. All or nothing: a caller sends what it gets.
  async function signAll(messages: Uint8Array[], config?: Config): Promise<SignatureBytes[]> {
    const signal = config?.abortSignal;
    try {
      const outcomes = await manager.signMany(messages, { keyId: key.id, ...(signal && { signal }) });
      return outcomes.map((outcome) => {
        if (outcome instanceof HsmError) throw outcome;
        return new Uint8Array(outcome) as SignatureBytes;
      });
    } catch (error) {
      throw explained(error);
    }
  }

  const named = (signatures: SignatureBytes[]) => signatures.map((one) => Object.freeze({ [address]: one }));

  return Object.freeze({
    address,

    async isAvailable(): Promise<boolean> {
      try {
        await manager.client.ping();
        return manager.currentKey().publicKey.equals(key.publicKey);
      } catch {
        return false;
      }
    },

    async signTransactions(transactions: Transactions, config?: Config) {
      for (const { signatures } of transactions) {
        if (!(address in signatures)) throw refuse(`${address} is none of the signers that the transaction asks for.`);
      }
      return named(
        await signAll(
          transactions.map((one) => one.messageBytes as unknown as Uint8Array),
          config,
        ),
      );
    },

    async signMessages(messages: Messages, config?: Config) {
      return named(
        await signAll(
          messages.map((one) => one.content),
          config,
        ),
      );
    },

    async signTransaction<T extends Web3Transaction>(transaction: T, config?: Config): Promise<T> {
      const { message } = transaction;
      const bytes = message ? message.serialize() : transaction.serializeMessage!(); // which fills `signatures`
      const signers = message
        ? message.staticAccountKeys.slice(0, message.header.numRequiredSignatures)
        : (transaction.signatures as { publicKey: PublicKeyLike }[]).map((one) => one.publicKey);
      const own = signers.find((one) => one.toBase58() === address);
      if (!own) throw refuse(`${address} is none of the signers that the transaction asks for.`);
      const [signature] = await signAll([bytes], config);
      transaction.addSignature(own as never, Buffer.from(signature!) as never);
      return transaction;
    },
  });
}
