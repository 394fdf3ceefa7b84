//! Verify what a position of a public log is bound to, with Rust's standard library and libcrypto of OpenSSL 3.
//!
//!     rustc --edition 2021 -O verify_position.rs -C link-arg=-l:libcrypto.so.3
//!     ./verify_position POLICY_FILE DIGEST_HEX POSITION PROOF_FILE
//!
//! If it ends with 0: no other digest has this position in any history of the log that the policy's quorum of witnesses
//! has seen. DIGEST_HEX is the SHA-256 of the payload that was signed. docs/PUBLIC_LOG.md has the formats.
use std::collections::{HashMap, HashSet};
use std::{env, ffi::c_void, fs, ptr::null_mut};

extern "C" {
    fn SHA256(data: *const u8, size: usize, digest: *mut u8) -> *mut u8;
    fn EVP_PKEY_new_raw_public_key(kind: i32, engine: *mut c_void, key: *const u8, size: usize) -> *mut c_void;
    fn EVP_PKEY_free(key: *mut c_void);
    fn EVP_DecodeBlock(data: *mut u8, text: *const u8, size: i32) -> i32;
    fn EVP_EncodeBlock(text: *mut u8, data: *const u8, size: i32) -> i32;
    fn EVP_MD_CTX_new() -> *mut c_void;
    fn EVP_MD_CTX_free(context: *mut c_void);
    fn EVP_DigestVerifyInit(c: *mut c_void, p: *mut c_void, m: *mut c_void, e: *mut c_void, k: *mut c_void) -> i32;
    fn EVP_DigestVerify(c: *mut c_void, signature: *const u8, size: usize, text: *const u8, length: usize) -> i32;
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let (data, mut digest) = (parts.concat(), [0; 32]);
    unsafe { SHA256(data.as_ptr(), data.len(), digest.as_mut_ptr()) };
    digest
}

unsafe fn is_signed(key: &[u8; 32], signature: &[u8], text: &[u8]) -> bool {
    let key = EVP_PKEY_new_raw_public_key(1087, null_mut(), key.as_ptr(), 32); // NID_ED25519
    let context = EVP_MD_CTX_new();
    let good = EVP_DigestVerifyInit(context, null_mut(), null_mut(), null_mut(), key) == 1
        && EVP_DigestVerify(context, signature.as_ptr(), signature.len(), text.as_ptr(), text.len()) == 1;
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(key);
    good
}

/// Base64 in its only form: what is encoded again is the same.
fn unbase64(text: &str) -> Option<Vec<u8>> {
    let (mut data, mut again) = (vec![0; text.len()], vec![0; text.len() + 8]);
    let size = unsafe { EVP_DecodeBlock(data.as_mut_ptr(), text.as_ptr(), text.len() as i32) };
    data.truncate(usize::try_from(size).ok()?.checked_sub(text.matches('=').count())?);
    let size = unsafe { EVP_EncodeBlock(again.as_mut_ptr(), data.as_ptr(), data.len() as i32) };
    (again[..size as usize] == *text.as_bytes()).then_some(data)
}

fn number(text: &str) -> Option<u64> {
    let good = text.bytes().all(|one| one.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|&value: &u64| good && value <= i64::MAX as u64)
}

fn name(text: &str) -> Option<&str> {
    (!text.is_empty() && !text.contains(|one| one <= ' ' || one == '+')).then_some(text)
}

/// RFC 9162, section 2.1.3.2.
fn root_of(mut node: [u8; 32], mut index: u64, size: u64, path: &[[u8; 32]]) -> Option<[u8; 32]> {
    let mut last = size - 1;
    for sibling in path {
        last.checked_sub(1)?; // None: the path is too long
        let right = index % 2 == 1 || index == last;
        node = if right { sha256(&[&[1], sibling, &node]) } else { sha256(&[&[1], &node, sibling]) };
        let levels = 1 + if right { index.trailing_zeros() } else { 0 };
        (index, last) = (index >> levels, last >> levels);
    }
    (last == 0).then_some(node)
}

/// The keys of witnesses by name and key id; None if an id is not its key's.
fn witnesses_of<'a>(lines: &[&'a str]) -> Option<HashMap<(&'a str, Vec<u8>), [u8; 32]>> {
    let key_of = |line: &&'a str| {
        let [who, id, key] = line.strip_prefix("witness ")?.splitn(3, '+').collect::<Vec<_>>()[..] else { return None };
        let data = unbase64(key)?;
        let made = sha256(&[who.as_bytes(), b"\n", &data])[..4].to_vec();
        let good = made.iter().map(|one| format!("{one:02x}")).collect::<String>() == id && data.first() == Some(&4);
        Some(((name(who)?, made), data.get(1..)?.try_into().ok().filter(|_| good)?))
    };
    lines.iter().map(key_of).collect()
}

/// The number of witnesses that have seen this digest at the position; None if the proof does not hold.
fn verify(policy: &str, digest: &[u8; 32], position: u64, proof: &str) -> Option<usize> {
    let rules: Vec<&str> = policy.strip_suffix('\n')?.split('\n').collect();
    let [origin, first, quorum, witnesses @ ..] = &rules[..] else { return None };
    let (origin, first) = (name(origin.strip_prefix("origin ")?)?, number(first.strip_prefix("first ")?)?);
    let quorum = number(quorum.strip_prefix("quorum ")?).filter(|one| (1..100).contains(one))?;
    let (witnesses, mut seen) = (witnesses_of(witnesses)?, HashSet::new());
    let (shown, note) = proof.strip_suffix('\n').filter(|_| proof.len() <= 65536)?.split_once("\n\n")?;
    let hash = |text: &str| unbase64(text)?.try_into().ok();
    let (text, signatures) = note.split_once("\n\n")?;
    let shown: Vec<&str> = shown.split('\n').collect();
    let ["c2sp.org/tlog-proof@v1", index, path @ ..] = &shown[..] else { return None };
    let [log, size, root] = text.split('\n').collect::<Vec<_>>()[..] else { return None };
    let (index, size, root) = (number(index.strip_prefix("index ")?)?, number(size)?, hash(root)?);
    let path = path.iter().map(|line| hash(line)).collect::<Option<Vec<_>>>()?;
    let good = log == origin && index < size && signatures.lines().count() <= 64;
    first.checked_add(index).filter(|&at| good && at == position)?;
    for line in signatures.split('\n') {
        let (who, value) = line.strip_prefix("— ")?.split_once(' ')?;
        let data = unbase64(value).filter(|data| data.len() >= 5)?;
        if let Some(key) = witnesses.get(&(name(who)?, data[..4].to_vec())) {
            let time = u64::from_be_bytes(data.get(4..12)?.try_into().ok()?);
            let signed =
                unsafe { is_signed(key, &data[12..], format!("cosignature/v1\ntime {time}\n{text}\n").as_bytes()) };
            seen.insert(Some(key).filter(|_| signed)?);
        }
    }
    (seen.len() as u64 >= quorum && root_of(sha256(&[&[0, 1], digest]), index, size, &path)? == root)
        .then_some(seen.len())
}

fn main() -> Result<(), &'static str> {
    let given: Vec<String> = env::args().collect();
    let text = |at: usize| String::from_utf8(fs::read(&given[at]).expect(&given[at])).ok();
    let byte = |at: usize| u8::from_str_radix(given[2].get(at..at + 2)?, 16).ok();
    let digest: Option<Vec<u8>> = (0..given[2].len()).step_by(2).map(byte).collect();
    let seen = (|| verify(&text(1)?, &digest?.try_into().ok()?, number(&given[3])?, &text(4)?))();
    seen.map(|seen| println!("{seen}")).ok_or("NOT valid")
}
