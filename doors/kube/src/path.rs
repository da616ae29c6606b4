//! Kubernetes URLs, parsed into what they ask for. Pure: no state, no input or output.
//!
//! Follows `k8s.io/apiserver/pkg/endpoints/request` (`RequestInfo`): the legacy group lives under
//! `/api/v1`, all others under `/apis/GROUP/VERSION`, namespaced resources under
//! `namespaces/NAME/`, and the old `watch/` prefix means `watch=true`.

/// What a URL path addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `/`: the list of paths.
    Root,
    /// `/api`: the versions of the legacy group.
    LegacyGroup,
    /// `/apis`: the groups.
    Groups,
    /// `/apis/GROUP`: the versions of a group.
    Group(String),
    /// `/api/v1` or `/apis/GROUP/VERSION`: the resources of a version. The group is empty for the
    /// legacy one.
    GroupVersion(String, String),
    /// `/openapi/v2`: the document of older clients.
    OpenApiV2,
    /// `/openapi/v3`: the index of documents.
    OpenApiIndex,
    /// `/openapi/v3/PATH`: one document, by the path in the index.
    OpenApiDocument(String),
    /// `/version`.
    Version,
    /// `/livez`, `/readyz` or `/healthz`, and perhaps one check of it.
    Health(&'static str, Option<String>),
    /// `/metrics`.
    Metrics,
    /// `/.well-known/openid-configuration`.
    OpenIdConfiguration,
    /// `/openid/v1/jwks`.
    OpenIdKeys,
    /// `/dhow/v1/join`: for servers that join the platform.
    Join,
    /// `/dhow/v1/servers`, or one of them: the platform's own servers.
    Servers(Option<String>),
    /// Objects.
    Resource(ResourcePath),
    /// Nothing that this server knows.
    Unknown,
}

/// A path to objects, an object, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResourcePath {
    /// API group, empty for the legacy one.
    pub group: String,
    /// Version.
    pub version: String,
    /// Namespace; `None` for cluster-wide kinds and for lists over all namespaces.
    pub namespace: Option<String>,
    /// Plural resource name.
    pub resource: String,
    /// Object name; `None` for collections.
    pub name: Option<String>,
    /// `status`, `scale`, `log`...; empty for the object itself.
    pub subresource: String,
    /// What follows the subresource, without the leading slash (for `proxy`).
    pub rest: String,
    /// The path began with the old `watch/` prefix.
    pub watch: bool,
}

/// Undoes percent encoding. `None` when an escape is broken or the result is not UTF-8.
pub fn percent_decode(text: &str, plus_is_space: bool) -> Option<String> {
    if !text.contains(['%', '+']) {
        return Some(text.to_owned());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                // Two hexadecimal digits fit into a byte.
                out.push((high * 16 + low) as u8);
            }
            b'+' if plus_is_space => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

/// Parses a URL path. Never fails: what is not understood is [`Target::Unknown`].
pub fn parse(path: &str) -> Target {
    let trimmed = path.strip_prefix('/').unwrap_or(path);
    // Only resource paths may carry encoded slashes, so split first and decode after.
    let mut segments = Vec::new();
    for raw in trimmed.trim_end_matches('/').split('/') {
        match percent_decode(raw, false) {
            Some(segment) => segments.push(segment),
            None => return Target::Unknown,
        }
    }
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [""] => Target::Root,
        ["api"] => Target::LegacyGroup,
        ["apis"] => Target::Groups,
        ["apis", group] => Target::Group((*group).to_owned()),
        ["api", version] => Target::GroupVersion(String::new(), (*version).to_owned()),
        ["apis", group, version] => {
            Target::GroupVersion((*group).to_owned(), (*version).to_owned())
        }
        ["api", version, rest @ ..] => resource("", version, rest),
        ["apis", group, version, rest @ ..] => resource(group, version, rest),
        ["openapi", "v2"] => Target::OpenApiV2,
        ["openapi", "v3"] => Target::OpenApiIndex,
        ["openapi", "v3", rest @ ..] => Target::OpenApiDocument(rest.join("/")),
        ["version"] => Target::Version,
        ["metrics"] => Target::Metrics,
        ["livez"] => Target::Health("livez", None),
        ["readyz"] => Target::Health("readyz", None),
        ["healthz"] => Target::Health("healthz", None),
        ["livez", check] => Target::Health("livez", Some((*check).to_owned())),
        ["readyz", check] => Target::Health("readyz", Some((*check).to_owned())),
        ["healthz", check] => Target::Health("healthz", Some((*check).to_owned())),
        [".well-known", "openid-configuration"] => Target::OpenIdConfiguration,
        ["openid", "v1", "jwks"] => Target::OpenIdKeys,
        ["dhow", "v1", "join"] => Target::Join,
        ["dhow", "v1", "servers"] => Target::Servers(None),
        ["dhow", "v1", "servers", name] => Target::Servers(Some((*name).to_owned())),
        _ => Target::Unknown,
    }
}

fn resource(group: &str, version: &str, words: &[&str]) -> Target {
    let mut found = ResourcePath {
        group: group.to_owned(),
        version: version.to_owned(),
        ..ResourcePath::default()
    };
    let words = match words {
        ["watch", rest @ ..] if !rest.is_empty() => {
            found.watch = true;
            rest
        }
        other => other,
    };
    let words = match words {
        // A namespace itself, or a part of it, is a cluster-wide object.
        ["namespaces"] | ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => words,
        ["namespaces", namespace, rest @ ..] => {
            found.namespace = Some((*namespace).to_owned());
            rest
        }
        other => other,
    };
    match words {
        [] => return Target::Unknown,
        [resource] => found.resource = (*resource).to_owned(),
        [resource, name, rest @ ..] => {
            found.resource = (*resource).to_owned();
            found.name = Some((*name).to_owned());
            if let [subresource, rest @ ..] = rest {
                found.subresource = (*subresource).to_owned();
                found.rest = rest.join("/");
            }
        }
    }
    if found.resource.is_empty() || found.name.as_deref() == Some("") {
        return Target::Unknown;
    }
    if found.namespace.as_deref() == Some("") {
        return Target::Unknown;
    }
    Target::Resource(found)
}

/// The query of a URL, decoded, in order. Names may repeat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses what follows the question mark. Broken escapes are kept as they stand.
    pub fn parse(text: &str) -> Self {
        let pairs = text
            .split('&')
            .filter(|part| !part.is_empty())
            .map(|part| {
                let (name, value) = part.split_once('=').unwrap_or((part, ""));
                let plain =
                    |text: &str| percent_decode(text, true).unwrap_or_else(|| text.to_owned());
                (plain(name), plain(value))
            })
            .collect();
        Self(pairs)
    }

    /// The first value of a name; empty values count as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, v)| n == name && !v.is_empty()).map(|(_, value)| value.as_str())
    }

    /// All values of a name, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Whether a name is given at all.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }

    /// A flag as upstream reads it: absent, `false` and `0` are false, everything else is true.
    pub fn flag(&self, name: &str) -> bool {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .is_some_and(|(_, value)| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object(path: &str) -> ResourcePath {
        match parse(path) {
            Target::Resource(found) => found,
            other => panic!("{path} is {other:?}"),
        }
    }

    #[test]
    fn objects_of_the_legacy_group_are_found() {
        let pod = object("/api/v1/namespaces/shop/pods/cart-1/log");
        assert_eq!(pod.group, "");
        assert_eq!(pod.version, "v1");
        assert_eq!(pod.namespace.as_deref(), Some("shop"));
        assert_eq!(pod.resource, "pods");
        assert_eq!(pod.name.as_deref(), Some("cart-1"));
        assert_eq!(pod.subresource, "log");
        assert_eq!(object("/api/v1/nodes").name, None);
    }

    #[test]
    fn a_namespace_is_an_object_and_a_place() {
        let namespace = object("/api/v1/namespaces/shop");
        assert_eq!((namespace.resource.as_str(), namespace.namespace), ("namespaces", None));
        assert_eq!(object("/api/v1/namespaces/shop/status").subresource, "status");
        assert_eq!(object("/api/v1/namespaces/shop/finalize").subresource, "finalize");
        assert_eq!(object("/api/v1/namespaces/status/pods").namespace.as_deref(), Some("status"));
    }

    #[test]
    fn groups_and_documents_are_found() {
        assert_eq!(parse("/apis/apps/v1"), Target::GroupVersion("apps".into(), "v1".into()));
        assert_eq!(parse("/api/v1/"), Target::GroupVersion(String::new(), "v1".into()));
        assert_eq!(
            parse("/openapi/v3/apis/apps/v1"),
            Target::OpenApiDocument("apis/apps/v1".into())
        );
        assert_eq!(parse("/readyz/store"), Target::Health("readyz", Some("store".into())));
        assert_eq!(parse("/openapi/v2"), Target::OpenApiV2);
        assert_eq!(parse("/dhow/v1/join"), Target::Join);
        assert_eq!(parse("/dhow/v1/servers/n2"), Target::Servers(Some("n2".into())));
        assert_eq!(parse("/dhow/v1"), Target::Unknown);
    }

    #[test]
    fn the_old_watch_prefix_is_a_watch() {
        let found = object("/api/v1/watch/namespaces/a/pods");
        assert!(found.watch);
        assert_eq!(found.namespace.as_deref(), Some("a"));
    }

    #[test]
    fn the_proxy_keeps_its_path() {
        let found = object("/api/v1/namespaces/a/services/http:web:80/proxy/x/y");
        assert_eq!(found.name.as_deref(), Some("http:web:80"));
        assert_eq!((found.subresource.as_str(), found.rest.as_str()), ("proxy", "x/y"));
    }

    #[test]
    fn empty_names_are_nothing() {
        assert_eq!(parse("/api/v1/namespaces//pods"), Target::Unknown);
        assert_eq!(parse("/api/v1//x"), Target::Unknown);
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("command=sh&command=-c&command=a%20b%26c&follow=true&x&tty=false");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "a b&c"]);
        assert!(query.flag("follow") && query.flag("x") && !query.flag("tty"));
        assert!(!query.flag("absent"));
        assert_eq!(query.get("x"), None);
    }

    proptest! {
        #[test]
        fn any_path_and_query_is_parsed(path in "\\PC*", query in "\\PC*") {
            let _ = parse(&path);
            let _ = Query::parse(&query);
        }

        #[test]
        fn paths_of_slashes_and_words_are_parsed(
            words in proptest::collection::vec("(api|apis|v1|namespaces|watch|pods|%2[0-9a-g]|)", 0..9)
        ) {
            let _ = parse(&format!("/{}", words.join("/")));
        }
    }
}
