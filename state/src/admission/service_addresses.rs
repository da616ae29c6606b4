//! Cluster addresses of services: chosen from the range, claimed with the write, released with the service.
//!
//! Follows `k8s.io/kubernetes/pkg/registry/core/service/storage/alloc.go`. A claim is a key of its own, which the
//! transaction of the write requires to be absent: two services cannot have one address.

use super::{Claims, Request};
use crate::codec::text;
use crate::model::stored;
use crate::types::Result;
use dhow_kv::{Range, Span};
use dhow_objects::Status;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::Ipv4Addr;

const PREFIX: &str = "/dhow/claims/addresses/";

fn key(address: &str) -> String {
    format!("{PREFIX}{address}")
}

fn needs_address(service: &Value) -> bool {
    text(service, "/spec/type") != "ExternalName" && text(service, "/spec/clusterIP") != "None"
}

/// The keys that a service holds.
pub(super) fn held(service: &Value) -> Vec<String> {
    let list = service["spec"]["clusterIPs"].as_array().map_or(&[][..], Vec::as_slice);
    let all = list.iter().filter_map(Value::as_str).filter(|a| !matches!(*a, "None" | ""));
    all.map(key).collect()
}

pub(super) async fn mutate(
    request: &Request<'_>,
    new: &mut Value,
    claims: &mut Claims,
) -> Result<()> {
    let before = request.old.map(held).unwrap_or_default();
    carry_over(request, new);
    if text(new, "/spec/type") == "ExternalName" {
        drop_addresses(request, new);
    } else {
        choose(request, new, &before, claims).await?;
        families(request, new)?;
        if new["spec"]["internalTrafficPolicy"].is_null() {
            new["spec"]["internalTrafficPolicy"] = json!("Cluster");
        }
    }
    let after = held(new);
    claims.release(before.into_iter().filter(|k| !after.contains(k)));
    Ok(())
}

/// An update that leaves the address out means to keep it.
fn carry_over(request: &Request<'_>, new: &mut Value) {
    let Some(old) = request.old else { return };
    let both =
        text(old, "/spec/type") != "ExternalName" && text(new, "/spec/type") != "ExternalName";
    if both && text(new, "/spec/clusterIP").is_empty() {
        new["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
    }
    if both && new["spec"]["clusterIPs"].as_array().is_none_or(Vec::is_empty) {
        new["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
    }
    // Who changes the one field means both; the kind's rules then say whether it may change.
    let wanted = new["spec"]["clusterIP"].clone();
    if both
        && wanted != old["spec"]["clusterIP"]
        && new["spec"]["clusterIPs"] == old["spec"]["clusterIPs"]
    {
        new["spec"]["clusterIPs"] = json!([wanted]);
    }
}

/// A service that becomes an `ExternalName` loses what it was given.
fn drop_addresses(request: &Request<'_>, new: &mut Value) {
    let Some(old) = request.old else { return };
    let Some(spec) = new["spec"].as_object_mut() else { return };
    for field in
        ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
    {
        if spec.get(field) == old["spec"].get(field) {
            spec.remove(field);
        }
    }
}

async fn choose(
    request: &Request<'_>,
    new: &mut Value,
    before: &[String],
    claims: &mut Claims,
) -> Result<()> {
    let list = new["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default();
    let mut address = text(new, "/spec/clusterIP").to_owned();
    if address.is_empty() {
        address = list.first().and_then(Value::as_str).unwrap_or_default().to_owned();
    } else if list.first().and_then(Value::as_str).is_some_and(|first| first != address) {
        return Err(request.invalid(
            "spec.clusterIPs[0]",
            &json!(list),
            "first value must match `clusterIP`",
        ));
    }
    if list.len() > 1 {
        return Err(request.invalid(
            "spec.clusterIPs",
            &json!(list),
            "may only hold one value, this cluster is not configured for dual-stack services",
        ));
    }
    let requested = !address.is_empty();
    if !requested {
        address = free_address(request).await?.to_string();
    }
    new["spec"]["clusterIP"] = json!(address);
    new["spec"]["clusterIPs"] = json!([address]);
    if !needs_address(new) || before.contains(&key(&address)) {
        return Ok(());
    }
    let cidr = request.state.shared.config.service_cidr;
    let refuse = |why: &str| {
        let message = format!("failed to allocate IP {address}: {why}");
        request.invalid("spec.clusterIPs", &json!([address]), &message)
    };
    let parsed: Ipv4Addr = address.parse().map_err(|_| {
        request.invalid(
            "spec.clusterIPs[0]",
            &json!(address),
            "must be a valid IPv4 address of this cluster's range",
        )
    })?;
    if !cidr.contains(&parsed) || parsed == cidr.network() || parsed == cidr.broadcast() {
        return Err(refuse(&format!(
            "the provided network does not match the current range; the range of valid IPs is {cidr}"
        )));
    }
    claims.want(key(&address), requested.then(|| refuse("provided IP is already allocated")));
    Ok(())
}

/// An address that nobody holds: by chance in the upper part of the range, so that the lower one
/// stays for people who ask for a certain one.
async fn free_address(request: &Request<'_>) -> Result<Ipv4Addr> {
    let shared = &request.state.shared;
    let cidr = shared.config.service_cidr;
    let taken = stored(
        shared.kv.range(Range { keys_only: true, ..Range::all(Span::prefix(PREFIX)) }).await,
    )?;
    let taken: HashSet<Ipv4Addr> = taken
        .kvs
        .iter()
        .filter_map(|kv| std::str::from_utf8(kv.key.get(PREFIX.len()..)?).ok()?.parse().ok())
        .collect();
    // Neither the network nor the broadcast address.
    let size = 2_u64.saturating_pow(u32::from(32 - cidr.prefix_len())).saturating_sub(2);
    let reserved = (size / 16).clamp(16, 256).min(size);
    let upper = size - reserved;
    let start = if upper == 0 { 0 } else { shared.clock.random() % upper };
    let base = u64::from(u32::from(cidr.network())) + 1;
    let order = (0..upper).map(|i| reserved + (start + i) % upper).chain(0..reserved);
    for offset in order {
        let address = Ipv4Addr::from(u32::try_from(base + offset).unwrap_or(u32::MAX));
        if !taken.contains(&address) {
            return Ok(address);
        }
    }
    Err(Status::internal(format!(
        "failed to allocate a serviceIP: range is full; delete services or widen {cidr}"
    )))
}

fn families(request: &Request<'_>, new: &mut Value) -> Result<()> {
    let families = new["spec"]["ipFamilies"].as_array().cloned().unwrap_or_default();
    if let Some(at) = families.iter().position(|f| f != "IPv4") {
        let field = format!("spec.ipFamilies[{at}]");
        return Err(request.invalid(&field, &families[at], "not configured on this cluster"));
    }
    if text(new, "/spec/ipFamilyPolicy") == "RequireDualStack" {
        return Err(request.invalid(
            "spec.ipFamilyPolicy",
            &json!("RequireDualStack"),
            "this cluster is not configured for dual-stack services",
        ));
    }
    if families.is_empty() {
        new["spec"]["ipFamilies"] = json!(["IPv4"]);
    }
    if new["spec"]["ipFamilyPolicy"].is_null() {
        new["spec"]["ipFamilyPolicy"] = json!("SingleStack");
    }
    Ok(())
}
