//! The image store's behaviour: load, find, save, remove, and what it refuses.
//!
//! Needs root: layers carry owners, devices and overlay's own attributes.

use dhow_images::{Error, Images, digest, layer};
use std::io::Cursor;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

fn tar(entries: &[(&str, tar::EntryType, u32, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, mode, body) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(12);
        header.set_gid(34);
        header.set_mtime(1_000_000_000);
        if *kind == tar::EntryType::Symlink || *kind == tar::EntryType::Link {
            header.set_size(0);
            builder.append_link(&mut header, path, std::str::from_utf8(body).unwrap()).unwrap();
            continue;
        }
        header.set_size(body.len() as u64);
        // Not `append_data`: it refuses the hostile names that are wanted here.
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        builder.append(&header, *body).unwrap();
    }
    builder.into_inner().unwrap()
}

use tar::EntryType::{Directory, Link, Regular, Symlink};

/// A `docker save` archive of the old form.
fn docker_archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|l| digest::of(l)).collect();
    let config = serde_json::to_vec(&serde_json::json!({
        "created": "2026-01-02T03:04:05Z", "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/app"], "Entrypoint": null},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap();
    let manifest = serde_json::to_vec(&serde_json::json!([{
        "Config": "config.json",
        "RepoTags": [name],
        "Layers": (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect::<Vec<_>>(),
    }]))
    .unwrap();
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let mut entries: Vec<(&str, tar::EntryType, u32, &[u8])> = vec![
        ("config.json", Regular, 0o644, &config),
        ("manifest.json", Regular, 0o644, &manifest),
    ];
    for (name, layer) in names.iter().zip(layers) {
        entries.push((name, Regular, 0o644, layer));
    }
    tar(&entries)
}

fn two_layers() -> Vec<Vec<u8>> {
    vec![
        tar(&[
            ("tmp", Directory, 0o1777, b""),
            ("bin/app", Regular, 0o4755, b"#!app"),
            ("bin/alias", Symlink, 0o777, b"app"),
            ("bin/twin", Link, 0o755, b"bin/app"),
            ("etc/old", Regular, 0o644, b"old"),
        ]),
        tar(&[
            ("etc/.wh.old", Regular, 0, b""),
            ("tmp/x", Regular, 0o600, b"x"),
            ("opt/.wh..wh..opq", Regular, 0, b""),
        ]),
    ]
}

fn store() -> (tempfile::TempDir, Images) {
    let dir = tempfile::tempdir().unwrap();
    let images = Images::open(dir.path()).unwrap();
    (dir, images)
}

#[test]
fn nobody_else_reaches_the_layers() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("images");
    let mode = || own.metadata().unwrap().mode() & 0o777;
    Images::open(&own).unwrap();
    assert_eq!(mode(), 0o700);
    // One that was made open, too.
    rustix::fs::chmod(&own, 0o755.into()).unwrap();
    Images::open(&own).unwrap();
    assert_eq!(mode(), 0o700);
}

#[test]
fn a_docker_archive_is_loaded_and_found_by_every_name() {
    let (_dir, images) = store();
    let loaded = images.load(&mut Cursor::new(docker_archive("shop:v1", &two_layers()))).unwrap();
    assert_eq!(loaded.len(), 1);
    let image = images.get("shop:v1").unwrap();
    assert_eq!(image, loaded[0]);
    assert_eq!(image.names, ["docker.io/library/shop:v1"]);
    assert_eq!(image.config.cmd, ["/bin/app"]);
    assert_eq!(images.get(&image.id).unwrap().id, image.id);
    assert_eq!(images.get(&image.id["sha256:".len()..][..8]).unwrap().id, image.id);
    assert_eq!(images.get(&format!("shop@{}", image.digest)).unwrap().id, image.id);
    assert!(matches!(images.get("shop"), Err(Error::NotFound(name)) if name == "shop"));

    let [upper, lower] = &image.layers[..] else { panic!("two layers") };
    let app = lower.join("bin/app").metadata().unwrap();
    assert_eq!(
        (app.uid(), app.gid(), app.mode() & 0o7777, app.mtime()),
        (12, 34, 0o4755, 1_000_000_000)
    );
    assert_eq!(app.nlink(), 2);
    let gone = upper.join("etc/old").symlink_metadata().unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    // The second layer only implies /tmp: it takes the mode from below.
    assert_eq!(upper.join("tmp").metadata().unwrap().mode() & 0o7777, 0o1777);
}

#[test]
fn a_saved_image_loads_as_the_same_image() {
    let (_dir, images) = store();
    let first = images.load(&mut Cursor::new(docker_archive("shop:v1", &two_layers()))).unwrap();
    let mut archive = Vec::new();
    images.save("shop:v1", &mut archive).unwrap();
    let (_other_dir, other) = store();
    let again = other.load(&mut Cursor::new(archive)).unwrap();
    assert_eq!(again[0].id, first[0].id);
    assert_eq!(again[0].names, first[0].names);
}

#[test]
fn an_image_is_saved_under_the_name_that_was_asked_for_and_no_other() {
    let (_dir, images) = store();
    images.load(&mut Cursor::new(docker_archive("shop:v1", &two_layers()))).unwrap();
    images.tag("shop:v1", "quay:v1").unwrap();
    let saved = |reference: &str| {
        let mut archive = Vec::new();
        images.save(reference, &mut archive).unwrap();
        archive
    };
    let (_other_dir, other) = store();
    let again = other.load(&mut Cursor::new(saved("quay:v1"))).unwrap();
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].names, ["docker.io/library/quay:v1"]);
    assert!(matches!(other.get("shop:v1"), Err(Error::NotFound(_))));
    // By its id: as `docker save`, without a name.
    let (_third_dir, third) = store();
    let again = third.load(&mut Cursor::new(saved(&again[0].id))).unwrap();
    assert!(again.len() == 1 && again[0].names.is_empty(), "{again:?}");
    // Where it has another name, that one is not told as loaded.
    assert_eq!(images.load(&mut Cursor::new(saved("quay:v1"))).unwrap()[0].names.len(), 1);
}

#[test]
fn compressed_archives_are_recognised() {
    let (_dir, images) = store();
    let plain = docker_archive("zip:1", &two_layers());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut Cursor::new(plain), &mut gzip).unwrap();
    images.load(&mut Cursor::new(gzip.finish().unwrap())).unwrap();
    images.get("zip:1").unwrap();
}

#[test]
fn a_layer_that_does_not_match_is_refused_and_leaves_no_image() {
    let (_dir, images) = store();
    let mut archive = docker_archive("bad:1", &two_layers());
    let at = archive.windows(5).position(|w| w == b"#!app").unwrap();
    archive[at] ^= 1;
    let refused = images.load(&mut Cursor::new(archive)).unwrap_err();
    assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
    assert!(images.list().unwrap().is_empty());
    assert_eq!(std::fs::read_dir(images.dir().join("tmp")).unwrap().count(), 0);
}

#[test]
fn an_archive_without_one_of_its_layers_says_which() {
    let (_dir, images) = store();
    let manifest =
        br#"[{"Config": "config.json", "RepoTags": ["a:1"], "Layers": ["lost/layer.tar"]}]"#;
    let docker = tar(&[
        ("config.json", Regular, 0o644, b"{}"),
        ("manifest.json", Regular, 0o644, manifest.as_slice()),
    ]);
    let refused = images.load(&mut Cursor::new(docker)).unwrap_err().to_string();
    assert!(refused.contains("its layer lost/layer.tar is not there"), "{refused}");

    images.load(&mut Cursor::new(docker_archive("whole:1", &two_layers()))).unwrap();
    let mut saved = Vec::new();
    images.save("whole:1", &mut saved).unwrap();
    let lost = digest::of(&two_layers()[1]);
    let mut without = tar::Builder::new(Vec::new());
    let mut archive = tar::Archive::new(Cursor::new(saved));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        if !lost.ends_with(path.file_name().unwrap().to_str().unwrap()) {
            let mut header = entry.header().clone();
            without.append_data(&mut header, path, &mut entry).unwrap();
        }
    }
    let (_dir, empty) = store();
    let without = without.into_inner().unwrap();
    let refused = empty.load(&mut Cursor::new(without)).unwrap_err().to_string();
    assert!(refused.contains(&format!("its layer {lost} is not there")), "{refused}");
    assert_eq!(empty.list().unwrap().len(), 0);
}

#[test]
fn names_that_leave_the_archive_or_the_layer_are_refused() {
    let (_dir, images) = store();
    let hostile = tar(&[("../escape", Regular, 0o644, b"x")]);
    assert!(images.load(&mut Cursor::new(hostile.clone())).is_err());
    let target = tempfile::tempdir().unwrap();
    assert!(layer::unpack(Cursor::new(hostile), target.path(), &[]).is_err());
    // A link to the outside resolves inside the layer, as it would in a container.
    let outside = tempfile::tempdir().unwrap();
    let linked = outside.path().to_str().unwrap().as_bytes();
    let sneaky = tar(&[("door", Symlink, 0o777, linked), ("door/x", Regular, 0o644, b"x")]);
    let _ = layer::unpack(Cursor::new(sneaky), target.path(), &[]);
    assert!(!outside.path().join("x").exists());
}

#[test]
fn neither_form_of_archive_is_said_so() {
    let (_dir, images) = store();
    let refused = images.load(&mut Cursor::new(tar(&[("x", Regular, 0o644, b"x")]))).unwrap_err();
    assert!(refused.to_string().contains("neither index.json"), "{refused}");
    for (name, list) in
        [("manifest.json", "[]"), ("index.json", r#"{"schemaVersion":2,"manifests":[]}"#)]
    {
        let archive = tar(&[(name, Regular, 0o644, list.as_bytes())]);
        let refused = images.load(&mut Cursor::new(archive)).unwrap_err();
        assert!(refused.to_string().contains(&format!("its {name} names no image")), "{refused}");
    }
}

#[test]
fn removing_the_last_name_removes_what_nobody_shares() {
    let (_dir, images) = store();
    let layers = two_layers();
    images.load(&mut Cursor::new(docker_archive("a:1", &layers))).unwrap();
    images.load(&mut Cursor::new(docker_archive("b:1", &layers[..1]))).unwrap();
    images.tag("a:1", "a:2").unwrap();
    let a = images.get("a:1").unwrap();
    let b = images.get("b:1").unwrap();
    assert_eq!(images.remove("a:2", &[]).unwrap(), ["untagged a:2"]);
    let refused = images.remove("a:1", &a.layers[..1]).unwrap_err();
    assert!(matches!(refused, Error::InUse { .. }));
    images.remove("a:1", &[]).unwrap();
    assert!(!a.layers[0].exists());
    assert!(b.layers[0].join("bin/app").exists(), "shared with b");
    images.remove("b:1", &[]).unwrap();
    assert_eq!(std::fs::read_dir(images.dir().join("blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn a_directory_becomes_a_layer_and_an_image() {
    let (dir, images) = store();
    images.load(&mut Cursor::new(docker_archive("base:1", &two_layers()))).unwrap();
    let (mut layers, mut config) = images.layers("base:1").unwrap();
    let upper = dir.path().join("tmp/upper");
    std::fs::create_dir_all(upper.join("srv")).unwrap();
    std::fs::write(upper.join("srv/index.html"), "hello").unwrap();
    layers.push(images.add_layer(&upper, &layers).unwrap());
    config["config"]["Cmd"] = serde_json::json!(["/srv"]);
    let image = images.add_image(config, &layers, &["site".into()]).unwrap();
    assert_eq!(std::fs::read_to_string(image.layers[0].join("srv/index.html")).unwrap(), "hello");
    assert_eq!(images.get("site").unwrap().config.cmd, ["/srv"]);
    // Saved from the directory, it loads elsewhere as the same image.
    let mut archive = Vec::new();
    images.save("site", &mut archive).unwrap();
    let (_other_dir, other) = store();
    assert_eq!(other.load(&mut Cursor::new(archive)).unwrap()[0].id, image.id);
}

#[test]
fn packing_is_the_inverse_of_unpacking() {
    let first = tempfile::tempdir().unwrap();
    layer::unpack(Cursor::new(two_layers().remove(1)), first.path(), &[]).unwrap();
    let mut stream = Vec::new();
    let (digest_once, ..) = layer::pack(first.path(), &mut stream).unwrap();
    let second = tempfile::tempdir().unwrap();
    let unpacked = layer::unpack(Cursor::new(&stream[..]), second.path(), &[]).unwrap();
    assert_eq!(unpacked.diff_id, digest_once);
    let (digest_twice, ..) = layer::pack(second.path(), std::io::sink()).unwrap();
    assert_eq!(digest_once, digest_twice);
    assert!(is_opaque(&second.path().join("opt")));
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0u8; 1];
    rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value[..]).is_ok() && value == *b"y"
}

#[test]
fn images_of_one_archive_may_share_a_layer_file() {
    let (_dir, images) = store();
    let layer = two_layers().remove(0);
    let diff_id = digest::of(&layer);
    let config = |cmd: &str| {
        serde_json::to_vec(&serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {"Cmd": [cmd]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }))
        .unwrap()
    };
    let manifest = serde_json::to_vec(&serde_json::json!([
        {"Config": "a.json", "RepoTags": ["a:1"], "Layers": ["shared.tar"]},
        {"Config": "b.json", "RepoTags": ["b:1"], "Layers": ["shared.tar"]},
    ]))
    .unwrap();
    let archive = tar(&[
        ("a.json", Regular, 0o644, &config("a")),
        ("b.json", Regular, 0o644, &config("b")),
        ("shared.tar", Regular, 0o644, &layer),
        ("manifest.json", Regular, 0o644, &manifest),
    ]);
    assert_eq!(images.load(&mut Cursor::new(archive)).unwrap().len(), 2);
    assert_eq!(images.get("a:1").unwrap().layers, images.get("b:1").unwrap().layers);
}

#[test]
fn a_removal_takes_nothing_from_under_a_build() {
    let dir = tempfile::tempdir().unwrap();
    let images = Images::open(dir.path()).unwrap();
    for name in ["app:1", "app:2"] {
        let layer = tar(&[("f", Regular, 0o644, name.as_bytes())]);
        images.load(&mut Cursor::new(&docker_archive(name, &[layer]))).unwrap();
    }
    let layers = |name: &str| images.get(name).unwrap().layers[0].clone();
    let (first, second) = (layers("app:1"), layers("app:2"));
    let building = images.building().unwrap();
    images.remove("app:1", &[]).unwrap();
    assert!(first.join("f").exists(), "a build may stand on it");
    drop(building);
    images.remove("app:2", &[]).unwrap();
    assert!(!first.exists() && !second.exists());
}

/// An OCI archive whose `index.json` names the index `digest`, of which `blob` is the content.
fn layout_archive(digest: &str, blob: &str) -> Vec<u8> {
    let media = "application/vnd.oci.image.index.v1+json";
    let entry = serde_json::json!({"mediaType": media, "digest": digest, "size": 1});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let path = format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
    tar(&[
        ("index.json", Regular, 0o644, index.as_bytes()),
        (&path, Regular, 0o644, blob.as_bytes()),
    ])
}

#[test]
fn an_index_that_names_itself_is_refused() {
    let (_dir, images) = store();
    let digest = digest::of(b"another content");
    let entry = serde_json::json!({
        "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": 1,
    });
    let itself = serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let refused = images.load(&mut Cursor::new(layout_archive(&digest, &itself))).unwrap_err();
    assert!(refused.to_string().contains("does not match its digest"), "{refused}");
}

#[test]
fn a_damaged_image_hides_no_other_and_can_be_removed_or_loaded_again() {
    let (dir, images) = store();
    let archive = |name| Cursor::new(docker_archive(name, &two_layers()[..1]));
    let good = images.load(&mut archive("good:1")).unwrap().remove(0);
    let mut other = Cursor::new(docker_archive("bad:1", &two_layers()));
    let bad = images.load(&mut other.clone()).unwrap().remove(0);
    let config = dir.path().join("blobs/sha256").join(bad.id.trim_start_matches("sha256:"));
    let damage = || std::fs::write(&config, "{}").unwrap();

    damage();
    let listed: Vec<String> = images.list().unwrap().into_iter().map(|i| i.id).collect();
    assert_eq!(listed, std::slice::from_ref(&good.id));
    assert_eq!(images.get(&good.id[7..17]).unwrap().id, good.id);
    assert!(matches!(images.get("bad:1"), Err(Error::Damaged { .. })));
    images.load(&mut other).unwrap();
    assert_eq!(images.get("bad:1").unwrap().id, bad.id);

    damage();
    images.tag("good:1", "good:2").unwrap();
    // Nothing is taken away while nobody knows what it needs.
    images.remove("good:2", &[]).unwrap();
    assert!(bad.layers.iter().all(|layer| layer.is_dir()));
    images.remove("bad:1", &[]).unwrap();
    assert!(matches!(images.get("bad:1"), Err(Error::NotFound(_))));
    assert!(!config.exists() && !bad.layers[0].exists(), "it left nothing");
    assert!(images.get("good:1").unwrap().layers.iter().all(|layer| layer.is_dir()));
}
