//! One request from its head to its reply: who asks, may they, what for, how long.

use crate::call::{Call, Verb};
use crate::catalog::{self, Served};
use crate::path::{self, Query, Target};
use crate::respond::{self, Body, Reply};
use crate::server::PeerIdentity;
use crate::{Door, authn, authorize, health, openapi, resources, reviews, servers, stream};
use dhow_bodies::Upload;
use dhow_objects::Status;
use dhow_objects::kinds::Kind;
use http::{Method, Response, request};
use hyper::upgrade::OnUpgrade;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a request may take that is not a watch or a live stream (upstream's default).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

impl Door {
    /// Answers one request.
    pub(crate) async fn handle(
        self: &Arc<Self>,
        identity: &PeerIdentity,
        mut request: hyper::Request<Upload>,
        shutdown: CancellationToken,
    ) -> Response<Body> {
        let started = self.config.clock.monotonic();
        let upgrade = request
            .headers()
            .contains_key(http::header::UPGRADE)
            .then(|| hyper::upgrade::on(&mut request));
        let (head, body) = request.into_parts();
        // Only the path is logged: queries hold the commands that people run in containers.
        let (method, path) = (head.method.clone(), head.uri.path().to_owned());
        let target = path::parse(head.uri.path());
        let query = Query::parse(head.uri.query().unwrap_or(""));
        let is_head = method == Method::HEAD;
        let label = self.metrics.label(&method, &target, &query);
        let answered = self.answer(identity, head, body, target, query, upgrade, shutdown).await;
        let mut response = answered.unwrap_or_else(|status| respond::refusal(&status));
        if is_head {
            *response.body_mut() = respond::full("");
        }
        let took = self.config.clock.monotonic().saturating_sub(started);
        tracing::debug!(%method, path, code = response.status().as_u16(), ?took, "answered");
        self.metrics.answered(label, response.status().as_u16(), took);
        response
    }

    #[allow(clippy::too_many_arguments)] // The parts of one request, taken apart exactly once.
    async fn answer(
        self: &Arc<Self>,
        identity: &PeerIdentity,
        head: request::Parts,
        body: Upload,
        target: Target,
        query: Query,
        upgrade: Option<OnUpgrade>,
        shutdown: CancellationToken,
    ) -> Reply {
        let reads = matches!(head.method, Method::GET | Method::HEAD);
        // What everybody may see: whether the server lives, its version, how to verify its tokens.
        match &target {
            Target::Health(..)
            | Target::Version
            | Target::OpenIdConfiguration
            | Target::OpenIdKeys
                if !reads =>
            {
                return Err(Status::method_not_allowed());
            }
            Target::Health(name, check) => {
                return health::health(self, name, check.as_deref(), &query).await;
            }
            Target::Version => return health::version(self),
            Target::OpenIdConfiguration => return health::openid_configuration(self),
            Target::OpenIdKeys => return health::openid_keys(self),
            // Who joins has no other credentials yet than the token, which is not one of the API's.
            Target::Join => return servers::join(self, &head, body).await,
            _ => {}
        }
        let mut user = authn::authenticate(&self.state, identity, &head.headers).await?;
        if let Some(wanted) = authn::impersonated(&head.headers)? {
            authorize::impersonation(&self.state, &user, &wanted)?;
            user = authn::finish_impersonation(wanted);
        }
        let Target::Resource(path) = target else {
            let verb = head.method.as_str().to_ascii_lowercase();
            authorize::url(&self.state, &user, &verb, head.uri.path())?;
            if let Target::Servers(name) = &target {
                return servers::answer(self, &head.method, name.as_deref()).await;
            }
            if !reads {
                return Err(match target {
                    Target::Unknown => catalog::no_such_resource(),
                    _ => Status::method_not_allowed(),
                });
            }
            return self.document(&head, &target);
        };
        let verb = Verb::of(&head.method, &path, &query).ok_or_else(Status::method_not_allowed)?;
        let served = catalog::find(&path.group, &path.version, &path.resource)?;
        authorize::resource(&self.state, &user, verb, &path)?;
        let proxied = path.subresource == "proxy";
        let call = Call { door: self.clone(), user, head, path, query, verb, shutdown, upgrade };
        let answer = async {
            match served {
                Served::Kind(kind) => warned(serve(call, kind, body).await, kind),
                Served::Review(review) => reviews::answer(call, review, body).await,
            }
        };
        if proxied {
            // How long a service takes is its own affair.
            return answer.await;
        }
        // Watches and streams are answered within the time as well; what they send takes longer.
        match tokio::time::timeout(REQUEST_TIMEOUT, answer).await {
            Ok(reply) => reply,
            Err(_) => Err(Status::new(
                504,
                "Timeout",
                "Timeout: request did not complete within the allotted timeout",
            )),
        }
    }

    fn document(&self, head: &request::Parts, target: &Target) -> Reply {
        let headers = &head.headers;
        match target {
            Target::Root => self.discovery.root(headers),
            Target::LegacyGroup => self.discovery.legacy(headers),
            Target::Groups => self.discovery.groups(headers),
            Target::Group(group) => self.discovery.group(headers, group),
            Target::GroupVersion(group, version) => self.discovery.version(headers, group, version),
            Target::OpenApiV2 => openapi::v2(headers),
            Target::OpenApiIndex => openapi::index(headers),
            Target::OpenApiDocument(path) => openapi::document(headers, path),
            Target::Metrics => Ok(self.metrics.text(&self.state)),
            _ => Err(catalog::no_such_resource()),
        }
    }
}

/// Adds what callers of a kind are warned of, to refusals as well.
fn warned(reply: Reply, kind: &Kind) -> Reply {
    let Some(warning) = kind.deprecated else { return reply };
    let mut response = reply.unwrap_or_else(|status| respond::refusal(&status));
    respond::warn(&mut response, &[warning.to_owned()]);
    Ok(response)
}

/// Answers a call for objects of a kind, or for what lies below them.
async fn serve(call: Call, kind: &'static Kind, body: Upload) -> Reply {
    if kind.namespaced == call.path.namespace.is_none() {
        // A namespaced kind may be listed, followed and emptied over all namespaces.
        let over_all = kind.namespaced
            && call.path.name.is_none()
            && matches!(call.verb, Verb::List | Verb::Watch | Verb::DeleteCollection);
        if !over_all {
            return Err(catalog::no_such_resource());
        }
    }
    if !call.path.subresource.is_empty() && kind.subresource(&call.path.subresource).is_none() {
        return Err(catalog::no_such_resource());
    }
    if stream::is_stream(&call) {
        // Whoever may only read must not run commands because WebSockets begin with GET.
        if call.verb == Verb::Get && !matches!(call.path.subresource.as_str(), "log" | "proxy") {
            authorize::resource(&call.door.state, &call.user, Verb::Create, &call.path)?;
        }
        return stream::serve(call, body).await;
    }
    resources::serve(call, kind, body).await
}
