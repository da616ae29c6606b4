//! Service `kubernetes` in namespace `default`: the API as pods know it, and the servers behind it.

use crate::config::Config;
use crate::servers::Present;
use dhow_clock::SharedClock;
use dhow_objects::kinds;
use dhow_state::{Key, State, View, WriteOptions};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::sync::watch;

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";

/// Pause after the store did not take something.
const AGAIN: Duration = Duration::from_secs(1);

/// The service as a server keeps it.
#[derive(Debug, Clone)]
pub struct KubernetesService {
    state: State,
    config: Config,
    /// Where this server's API is reached.
    own: SocketAddr,
}

impl KubernetesService {
    /// The service in front of the server at `own`, and of others.
    pub fn new(state: State, config: Config, own: SocketAddr) -> Self {
        Self { state, config, own }
    }

    /// Makes the service when there is none.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn ensure(&self) -> dhow_state::Result<()> {
        let labels = json!({"component": "apiserver", "provider": "kubernetes"});
        let target = self.config.listen.port();
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
            "spec": {
                "clusterIP": self.config.kubernetes_ip(),
                "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": target}],
            },
        });
        self.state.ensure(&kinds::SERVICE, NAMESPACE, NAME, service).await
    }

    /// Writes the endpoints: this server and `others`. Those at another port are left out, because a
    /// slice has one.
    ///
    /// # Errors
    /// When they cannot be written.
    pub async fn publish(&self, others: &[SocketAddr]) -> dhow_state::Result<()> {
        let port = self.own.port();
        let servers = others.iter().chain([&self.own]).filter(|server| server.port() == port);
        let addresses: BTreeSet<IpAddr> = servers.map(SocketAddr::ip).collect();
        let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
        let each = |ip| json!({"addresses": [ip], "conditions": {"ready": true}});
        let endpoints = json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {
                "name": NAME, "namespace": NAMESPACE,
                // The slice is written here as well.
                "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
            },
            "subsets": [{
                "addresses": addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
                "ports": ports,
            }],
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": NAME, "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": NAME},
            },
            "addressType": "IPv4",
            "endpoints": addresses.iter().map(each).collect::<Vec<_>>(),
            "ports": ports,
        });
        self.put(&kinds::ENDPOINTS, endpoints).await?;
        self.put(&kinds::ENDPOINT_SLICE, slice).await
    }

    async fn put(&self, kind: &'static kinds::Kind, value: Value) -> dhow_state::Result<()> {
        let (actor, options) = (dhow_state::platform(), WriteOptions::default());
        let state = &self.state;
        if state.cached(kind, NAMESPACE, NAME).is_some() {
            state.update(&actor, kind, NAMESPACE, NAME, "", value, &options).await?;
        } else {
            state.create(&actor, kind, NAMESPACE, value, &options).await?;
        }
        Ok(())
    }

    /// Keeps the service and its endpoints, whoever deletes or changes them; the others behind it
    /// are those that are `present`.
    pub async fn keep(&self, mut present: watch::Receiver<Present>, clock: &SharedClock) {
        let mut services: View<Service> = self.state.view(&kinds::SERVICE);
        let mut endpoints: View<Endpoints> = self.state.view(&kinds::ENDPOINTS);
        let mut slices: View<EndpointSlice> = self.state.view(&kinds::ENDPOINT_SLICE);
        loop {
            let others: Vec<SocketAddr> =
                present.borrow_and_update().values().map(|server| server.api).collect();
            let written = async {
                self.ensure().await?;
                self.publish(&others).await
            };
            let again = written.await.inspect_err(|refusal| {
                tracing::warn!(%refusal, "the addresses of the API were not written");
            });
            tokio::select! {
                () = own_changed(&mut services) => {}
                () = own_changed(&mut endpoints) => {}
                () = own_changed(&mut slices) => {}
                () = async {
                    if present.changed().await.is_err() {
                        std::future::pending().await
                    }
                } => {}
                () = clock.sleep(AGAIN), if again.is_err() => {}
            }
        }
    }
}

/// Waits until one of the service's own objects is changed.
async fn own_changed<T>(view: &mut View<T>) {
    let own = Key::new(NAMESPACE, NAME);
    while !view.changed().await.contains(&own) {}
}
