//! Service account tokens: JSON Web Tokens (RFC 7519) signed with ES256, bound to objects.
//!
//! Claims follow `k8s.io/kubernetes/pkg/serviceaccount/claims.go`. A token is worth as much as the objects that it
//! is bound to: when the pod or the account is gone or replaced, it is refused.

use crate::State;
use crate::types::{Result, User};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dhow_objects::kinds;
use dhow_objects::{Status, meta};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Shortest life of a token, in seconds.
pub const MIN_SECONDS: i64 = 600;
/// Longest life of a token, in seconds.
pub const MAX_SECONDS: i64 = 1 << 32;
/// How far a clock may be ahead, in seconds.
const LEEWAY: i64 = 10;

/// An object that a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// `Pod`, `Node` or `Secret`.
    pub kind: String,
    /// Its name, in the account's namespace.
    pub name: String,
    /// Its uid; empty takes the uid that the name has now.
    pub uid: String,
}

/// What a token is asked for (`authentication/v1` TokenRequest).
#[derive(Debug, Clone, Default)]
pub struct TokenRequest {
    /// Who may take the token; empty means the API itself.
    pub audiences: Vec<String>,
    /// Life in seconds, 0 for an hour.
    pub expiration_seconds: i64,
    /// What the token dies with, besides the account.
    pub bound: Option<Bound>,
}

/// An issued token.
#[derive(Debug, Clone)]
pub struct IssuedToken {
    /// The token.
    pub token: String,
    /// When it expires, in seconds since the epoch.
    pub expires: i64,
    /// Whom it is for.
    pub audiences: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Reference {
    name: String,
    uid: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Private {
    namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Reference>,
    serviceaccount: Reference,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    private: Private,
    nbf: i64,
    sub: String,
}

/// Signs and checks.
pub(crate) struct Signer {
    pair: EcdsaKeyPair,
    key_id: String,
    random: ring::rand::SystemRandom,
}

impl Signer {
    pub(crate) fn new(pkcs8: &[u8]) -> Result<Self> {
        let random = ring::rand::SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)
            .map_err(|e| Status::internal(format!("the key for service account tokens is no PKCS#8 P-256 key ({e}); remove it so that a new one is made")))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, pair.public_key().as_ref());
        let key_id = URL_SAFE_NO_PAD.encode(digest);
        Ok(Self { pair, key_id, random })
    }

    fn sign(&self, claims: &Claims) -> Result<String> {
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let claims = serde_json::to_value(claims).map_err(Status::internal)?;
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let message = format!("{}.{}", part(&header), part(&claims));
        let signature = self
            .pair
            .sign(&self.random, message.as_bytes())
            .map_err(|_| Status::internal("the system has no randomness to sign a token with"))?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn verify(&self, token: &str) -> Option<Claims> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header["alg"] != "ES256" {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref())
            .verify(message.as_bytes(), &signature)
            .ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }

    /// RFC 7517.
    fn key_set(&self) -> Value {
        // An uncompressed point: 4, x, y.
        let point = self.pair.public_key().as_ref();
        let part = |range: std::ops::Range<usize>| {
            URL_SAFE_NO_PAD.encode(point.get(range).unwrap_or_default())
        };
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": part(1..33), "y": part(33..65),
        }]})
    }
}

impl State {
    /// Issues a token for a service account.
    ///
    /// # Errors
    /// 404 when the account or the bound object does not exist, 409 when the bound object has another
    /// uid, 422 for a life that is too short or too long.
    pub async fn issue_token(
        &self,
        namespace: &str,
        account: &str,
        request: TokenRequest,
    ) -> Result<IssuedToken> {
        let seconds =
            if request.expiration_seconds == 0 { 3600 } else { request.expiration_seconds };
        if !(MIN_SECONDS..=MAX_SECONDS).contains(&seconds) {
            let why = if seconds < MIN_SECONDS {
                "may not specify a duration less than 10 minutes"
            } else {
                "may not specify a duration larger than 2^32 seconds"
            };
            return Err(Status::invalid(
                "authentication.k8s.io",
                "TokenRequest",
                account,
                vec![dhow_objects::StatusCause {
                    reason: "FieldValueInvalid".into(),
                    message: format!("Invalid value: {seconds}: {why}"),
                    field: "spec.expirationSeconds".into(),
                }],
            ));
        }
        let owner = self.get(&kinds::SERVICE_ACCOUNT, namespace, account).await?;
        let mut private = Private {
            namespace: namespace.to_owned(),
            node: None,
            pod: None,
            secret: None,
            serviceaccount: Reference { name: account.to_owned(), uid: owner.uid().to_owned() },
        };
        if let Some(bound) = &request.bound {
            self.bind_token(&mut private, namespace, account, bound).await?;
        }
        let now = i64::try_from(self.shared.clock.now().as_secs()).unwrap_or(0);
        let audiences = if request.audiences.is_empty() {
            vec![self.shared.config.issuer.clone()]
        } else {
            request.audiences
        };
        let claims = Claims {
            aud: audiences.clone(),
            exp: now + seconds,
            iat: now,
            iss: self.shared.config.issuer.clone(),
            jti: self.new_uid(),
            private,
            nbf: now,
            sub: format!("system:serviceaccount:{namespace}:{account}"),
        };
        let token = self.shared.signer.sign(&claims)?;
        Ok(IssuedToken { token, expires: claims.exp, audiences })
    }

    async fn bind_token(
        &self,
        private: &mut Private,
        namespace: &str,
        account: &str,
        bound: &Bound,
    ) -> Result<()> {
        let kind = match bound.kind.as_str() {
            "Pod" => &kinds::POD,
            "Node" => &kinds::NODE,
            "Secret" => &kinds::SECRET,
            other => {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to {other:?}"
                )));
            }
        };
        let scope = if kind.namespaced { namespace } else { "" };
        let object = self.get(kind, scope, &bound.name).await?;
        if !bound.uid.is_empty() && bound.uid != object.uid() {
            return Err(Status::conflict(
                kind.group,
                kind.plural,
                &bound.name,
                &format!(
                    "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                    bound.uid
                ),
            ));
        }
        let reference = Reference { name: bound.name.clone(), uid: object.uid().to_owned() };
        match bound.kind.as_str() {
            "Pod" => {
                let value = object.to_value();
                let runs_as = crate::codec::text(&value, "/spec/serviceAccountName");
                if runs_as != account {
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                    )));
                }
                let node = crate::codec::text(&value, "/spec/nodeName");
                if let Some(found) = self.cached(&kinds::NODE, "", node) {
                    private.node =
                        Some(Reference { name: node.to_owned(), uid: found.uid().to_owned() });
                }
                private.pod = Some(reference);
            }
            "Node" => private.node = Some(reference),
            _ => private.secret = Some(reference),
        }
        Ok(())
    }

    /// Who bears a token. `audiences` empty means the API itself.
    ///
    /// # Errors
    /// 401 when the token is not ours, not valid now, for somebody else, or bound to what is gone.
    pub async fn authenticate_token(&self, token: &str, audiences: &[String]) -> Result<User> {
        let claims = self.shared.signer.verify(token).ok_or_else(Status::unauthorized)?;
        let now = i64::try_from(self.shared.clock.now().as_secs()).unwrap_or(0);
        let issuer = &self.shared.config.issuer;
        let for_us = if audiences.is_empty() {
            claims.aud.contains(issuer)
        } else {
            audiences.iter().any(|a| claims.aud.contains(a))
        };
        if claims.iss != *issuer || !for_us || now > claims.exp || now + LEEWAY < claims.nbf {
            return Err(Status::unauthorized());
        }
        self.sync().await?;
        let Private { namespace, node, pod, secret, serviceaccount } = &claims.private;
        let lives = |kind, scope: &str, reference: &Reference| {
            self.cached(kind, scope, &reference.name).filter(|o| o.uid() == reference.uid)
        };
        lives(&kinds::SERVICE_ACCOUNT, namespace, serviceaccount)
            .ok_or_else(Status::unauthorized)?;
        if let Some(pod) = pod {
            let found = lives(&kinds::POD, namespace, pod).ok_or_else(Status::unauthorized)?;
            // A pod that should be gone for a minute has no say any more.
            let ended = meta::deletion_timestamp(found.value()).and_then(dhow_objects::time::parse);
            if ended.is_some_and(|at| at.as_second() + 60 < now) {
                return Err(Status::unauthorized());
            }
        }
        // In a pod's token the machine is only told; else the token is bound to it.
        if let (None, Some(node)) = (pod, node) {
            lives(&kinds::NODE, "", node).ok_or_else(Status::unauthorized)?;
        }
        if let Some(secret) = secret {
            lives(&kinds::SECRET, namespace, secret).ok_or_else(Status::unauthorized)?;
        }
        let extra = [
            ("authentication.kubernetes.io/credential-id", Some(format!("JTI={}", claims.jti))),
            ("authentication.kubernetes.io/node-name", node.as_ref().map(|n| n.name.clone())),
            ("authentication.kubernetes.io/node-uid", node.as_ref().map(|n| n.uid.clone())),
            ("authentication.kubernetes.io/pod-name", pod.as_ref().map(|p| p.name.clone())),
            ("authentication.kubernetes.io/pod-uid", pod.as_ref().map(|p| p.uid.clone())),
        ];
        Ok(User {
            name: format!("system:serviceaccount:{namespace}:{}", serviceaccount.name),
            uid: serviceaccount.uid.clone(),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".into(),
            ],
            extra: extra.into_iter().filter_map(|(k, v)| Some((k.to_owned(), vec![v?]))).collect(),
        })
    }

    /// The public keys that check our tokens, as a JSON Web Key Set (served at `/openid/v1/jwks`).
    pub fn token_keys(&self) -> Value {
        self.shared.signer.key_set()
    }
}
