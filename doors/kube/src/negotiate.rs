//! Content negotiation: what form a reply takes (RFC 9110 section 12.5.1, with Kubernetes'
//! `as`, `g` and `v` parameters).

use dhow_objects::Status;
use http::header::{ACCEPT, HeaderMap};

/// What a reply shows of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum View {
    /// The objects themselves.
    #[default]
    Object,
    /// A table for people (`meta/v1.Table`).
    Table,
    /// Only their metadata (`meta/v1.PartialObjectMetadata`).
    Metadata,
}

/// The form that was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Form {
    /// What is shown.
    pub view: View,
    /// YAML instead of JSON.
    pub yaml: bool,
    /// The `meta.k8s.io` version of a table or metadata is `v1beta1`.
    pub beta: bool,
}

/// One alternative of an `Accept` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// `application/json`, lower case.
    pub media: String,
    /// Parameters without `q`.
    pub parameters: Vec<(String, String)>,
    quality: u16,
}

impl Clause {
    /// The value of a parameter, "" when absent.
    pub fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value.as_str())
    }
}

/// The alternatives of an `Accept` header, best first. An absent header is `*/*`.
pub fn clauses(headers: &HeaderMap) -> Vec<Clause> {
    let given: Vec<&str> =
        headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let text = if given.is_empty() { "*/*".to_owned() } else { given.join(",") };
    let mut found: Vec<Clause> = text
        .split(',')
        .filter_map(|part| {
            let mut words = part.split(';').map(str::trim);
            let media = words.next()?.to_ascii_lowercase();
            let mut clause = Clause { media, parameters: Vec::new(), quality: 1000 };
            for word in words {
                let Some((name, value)) = word.split_once('=') else { continue };
                let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
                if name == "q" {
                    let quality: f64 = value.parse().unwrap_or(1.0);
                    // Within 0 to 1000 after the clamp.
                    clause.quality = (quality.clamp(0.0, 1.0) * 1000.0) as u16;
                } else {
                    clause.parameters.push((name, value.trim_matches('"').to_owned()));
                }
            }
            (clause.quality > 0 && !clause.media.is_empty()).then_some(clause)
        })
        .collect();
    found.sort_by_key(|clause| std::cmp::Reverse(clause.quality));
    found
}

/// Agrees on a form for objects.
///
/// # Errors
/// 406 when no alternative can be served.
pub fn objects(headers: &HeaderMap) -> Result<Form, Status> {
    for clause in clauses(headers) {
        let yaml = match clause.media.as_str() {
            "application/json" | "application/*" | "*/*" => false,
            "application/yaml" => true,
            _ => continue,
        };
        let beta = match (clause.parameter("g"), clause.parameter("v")) {
            ("" | "meta.k8s.io", "" | "v1") => false,
            ("meta.k8s.io", "v1beta1") => true,
            _ => continue,
        };
        let view = match clause.parameter("as") {
            "" => View::Object,
            "Table" => View::Table,
            "PartialObjectMetadata" | "PartialObjectMetadataList" => View::Metadata,
            _ => continue,
        };
        return Ok(Form { view, yaml, beta });
    }
    Err(Status::not_acceptable(
        "only the following media types are accepted: application/json, application/yaml",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn form(accept: &'static str) -> Result<Form, Status> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        objects(&headers)
    }

    #[test]
    fn kubectls_tables_are_understood() {
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(form(accept), Ok(Form { view: View::Table, yaml: false, beta: false }));
    }

    #[test]
    fn protobuf_falls_back_to_json() {
        let accept = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(form(accept), Ok(Form::default()));
        assert_eq!(form("application/vnd.kubernetes.protobuf").unwrap_err().code, 406);
    }

    #[test]
    fn quality_orders_and_refuses() {
        let yaml = form("application/json;q=0.1, application/yaml").map(|form| form.yaml);
        assert_eq!(yaml, Ok(true));
        assert!(form("application/json;q=0").is_err());
    }

    #[test]
    fn metadata_may_be_asked_for() {
        let accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(form(accept).map(|form| form.view), Ok(View::Metadata));
    }
}
