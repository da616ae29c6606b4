//! What is wrong with which field: the words of refusals, and checks that many kinds share.
//!
//! Texts follow `k8s.io/apimachinery/pkg/util/validation/field` and `pkg/api/validation`.

use super::{Kind, NameRule, Part};
use crate::quantity::Quantity;
use crate::status::{Status, StatusCause};
use crate::{meta, names};
use serde_json::{Value, json};
use std::net::IpAddr;

pub(crate) const IMMUTABLE: &str = "field is immutable";
pub(crate) const NEGATIVE: &str = "must be greater than or equal to 0";
pub(crate) const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

/// Gathers what is wrong.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    causes: Vec<StatusCause>,
}

fn with_detail(what: String, detail: &str) -> String {
    if detail.is_empty() { what } else { format!("{what}: {detail}") }
}

impl Checks {
    fn add(&mut self, reason: &str, path: &str, message: String) {
        self.causes.push(StatusCause {
            reason: reason.to_owned(),
            message,
            field: path.to_owned(),
        });
    }

    /// Everything that was found.
    pub(crate) fn causes(self) -> Vec<StatusCause> {
        self.causes
    }

    /// How many problems were found so far.
    pub(crate) fn len(&self) -> usize {
        self.causes.len()
    }

    pub(crate) fn required(&mut self, path: &str, detail: &str) {
        self.add("FieldValueRequired", path, with_detail("Required value".into(), detail));
    }

    pub(crate) fn invalid(&mut self, path: &str, value: impl Into<Value>, detail: &str) {
        let what = format!("Invalid value: {}", value.into());
        self.add("FieldValueInvalid", path, with_detail(what, detail));
    }

    /// Checks that a value is an IP address.
    pub(crate) fn address(&mut self, path: &str, value: &str) {
        if value.parse::<IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            self.invalid(path, value, detail);
        }
    }

    /// Checks that a value is an IP address that an endpoint of traffic can have.
    pub(crate) fn endpoint_address(&mut self, path: &str, value: &str) {
        let wrong = match value.parse::<IpAddr>() {
            Err(_) => return self.address(path, value),
            Ok(ip) if ip.is_unspecified() => format!("may not be unspecified ({ip})"),
            Ok(ip) if ip.is_loopback() => {
                "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()
            }
            Ok(IpAddr::V4(ip)) if ip.is_link_local() => {
                "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()
            }
            Ok(IpAddr::V6(ip)) if ip.is_unicast_link_local() => {
                "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()
            }
            Ok(ip) if ip.is_multicast() => {
                "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()
            }
            Ok(_) => return,
        };
        self.invalid(path, value, &wrong);
    }

    /// Adds each of several problems with one value.
    pub(crate) fn invalid_all(&mut self, path: &str, value: &str, details: Vec<String>) {
        for detail in details {
            self.invalid(path, value, &detail);
        }
    }

    pub(crate) fn not_supported(&mut self, path: &str, value: impl Into<Value>, known: &[&str]) {
        let known: Vec<String> = known.iter().map(|k| format!("{k:?}")).collect();
        let message =
            format!("Unsupported value: {}: supported values: {}", value.into(), known.join(", "));
        self.add("FieldValueNotSupported", path, message);
    }

    pub(crate) fn duplicate(&mut self, path: &str, value: impl Into<Value>) {
        self.add("FieldValueDuplicate", path, format!("Duplicate value: {}", value.into()));
    }

    pub(crate) fn not_found(&mut self, path: &str, value: &str) {
        self.add("FieldValueNotFound", path, format!("Not found: {value:?}"));
    }

    pub(crate) fn forbidden(&mut self, path: &str, detail: &str) {
        self.add("FieldValueForbidden", path, with_detail("Forbidden".into(), detail));
    }

    pub(crate) fn too_long(&mut self, path: &str, most: usize) {
        self.add("FieldValueTooLong", path, format!("Too long: may not be more than {most} bytes"));
    }

    pub(crate) fn too_many(&mut self, path: &str, count: usize, most: usize) {
        let message = format!("Too many: {count}: must have at most {most} items");
        self.add("FieldValueTooMany", path, message);
    }

    /// One of a fixed set of words; a missing one is required.
    pub(crate) fn one_of(&mut self, path: &str, value: Option<&Value>, known: &[&str]) {
        match value.and_then(Value::as_str) {
            None | Some("") => self.required(path, ""),
            Some(word) if !known.contains(&word) => self.not_supported(path, word, known),
            Some(_) => {}
        }
    }

    /// The same, but it may be missing.
    pub(crate) fn maybe_one_of(&mut self, path: &str, value: Option<&Value>, known: &[&str]) {
        if value.and_then(Value::as_str).is_some_and(|w| !w.is_empty()) {
            self.one_of(path, value, known);
        }
    }

    /// A number that may not be negative.
    pub(crate) fn not_negative(&mut self, path: &str, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_i64).filter(|n| *n < 0) {
            self.invalid(path, number, NEGATIVE);
        }
    }

    /// A port number.
    pub(crate) fn port(&mut self, path: &str, number: i64) {
        if !(1..=65535).contains(&number) {
            self.invalid(path, number, PORT_RANGE);
        }
    }

    /// A port number or the name of a port.
    pub(crate) fn port_or_name(&mut self, path: &str, value: Option<&Value>) {
        match value {
            Some(Value::String(name)) => self.invalid_all(path, name, names::port_name(name)),
            other => self.port(path, other.and_then(Value::as_i64).unwrap_or(0)),
        }
    }

    /// Nothing may differ.
    pub(crate) fn immutable(&mut self, path: &str, new: Option<&Value>, old: Option<&Value>) {
        if new != old {
            self.invalid(path, new.cloned().unwrap_or_default(), IMMUTABLE);
        }
    }

    /// A map of labels, or what has their form.
    pub(crate) fn labels(&mut self, path: &str, labels: Option<&Value>) {
        for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
            self.invalid_all(path, key, names::qualified(key));
            let value = value.as_str().unwrap_or_default();
            self.invalid_all(path, value, names::label_value(value));
        }
    }

    /// A `meta/v1.LabelSelector`.
    pub(crate) fn label_selector(&mut self, path: &str, selector: &Value) {
        self.labels(&format!("{path}.matchLabels"), selector.get("matchLabels"));
        let expressions = selector.get("matchExpressions").and_then(Value::as_array);
        for (i, e) in expressions.into_iter().flatten().enumerate() {
            let at = format!("{path}.matchExpressions[{i}]");
            let key = e.get("key").and_then(Value::as_str).unwrap_or_default();
            let operator = e.get("operator").and_then(Value::as_str).unwrap_or_default();
            let values = e.get("values").and_then(Value::as_array).map_or(0, Vec::len);
            match operator {
                "In" | "NotIn" if values == 0 => self.required(
                    &format!("{at}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                ),
                "Exists" | "DoesNotExist" if values > 0 => self.forbidden(
                    &format!("{at}.values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ),
                "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                other => {
                    self.invalid(&format!("{at}.operator"), other, "not a valid selector operator");
                }
            }
            self.invalid_all(&format!("{at}.key"), key, names::qualified(key));
        }
    }

    /// An amount of a resource: not negative, and whole where parts make no sense.
    pub(crate) fn quantity(&mut self, path: &str, name: &str, value: &Value) -> Option<Quantity> {
        match Quantity::from_json(value) {
            Err(error) => {
                self.invalid(path, value.clone(), &error.to_string());
                None
            }
            Ok(quantity) => {
                if quantity.is_negative() {
                    self.invalid(path, quantity.to_string(), NEGATIVE);
                }
                let parts = ["cpu", "memory", "storage", "ephemeral-storage"];
                if !parts.contains(&name) && quantity.is_fractional() {
                    self.invalid(path, quantity.to_string(), "must be an integer");
                }
                Some(quantity)
            }
        }
    }

    fn name(&mut self, kind: &Kind, object: &Value) {
        let check = |name: &str| match kind.name_rule {
            NameRule::Subdomain => names::dns_subdomain(name),
            NameRule::Label => names::dns_label(name),
            NameRule::PathSegment => names::path_segment(name),
        };
        let generate = meta::generate_name(object);
        if !generate.is_empty() {
            // What follows the prefix is alphanumeric, so a dash may end it.
            let tail = if generate.ends_with('-') { "a" } else { "" };
            self.invalid_all(
                "metadata.generateName",
                generate,
                check(&format!("{generate}{tail}")),
            );
        }
        match meta::name(object) {
            "" => self.required("metadata.name", "name or generateName is required"),
            name => self.invalid_all("metadata.name", name, check(name)),
        }
    }

    /// Metadata of any object.
    pub(crate) fn metadata(&mut self, kind: &Kind, new: &Value, old: Option<&Value>) {
        const ANNOTATIONS: usize = 256 * 1024;
        self.name(kind, new);
        match (kind.namespaced, meta::namespace(new)) {
            (true, "") => self.required("metadata.namespace", ""),
            (true, ns) => self.invalid_all("metadata.namespace", ns, names::dns_label(ns)),
            (false, "") => {}
            (false, _) => self.forbidden("metadata.namespace", "not allowed on this type"),
        }
        self.labels("metadata.labels", new.pointer("/metadata/labels"));
        self.annotations("metadata.annotations", new.pointer("/metadata/annotations"), ANNOTATIONS);
        self.owners(new);
        let finalizers: Vec<&str> = meta::finalizers(new).collect();
        for (i, finalizer) in finalizers.iter().enumerate() {
            let at = format!("metadata.finalizers[{i}]");
            self.invalid_all(&at, finalizer, names::qualified(finalizer));
            let fit = finalizer.contains('/')
                || matches!(*finalizer, "orphan" | "foregroundDeletion" | "kubernetes");
            if !fit {
                let detail = "name is neither a standard finalizer name nor is it fully qualified";
                self.invalid(&at, *finalizer, detail);
            }
        }
        let Some(old) = old else { return };
        if meta::deletion_timestamp(old).is_some() {
            let before: Vec<&str> = meta::finalizers(old).collect();
            let extra: Vec<&str> = finalizers.into_iter().filter(|f| !before.contains(f)).collect();
            if !extra.is_empty() {
                self.forbidden(
                    "metadata.finalizers",
                    &format!(
                        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                        extra.iter().map(|e| format!("{e:?}")).collect::<Vec<_>>().join(", ")
                    ),
                );
            }
        }
        for field in ["name", "namespace", "uid", "creationTimestamp"] {
            let at = |v: &Value| v.get("metadata").and_then(|m| m.get(field)).cloned();
            self.immutable(&format!("metadata.{field}"), at(new).as_ref(), at(old).as_ref());
        }
    }

    /// Annotations: any value, keys of qualified names, all together not too long.
    pub(crate) fn annotations(&mut self, path: &str, value: Option<&Value>, most: usize) {
        let mut size = 0;
        for (key, value) in value.and_then(Value::as_object).into_iter().flatten() {
            self.invalid_all(path, key, names::qualified(&key.to_lowercase()));
            size += key.len() + value.as_str().map_or(0, str::len);
        }
        if size > most {
            self.too_long(path, most);
        }
    }

    fn owners(&mut self, object: &Value) {
        let mut controller = None;
        for (i, owner) in meta::owner_references(object).enumerate() {
            let at = format!("metadata.ownerReferences[{i}]");
            for (field, value) in [
                ("apiVersion", owner.api_version),
                ("kind", owner.kind),
                ("name", owner.name),
                ("uid", owner.uid),
            ] {
                if value.is_empty() {
                    self.required(&format!("{at}.{field}"), "must not be empty");
                }
            }
            if owner.kind == "Event" {
                let gvk = format!("{}, Kind={}", owner.api_version, owner.kind);
                self.invalid(
                    &at,
                    json!(owner.name),
                    &format!("{gvk} is disallowed from being an owner"),
                );
            }
            if owner.controller {
                let this = format!("{}/{}", owner.kind, owner.name);
                if let Some(first) = controller.replace(this.clone()) {
                    let all = object.pointer("/metadata/ownerReferences").cloned();
                    self.invalid("metadata.ownerReferences", all.unwrap_or_default(), &format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    ));
                }
            }
        }
    }
}

impl Kind {
    /// Everything that is wrong with an object: its metadata, then its kind's own rules. `old` is
    /// the object as stored, on updates. Both must be complete (see [`Kind::complete`]).
    #[must_use]
    pub fn validate_all(&self, new: &Value, old: Option<&Value>) -> Vec<StatusCause> {
        let mut checks = Checks::default();
        checks.metadata(self, new, old);
        let mut causes = checks.causes();
        causes.extend((self.validate)(new, old));
        causes
    }

    /// Everything that is wrong with a change of one part of an object: its metadata, then the
    /// part's own rules.
    #[must_use]
    pub fn validate_part(&self, part: &Part, new: &Value, old: &Value) -> Vec<StatusCause> {
        let mut checks = Checks::default();
        checks.metadata(self, new, Some(old));
        let mut causes = checks.causes();
        causes.extend((part.validate)(new, old));
        causes
    }

    /// The same as a refusal.
    ///
    /// # Errors
    /// 422 with one cause per field at fault.
    pub fn check(&self, new: &Value, old: Option<&Value>) -> Result<(), Status> {
        let causes = self.validate_all(new, old);
        if causes.is_empty() {
            return Ok(());
        }
        Err(Status::invalid(self.group, self.kind, meta::name(new), causes))
    }
}
