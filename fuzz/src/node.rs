//! What a machine reads: Dockerfiles, archives of images, names asked for, the kernel's answers.

use crate::{Pure, Target};
use anyhow::{Context as _, Result};
use dhow_images::{Images, digest};
use dhow_intents::{NameIntent, NameRecord, Owner};
use dhow_kernel::net::{nft, wire};
use dhow_names::{Authority, Outcome, Zone};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use serde_json::json;
use std::path::Path;
use std::str::FromStr as _;
use std::sync::OnceLock;

/// Dockerfiles.
pub(crate) fn dockerfile() -> Result<Box<dyn Target>> {
    let good = [
        "# syntax=docker/dockerfile:1\n# escape=`\nARG V=1\nFROM scratch AS base\nENV A=b C=\"d e\"\n\
         COPY --from=base --chown=1:2 a b /c/\nRUN --mount=type=cache,target=/x make `\n  all\n",
        "FROM scratch\nCOPY <<EOF /etc/x\n${HOME:-no}\nEOF\nHEALTHCHECK --interval=5s CMD [\"a\"]\n\
         EXPOSE 80/tcp\nUSER 1:2\nVOLUME [\"/v\"]\nSTOPSIGNAL SIGTERM\nENTRYPOINT [\"/a\", \"b\"]\nCMD c\n",
        "ARG T\nFROM scratch AS one\nFROM one\nONBUILD RUN a\nLABEL a.b=\"c\" d=${T}\nSHELL [\"sh\"]\nWORKDIR a\n",
    ];
    Ok(Pure::of_texts(&good, take_dockerfile))
}

fn take_dockerfile(bytes: &[u8]) -> Result<(), String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
    let _ = dhow_builder::check(text);
    Ok(())
}

/// A tar file of these files.
fn tar(files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, *bytes)?;
    }
    Ok(archive.into_inner()?)
}

/// An image store in a directory of its own, into which archives are loaded.
struct Archive {
    good: Vec<Vec<u8>>,
    folder: tempfile::TempDir,
    images: Images,
    loaded: u32,
}

/// So many archives, and the directory is made anew.
const FULL: u32 = 500;

/// See [`Archive`].
pub(crate) fn archive() -> Result<Box<dyn Target>> {
    let layer = tar(&[("etc/x", b"y"), ("etc/.wh.z", b"")])?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Cmd": ["/a"] },
        "rootfs": { "type": "layers", "diff_ids": [digest::of(&layer)] },
    });
    let config = config.to_string().into_bytes();
    let docker = json!([{ "Config": "c.json", "RepoTags": ["a:b"], "Layers": ["l.tar"] }]);
    let docker = docker.to_string();
    let descriptor = |kind: &str, bytes: &[u8]| {
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": digest::of(bytes),
            "size": bytes.len(),
        })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let index =
        json!({ "schemaVersion": 2, "manifests": [descriptor("manifest.v1+json", &manifest)] });
    let index = index.to_string();
    let blob = |bytes: &[u8]| format!("blobs/{}", digest::of(bytes).replace(':', "/"));
    let good = vec![
        tar(&[("manifest.json", docker.as_bytes()), ("c.json", &config), ("l.tar", &layer)])?,
        tar(&[
            ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
            ("index.json", index.as_bytes()),
            (&blob(&manifest), &manifest),
            (&blob(&config), &config),
            (&blob(&layer), &layer),
        ])?,
    ];
    let folder = tempfile::tempdir()?;
    let images = Images::open(folder.path()).context("an image store")?;
    Ok(Box::new(Archive { good, folder, images, loaded: 0 }))
}

impl Target for Archive {
    fn good(&self) -> &[Vec<u8>] {
        &self.good
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        self.loaded += 1;
        if self.loaded.is_multiple_of(FULL) {
            self.folder = tempfile::tempdir().map_err(|error| error.to_string())?;
            self.images = Images::open(self.folder.path()).map_err(|error| error.to_string())?;
        }
        let _ = self.images.load(&mut bytes);
        let left = std::fs::read_dir(self.folder.path().join("tmp"));
        let left = left.map_err(|error| error.to_string())?.count();
        let outside = Path::new("/etc/.wh.z").exists();
        match (left, outside) {
            (0, false) => Ok(()),
            _ => Err(format!("{left} temporary files are left, outside: {outside}")),
        }
    }
}

/// What the DNS server answers for.
fn zone() -> &'static (Authority, Zone) {
    static ZONE: OnceLock<(Authority, Zone)> = OnceLock::new();
    ZONE.get_or_init(|| {
        let authority = Authority::new("cluster.local", &["10.0.0.0/8".into()], Vec::new());
        let mut zone = Zone::default();
        let owner =
            Owner { kind: "svc".into(), namespace: "shop".into(), name: "web".into(), revision: 1 };
        let names = vec![
            (
                "web.shop.svc.cluster.local".into(),
                vec![
                    NameRecord::Address([10, 0, 0, 1].into()),
                    NameRecord::Address([10, 0, 0, 2].into()),
                ],
            ),
            ("out.shop.svc.cluster.local".into(), vec![NameRecord::Alias("example.org".into())]),
            (
                "in.shop.svc.cluster.local".into(),
                vec![NameRecord::Alias("in.shop.svc.cluster.local".into())],
            ),
        ];
        zone.set(&NameIntent { owner, names });
        (authority.expect("a good zone"), zone)
    })
}

/// Questions to the DNS server, and answers of others to it.
pub(crate) fn dns() -> Result<Box<dyn Target>> {
    let mut good = Vec::new();
    for (name, kind) in [
        ("web.shop.svc.cluster.local.", RecordType::A),
        ("out.shop.svc.cluster.local.", RecordType::AAAA),
        ("in.shop.svc.cluster.local.", RecordType::A),
        ("1.0.0.10.in-addr.arpa.", RecordType::PTR),
        ("cluster.local.", RecordType::SOA),
    ] {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_str(name)?, kind));
        good.push(message.to_vec()?);
    }
    Ok(Box::new(Pure { good, take: take_dns }))
}

fn take_dns(bytes: &[u8]) -> Result<(), String> {
    let (authority, zone) = zone();
    match authority.decide(zone, bytes, true, 1) {
        Outcome::Reply(reply) if reply.len() > 1232 => {
            Err(format!("an answer of {} bytes in one packet", reply.len()))
        }
        Outcome::Reply(reply) if reply.get(..2) != bytes.get(..2) => {
            Err("an answer to another question".into())
        }
        Outcome::Chase(pending) => {
            let _ = pending.complete(Message::from_vec(bytes).ok());
            Ok(())
        }
        Outcome::Reply(_) | Outcome::Forward | Outcome::Ignore => Ok(()),
    }
}

/// What the kernel tells about rules, chains and sets.
pub(crate) fn netlink() -> Result<Box<dyn Target>> {
    let text = |kind: u16, text: &str| attribute(kind, &[text.as_bytes(), &[0]].concat());
    let header = [2, 0, 0, 0].to_vec();
    let hook = [attribute(1, &2_u32.to_be_bytes()), attribute(2, &0_u32.to_be_bytes())].concat();
    let comment = [&[0, 5][..], b"owner"].concat();
    let chain = [
        header.clone(),
        text(1, "dhow0"),
        text(3, "forward"),
        attribute(4, &hook),
        attribute(5, &0_u32.to_be_bytes()),
        attribute(12, &comment),
    ];
    let rule = [
        header,
        text(1, "dhow0"),
        text(2, "forward"),
        attribute(3, &[0; 8]),
        attribute(7, &comment),
    ];
    let key = attribute(1, &attribute(1, &[10, 0, 0, 1]));
    let data = attribute(2, &attribute(2, &[attribute(1, &[0; 4]), text(2, "svc/a")].concat()));
    let element = [key, data, attribute(6, &comment)];
    let good = [chain.concat(), rule.concat(), element.concat()].to_vec();
    Ok(Box::new(Pure { good, take: take_netlink }))
}

/// A netlink attribute with its padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn take_netlink(bytes: &[u8]) -> Result<(), String> {
    let _ = (nft::Chain::read(bytes), nft::Rule::read(bytes), nft::Element::read(bytes));
    for (_, value) in wire::attributes(bytes) {
        let _ = (wire::text(value), wire::u32_of(value), wire::be32_of(value));
    }
    Ok(())
}
