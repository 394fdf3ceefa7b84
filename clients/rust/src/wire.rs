//! Frames of hsmcore-wire/1, as bytes and as values: a client's half. docs/WIRE.md of hsmcore specifies them.

use std::fmt::Display;
use std::sync::Arc;

use crate::error::Error;
pub use crate::tables::*;

/// Bytes before a body.
const HEAD_BYTES: usize = 16;
const LENGTH_BYTES: usize = 4;
/// Where the fields stand that a frame is stamped with when it is sent: of each one, and of SIGN.
pub const TYPE_AT: usize = 4;
pub const FLAGS_AT: usize = 5;
pub const SLOT_AT: usize = 6;
pub const REQUEST_AT: usize = 8;
pub const TIMEOUT_AT: usize = 17;
pub const VERSION_AT: usize = 29;
/// Where the message of SIGN begins.
pub const MESSAGE_AT: usize = 33;
const HOLDER: &str = "\nholder: ";

type Read<T> = Result<T, Error>;

/// Bytes that are no frame, or none that a gateway sends. The connection is of no more use.
pub fn bad<T>(says: impl Display) -> Read<T> {
    Err(Error::lost(format!("it does not speak hsmcore-wire/1: {says}")))
}

/// A version of a key, as the gateway tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Key {
    /// The number of its key manager.
    pub slot: u16,
    /// Its number.
    pub version: u32,
    /// Whether it signs now.
    pub current: bool,
    /// What it signs with.
    pub algorithm: Algorithm,
    /// Its id on the token.
    pub id: String,
    /// 32 bytes of Ed25519; a point of ECDSA.
    pub public_key: Vec<u8>,
    /// Bit n is `Kind` n.
    pub kinds: u16,
}

/// What the gateway says first.
#[allow(missing_docs)]
pub struct Welcome {
    pub instance: [u8; NONCE_BYTES],
    pub credits: u32,
    pub message_bytes: u32,
    pub batch: u16,
    pub remember_ms: u32,
    pub client: String,
    pub slots: Vec<String>,
    pub keys: Vec<Key>,
}

/// A signature, and by what it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Signature {
    /// The signature: 64 bytes, of ECDSA r and s.
    pub bytes: Vec<u8>,
    /// The key that signed; None if the gateway does not list it.
    pub key: Option<Arc<Key>>,
    /// Its number, as the gateway says.
    pub version: u32,
    /// The level of failover.
    pub level: Level,
    /// The number of the audit record, if there is one.
    pub audit_seq: Option<u64>,
}

// ---- what a client sends ---------------------------------------------------------------------------------------------

/// A frame with this body. Number and slot are stamped later.
fn frame(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let size: usize = parts.iter().map(|one| one.len()).sum();
    let mut made = Vec::with_capacity(HEAD_BYTES + size);
    made.extend_from_slice(&u32::try_from(HEAD_BYTES - LENGTH_BYTES + size).unwrap_or(u32::MAX).to_le_bytes());
    made.extend_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    parts.iter().for_each(|one| made.extend_from_slice(one));
    made
}

/// HELLO. A program's name is cut after 255 bytes or fewer.
#[must_use]
pub fn hello(nonce: &[u8; NONCE_BYTES], program: &str) -> Vec<u8> {
    let mut end = program.len().min(255);
    while !program.is_char_boundary(end) {
        end -= 1;
    }
    #[allow(clippy::cast_possible_truncation)]
    frame(HELLO, &[&VERSION.to_le_bytes(), nonce, &[end as u8], &program.as_bytes()[..end]])
}

/// SIGN, with the least that is known before it is sent.
#[must_use]
pub fn sign(message: &[u8], kind: Kind, position: Option<u64>) -> Vec<u8> {
    let place = position.unwrap_or(0).to_le_bytes();
    let mut made = frame(SIGN, &[&[kind as u8], &[0; 4], &place, &[0; 4], message]);
    made[FLAGS_AT] = if position.is_some() { HAS_POSITION } else { 0 };
    made
}

/// MANAGE. Fails for an id of more than 255 bytes.
pub fn manage(operation: Operation, key_id: &str) -> Result<Vec<u8>, Error> {
    let Ok(size) = u8::try_from(key_id.len()) else {
        return Err(Error::bad_argument("A key's id has at most 255 bytes."));
    };
    Ok(frame(MANAGE, &[&[operation as u8, size], key_id.as_bytes()]))
}

/// PING, with these bytes.
#[must_use]
pub fn ping(data: &[u8]) -> Vec<u8> {
    frame(PING, &[data])
}

/// CANCEL or ACK.
#[must_use]
pub fn about(kind: u8, request: u64) -> Vec<u8> {
    let mut made = frame(kind, &[]);
    stamp(&mut made, REQUEST_AT, request.to_le_bytes());
    made
}

/// Write a field's bytes at its place.
pub fn stamp<const N: usize>(made: &mut [u8], at: usize, field: [u8; N]) {
    made[at..at + N].copy_from_slice(&field);
}

// ---- what a gateway sends --------------------------------------------------------------------------------------------

/// A frame of a gateway's.
#[allow(missing_docs)]
pub struct Frame<'a> {
    pub kind: u8,
    pub slot: u16,
    pub request: u64,
    pub body: &'a [u8],
}

/// The frame with which `data` begins and its size, or how many bytes are needed to say more. As soon as bytes are seen
/// to be no frame, they are refused.
pub fn cut(data: &[u8]) -> Read<Result<(Frame<'_>, usize), usize>> {
    let Some(head) = data.first_chunk::<LENGTH_BYTES>() else { return Ok(Err(LENGTH_BYTES)) };
    let length = u32::from_le_bytes(*head) as usize;
    if !(HEAD_BYTES - LENGTH_BYTES..=MOST_BYTES).contains(&length) {
        return bad(format!("a frame of {length} bytes"));
    }
    if data.len() < HEAD_BYTES {
        return Ok(Err(HEAD_BYTES));
    }
    let (kind, size) = (data[4], LENGTH_BYTES + length);
    if !(WELCOME..=BATCHED).contains(&kind) || data[5] != 0 {
        return bad(format!("type {kind} with flags {}", data[5]));
    }
    if data.len() < size {
        return Ok(Err(size));
    }
    let mut fields = Fields(&data[6..size]);
    Ok(Ok((Frame { kind, slot: fields.u16()?, request: fields.u64()?, body: fields.0 }, size)))
}

macro_rules! integers {
    ($($form:ident)*) => { $(fn $form(&mut self) -> Read<$form> { Ok($form::from_le_bytes(self.fixed()?)) })* };
}

/// Reads a body field by field.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn raw(&mut self, count: usize) -> Read<&'a [u8]> {
        let Some((found, rest)) = self.0.split_at_checked(count) else {
            return bad("a field ends behind the frame");
        };
        self.0 = rest;
        Ok(found)
    }

    fn fixed<const N: usize>(&mut self) -> Read<[u8; N]> {
        Ok(self.raw(N)?.try_into().expect("so many bytes were taken"))
    }

    integers! { u8 u16 u32 u64 }

    fn text(&mut self, size: usize) -> Read<String> {
        String::from_utf8(self.raw(size)?.to_vec()).or_else(|_| bad("a text that is not UTF-8"))
    }

    fn text8(&mut self) -> Read<String> {
        let size = self.u8()?;
        self.text(size.into())
    }

    /// Grows with what is there, not with the number that a gateway says.
    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let count = self.u16()?;
        (0..count).map(|_| one(self)).collect()
    }

    fn key(&mut self) -> Read<Key> {
        let (slot, version, state, algorithm) = (self.u16()?, self.u32()?, self.u8()?, self.u8()?);
        if state > 1 || algorithm == 0 {
            return bad(format!("state {state}, algorithm {algorithm} of a key"));
        }
        let (algorithm, id, size) = (named(Algorithm::ALL, algorithm)?, self.text8()?, self.u8()?);
        let public_key = self.raw(size.into())?.to_vec();
        Ok(Key { slot, version, current: state == 1, algorithm, id, public_key, kinds: self.u16()? })
    }

    fn welcome(&mut self) -> Read<Welcome> {
        let version = self.u16()?;
        if version != VERSION {
            return bad(format!("version {version} of the protocol; this is {VERSION}"));
        }
        Ok(Welcome {
            instance: self.fixed()?,
            credits: self.u32()?,
            message_bytes: self.u32()?,
            batch: self.u16()?,
            remember_ms: self.u32()?,
            client: self.text8()?,
            slots: self.list(Self::text8)?,
            keys: self.list(Self::key)?,
        })
    }

    fn error(&mut self) -> Read<Error> {
        let flags = self.u8()?;
        if flags > RETRYABLE | MAYBE_SIGNED {
            return bad(format!("flags {flags} of an error"));
        }
        let (retry_after_ms, status, _class, size) = (self.u32()?, self.text8()?, self.text8()?, self.u16()?);
        let says = self.text(size.into())?;
        let code = Code::ALL.iter().copied().find(|one| one.name() == status).unwrap_or(Code::Other);
        let (text, holder) = match says.split_once(HOLDER) {
            Some((text, holder)) if code == Code::NotHolder => (text.into(), holder.into()),
            _ if code == Code::Other => (format!("{status}: {says}"), String::new()),
            _ => (says, String::new()),
        };
        let (retryable, maybe_signed) = (flags & RETRYABLE != 0, flags & MAYBE_SIGNED != 0);
        Ok(Error { code, retryable, maybe_signed, retry_after_ms, request: None, holder, text })
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

fn named<T: Copy>(names: &[T], number: u8) -> Read<T> {
    names.get(usize::from(number)).copied().map_or_else(|| bad(format!("number {number} means nothing")), Ok)
}

/// What a frame says.
#[allow(missing_docs)]
pub enum Said<'a> {
    Welcome(Welcome),
    Keys(Vec<Key>),
    /// Which key it is, the connection knows.
    Signed(Signature),
    Error(Error),
    /// The milliseconds that are left, and why.
    Goaway(u32, String),
    Credit(u32),
    /// What PING had.
    Pong(&'a [u8]),
    Done(String),
    /// An answer to what this client does not ask.
    Other,
}

impl<'a> Frame<'a> {
    /// Read the body, of which nothing may be left.
    pub fn read(&self) -> Read<Said<'a>> {
        let mut fields = Fields(self.body);
        let said = match self.kind {
            WELCOME => Said::Welcome(fields.welcome()?),
            KEYS => Said::Keys(fields.list(Fields::key)?),
            SIGNED => {
                let (version, level, record) = (fields.u32()?, named(Level::ALL, fields.u8()?)?, fields.u64()?);
                let (bytes, audit_seq) = (fields.rest().to_vec(), (record != NO_RECORD).then_some(record));
                Said::Signed(Signature { bytes, key: None, version, level, audit_seq })
            }
            ERROR => Said::Error(fields.error()?),
            GOAWAY => Said::Goaway(fields.u32()?, fields.text8()?),
            CREDIT => Said::Credit(fields.u32()?),
            PONG if self.body.len() > MOST_PING => return bad("a long PONG"),
            PONG => Said::Pong(fields.rest()),
            DONE => Said::Done(fields.text(self.body.len())?),
            _ => return Ok(Said::Other),
        };
        if fields.0.is_empty() {
            Ok(said)
        } else {
            bad("bytes behind the last field")
        }
    }
}
