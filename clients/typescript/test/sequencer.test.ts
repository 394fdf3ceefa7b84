/** The sequencer's calls and the signer for @solana/kit, as far as transactions that a ledger executes. */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { verify as verifyBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { after, before, suite, test } from "node:test";

import {
  type Address,
  address,
  appendTransactionMessageInstruction,
  assertIsTransactionWithinSizeLimit,
  type Blockhash,
  compileTransaction,
  createNoopSigner,
  createSignableMessage,
  createTransactionMessage,
  generateKeyPairSigner,
  getAddressDecoder,
  getAddressEncoder,
  isMessagePartialSigner,
  isTransactionPartialSigner,
  lamports,
  pipe,
  setTransactionMessageFeePayer,
  setTransactionMessageFeePayerSigner,
  setTransactionMessageLifetimeUsingBlockhash,
  type SignatureBytes,
  signTransactionMessageWithSigners,
  type Transaction,
} from "@solana/kit";
import { getTransferSolInstruction } from "@solana-program/system";
import {
  Keypair,
  PublicKey,
  SystemProgram,
  Transaction as OldTransaction,
  TransactionMessage,
  VersionedTransaction,
} from "@solana/web3.js";
import { SignerErrorCode } from "@solana/keychain-core";
import { HsmError, KeyManagerFactory, type KeyManagerConfig, type KeyManager } from "hsmcore-client";
import { createHsmcoreSigner, type HsmcoreSigner, SignerError } from "hsmcore-client/solana";
import { FailedTransactionMetadata, LiteSVM } from "litesvm";

import { place, type Place } from "./place.js";
import { Sequencer } from "./sequencer.js";

const COUNT = Number(process.env["HSMCORE_TEST_TRANSACTIONS"] ?? 200);
const IN_FLIGHT = 64;
const RECIPIENT = address("8opHzTAnfzRpPEx21XtnrVTX28YQuCpAjcn1PczScKh");

const seed = new URL("../../test/sequencer.json", import.meta.url);
const customers = (JSON.parse(readFileSync(seed, "utf8")) as { sequencer: { keyManager: KeyManagerConfig } }).sequencer;

/** Of a signer: an HsmError of this status, with what @solana/keychain-core's SignerError has. */
const signerError = (status: string, code: SignerErrorCode) => (error: unknown) => {
  assert.ok(error instanceof SignerError && error instanceof HsmError);
  assert.ok(Object.values(SignerErrorCode).includes(error.code));
  assert.deepEqual([error.name, error.status, error.code], ["SignerError", status, code]);
  assert.equal(error.context["message"], error.message);
  assert.ok(error.cause instanceof HsmError && error.cause.message === error.message);
  return true;
};

let gateway: Place;
let configuration: { keyManager: KeyManagerConfig };

before(async () => {
  gateway = await place();
  configuration = { keyManager: { ...customers.keyManager, gateway: gateway.options } };
});
after(() => gateway.end());

/** Run `work` on each, no more than IN_FLIGHT at a time. */
async function each<T>(all: readonly T[], work: (one: T) => Promise<void>): Promise<void> {
  const rest = all.values();
  const worker = async (): Promise<void> => {
    for (const one of rest) await work(one);
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, worker));
}

function ledger(...payers: Address[]): LiteSVM {
  const svm = new LiteSVM();
  for (const payer of payers) svm.airdrop(payer, lamports(1_000_000_000_000n));
  return svm;
}

function execute(svm: LiteSVM, transaction: Transaction): void {
  const outcome = svm.sendTransaction(transaction);
  assert.ok(!(outcome instanceof FailedTransactionMetadata), String(outcome));
}

/** A transfer; each amount makes another transaction. */
function transfer(payer: Address, amount: number, blockhash: Blockhash) {
  const source = createNoopSigner(payer);
  const message = pipe(
    createTransactionMessage({ version: amount % 2 === 0 ? 0 : "legacy" }),
    (one) => setTransactionMessageFeePayer(payer, one),
    (one) => setTransactionMessageLifetimeUsingBlockhash({ blockhash, lastValidBlockHeight: 1000n }, one),
    (one) =>
      appendTransactionMessageInstruction(getTransferSolInstruction({ source, destination: RECIPIENT, amount }), one),
  );
  const transaction = compileTransaction(message);
  assertIsTransactionWithinSizeLimit(transaction);
  return transaction;
}

suite("the sequencer", { timeout: 600_000 }, () => {
  test(`${COUNT} transactions that it has signed are executed`, async () => {
    const sequencer = new Sequencer(configuration);
    await sequencer.start();
    try {
      const payer = getAddressDecoder().decode(sequencer.keyManager.currentKey().publicKey);
      const svm = ledger(payer);
      const start = svm.getBalance(RECIPIENT) ?? 0n;
      const blockhash = svm.latestBlockhash();
      const amounts = Array.from({ length: COUNT }, (_, n) => 1_000_000 + n);
      await each(amounts, async (id) => {
        const transaction = transfer(payer, id, blockhash);
        const done = await sequencer.processTransaction({
          id,
          messageBytes: transaction.messageBytes as unknown as Uint8Array,
        });
        assert.deepEqual([done.id, done.status], [id, "processed"]);
        execute(svm, {
          ...transaction,
          signatures: { [payer]: new Uint8Array(done.signature) as SignatureBytes },
        });
      });
      const sum = amounts.reduce((total, amount) => total + BigInt(amount), 0n);
      assert.equal((svm.getBalance(RECIPIENT) ?? 0n) - start, sum);
    } finally {
      await sequencer.stop();
    }
  });
});

suite("the signer", { timeout: 600_000 }, () => {
  let manager: KeyManager;
  let signer: HsmcoreSigner;

  before(async () => {
    manager = KeyManagerFactory.create(configuration.keyManager);
    await manager.initialize();
    signer = createHsmcoreSigner(manager);
  });
  after(() => manager.close());

  test("is what @solana/kit takes for one", async () => {
    assert.ok(isTransactionPartialSigner(signer) && isMessagePartialSigner(signer));
    assert.equal(signer.address, getAddressDecoder().decode(manager.currentKey().publicKey));
    assert.equal(await signer.isAvailable(), true);
  });

  test("signs what @solana/kit builds, beside another signer", async () => {
    const payer = await generateKeyPairSigner();
    const svm = ledger(payer.address, signer.address);
    const transaction = await pipe(
      createTransactionMessage({ version: 0 }),
      (one) => setTransactionMessageFeePayerSigner(payer, one),
      (one) => svm.setTransactionMessageLifetimeUsingLatestBlockhash(one),
      (one) =>
        appendTransactionMessageInstruction(
          getTransferSolInstruction({ source: signer, destination: RECIPIENT, amount: 1_000_000 }),
          one,
        ),
      (one) => signTransactionMessageWithSigners(one),
    );
    execute(svm, transaction);
  });

  test("signs many transactions in one crossing", async () => {
    const svm = ledger(signer.address);
    const made = Array.from({ length: 100 }, (_, n) => transfer(signer.address, 1_000_000 + n, svm.latestBlockhash()));
    const signatures = await signer.signTransactions(made);
    assert.equal(signatures.length, 100);
    made.forEach((one, n) => execute(svm, { ...one, signatures: { ...one.signatures, ...signatures[n] } }));
  });

  test("refuses a transaction that does not ask for it, before the key is asked", async () => {
    const other = await generateKeyPairSigner();
    const made = transfer(other.address, 1, ledger().latestBlockhash());
    await assert.rejects(signer.signTransactions([made]), signerError("BAD_ARGUMENT", "SIGNER_SIGNING_FAILED"));
  });

  test("gives up if it is told to", async () => {
    const made = transfer(signer.address, 1, ledger().latestBlockhash());
    const signing = signer.signTransactions([made], { abortSignal: AbortSignal.abort() });
    await assert.rejects(signing, signerError("CANCELLED", "SIGNER_SIGNING_FAILED"));
    const large = [createSignableMessage(new Uint8Array(2 ** 20))];
    await assert.rejects(signer.signMessages(large), signerError("MESSAGE_TOO_LARGE", "SIGNER_SERIALIZATION_ERROR"));
    const unopened = KeyManagerFactory.create({ gateway: { address: "unix:/nowhere" } });
    assert.throws(() => createHsmcoreSigner(unopened), signerError("KEY_NOT_FOUND", "SIGNER_CONFIG_ERROR"));
  });

  test("signs messages", async () => {
    const text = Buffer.concat([
      Buffer.from("\xffsolana offchain\0\0", "latin1"),
      Buffer.from([5, 0]),
      Buffer.from("hello"),
    ]);
    const [signatures] = await signer.signMessages([createSignableMessage(new Uint8Array(text))]);
    const key = Uint8Array.from(getAddressEncoder().encode(signer.address));
    const der = Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), key]);
    assert.ok(verifyBytes(null, text, { key: der, format: "der", type: "spki" }, signatures![signer.address]!));
  });

  test("signs transactions of web3.js 1", async () => {
    const [own, payer] = [new PublicKey(signer.address), Keypair.generate()];
    const svm = ledger(signer.address, address(payer.publicKey.toBase58()));
    const recentBlockhash = svm.latestBlockhash();
    const instruction = SystemProgram.transfer({
      fromPubkey: own,
      toPubkey: new PublicKey(RECIPIENT),
      lamports: 1_000_000,
    });

    const old = new OldTransaction({ feePayer: payer.publicKey, recentBlockhash } as never).add(instruction);
    await signer.signTransaction(old);
    old.partialSign(payer);
    assert.ok(old.verifySignatures());

    const message = new TransactionMessage({
      payerKey: own,
      recentBlockhash,
      instructions: [instruction],
    }).compileToV0Message();
    const { signatures } = await signer.signTransaction(new VersionedTransaction(message));
    const messageBytes = message.serialize() as unknown as Transaction["messageBytes"];
    execute(svm, { messageBytes, signatures: { [signer.address]: signatures[0] as SignatureBytes } });

    const foreign = new TransactionMessage({
      payerKey: payer.publicKey,
      recentBlockhash,
      instructions: [],
    }).compileToV0Message();
    const refused = signerError("BAD_ARGUMENT", "SIGNER_SIGNING_FAILED");
    await assert.rejects(signer.signTransaction(new VersionedTransaction(foreign)), refused);
  });
});
