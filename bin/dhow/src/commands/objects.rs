//! `dhow apply|get|describe|delete`: objects, for machines that have no kubectl.

use crate::cli::Target;
use crate::client::Client;
use crate::print::{self, Output};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};

/// One kind as discovery tells it.
struct Resource {
    root: String,
    plural: String,
    kind: String,
    group_version: String,
    namespaced: bool,
    names: Vec<String>,
}

impl Resource {
    fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let mut path = self.root.clone();
        if let Some(namespace) = namespace.filter(|_| self.namespaced) {
            path.push_str(&format!("/namespaces/{namespace}"));
        }
        path.push('/');
        path.push_str(&self.plural);
        if let Some(name) = name {
            path.push('/');
            path.push_str(name);
        }
        path
    }
}

async fn resources(client: &Client) -> Result<Vec<Resource>> {
    let mut roots = vec![("/api/v1".to_owned(), "v1".to_owned())];
    let groups = client.get("/apis").await?;
    for group in groups["groups"].as_array().into_iter().flatten() {
        if let Some(version) = group["preferredVersion"]["groupVersion"].as_str() {
            roots.push((format!("/apis/{version}"), version.to_owned()));
        }
    }
    let mut found = Vec::new();
    for (root, group_version) in roots {
        let list = client.get(&root).await?;
        for row in list["resources"].as_array().into_iter().flatten() {
            let plural = row["name"].as_str().unwrap_or_default().to_owned();
            if plural.contains('/') {
                continue;
            }
            let kind = row["kind"].as_str().unwrap_or_default().to_owned();
            let mut names = vec![plural.clone(), kind.to_lowercase()];
            names.extend(row["singularName"].as_str().map(str::to_owned));
            names.extend(
                row["shortNames"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|n| n.as_str())
                    .map(str::to_owned),
            );
            let namespaced = row["namespaced"].as_bool().unwrap_or(false);
            found.push(Resource {
                root: root.clone(),
                plural,
                kind,
                group_version: group_version.clone(),
                namespaced,
                names,
            });
        }
    }
    Ok(found)
}

async fn named(client: &Client, name: &str) -> Result<Resource> {
    let wanted = name.to_lowercase();
    let resources = resources(client).await?;
    resources.into_iter().find(|r| r.names.contains(&wanted)).with_context(|| {
        format!("no kind of object is called {name:?}; see 'kubectl api-resources'")
    })
}

/// `pod/web` and `pod web` mean the same.
fn split(resource: &str, name: Option<&str>) -> (String, Option<String>) {
    match resource.split_once('/') {
        Some((resource, name)) => (resource.to_owned(), Some(name.to_owned())),
        None => (resource.to_owned(), name.map(str::to_owned)),
    }
}

/// The kind and the name of the one object that a command is for.
async fn one(
    client: &Client,
    command: &str,
    resource: &str,
    name: Option<&str>,
) -> Result<(Resource, String)> {
    let (resource, name) = split(resource, name);
    let Some(name) = name else {
        bail!("name the {resource} to {command}: 'dhow {command} {resource} NAME'")
    };
    Ok((named(client, &resource).await?, name))
}

/// The YAML or JSON documents of a file, of all such files in a directory, or of standard input.
fn documents(path: &Path) -> Result<Vec<Value>> {
    let mut texts = Vec::new();
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        texts.push(("standard input".to_owned(), text));
    } else {
        let mut files = vec![path.to_path_buf()];
        if path.is_dir() {
            files =
                std::fs::read_dir(path)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
            files.retain(|f| {
                f.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|x| e == *x))
            });
            files.sort();
        }
        for file in files {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            texts.push((file.display().to_string(), text));
        }
    }
    let mut objects = Vec::new();
    for (name, text) in texts {
        let parsed: Vec<Value> = crate::files::yaml_documents(&text)
            .map_err(|why| anyhow::anyhow!("{name} is no YAML: {why}"))?;
        for object in parsed {
            match object["items"].as_array() {
                Some(items) if object["kind"].as_str().is_some_and(|k| k.ends_with("List")) => {
                    objects.extend(items.iter().cloned());
                }
                _ if object.is_null() => {}
                _ => objects.push(object),
            }
        }
    }
    Ok(objects)
}

/// `dhow apply`.
///
/// # Errors
/// At the first object that is refused; those before it stay applied.
pub async fn apply(target: &Target, files: &[PathBuf], namespace: &str) -> Result<()> {
    let client = Client::new(&target.data_dir);
    let known = resources(&client).await?;
    for file in files {
        for object in documents(file)? {
            let kind = object["kind"].as_str().unwrap_or_default();
            let version = object["apiVersion"].as_str().unwrap_or_default();
            let Some(resource) =
                known.iter().find(|r| r.kind == kind && r.group_version == version)
            else {
                bail!("{}: no kind {kind:?} in {version:?} is served here", file.display());
            };
            let Some(name) = object["metadata"]["name"].as_str() else {
                bail!("{}: a {kind} has no metadata.name", file.display());
            };
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or(namespace);
            client.apply(&resource.path(Some(namespace), Some(name)), &object).await?;
            println!("{}/{name} applied", resource.plural);
        }
    }
    Ok(())
}

/// `dhow get`.
///
/// # Errors
/// When the kind or the object does not exist.
pub async fn get(
    target: &Target,
    namespace: Option<&str>,
    resource: &str,
    name: Option<&str>,
    output: Output,
) -> Result<()> {
    let client = Client::new(&target.data_dir);
    let (resource, name) = split(resource, name);
    let resource = named(&client, &resource).await?;
    let path = resource.path(namespace, name.as_deref());
    if output != Output::Table {
        return print::value(&client.get(&path).await?, output);
    }
    let table = client.table(&path).await?;
    let heads = table["columnDefinitions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let shown: Vec<usize> = (0..heads.len()).filter(|i| heads[*i]["priority"] == 0).collect();
    let everywhere = namespace.is_none() && resource.namespaced;
    let mut rows = vec![
        shown
            .iter()
            .map(|i| heads[*i]["name"].as_str().unwrap_or_default().to_uppercase())
            .collect::<Vec<_>>(),
    ];
    if everywhere {
        rows[0].insert(0, "NAMESPACE".into());
    }
    for row in table["rows"].as_array().into_iter().flatten() {
        let cell = |i: &usize| match &row["cells"][*i] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let mut cells: Vec<String> = shown.iter().map(cell).collect();
        if everywhere {
            cells.insert(
                0,
                row["object"]["metadata"]["namespace"].as_str().unwrap_or_default().to_owned(),
            );
        }
        rows.push(cells);
    }
    print::table(&rows);
    Ok(())
}

/// `dhow describe`: the object as YAML, then its events.
///
/// # Errors
/// When the kind or the object does not exist.
pub async fn describe(
    target: &Target,
    namespace: &str,
    resource: &str,
    name: Option<&str>,
) -> Result<()> {
    let client = Client::new(&target.data_dir);
    let (resource, name) = one(&client, "describe", resource, name).await?;
    let mut object = client.get(&resource.path(Some(namespace), Some(&name))).await?;
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    print::value(&object, Output::Yaml)?;
    let events =
        client.get(&format!("/api/v1/events?fieldSelector=involvedObject.uid%3D{uid}")).await?;
    let mut rows =
        vec![["LAST SEEN", "TYPE", "REASON", "COUNT", "MESSAGE"].map(str::to_owned).to_vec()];
    for event in events["items"].as_array().into_iter().flatten() {
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        rows.push(
            ["lastTimestamp", "type", "reason", "count", "message"]
                .map(|f| text(&event[f]))
                .to_vec(),
        );
    }
    println!();
    print::table(&rows);
    Ok(())
}

/// `dhow delete`.
///
/// # Errors
/// When the kind or the object does not exist.
pub async fn delete(
    target: &Target,
    namespace: &str,
    resource: &str,
    name: Option<&str>,
) -> Result<()> {
    let client = Client::new(&target.data_dir);
    let (resource, name) = one(&client, "delete", resource, name).await?;
    client.delete(&resource.path(Some(namespace), Some(&name)), &json!({})).await?;
    println!("{}/{name} deleted", resource.plural);
    Ok(())
}
