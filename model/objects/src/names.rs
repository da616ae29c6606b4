//! Names, labels and keys: what may be written where.
//!
//! Follows `k8s.io/apimachinery/pkg/util/validation` (texts included) and the name generator of
//! `k8s.io/apiserver/pkg/storage/names`.

fn within(max: usize, unit: &str, text: &str) -> Option<String> {
    (text.len() > max).then(|| format!("must be no more than {max} {unit}"))
}

const LABEL_1123: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_1123: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const HTTP_HEADER: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
const ENV_NAME: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.first().is_some_and(alnum)
        && bytes.last().is_some_and(alnum)
        && bytes.iter().all(|b| alnum(b) || *b == b'-')
}

/// What is wrong with a DNS-1123 label (at most 63 bytes); empty when it is fine.
#[must_use]
pub fn dns_label(text: &str) -> Vec<String> {
    let mut wrong: Vec<String> = within(63, "characters", text).into_iter().collect();
    if text.contains('.') {
        wrong.push("must not contain dots".to_owned());
    } else if !is_label(text) {
        wrong.push(LABEL_1123.to_owned());
    }
    wrong
}

/// What is wrong with a DNS-1123 subdomain (at most 253 bytes); empty when it is fine.
#[must_use]
pub fn dns_subdomain(text: &str) -> Vec<String> {
    let mut wrong: Vec<String> = within(253, "characters", text).into_iter().collect();
    if !text.split('.').all(is_label) {
        wrong.push(SUBDOMAIN_1123.to_owned());
    }
    wrong
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// What is wrong with a qualified name: `[PREFIX/]NAME`, as label and annotation keys are.
#[must_use]
pub fn qualified(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let name = match text.split_once('/') {
        None => text,
        Some((_, rest)) if rest.contains('/') => {
            wrong.push(format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                QUALIFIED.trim_start_matches("name part ")
            ));
            return wrong;
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                wrong.extend(dns_subdomain(prefix).into_iter().map(|w| format!("prefix part {w}")));
            }
            name
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else {
        wrong.extend(within(63, "bytes", name).map(|w| format!("name part {w}")));
    }
    if !is_name_part(name) {
        wrong.push(QUALIFIED.to_owned());
    }
    wrong
}

/// What is wrong with the value of a label; empty when it is fine.
#[must_use]
pub fn label_value(text: &str) -> Vec<String> {
    let mut wrong: Vec<String> = within(63, "bytes", text).into_iter().collect();
    if !text.is_empty() && !is_name_part(text) {
        wrong.push(LABEL_VALUE.to_owned());
    }
    wrong
}

/// What is wrong with a path segment, as names of RBAC objects are.
#[must_use]
pub fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    ['/', '%']
        .iter()
        .filter(|c| text.contains(**c))
        .map(|c| format!("may not contain '{c}'"))
        .collect()
}

/// What is wrong with a key of a `ConfigMap` or a `Secret`.
#[must_use]
pub fn config_key(text: &str) -> Vec<String> {
    let mut wrong: Vec<String> = within(253, "characters", text).into_iter().collect();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.is_empty() || !text.bytes().all(allowed) {
        wrong.push(CONFIG_KEY.to_owned());
    } else if text == "." || text == ".." {
        wrong.push(format!("must not be '{text}'"));
    } else if text.starts_with("..") {
        wrong.push("must not start with '..'".to_owned());
    }
    wrong
}

/// What is wrong with the name of an environment variable.
#[must_use]
pub fn env_name(text: &str) -> Vec<String> {
    if text.is_empty() || !text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return vec![ENV_NAME.to_owned()];
    }
    Vec::new()
}

/// What is wrong with the name of a header of HTTP.
#[must_use]
pub fn http_header(text: &str) -> Vec<String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return vec![HTTP_HEADER.to_owned()];
    }
    Vec::new()
}

/// Whether a text can be the name of a kernel setting: parts between dots or slashes.
#[must_use]
pub fn is_sysctl(text: &str) -> bool {
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= 253
        && text.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            bytes.first().is_some_and(alnum)
                && bytes.last().is_some_and(alnum)
                && bytes.iter().all(|b| alnum(b) || matches!(b, b'-' | b'_'))
        })
}

/// What is wrong with the name of a port (IANA service name, at most 15 characters).
#[must_use]
pub fn port_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 15 {
        wrong.push("must be no more than 15 characters".to_owned());
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        || text.is_empty()
    {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

/// Letters and digits of generated names: no vowels, nothing that looks like another.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Longest part of `generateName` that is kept.
const MAX_GENERATED: usize = 63 - 5;

/// A name from `generateName` and five characters made from `random`.
#[must_use]
pub fn generate(prefix: &str, random: u64) -> String {
    let mut cut = prefix.len().min(MAX_GENERATED);
    while !prefix.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}{}", &prefix[..cut], suffix(random, 5))
}

/// `length` characters of the alphabet of generated names (upstream's `rand.String`).
#[must_use]
pub fn suffix(mut random: u64, length: usize) -> String {
    let base = ALPHABET.len() as u64;
    (0..length)
        .map(|_| {
            let index = usize::try_from(random % base).unwrap_or(0);
            random /= base;
            char::from(ALPHABET[index])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "my-name", "123-abc"] {
            assert!(dns_label(good).is_empty(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a.b", "a_b", &"a".repeat(64)] {
            assert!(!dns_label(bad).is_empty(), "{bad}");
        }
        assert!(dns_subdomain("a.b-c.d").is_empty());
        for bad in ["a..b", ".a", "a.", "My_App"] {
            assert!(!dns_subdomain(bad).is_empty(), "{bad}");
        }
        assert_eq!(dns_label(&"a".repeat(64)), ["must be no more than 63 characters"]);
    }

    #[test]
    fn keys() {
        for good in ["app", "app.kubernetes.io/name", "A_b.c"] {
            assert!(qualified(good).is_empty(), "{good}");
        }
        for bad in ["", "/a", "a/b/c", "a/", "Bad_Prefix/a", "-a"] {
            assert!(!qualified(bad).is_empty(), "{bad}");
        }
        assert!(label_value("").is_empty() && label_value("v1.2_3-x").is_empty());
        assert!(!label_value("a b").is_empty());
        assert!(config_key("app.properties").is_empty());
        assert!(!config_key("..x").is_empty() && !config_key("a/b").is_empty());
        assert!(env_name("MY.VAR-1").is_empty() && !env_name("A=B").is_empty());
        assert!(http_header("X-Header-Name").is_empty() && !http_header("a b").is_empty());
        assert!(is_sysctl("net.ipv4.conf/eth0/rp_filter") && !is_sysctl("net..x"));
        assert!(port_name("http-metrics").is_empty());
        assert_eq!(port_name("123"), ["must contain at least one letter (a-z)"]);
    }

    #[test]
    fn generated_names_have_five_characters() {
        let name = generate("web-", 123_456_789_012);
        assert_eq!(name.len(), 9);
        assert!(name[4..].bytes().all(|b| ALPHABET.contains(&b)));
        assert_eq!(generate(&"x".repeat(80), 1).len(), 63);
    }
}
