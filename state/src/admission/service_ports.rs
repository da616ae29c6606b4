//! Node ports of services: chosen from the range, claimed with the write, released with the service;
//! and what else goes with a service's type.

use super::{Claims, Request};
use crate::codec::text;
use crate::model::stored;
use crate::types::Result;
use dhow_kv::{Range, Span};
use dhow_objects::{Status, kinds};
use serde_json::{Value, json};
use std::collections::HashSet;

const PREFIX: &str = "/dhow/claims/node-ports/";

fn key(port: u16) -> String {
    format!("{PREFIX}{port}")
}

fn ports(service: &Value) -> &[Value] {
    service["spec"]["ports"].as_array().map_or(&[], Vec::as_slice)
}

fn node_port(port: &Value) -> Option<u16> {
    u16::try_from(port["nodePort"].as_u64()?).ok().filter(|p| *p != 0)
}

fn needs_ports(service: &Value) -> bool {
    match text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != json!(false),
        _ => false,
    }
}

fn needs_health_port(service: &Value) -> bool {
    text(service, "/spec/type") == "LoadBalancer"
        && text(service, "/spec/externalTrafficPolicy") == "Local"
}

fn health_port(service: &Value) -> Option<u16> {
    u16::try_from(service["spec"]["healthCheckNodePort"].as_u64()?).ok().filter(|p| *p != 0)
}

/// The keys that a service holds.
pub(super) fn held(service: &Value) -> Vec<String> {
    ports(service).iter().filter_map(node_port).chain(health_port(service)).map(key).collect()
}

pub(super) async fn mutate(
    request: &Request<'_>,
    new: &mut Value,
    claims: &mut Claims,
) -> Result<()> {
    let before = request.old.map(held).unwrap_or_default();
    if let Some(old) = request.old {
        carry_over(old, new);
        drop_unused(old, new);
    }
    let range = request.state.shared.config.node_ports;
    let mut given: Vec<(u64, u16)> = Vec::new();
    for at in 0..ports(new).len() {
        let port = &ports(new)[at];
        let number = port["port"].as_u64().unwrap_or(0);
        let field = format!("spec.ports[{at}].nodePort");
        if let Some(wanted) = node_port(port) {
            claim(request, &field, wanted, &before, range, claims)?;
            given.push((number, wanted));
        } else if needs_ports(new) {
            // One port for several protocols has one node port.
            let same = given.iter().find(|(n, _)| *n == number).map(|(_, p)| *p);
            let chosen = match same {
                Some(port) => port,
                None => free_port(request, claims).await?,
            };
            claims.want(key(chosen), None);
            new["spec"]["ports"][at]["nodePort"] = json!(chosen);
            given.push((number, chosen));
        }
    }
    if needs_health_port(new) {
        if let Some(wanted) = health_port(new) {
            claim(request, "spec.healthCheckNodePort", wanted, &before, range, claims)?;
        } else {
            let chosen = free_port(request, claims).await?;
            claims.want(key(chosen), None);
            new["spec"]["healthCheckNodePort"] = json!(chosen);
        }
    } else if request.old.is_some_and(needs_health_port)
        && let Some(spec) = new["spec"].as_object_mut()
    {
        spec.remove("healthCheckNodePort");
    }
    let after = held(new);
    claims.release(before.into_iter().filter(|k| !after.contains(k)));
    Ok(())
}

fn is_balanced(service: &Value) -> bool {
    service["spec"]["type"] == "LoadBalancer"
}

/// Drops what the service's new type has no use for, unless it was set just now.
fn drop_unused(old: &Value, new: &mut Value) {
    let (external, balanced) = (kinds::is_external_service(new), is_balanced(new));
    for (field, used) in [
        ("externalTrafficPolicy", external),
        ("allocateLoadBalancerNodePorts", balanced),
        ("loadBalancerClass", balanced),
    ] {
        if !used
            && new["spec"][field] == old["spec"][field]
            && let Some(spec) = new["spec"].as_object_mut()
        {
            spec.remove(field);
        }
    }
}

/// Keeps the ports of an update that leaves them out, and drops those of a type that has none.
fn carry_over(old: &Value, new: &mut Value) {
    let (was, is) = (needs_ports(old), needs_ports(new));
    let old_ports = ports(old).to_vec();
    for port in new["spec"]["ports"].as_array_mut().into_iter().flatten() {
        let same = old_ports
            .iter()
            .find(|o| o["port"] == port["port"] && o["protocol"] == port["protocol"])
            .and_then(node_port);
        let Some(same) = same else { continue };
        if was && is && node_port(port).is_none() {
            port["nodePort"] = json!(same);
        } else if was
            && !is
            && node_port(port) == Some(same)
            && let Some(port) = port.as_object_mut()
        {
            port.remove("nodePort");
        }
    }
    if needs_health_port(old) && needs_health_port(new) && health_port(new).is_none() {
        new["spec"]["healthCheckNodePort"] = old["spec"]["healthCheckNodePort"].clone();
    }
}

fn claim(
    request: &Request<'_>,
    field: &str,
    wanted: u16,
    before: &[String],
    range: (u16, u16),
    claims: &mut Claims,
) -> Result<()> {
    if before.contains(&key(wanted)) {
        return Ok(());
    }
    if !(range.0..=range.1).contains(&wanted) {
        let why = format!(
            "provided port is not in the valid range. The range of valid ports is {}-{}",
            range.0, range.1
        );
        return Err(request.invalid(field, &json!(wanted), &why));
    }
    let refusal = request.invalid(field, &json!(wanted), "provided port is already allocated");
    claims.want(key(wanted), Some(refusal));
    Ok(())
}

/// A port that nobody holds and this write does not want yet.
async fn free_port(request: &Request<'_>, claims: &Claims) -> Result<u16> {
    let shared = &request.state.shared;
    let (first, last) = shared.config.node_ports;
    let taken = stored(
        shared.kv.range(Range { keys_only: true, ..Range::all(Span::prefix(PREFIX)) }).await,
    )?;
    let mine = claims.wanted.iter().map(|c| &c.key);
    let taken: HashSet<u16> = taken
        .kvs
        .iter()
        .map(|kv| &kv.key)
        .chain(mine)
        .filter_map(|k| std::str::from_utf8(k.strip_prefix(PREFIX.as_bytes())?).ok()?.parse().ok())
        .collect();
    let size = u64::from(last.saturating_sub(first)) + 1;
    let start = shared.clock.random() % size;
    for offset in 0..size {
        let port = first + u16::try_from((start + offset) % size).unwrap_or(0);
        if !taken.contains(&port) {
            return Ok(port);
        }
    }
    Err(Status::internal(format!(
        "failed to allocate a nodePort: range is full; delete services or widen {first}-{last}"
    )))
}
