// Signs with @solana/keychain-vault what standard input asks for, and writes to standard output what came of it.
import { text } from 'node:stream/consumers';
import { VaultSigner } from '@solana/keychain-vault';
import { getTransactionDecoder } from '@solana/transactions';

const { config, messages, transactions } = JSON.parse(await text(process.stdin));
const bytes = encoded => new Uint8Array(Buffer.from(encoded, 'base64'));

const signer = new VaultSigner(config);
const encoded = dictionaries => dictionaries.map(one => Buffer.from(one[signer.address]).toString('base64'));
const said = { available: await signer.isAvailable() };
try {
    said.messages = encoded(
        await signer.signMessages(messages.map(message => ({ content: bytes(message), signatures: {} }))),
    );
    const decoder = getTransactionDecoder();
    said.transactions = encoded(await signer.signTransactions(transactions.map(one => decoder.decode(bytes(one)))));
} catch (error) {
    said.error = { code: error.code, message: String(error.context?.message ?? error.message) };
}
process.stdout.write(JSON.stringify(said));
