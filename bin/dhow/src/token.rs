//! The join token: what a machine must know to become a server of a platform.
//!
//! `dhow1.AUTHORITY.SECRET`: the SHA-256 of the platform's authority, by which the machine knows
//! whom it talks to before it trusts anybody, and 256 random bits, by which the platform knows that
//! the machine may join. Whoever has it can get every key of the platform. It lies in `DATA/token`
//! of every server, for root alone, and is the same on all of them.

use crate::files;
use crate::pki::{Pki, random};
use anyhow::{Context, Result, bail};
use ring::digest::{SHA256, digest};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What every token of this version begins with.
const PREFIX: &str = "dhow1";

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the authority's certificate, in hexadecimal digits.
    pub authority: String,
    secret: String,
}

impl std::str::FromStr for Token {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = |text: &str| {
            text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        match text.trim().split('.').collect::<Vec<_>>().as_slice() {
            [PREFIX, authority, secret] if digits(authority) && digits(secret) => {
                Ok(Self { authority: (*authority).to_owned(), secret: (*secret).to_owned() })
            }
            _ => bail!(
                "this is no join token: it begins with {PREFIX}. and is told by 'dhow token' on a server of the platform"
            ),
        }
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}.{}.{}", self.authority, self.secret)
    }
}

impl Token {
    /// Whether somebody who shows `given` knows this token. How long it takes says nothing about
    /// where a wrong one differs: what is compared is what both hash to.
    pub fn is(&self, given: &str) -> bool {
        let hash = |text: &str| digest(&SHA256, text.as_bytes());
        hash(given.trim()).as_ref() == hash(&self.to_string()).as_ref()
    }

    /// Writes the token of a platform that this machine joins.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, data: &Path) -> Result<()> {
        files::write(&path(data), format!("{self}\n").as_bytes(), 0o600)
    }
}

/// Where a platform's token lies.
pub fn path(data: &Path) -> PathBuf {
    data.join("token")
}

/// The token of the platform in `data`; made when there is none. A new one is made when the file
/// was removed.
///
/// # Errors
/// When it cannot be read or written, or is for another authority.
pub fn open(data: &Path, pki: &Pki) -> Result<Token> {
    let (path, authority) = (path(data), pki.fingerprint()?);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret = random()?.iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            });
            let token = Token { authority, secret };
            token.keep(data)?;
            return Ok(token);
        }
        read => read.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let token: Token = text.parse().with_context(|| format!("{} is damaged", path.display()))?;
    if token.authority != authority {
        bail!("{} is for another authority than pki/ca.crt: remove it", path.display());
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_token_is_made_once_for_root_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(&dir.path().join("pki"), Duration::from_secs(1_800_000_000)).unwrap();
        let token = open(dir.path(), &pki).unwrap();
        assert!(open(dir.path(), &pki).unwrap() == token);
        let mode = path(dir.path()).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_file(path(dir.path())).unwrap();
        let other = open(dir.path(), &pki).unwrap();
        assert!(other != token && other.authority == token.authority);
    }

    #[test]
    fn only_the_very_token_is_the_token() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(&dir.path().join("pki"), Duration::from_secs(1_800_000_000)).unwrap();
        let token = open(dir.path(), &pki).unwrap();
        let text = token.to_string();
        assert!(token.is(&text) && token.is(&format!("{text}\n")));
        assert!(
            !token.is("") && !token.is(&text[1..]) && !token.is(&text.replace("dhow1", "dhow2"))
        );
        assert!(text.parse::<Token>().unwrap() == token);
    }

    #[test]
    fn other_texts_are_no_tokens() {
        let hex = "0".repeat(64);
        for bad in ["", "x", &format!("dhow1.{hex}"), &format!("dhow2.{hex}.{hex}")] {
            let said = bad.parse::<Token>().err().unwrap().to_string();
            assert!(said.contains("dhow token"), "{said}");
        }
    }
}
