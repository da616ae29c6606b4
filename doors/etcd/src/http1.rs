//! What is served beside gRPC: health, version, metrics, and the way to the gateway.

use crate::Inner;
use crate::access::Call;
use crate::body::Body;
use crate::gateway;
use crate::maintenance::alarm_name;
use crate::metrics::{self, add};
use bytes::Bytes;
use dhow_bodies::{Pieces, Upload};
use dhow_kv::admin::AlarmKind;
use dhow_kv::{Range, Span};
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A check of `/livez` or `/readyz`.
#[derive(Debug, Clone, Copy)]
enum Check {
    NoCorruption,
    SerializableRead,
    LinearizableRead,
    NotLearner,
}

impl Check {
    const LIVE: &'static [Self] = &[Self::SerializableRead];
    const READY: &'static [Self] =
        &[Self::NoCorruption, Self::SerializableRead, Self::LinearizableRead, Self::NotLearner];

    fn name(self) -> &'static str {
        match self {
            Self::NoCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NotLearner => "non_learner",
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Full(Pieces::from(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}

fn json(body: String) -> Response<Body> {
    let mut response = text(StatusCode::OK, body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The values of a query's parameter. Names of alarms and checks need no decoding.
fn query<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

/// Answers a request that is not gRPC's.
pub(crate) async fn answer(
    inner: Arc<Inner>,
    request: Request<Upload>,
    mut call: Call,
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let path = match path.strip_prefix("/v3beta/") {
        Some(rest) => format!("/v3/{rest}"),
        None => path,
    };
    if path.starts_with("/v3/") && inner.config.gateway {
        let named = call.connection.common_name.as_ref().is_some_and(|name| !name.is_empty());
        if named && inner.config.client_cert_auth && inner.admin.auth_status().enabled {
            return text(
                StatusCode::BAD_REQUEST,
                "CommonName of client sending a request against gateway will be ignored and not used as expected\n",
            );
        }
        call.headers = request.headers().clone();
        call.gateway = true;
        return gateway::answer(inner, &path, request, call).await;
    }
    page(inner, &request).await
}

/// Answers a request for metrics, health or version; there is nothing else here.
pub(crate) async fn page(inner: Arc<Inner>, request: &Request<Upload>) -> Response<Body> {
    let path = request.uri().path();
    let known = ["/health", "/livez", "/readyz", "/version", "/metrics", "/debug/vars"]
        .contains(&path)
        || find_check(path).is_some();
    if !known {
        return text(StatusCode::NOT_FOUND, "404 page not found\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let query = request.uri().query().unwrap_or_default();
    match path {
        "/health" => inner.health(query).await,
        "/livez" => inner.checks(Check::LIVE, query).await,
        "/readyz" => inner.checks(Check::READY, query).await,
        "/version" => {
            let (server, (cluster, storage)) = (&inner.config.server_version, inner.versions());
            json(format!(
                r#"{{"etcdserver":"{server}","etcdcluster":"{cluster}","storage":"{storage}"}}"#
            ))
        }
        "/metrics" => inner.metrics_page(),
        "/debug/vars" => inner.vars(),
        _ => match find_check(path) {
            Some(check) => inner.checks(&[check], query).await,
            None => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        },
    }
}

fn find_check(path: &str) -> Option<Check> {
    let (checks, name) = match path.strip_prefix("/livez/") {
        Some(name) => (Check::LIVE, name),
        None => (Check::READY, path.strip_prefix("/readyz/")?),
    };
    checks.iter().copied().find(|check| check.name() == name)
}

impl Inner {
    /// Whether a read is answered, and why not.
    async fn reads(&self, serializable: bool) -> Result<(), String> {
        let mut range = Range::all(Span::Key(Bytes::from_static(b"\0")));
        range.count_only = true;
        range.serializable = serializable;
        match tokio::time::timeout(self.request_timeout(), self.kv.range(range)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(dhow_kv::Error::Timeout.to_string()),
        }
    }

    async fn health(&self, parameters: &str) -> Response<Body> {
        let serializable = query(parameters, "serializable").next() == Some("true");
        let now = self.admin.status();
        let alarm = now
            .alarms
            .iter()
            .map(|alarm| alarm_name(alarm.kind))
            .find(|name| !query(parameters, "exclude").any(|excluded| excluded == *name));
        let reason = if let Some(alarm) = alarm {
            format!("ALARM {alarm}")
        } else if !serializable && now.leader == 0 {
            "RAFT NO LEADER".to_owned()
        } else if let Err(error) = self.reads(serializable).await {
            format!("RANGE ERROR:{error}")
        } else {
            add(&self.metrics.health_ok, 1);
            return text(StatusCode::OK, r#"{"health":"true","reason":""}"#);
        };
        add(&self.metrics.health_failed, 1);
        let reason = serde_json::Value::from(reason);
        text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{{\"health\":\"false\",\"reason\":{reason}}}\n"),
        )
    }

    async fn check(&self, check: Check) -> Result<(), String> {
        match check {
            Check::NoCorruption => {
                let alarms = self.admin.status().alarms;
                match alarms.iter().find(|alarm| alarm.kind == AlarmKind::Corrupt) {
                    Some(alarm) => Err(format!("alarm activated: {}", alarm_name(alarm.kind))),
                    None => Ok(()),
                }
            }
            Check::SerializableRead => self.reads(true).await,
            Check::LinearizableRead => self.reads(false).await,
            Check::NotLearner if self.admin.pulse().learner => {
                Err("not supported for learner".to_owned())
            }
            Check::NotLearner => Ok(()),
        }
    }

    async fn checks(&self, checks: &[Check], parameters: &str) -> Response<Body> {
        let (mut report, mut failed) = (String::new(), false);
        for check in checks {
            if query(parameters, "exclude").any(|excluded| excluded == check.name()) {
                continue;
            }
            // Writing to a string cannot fail.
            let _ = match self.check(*check).await {
                Ok(()) => writeln!(report, "[+]{} ok", check.name()),
                Err(reason) => {
                    failed = true;
                    writeln!(report, "[-]{} failed: {reason}", check.name())
                }
            };
        }
        if failed {
            report.push('\n');
            return text(StatusCode::SERVICE_UNAVAILABLE, report);
        }
        if query(parameters, "verbose").next().is_none() {
            report.clear();
        }
        report.push_str("ok\n");
        text(StatusCode::OK, report)
    }

    fn metrics_page(&self) -> Response<Body> {
        let mut out = String::with_capacity(32 << 10);
        let now = self.admin.status();
        let id = self.admin.identity().member_id;
        let flag = |yes: bool| u8::from(yes);
        let gauges: [(&str, &str, u64); 11] = [
            (
                "etcd_server_has_leader",
                "Whether or not a leader exists. 1 is existence, 0 is not.",
                flag(now.leader != 0).into(),
            ),
            (
                "etcd_server_is_leader",
                "Whether or not this member is a leader. 1 if is, 0 otherwise.",
                flag(now.leader == id).into(),
            ),
            (
                "etcd_server_is_learner",
                "Whether or not this member is a learner. 1 if is, 0 otherwise.",
                flag(now.learner).into(),
            ),
            (
                "etcd_server_proposals_committed_total",
                "The total number of consensus proposals committed.",
                now.raft_index,
            ),
            (
                "etcd_server_proposals_applied_total",
                "The total number of consensus proposals applied.",
                now.applied_index,
            ),
            (
                "etcd_server_quota_backend_bytes",
                "Current backend storage quota size in bytes.",
                now.quota,
            ),
            (
                "etcd_mvcc_db_total_size_in_bytes",
                "Total size of the underlying database physically allocated in bytes.",
                now.db_size,
            ),
            (
                "etcd_mvcc_db_total_size_in_use_in_bytes",
                "Total size of the underlying database logically in use in bytes.",
                now.db_size_in_use,
            ),
            (
                "etcd_debugging_mvcc_current_revision",
                "The current revision of store.",
                self.kv.revision() as u64,
            ),
            ("etcd_debugging_mvcc_keys_total", "Total number of keys.", now.keys),
            (
                "etcd_debugging_auth_revision",
                "The current revision of auth store.",
                self.admin.auth_status().revision,
            ),
        ];
        for (name, help, value) in gauges {
            metrics::gauge(&mut out, name, help, value);
        }
        for (name, help, value) in [
            ("etcd_mvcc_put_total", "Total number of puts seen by this member.", now.done.puts),
            (
                "etcd_mvcc_delete_total",
                "Total number of deletes seen by this member.",
                now.done.deletes,
            ),
        ] {
            metrics::counter(&mut out, name, help, value);
        }
        metrics::counter(
            &mut out,
            "etcd_server_leader_changes_seen_total",
            "The number of leader changes seen.",
            self.metrics.leader_changes.load(Ordering::Relaxed),
        );
        metrics::labelled(
            &mut out,
            "etcd_server_version",
            "Which version is running. 1 for 'server_version' label with current version.",
            &[("server_version", &self.config.server_version)],
        );
        metrics::labelled(
            &mut out,
            "etcd_cluster_version",
            "Which version is running. 1 for 'cluster_version' label with current cluster version",
            &[("cluster_version", self.versions().0.trim_end_matches(".0"))],
        );
        metrics::labelled(
            &mut out,
            "etcd_server_id",
            "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
            &[("server_id", &format!("{id:x}"))],
        );
        self.metrics.render(&mut out);
        metrics::process(&mut out);
        if let Some(extra) = &self.config.metrics {
            extra(&mut out);
        }
        let mut response = text(StatusCode::OK, out);
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        response
    }

    /// Go's expvar page, with what is true here.
    fn vars(&self) -> Response<Body> {
        let now = self.admin.status();
        let page = serde_json::json!({
            "cmdline": std::env::args().collect::<Vec<_>>(),
            "raft.status": {
                "id": format!("{:x}", self.admin.identity().member_id),
                "term": now.term,
                "lead": format!("{:x}", now.leader),
                "commit": now.raft_index,
                "applied": now.applied_index,
            },
        });
        json(page.to_string())
    }
}
