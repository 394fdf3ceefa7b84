//! The `Signer` of solana-signer, whose key is behind the gateway.

use std::sync::Arc;
use std::time::{Duration, Instant};

use solana_pubkey::Pubkey;
use solana_signature::Signature;
use solana_signer::{Signer, SignerError};

use crate::client::Client;
use crate::error::Error;
use crate::tables::{Algorithm, Code, Kind};
use crate::wire::Key;

/// Signs with the key that was current when it was made, or not at all: its address does not change. After a rotation it
/// refuses, for what it is asked to sign names the old address; make another one then.
pub struct HsmcoreSigner {
    client: Arc<Client>,
    name: String,
    key: Arc<Key>,
    timeout: Duration,
}

impl HsmcoreSigner {
    /// Of the key manager `name` ("default"). `timeout`: of each signature.
    pub fn new(client: Arc<Client>, name: &str, timeout: Duration) -> Result<Self, Error> {
        let none = || Error::new(Code::KeyNotFound, format!("No key of {name:?} is known to sign now."));
        let key = client.current(name).ok_or_else(none)?;
        if key.algorithm != Algorithm::Ed25519 || key.public_key.len() != 32 {
            let text = format!("Solana's signatures are Ed25519, and the key's are {}.", key.algorithm.name());
            return Err(Error::new(Code::AlgorithmUnsupported, text));
        }
        Ok(Self { client, name: name.into(), key, timeout })
    }

    fn signature(&self, message: &[u8]) -> Result<[u8; 64], Error> {
        let deadline = Instant::now() + self.timeout;
        // What a message is, the gateway sees in its bytes.
        let made = self.client.submit_by(Some(&self.key), &self.name, message, Kind::Unsaid, None, deadline)?.wait()?;
        made.bytes.try_into().map_err(|_| Error::new(Code::SignatureMalformed, "The signature has not 64 bytes."))
    }
}

impl Signer for HsmcoreSigner {
    fn try_pubkey(&self) -> Result<Pubkey, SignerError> {
        let key: [u8; 32] = self.key.public_key[..].try_into().map_err(|_| SignerError::Custom("no address".into()))?;
        Ok(Pubkey::from(key))
    }

    fn try_sign_message(&self, message: &[u8]) -> Result<Signature, SignerError> {
        let made = self.signature(message);
        made.map(Signature::from).map_err(|error| match error.code {
            Code::HostLost => SignerError::Connection(error.to_string()),
            _ => SignerError::Custom(error.to_string()),
        })
    }

    fn is_interactive(&self) -> bool {
        false
    }
}
