//! Signs a transaction's message that comes by stdin, with the HSM's key as the fee payer, and writes the transaction.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use hsmcore_client::solana::HsmcoreSigner;
use hsmcore_client::{Client, Options};
use solana_signer::Signer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addresses: Vec<String> = std::env::args().skip(1).collect(); // "unix:/run/hsmcore/sign.sock"
    let client = Arc::new(Client::connect(&addresses, Options::default())?);
    let signer = HsmcoreSigner::new(client, "default", Duration::from_secs(5))?;

    let mut message = Vec::new();
    io::stdin().read_to_end(&mut message)?;
    let signature = signer.try_sign_message(&message)?;
    // The number of signatures, the signatures, the message. Crates that build transactions do this with `&signer`.
    io::stdout().write_all(&[&[1], signature.as_ref(), &message].concat())?;
    Ok(())
}
