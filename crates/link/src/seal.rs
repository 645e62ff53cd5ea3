//! Secret files, sealed when the operator gives a key: what a stolen disk or backup shows opens nothing.
//!
//! ```text
//! aivillage-sealed-v1            first line: what this is, and which version of it
//! base64(salt 32 | nonce 12 | ciphertext | tag 16)
//! ```
//! AES-256-GCM under HKDF-SHA256 (RFC 5869) of the operator's key, with a fresh salt a file and the file's name as
//! context: a sealed file opens under its own name only. Promises: a plain file is sealed in place, whole or not at all, as
//! soon as there is a key; a sealed one is never read, replaced or mended without it. HKDF does not stretch: the
//! operator's key must be random.
//!
//! Must not know what is in the files.

use std::fmt;
use std::io;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::files;

/// First words of every sealed file, whatever its version.
const MARK: &str = "aivillage-sealed-v";
/// First line of those that this version writes.
const HEAD: &str = "aivillage-sealed-v1";
const SALT_LEN: usize = 32;
const KEY_LEN: usize = 32;

/// The operator's key for secrets at rest (`SECRET_KEY`). `Debug` shows nothing of it.
#[derive(Clone)]
pub struct Seal {
    secret: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(..)")
    }
}

impl Seal {
    /// Seals with this key, of any length.
    #[must_use]
    pub fn new(secret: &str) -> Self {
        Self { secret: Zeroizing::new(secret.as_bytes().to_vec()) }
    }

    /// The key of one file.
    fn key(&self, salt: &[u8], name: &str) -> Result<LessSafeKey, Unspecified> {
        let context = [b"aivillage sealed file v1: ".as_slice(), name.as_bytes()];
        let mut key = Zeroizing::new([0u8; KEY_LEN]);
        Salt::new(HKDF_SHA256, salt).extract(&self.secret).expand(&context, &AES_256_GCM)?.fill(key.as_mut_slice())?;
        UnboundKey::new(&AES_256_GCM, key.as_slice()).map(LessSafeKey::new)
    }

    fn close(&self, name: &str, plain: &str) -> Result<String, Unspecified> {
        let mut sealed = vec![0u8; SALT_LEN + NONCE_LEN];
        aivillage_base::rng::os_bytes(&mut sealed);
        let key = self.key(&sealed[..SALT_LEN], name)?;
        let nonce = Nonce::try_assume_unique_for_key(&sealed[SALT_LEN..])?;
        let mut body = Zeroizing::new(plain.as_bytes().to_vec());
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(HEAD), &mut body)?;
        sealed.extend_from_slice(&body);
        sealed.extend_from_slice(tag.as_ref());
        Ok(format!("{HEAD}\n{}\n", STANDARD.encode(sealed)))
    }

    /// None: another key, another file's text, or a damaged one; nobody can tell these apart.
    fn open(&self, name: &str, body: &str) -> Option<Zeroizing<String>> {
        let sealed = STANDARD.decode(body.trim_end()).ok()?;
        let (salt, rest) = sealed.split_at_checked(SALT_LEN)?;
        let (nonce, body) = rest.split_at_checked(NONCE_LEN)?;
        let key = self.key(salt, name).ok()?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut body = Zeroizing::new(body.to_vec());
        let plain = key.open_in_place(nonce, Aad::from(HEAD), &mut body).ok()?;
        std::str::from_utf8(plain).ok().map(|text| Zeroizing::new(text.to_owned()))
    }
}

/// The name that a file is sealed under.
fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Reads a secret file, sealed or not; None if there is none. A plain one is sealed in place if there is a key.
///
/// # Errors
/// As [`files::read_secret`]; a sealed file without its key.
pub(crate) fn read(path: &Path, seal: Option<&Seal>) -> io::Result<Option<Zeroizing<String>>> {
    let Some(text) = files::read_secret(path)?.map(Zeroizing::new) else { return Ok(None) };
    if !text.starts_with(MARK) {
        if seal.is_some() {
            write(path, &text, seal)?;
            tracing::info!(file = %path.display(), "sealed with SECRET_KEY");
        }
        return Ok(Some(text));
    }
    let refuse = |kind, why: &str| Err(io::Error::new(kind, why));
    let Some(body) = text.strip_prefix(HEAD).and_then(|rest| rest.strip_prefix('\n')) else {
        return refuse(
            io::ErrorKind::Unsupported,
            "it was sealed by another version of aivillage: start that version, or restore the file from a backup",
        );
    };
    let Some(seal) = seal else {
        return refuse(
            io::ErrorKind::PermissionDenied,
            "it is sealed, and SECRET_KEY is not set: set it to the value it had when the file was sealed",
        );
    };
    match seal.open(&name_of(path), body) {
        Some(plain) => Ok(Some(plain)),
        None => refuse(
            io::ErrorKind::PermissionDenied,
            "SECRET_KEY does not open it: set the value it had when the file was sealed; if that is right, the file is \
             damaged: restore it from a backup",
        ),
    }
}

/// Writes a secret file whole or not at all, sealed if there is a key.
///
/// # Errors
/// As the file system says.
pub(crate) fn write(path: &Path, plain: &str, seal: Option<&Seal>) -> io::Result<()> {
    match seal {
        None => files::write_durably(path, plain.as_bytes(), true),
        Some(seal) => {
            let sealed = seal.close(&name_of(path), plain).map_err(|_| io::Error::other("it could not be sealed"))?;
            files::write_durably(path, sealed.as_bytes(), true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &Path, seal: Option<&str>) -> Result<String, String> {
        let seal = seal.map(Seal::new);
        read(path, seal.as_ref()).map(|text| text.unwrap().to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_plain_file_is_sealed_in_place_and_opens_with_its_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.key");
        write(&path, "the secret\n", None).unwrap();
        assert_eq!(check(&path, None).unwrap(), "the secret\n");
        assert_eq!(check(&path, Some("right")).unwrap(), "the secret\n");
        let sealed = std::fs::read_to_string(&path).unwrap();
        assert!(sealed.starts_with("aivillage-sealed-v1\n") && !sealed.contains("secret"), "{sealed}");
        assert_eq!(check(&path, Some("right")).unwrap(), "the secret\n");
        assert!(check(&path, None).unwrap_err().contains("SECRET_KEY is not set"));
        assert!(check(&path, Some("wrong")).unwrap_err().contains("SECRET_KEY does not open it"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), sealed, "refusals change nothing");
    }

    #[test]
    fn a_sealed_file_under_another_name_cut_or_changed_does_not_open() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("ca.key"), dir.path().join("identity.key"));
        write(&path, "the secret", Some(&Seal::new("right"))).unwrap();
        std::fs::copy(&path, &other).unwrap();
        assert!(check(&other, Some("right")).is_err());
        let sealed = std::fs::read_to_string(&path).unwrap();
        for damaged in [&sealed[..HEAD.len() + 1], &sealed[..HEAD.len() + 40], &sealed.replace("v1", "v2")] {
            std::fs::write(&other, damaged).unwrap();
            std::fs::rename(&other, &path).unwrap();
            assert!(check(&path, Some("right")).is_err(), "{damaged}");
        }
    }

    #[test]
    fn no_two_sealed_files_are_alike_and_debug_keeps_the_key() {
        let seal = Seal::new("planted");
        assert_ne!(seal.close("a", "text").unwrap(), seal.close("a", "text").unwrap());
        assert_eq!(format!("{seal:?}"), "Seal(..)");
    }
}
