//! Image names: parsing and the full form, as the Docker reference grammar has them.
//!
//! Follows the distribution project's reference grammar: `[host[:port]/]path[:tag][@digest]`, with
//! `docker.io`, `library/` and `latest` filled in.

use crate::Error;

/// A parsed image name in its full form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Registry host, with its port if any.
    pub registry: String,
    /// Repository path, lower case.
    pub repository: String,
    /// Tag; `None` only when there is a digest.
    pub tag: Option<String>,
    /// Digest, `sha256:` and 64 hexadecimal digits.
    pub digest: Option<String>,
}

impl Name {
    /// Parses `text`.
    ///
    /// # Errors
    /// [`Error::InvalidName`] says which rule is broken.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |why: &str| Error::InvalidName { name: text.into(), why: why.into() };
        if text.is_empty() {
            return Err(invalid("it is empty"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(invalid("the digest is not sha256 and 64 hexadecimal digits")),
            None => (text, None),
        };
        // A colon after the last slash starts the tag; one before it belongs to a host's port.
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (path, tag) = match rest[slash..].find(':') {
            Some(at) => (&rest[..slash + at], Some(rest[slash + at + 1..].to_owned())),
            None => (rest, None),
        };
        if let Some(tag) = &tag {
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let fits = tag.len() <= 128
                && tag.starts_with(word)
                && tag.chars().all(|c| word(c) || c == '.' || c == '-');
            if !fits {
                return Err(invalid("the tag may hold letters, digits, '_', '.' and '-' only"));
            }
        }
        let (registry, repository) = match path.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => {
                (host.to_owned(), rest.to_owned())
            }
            Some(_) => ("docker.io".to_owned(), path.to_owned()),
            None => ("docker.io".to_owned(), format!("library/{path}")),
        };
        let part_fits = |part: &str| {
            let edge =
                |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            edge(part.chars().next())
                && edge(part.chars().next_back())
                && part.chars().all(|c| {
                    c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-')
                })
        };
        if !repository.split('/').all(part_fits) {
            return Err(invalid(
                "each part of the path must be lower-case letters, digits and single '.', '_', '-'",
            ));
        }
        let tag = match (&tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            _ => tag,
        };
        Ok(Self { registry, repository, tag, digest })
    }

    /// The name with its tag, without the digest: `docker.io/library/busybox:latest`.
    pub fn tagged(&self) -> String {
        let tag = self.tag.as_deref().unwrap_or("latest");
        format!("{}/{}:{tag}", self.registry, self.repository)
    }

    /// The form that people type: `busybox:latest`.
    pub fn familiar(full: &str) -> &str {
        full.strip_prefix("docker.io/library/")
            .or_else(|| full.strip_prefix("docker.io/"))
            .unwrap_or(full)
    }
}

/// Whether `text` is `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> String {
        Name::parse(text).unwrap().tagged()
    }

    #[test]
    fn short_names_become_full() {
        assert_eq!(full("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(full("a/b:1"), "docker.io/a/b:1");
        assert_eq!(full("localhost/b"), "localhost/b:latest");
        assert_eq!(full("host:5050/b:v1"), "host:5050/b:v1");
    }

    #[test]
    fn a_digest_is_kept() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let name = Name::parse(&format!("shop@{digest}")).unwrap();
        assert_eq!(name.digest.as_deref(), Some(digest.as_str()));
        assert_eq!(name.tag, None);
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in ["", "UPPER", "a:", "a:b c", "a//b", "-a", "a@sha256:12", "a:b:c"] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }
}
