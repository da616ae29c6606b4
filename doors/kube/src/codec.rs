//! Bodies that come in: JSON, YAML and Kubernetes' protobuf, decoded into one value.

use bytes::Bytes;
use dhow_bodies::Upload;
use dhow_objects::Status;
use dhow_objects::schema::shape::normalise;
use dhow_objects::schema::{protobuf, schema, strict};
use dhow_state::{FieldValidation, WriteOptions};
use http::header::{CONTENT_TYPE, HeaderMap};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

/// The largest body that is read, in bytes (upstream's limit).
pub const MAX_BODY: usize = 3 * 1024 * 1024;

/// The media type of a body, lower case and without parameters; JSON when none is given.
pub fn media_type(headers: &HeaderMap) -> String {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media = given.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if media.is_empty() { "application/json".to_owned() } else { media }
}

/// Reads a whole body.
///
/// # Errors
/// 413 when it is larger than [`MAX_BODY`], 400 when the client broke off.
pub async fn read(body: Upload) -> Result<Bytes, Status> {
    read_at_most(body, MAX_BODY).await
}

/// Reads a whole body of `most` bytes.
///
/// # Errors
/// As [`read`], with another limit.
pub async fn read_at_most(body: Upload, most: usize) -> Result<Bytes, Status> {
    match Limited::new(body, most).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => Err(Status::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {most}"),
        )),
        Err(error) => Err(Status::bad_request(format!("the body could not be read: {error}"))),
    }
}

/// An object that came in, and what is odd about its text.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The object.
    pub value: Value,
    /// Paths of the fields that the text gave twice.
    pub duplicates: Vec<String>,
}

/// Decodes an object. `group`, `version` and `kind` are what the address expects; they fill in a
/// missing `apiVersion` and `kind`.
///
/// # Errors
/// 415 for a media type that is not known, 400 for a text that cannot be understood or that holds
/// another kind.
pub fn object(
    headers: &HeaderMap,
    bytes: &[u8],
    group: &str,
    version: &str,
    kind: &str,
) -> Result<Decoded, Status> {
    let mut decoded = any(headers, bytes)?;
    let wanted = api_version(group, version);
    let Some(map) = decoded.value.as_object_mut() else {
        return Err(Status::bad_request(format!(
            "the body is not an object: expected {wanted}, Kind={kind}"
        )));
    };
    for (name, expected) in [("apiVersion", wanted.as_str()), ("kind", kind)] {
        match map.get(name) {
            None | Some(Value::Null) => {
                map.insert(name.to_owned(), Value::from(expected));
            }
            Some(Value::String(found)) if found.is_empty() => {
                map.insert(name.to_owned(), Value::from(expected));
            }
            Some(Value::String(found)) if found == expected => {}
            Some(found) => {
                let found = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
                return Err(Status::bad_request(if name == "kind" {
                    format!(
                        "{kind} in version \"{version}\" cannot be handled as a {kind}: the object provided is unrecognized (must be of type {kind}): its kind is {found:?}"
                    )
                } else {
                    format!(
                        "the API version in the data ({found}) does not match the expected API version ({wanted})"
                    )
                }));
            }
        }
    }
    Ok(decoded)
}

/// Decodes whatever object a body holds.
///
/// # Errors
/// As [`object`].
pub fn any(headers: &HeaderMap, bytes: &[u8]) -> Result<Decoded, Status> {
    match media_type(headers).as_str() {
        "application/json" => json(bytes),
        "application/yaml" | "application/x-yaml" | "text/yaml" => yaml(bytes),
        "application/vnd.kubernetes.protobuf" => {
            let (_, _, value) =
                protobuf::decode(bytes).map_err(|error| Status::bad_request(error.to_string()))?;
            Ok(Decoded { value, duplicates: Vec::new() })
        }
        other => Err(unsupported(other)),
    }
}

/// The refusal of a media type.
pub fn unsupported(media: &str) -> Status {
    Status::unsupported_media_type(format!(
        "the body of the request was in an unknown format ({media}) - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"
    ))
}

/// Decodes JSON, and tells which fields it gives twice.
///
/// # Errors
/// 400 with the place of the mistake.
pub fn json(bytes: &[u8]) -> Result<Decoded, Status> {
    strict::parse_json(bytes)
        .map(|(value, duplicates)| Decoded { value, duplicates })
        .map_err(|error| Status::bad_request(format!("error decoding JSON: {error}")))
}

/// Decodes one YAML document.
///
/// # Errors
/// 400 with the place of the mistake.
pub fn yaml(bytes: &[u8]) -> Result<Decoded, Status> {
    // kubectl sends JSON under the name of YAML; the exact parser also finds duplicates.
    if bytes.trim_ascii_start().first() == Some(&b'{')
        && let Ok(decoded) = json(bytes)
    {
        return Ok(decoded);
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))?;
    let value: Value = serde_saphyr::from_str(text)
        .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))?;
    Ok(Decoded { value, duplicates: Vec::new() })
}

/// Compares an object with its type: values of wrong types are refused, unknown and double fields
/// are refused, told or dropped as the caller wishes, and the form becomes that of a Go server.
///
/// # Errors
/// 400 in upstream's words.
pub fn accept(
    decoded: Decoded,
    group: &str,
    version: &str,
    kind: &str,
    options: &WriteOptions,
) -> Result<Value, Status> {
    let Decoded { mut value, duplicates } = decoded;
    let Some(ty) = schema().kind(group, version, kind) else {
        return Err(Status::internal(format!("{kind} of {group}/{version} has no schema")));
    };
    let report = strict::check(&value, ty);
    let refuse =
        |why: &str| Err(Status::bad_request(strict::cannot_handle(kind, version, kind, why)));
    if let Some(wrong) = report.wrong.first() {
        return refuse(wrong);
    }
    match options.field_validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => options.warn(report.warnings(&duplicates)),
        FieldValidation::Strict => {
            if let Some(why) = report.strict_error(&duplicates) {
                return refuse(&why);
            }
        }
    }
    strict::prune(&mut value, ty);
    normalise(&mut value, ty);
    Ok(value)
}

/// Takes note of fields that a patch gives twice; the rest is checked on what the patch makes.
///
/// # Errors
/// 400 in upstream's words.
pub fn accept_patch(decoded: Decoded, options: &WriteOptions) -> Result<Value, Status> {
    let report = strict::Report::default();
    match options.field_validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => options.warn(report.warnings(&decoded.duplicates)),
        FieldValidation::Strict => {
            if let Some(why) = report.strict_error(&decoded.duplicates) {
                return Err(Status::bad_request(why));
            }
        }
    }
    Ok(decoded.value)
}

/// `v1` or `GROUP/v1`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// A value as YAML text.
///
/// # Errors
/// An internal error when the value cannot be written, which JSON values always can.
pub fn to_yaml(value: &Value) -> Result<String, Status> {
    serde_saphyr::to_string(value).map_err(Status::internal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn of_type(media: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
        headers
    }

    #[test]
    fn the_address_names_what_the_body_leaves_out() {
        let decoded = object(&HeaderMap::new(), b"{}", "apps", "v1", "Deployment").unwrap();
        assert_eq!(decoded.value["apiVersion"], "apps/v1");
        assert_eq!(decoded.value["kind"], "Deployment");
    }

    #[test]
    fn another_version_is_refused() {
        let body = br#"{"apiVersion":"apps/v1beta1","kind":"Deployment"}"#;
        let refusal = object(&HeaderMap::new(), body, "apps", "v1", "Deployment").unwrap_err();
        assert_eq!(refusal.code, 400);
        assert!(refusal.message.contains("apps/v1beta1"), "{}", refusal.message);
    }

    #[test]
    fn yaml_is_read() {
        let headers = of_type("application/yaml; charset=utf-8");
        let decoded =
            any(&headers, b"apiVersion: v1\nkind: ConfigMap\ndata: {a: \"1\"}\n").unwrap();
        assert_eq!(decoded.value["data"]["a"], "1");
    }

    #[test]
    fn other_types_are_refused() {
        assert_eq!(any(&of_type("application/cbor"), b"").unwrap_err().code, 415);
    }

    #[test]
    fn broken_json_is_a_bad_request() {
        assert_eq!(any(&of_type("application/json"), b"{\"a\":").unwrap_err().code, 400);
    }
}
