//! JSON web tokens (RFC 7519) in place of simple ones: a user's name and the revision of the rules,
//! signed. Members need to share nothing but keys, and others can issue tokens too.
//!
//! Algorithms, claims and refusals are those of etcd's `--auth-token jwt`
//! (<https://etcd.io/docs/latest/learning/design-auth-v3/>).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dhow_clock::SharedClock;
use dhow_kv::admin::Caller;
use ring::signature::{self as sig, KeyPair as _, VerificationAlgorithm};
use ring::{hmac, rand};
use serde_json::{Value, json};
use std::time::Duration;
use x509_parser::prelude::{FromDer as _, Pem, SubjectPublicKeyInfo, X509Certificate};

/// How users are known by what they bring.
#[derive(Debug, Default)]
pub enum Tokens {
    /// By tokens that the store keeps.
    #[default]
    Simple,
    /// By signed tokens.
    Jwt(Box<Jwt>),
    /// By certificates only: nobody gets a token.
    None,
}

/// Why keys are not taken, in etcd's words where it has some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// The method is not known.
    #[error("auth: invalid auth signature method")]
    Method,
    /// The method is known and not supported.
    #[error("unsupported signing method: {0}")]
    Unsupported(&'static str),
    /// There is no key.
    #[error("auth: missing key data")]
    NoKey,
    /// The keys are not a pair.
    #[error("auth: public and private keys don't match")]
    Mismatch,
    /// A file is not in the form of PEM.
    #[error("invalid key: Key must be a PEM encoded PKCS1 or PKCS8 key")]
    Pem,
    /// A key of another kind.
    #[error("key is not a valid {0} {1} key")]
    Kind(&'static str, &'static str),
}

/// What signs.
enum Signer {
    Rsa(Box<sig::RsaKeyPair>, &'static dyn sig::RsaEncoding),
    Ecdsa(sig::EcdsaKeyPair),
    Ed25519(sig::Ed25519KeyPair),
}

enum Key {
    Secret(hmac::Key),
    /// The public key's bytes, and the private one if tokens are issued here.
    Pair(Vec<u8>, &'static dyn VerificationAlgorithm, Option<Signer>),
}

/// Makes and reads tokens.
pub struct Jwt {
    method: &'static str,
    key: Key,
    ttl: Duration,
    clock: SharedClock,
}

impl std::fmt::Debug for Jwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Jwt({}, {:?})", self.method, self.ttl)
    }
}

/// A kind of keys that come in pairs.
#[derive(Clone, Copy)]
enum Family {
    Rsa(&'static dyn sig::RsaEncoding),
    /// The algorithm, and the curve's name in DER.
    Ecdsa(&'static sig::EcdsaSigningAlgorithm, &'static [u8]),
    Ed25519,
}

const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::Rsa(_) => "RSA",
            Self::Ecdsa(..) => "ECDSA",
            Self::Ed25519 => "Ed25519",
        }
    }

    fn signer(self, pem: &Pem) -> Option<Signer> {
        let der = &pem.contents[..];
        Some(match (self, pem.label.as_str()) {
            (Self::Rsa(encoding), "RSA PRIVATE KEY") => {
                Signer::Rsa(Box::new(sig::RsaKeyPair::from_der(der).ok()?), encoding)
            }
            (Self::Rsa(encoding), _) => {
                Signer::Rsa(Box::new(sig::RsaKeyPair::from_pkcs8(der).ok()?), encoding)
            }
            (Self::Ecdsa(algorithm, curve), label) => {
                let wrapped;
                let der = if label == "EC PRIVATE KEY" {
                    wrapped = pkcs8(der, curve);
                    &wrapped
                } else {
                    der
                };
                let random = rand::SystemRandom::new();
                Signer::Ecdsa(sig::EcdsaKeyPair::from_pkcs8(algorithm, der, &random).ok()?)
            }
            (Self::Ed25519, _) => {
                Signer::Ed25519(sig::Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok()?)
            }
        })
    }
}

/// One element of DER.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let length = (body.len() as u32).to_be_bytes();
    let length = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut out = vec![tag];
    if body.len() >= 0x80 {
        out.push(0x80 | length.len() as u8);
    }
    out.extend(if body.is_empty() { &[0][..] } else { length });
    out.extend(body);
    out
}

/// An elliptic curve's private key of RFC 5915 in the frame of RFC 5958.
fn pkcs8(key: &[u8], curve: &[u8]) -> Vec<u8> {
    let algorithm = der(0x30, &[EC_PUBLIC_KEY, curve]);
    der(0x30, &[&[0x02, 0x01, 0x00], &algorithm, &der(0x04, &[key])])
}

/// The bytes of a public key, of one alone or of a certificate's.
fn public(pem: &Pem) -> Option<Vec<u8>> {
    let of = |info: &SubjectPublicKeyInfo<'_>| info.subject_public_key.data.to_vec();
    match pem.label.as_str() {
        "CERTIFICATE" => {
            X509Certificate::from_der(&pem.contents).ok().map(|(_, its)| of(its.public_key()))
        }
        "RSA PUBLIC KEY" => Some(pem.contents.clone()),
        _ => SubjectPublicKeyInfo::from_der(&pem.contents).ok().map(|(_, info)| of(&info)),
    }
}

fn pem(text: &[u8]) -> Result<Pem, JwtError> {
    x509_parser::pem::parse_x509_pem(text).map(|(_, pem)| pem).map_err(|_| JwtError::Pem)
}

impl Jwt {
    /// Tokens of a method (`RS256`, `PS384`, `ES256`, `EdDSA`, `HS512`, ...), signed with a private
    /// key that are good for `ttl`. With a public key only they are checked and not issued. Keys are
    /// PEM; that of `HS...` is any bytes.
    ///
    /// # Errors
    /// [`JwtError`].
    pub fn new(
        method: &str,
        private_key: &[u8],
        public_key: &[u8],
        ttl: Duration,
        clock: SharedClock,
    ) -> Result<Self, JwtError> {
        use Family::{Ecdsa, Ed25519, Rsa};
        let verify: &'static dyn VerificationAlgorithm;
        let (name, family): (&'static str, Family) = match method {
            "HS256" => return Self::secret("HS256", hmac::HMAC_SHA256, private_key, ttl, clock),
            "HS384" => return Self::secret("HS384", hmac::HMAC_SHA384, private_key, ttl, clock),
            "HS512" => return Self::secret("HS512", hmac::HMAC_SHA512, private_key, ttl, clock),
            "RS256" => {
                verify = &sig::RSA_PKCS1_2048_8192_SHA256;
                ("RS256", Rsa(&sig::RSA_PKCS1_SHA256))
            }
            "RS384" => {
                verify = &sig::RSA_PKCS1_2048_8192_SHA384;
                ("RS384", Rsa(&sig::RSA_PKCS1_SHA384))
            }
            "RS512" => {
                verify = &sig::RSA_PKCS1_2048_8192_SHA512;
                ("RS512", Rsa(&sig::RSA_PKCS1_SHA512))
            }
            "PS256" => {
                verify = &sig::RSA_PSS_2048_8192_SHA256;
                ("PS256", Rsa(&sig::RSA_PSS_SHA256))
            }
            "PS384" => {
                verify = &sig::RSA_PSS_2048_8192_SHA384;
                ("PS384", Rsa(&sig::RSA_PSS_SHA384))
            }
            "PS512" => {
                verify = &sig::RSA_PSS_2048_8192_SHA512;
                ("PS512", Rsa(&sig::RSA_PSS_SHA512))
            }
            "ES256" => {
                verify = &sig::ECDSA_P256_SHA256_FIXED;
                ("ES256", Ecdsa(&sig::ECDSA_P256_SHA256_FIXED_SIGNING, P256))
            }
            "ES384" => {
                verify = &sig::ECDSA_P384_SHA384_FIXED;
                ("ES384", Ecdsa(&sig::ECDSA_P384_SHA384_FIXED_SIGNING, P384))
            }
            "EdDSA" => {
                verify = &sig::ED25519;
                ("EdDSA", Ed25519)
            }
            // The library below has no curve P-521, and one that has it costs more than it is worth.
            "ES512" => return Err(JwtError::Unsupported("ES512; use ES384")),
            "none" => return Err(JwtError::Unsupported("none")),
            _ => return Err(JwtError::Method),
        };
        let signer = match private_key {
            [] => None,
            text => {
                let found = family.signer(&pem(text)?);
                Some(found.ok_or(JwtError::Kind(family.name(), "private"))?)
            }
        };
        let given = match public_key {
            [] => None,
            text => Some(public(&pem(text)?).ok_or(JwtError::Kind(family.name(), "public"))?),
        };
        let own = signer.as_ref().map(|signer| match signer {
            Signer::Rsa(pair, _) => pair.public().as_ref().to_vec(),
            Signer::Ecdsa(pair) => pair.public_key().as_ref().to_vec(),
            Signer::Ed25519(pair) => pair.public_key().as_ref().to_vec(),
        });
        let public = match (own, given) {
            (None, None) => return Err(JwtError::NoKey),
            (Some(own), Some(given)) if own != given => return Err(JwtError::Mismatch),
            (Some(key), _) | (None, Some(key)) => key,
        };
        Ok(Self { method: name, key: Key::Pair(public, verify, signer), ttl, clock })
    }

    fn secret(
        method: &'static str,
        algorithm: hmac::Algorithm,
        key: &[u8],
        ttl: Duration,
        clock: SharedClock,
    ) -> Result<Self, JwtError> {
        if key.is_empty() {
            return Err(JwtError::NoKey);
        }
        Ok(Self { method, key: Key::Secret(hmac::Key::new(algorithm, key)), ttl, clock })
    }

    /// A token for a user, with the revision of the rules that the password was checked by.
    ///
    /// # Errors
    /// In etcd's words: there is no private key, or it does not sign.
    pub fn issue(&self, user: &str, revision: u64) -> Result<String, &'static str> {
        let header = json!({ "alg": self.method, "typ": "JWT" });
        let end = (self.clock.now() + self.ttl).as_secs();
        let claims = json!({ "exp": end, "revision": revision, "username": user });
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", encode(header), encode(claims));
        let signature = self.sign(text.as_bytes())?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn sign(&self, text: &[u8]) -> Result<Vec<u8>, &'static str> {
        let random = rand::SystemRandom::new();
        let signed = match &self.key {
            Key::Secret(key) => Ok(hmac::sign(key, text).as_ref().to_vec()),
            Key::Pair(_, _, None) => {
                return Err("auth: token signing attempted with verify-only key");
            }
            Key::Pair(_, _, Some(Signer::Rsa(pair, encoding))) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(*encoding, &random, text, &mut signature).map(|()| signature)
            }
            Key::Pair(_, _, Some(Signer::Ecdsa(pair))) => {
                pair.sign(&random, text).map(|signature| signature.as_ref().to_vec())
            }
            Key::Pair(_, _, Some(Signer::Ed25519(pair))) => Ok(pair.sign(text).as_ref().to_vec()),
        };
        signed.map_err(|_| "auth: the private key does not sign; give another one")
    }

    /// The user that a token names, and the revision it was issued at; `None` when it is not good.
    pub fn caller(&self, token: &str) -> Option<Caller> {
        let (text, signature) = token.rsplit_once('.')?;
        let (header, claims) = text.split_once('.')?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let parse = |part: &str| serde_json::from_slice::<Value>(&decode(part)?).ok();
        // Else whoever knows a public key could use it as a secret.
        if parse(header)?.get("alg")?.as_str()? != self.method {
            return None;
        }
        let signature = decode(signature)?;
        match &self.key {
            Key::Secret(key) => hmac::verify(key, text.as_bytes(), &signature),
            Key::Pair(public, algorithm, _) => {
                sig::UnparsedPublicKey::new(*algorithm, public).verify(text.as_bytes(), &signature)
            }
        }
        .ok()?;
        let claims = parse(claims)?;
        let now = self.clock.now().as_secs_f64();
        let moment = |name: &str| match claims.get(name) {
            None => Some(None),
            Some(at) => at.as_f64().map(Some),
        };
        if moment("exp")?.is_some_and(|end| now >= end)
            || moment("nbf")?.is_some_and(|begin| now < begin)
        {
            return None;
        }
        let user = claims.get("username")?.as_str()?.to_owned();
        let revision = claims.get("revision")?.as_f64()? as u64;
        Some(Caller { user: Some(user), revision })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_clock::System;

    const TTL: Duration = Duration::from_secs(60);

    fn jwt(method: &str, private_key: &str, public_key: &str) -> Result<Jwt, JwtError> {
        let (private_key, public_key) = (private_key.as_bytes(), public_key.as_bytes());
        Jwt::new(method, private_key, public_key, TTL, System::shared())
    }

    /// A new pair of the method: private and public, as PEM.
    fn pair(algorithm: &'static rcgen::SignatureAlgorithm) -> (String, String) {
        let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
        (pair.serialize_pem(), pair.public_key_pem())
    }

    #[test]
    fn a_token_names_user_and_revision_to_whoever_has_the_public_key() {
        for (method, algorithm) in [
            ("ES256", &rcgen::PKCS_ECDSA_P256_SHA256),
            ("ES384", &rcgen::PKCS_ECDSA_P384_SHA384),
            ("EdDSA", &rcgen::PKCS_ED25519),
        ] {
            let (private_key, public_key) = pair(algorithm);
            let token = jwt(method, &private_key, &public_key).unwrap().issue("ann", 7).unwrap();
            let checks = jwt(method, "", &public_key).unwrap();
            let caller = Caller { user: Some("ann".into()), revision: 7 };
            assert_eq!(checks.caller(&token), Some(caller), "{method}");
            assert_eq!(
                checks.issue("ann", 7),
                Err("auth: token signing attempted with verify-only key")
            );
            let other = jwt(method, "", &pair(algorithm).1).unwrap();
            assert_eq!(other.caller(&token), None, "{method}");
        }
    }

    #[test]
    fn tokens_of_rsa_and_of_secrets_come_back() {
        let (private_key, public_key) =
            (include_str!("../tests/data/rsa.key"), include_str!("../tests/data/rsa.pub"));
        for method in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
            let both = jwt(method, private_key, public_key).unwrap();
            let token = both.issue("ann", 7).unwrap();
            assert_eq!(both.caller(&token).unwrap().revision, 7, "{method}");
        }
        for method in ["HS256", "HS384", "HS512"] {
            let one = jwt(method, "secret", "").unwrap();
            let token = one.issue("ann", 7).unwrap();
            assert_eq!(one.caller(&token).unwrap().user.as_deref(), Some("ann"), "{method}");
            assert_eq!(jwt(method, "guessed", "").unwrap().caller(&token), None);
        }
    }

    #[test]
    fn a_key_in_the_older_form_of_openssl_is_read() {
        let key = include_str!("../tests/data/ec.key");
        assert!(key.contains("BEGIN EC PRIVATE KEY"));
        let one = jwt("ES256", key, "").unwrap();
        assert!(one.caller(&one.issue("ann", 1).unwrap()).is_some());
    }

    #[test]
    fn a_token_is_refused_when_late_changed_or_of_another_method() {
        let one = jwt("HS256", "secret", "").unwrap();
        let token = one.issue("ann", 1).unwrap();
        let mut parts: Vec<&str> = token.split('.').collect();
        let forged = URL_SAFE_NO_PAD.encode(r#"{"username":"root","revision":1,"exp":9999999999}"#);
        parts[1] = &forged;
        assert_eq!(one.caller(&parts.join(".")), None);
        for bad in ["", "a.b.c", "..", "simple.7"] {
            assert_eq!(one.caller(bad), None, "{bad}");
        }
        let late = Jwt::new("HS256", b"secret", b"", Duration::ZERO, System::shared()).unwrap();
        assert_eq!(one.caller(&late.issue("ann", 1).unwrap()), None);
        // A public key, which everybody knows, must not be taken for a secret.
        let (private_key, public_key) = pair(&rcgen::PKCS_ED25519);
        let real = jwt("EdDSA", &private_key, "").unwrap();
        let trick = jwt("HS256", &public_key, "").unwrap().issue("root", 1).unwrap();
        assert_eq!(real.caller(&trick), None);
    }

    #[test]
    fn keys_that_do_not_fit_are_refused_in_etcds_words() {
        let refused = |method: &str, private_key: &str, public_key: &str| {
            jwt(method, private_key, public_key).unwrap_err().to_string()
        };
        let (ed, ed_public) = pair(&rcgen::PKCS_ED25519);
        let other = pair(&rcgen::PKCS_ED25519).1;
        assert_eq!(refused("", "", ""), "auth: invalid auth signature method");
        assert_eq!(refused("EdDSA", "", ""), "auth: missing key data");
        assert_eq!(refused("HS256", "", &ed_public), "auth: missing key data");
        assert_eq!(refused("EdDSA", &ed, &other), "auth: public and private keys don't match");
        assert_eq!(refused("RS256", &ed, ""), "key is not a valid RSA private key");
        assert!(refused("ES256", "no key", "").contains("must be a PEM encoded"));
        assert!(refused("none", "", "").starts_with("unsupported signing method"));
        assert!(refused("ES512", &ed, "").starts_with("unsupported signing method"));
    }
}
