//! Who asks, and whether they may.

use crate::error::status;
use crate::{Inner, Tokens};
use bytes::Bytes;
use dhow_kv::admin::{Caller, Need};
use dhow_kv::{Error, KeyValueRef, Op, Range, RangeResult, Span, Txn, TxnResult};
use http::HeaderMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How often a write is tried again when the rules have changed meanwhile.
const RETRIES: usize = 3;

/// What all requests of a connection share.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The common name of the verified client certificate.
    pub(crate) common_name: Option<String>,
    /// The server ends.
    pub(crate) stop: CancellationToken,
}

/// What came beside a request's message.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// The request's headers: gRPC's metadata.
    pub(crate) headers: HeaderMap,
    /// Where it came from.
    pub(crate) connection: Arc<Connection>,
    /// It came through the JSON gateway, where certificates do not stand for users.
    pub(crate) gateway: bool,
}

impl Call {
    /// A call without headers.
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { headers: HeaderMap::new(), connection, gateway: false }
    }

    /// A metadata value.
    pub(crate) fn metadata(&self, name: &'static str, through_gateway: &'static str) -> &[u8] {
        let name = if self.gateway { through_gateway } else { name };
        self.headers.get(name).map_or(&[], http::HeaderValue::as_bytes)
    }

    /// Whether the client wants an error instead of waiting for a leader.
    pub(crate) fn needs_leader(&self) -> bool {
        self.metadata("hasleader", "grpc-metadata-hasleader") == b"true"
    }

    fn token(&self) -> Option<&str> {
        let token = [
            self.metadata("token", "grpc-metadata-token"),
            self.metadata("authorization", "authorization"),
        ]
        .into_iter()
        .find(|t| !t.is_empty())?;
        let token = std::str::from_utf8(token).unwrap_or_default();
        Some(token.strip_prefix("Bearer ").unwrap_or(token))
    }
}

/// On whose behalf a request runs.
#[derive(Debug, Clone)]
pub(crate) enum Access {
    /// Nobody is asked for a name, as far as this member knows.
    Open {
        /// The revision of the rules.
        revision: u64,
    },
    /// Rules of this revision hold for the caller.
    As {
        /// Who asks.
        caller: Caller,
        /// The revision of the rules.
        revision: u64,
    },
}

/// The leases that a transaction may give keys, over all levels.
fn leases(txn: &Txn, out: &mut Vec<i64>) {
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Put { lease, .. } if *lease != 0 => out.push(*lease),
            Op::Txn(inner) => leases(inner, out),
            _ => {}
        }
    }
}

/// Whether a span has keys with the prefix.
fn touches(span: &Span, prefix: &Bytes) -> bool {
    let after = |key: &Bytes| key > prefix && !key.starts_with(prefix);
    match span {
        Span::Key(key) => key.starts_with(prefix),
        Span::Range(from, to) => from < to && to > prefix && !after(from),
        Span::From(from) => !after(from),
    }
}

impl Inner {
    /// On whose behalf a call runs.
    pub(crate) fn access(&self, call: &Call) -> Result<Access, Error> {
        let rules = self.admin.auth_status();
        if !rules.enabled {
            return Ok(Access::Open { revision: rules.revision });
        }
        let caller = match call.token() {
            Some(token) => match &*self.config.tokens {
                Tokens::Simple => self.admin.token_user(token),
                Tokens::Jwt(jwt) => jwt.caller(token),
                Tokens::None => None,
            }
            .ok_or(Error::InvalidToken)?,
            None => match &call.connection.common_name {
                Some(name) if self.config.client_cert_auth && !call.gateway => {
                    Caller { user: Some(name.clone()), revision: rules.revision }
                }
                _ => Caller::default(),
            },
        };
        Ok(Access::As { caller, revision: rules.revision })
    }

    /// Whether the needs are granted.
    pub(crate) fn allow(&self, access: &Access, needs: &[Need]) -> Result<(), Error> {
        match access {
            Access::Open { .. } => Ok(()),
            Access::As { caller, .. } => self.admin.authorize(caller, needs),
        }
    }

    /// For what only root may do.
    pub(crate) fn allow_root(&self, call: &Call) -> Result<(), Status> {
        self.access(call)
            .and_then(|access| self.allow(&access, &[Need::Root]))
            .map_err(|e| status(&e))
    }

    /// For what anybody with a name may do.
    pub(crate) fn allow_anybody(&self, call: &Call) -> Result<(), Status> {
        self.access(call)
            .and_then(|access| self.allow(&access, &[Need::Anybody]))
            .map_err(|e| status(&e))
    }

    /// Fails when the rules have changed since `access` was taken: what was read by the old ones
    /// must not be told. A member may have heard only by the read itself that names are asked for.
    pub(crate) fn unchanged(&self, access: &Access) -> Result<(), Error> {
        match access {
            Access::Open { .. } if self.admin.auth_status().enabled => Err(Error::UserNameEmpty),
            Access::As { caller, revision }
                if caller.revision != 0 && self.admin.auth_status().revision != *revision =>
            {
                Err(Error::AuthOldRevision)
            }
            _ => Ok(()),
        }
    }

    /// A read by a client.
    pub(crate) async fn read(&self, call: &Call, range: Range) -> Result<RangeResult, Error> {
        let access = self.access(call)?;
        self.allow_read(&access, &range)?;
        let found = self.kv.range(range).await?;
        self.unchanged(&access)?;
        Ok(found)
    }

    /// The same, whose key-values go to `each`.
    pub(crate) async fn read_each(
        &self,
        call: &Call,
        range: Range,
        each: &mut (dyn FnMut(KeyValueRef<'_>) + Send),
    ) -> Result<RangeResult, Error> {
        let access = self.access(call)?;
        self.allow_read(&access, &range)?;
        let found = self.kv.range_each(range, each).await?;
        self.unchanged(&access)?;
        Ok(found)
    }

    fn allow_read(&self, access: &Access, range: &Range) -> Result<(), Error> {
        match access {
            Access::Open { .. } => Ok(()),
            Access::As { .. } => self.allow(access, &[Need::Read(range.span.clone())]),
        }
    }

    /// A transaction of a client. The rules are checked here, and once more when it is applied that
    /// they are still the same.
    pub(crate) async fn write(&self, call: &Call, mut txn: Txn) -> Result<TxnResult, Error> {
        if !self.config.protected.is_empty() {
            self.spare_protected(&txn)?;
        }
        // In etcd's order: what is wrong in itself, who asks, the size, what they may.
        if let Err(error) = self.admin.check_txn(&txn) {
            if error == Error::TooLarge {
                self.access(call)?;
            }
            return Err(error);
        }
        let mut tries = 0;
        loop {
            let (revision, again) = match self.access(call)? {
                Access::Open { revision } => (revision, None),
                access @ Access::As { revision, .. } => {
                    self.allow_write(&access, &txn).await?;
                    (revision, (tries < RETRIES).then(|| txn.clone()))
                }
            };
            txn = match (self.admin.txn_as(txn, revision).await, again) {
                (Err(Error::AuthOldRevision), Some(again)) => again,
                // Nobody was asked for a name until a moment ago: as for reads.
                (Err(Error::AuthOldRevision), None) if tries == 0 => {
                    return Err(Error::UserNameEmpty);
                }
                (done, _) => return done,
            };
            tries += 1;
        }
    }

    async fn allow_write(&self, access: &Access, txn: &Txn) -> Result<(), Error> {
        self.allow(access, &Need::of(txn))?;
        let mut given = Vec::new();
        leases(txn, &mut given);
        for lease in given {
            self.allow_lease(access, lease).await?;
        }
        Ok(())
    }

    /// Whoever writes a key that hangs on the lease could end it, and so delete its other keys.
    pub(crate) async fn allow_lease(&self, access: &Access, lease: i64) -> Result<(), Error> {
        if self.allow(access, &[Need::Root]).is_ok() {
            return Ok(());
        }
        let keys = self.lease_keys(lease).await?;
        let needs: Vec<_> = keys.into_iter().map(|k| Need::Write(Span::Key(k))).collect();
        self.allow(access, &needs)
    }

    /// The keys that hang on a lease, none when it does not exist.
    pub(crate) async fn lease_keys(&self, lease: i64) -> Result<Vec<Bytes>, Error> {
        match self.kv.lease_time_to_live(lease, true).await {
            Ok(lease) => Ok(lease.keys),
            Err(Error::LeaseNotFound) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Refuses a transaction that could write what clients may only read.
    fn spare_protected(&self, txn: &Txn) -> Result<(), Error> {
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                Op::Range(_) => {}
                Op::Put { key, .. } => self.spare_key(key)?,
                Op::Delete { span, .. } => {
                    if self.config.protected.iter().any(|prefix| touches(span, prefix)) {
                        return Err(Error::PermissionDenied);
                    }
                }
                Op::Txn(inner) => self.spare_protected(inner)?,
            }
        }
        Ok(())
    }

    /// Refuses to write a key that clients may only read.
    pub(crate) fn spare_key(&self, key: &Bytes) -> Result<(), Error> {
        if self.config.protected.iter().any(|prefix| key.starts_with(prefix)) {
            return Err(Error::PermissionDenied);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_touches_a_prefix_when_it_could_hold_its_keys() {
        let prefix = Bytes::from("/dhow/");
        for span in [
            Span::Key("/dhow/a".into()),
            Span::From("/a".into()),
            Span::From("/dhow/z".into()),
            Span::Range("/dhow/a".into(), "/dhow/b".into()),
            Span::Range("/".into(), "/z".into()),
            Span::Range("/dhow".into(), "/dhow/a".into()),
        ] {
            assert!(touches(&span, &prefix), "{span:?}");
        }
        for span in [
            Span::Key("/dhow".into()),
            Span::From("/dhow0".into()),
            Span::Range("/a".into(), "/dhow/".into()),
            Span::Range("/dhow0".into(), "/z".into()),
            Span::Range("/z".into(), "/a".into()),
        ] {
            assert!(!touches(&span, &prefix), "{span:?}");
        }
    }
}
