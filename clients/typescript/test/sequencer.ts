/** A sequencer as the key manager's users write it: it knows the factory, and nothing of gateways. */

import { KeyManagerFactory, type KeyManager, type KeyManagerConfig } from "hsmcore-client";

export interface Transaction {
  id: number;
  messageBytes: Uint8Array;
}

export class Sequencer {
  readonly keyManager: KeyManager;

  constructor(config: { keyManager: KeyManagerConfig }) {
    this.keyManager = KeyManagerFactory.create(config.keyManager);
  }

  async start(): Promise<void> {
    await this.keyManager.initialize();
  }

  createMessage(transaction: Transaction): Uint8Array {
    return transaction.messageBytes;
  }

  async processTransaction(transaction: Transaction): Promise<{ id: number; status: string; signature: Uint8Array }> {
    const message = this.createMessage(transaction);
    const signature = await this.keyManager.sign(message);
    if (!(await this.keyManager.verify(message, signature))) throw new Error("Invalid signature");
    return { id: transaction.id, status: "processed", signature };
  }

  async stop(): Promise<void> {
    await this.keyManager.close();
  }
}
