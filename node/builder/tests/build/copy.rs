//! What COPY and ADD take, where they put it, and what they refuse.

use crate::harness::World;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

crate::tests![
    files_and_directories_go_where_docker_puts_them,
    patterns_select_files,
    dockerignore_leaves_files_out,
    links_never_lead_out_of_the_context,
    links_of_the_image_resolve_inside_it,
    owners_and_modes_are_set,
    hard_links_times_and_modes_survive,
    archives_are_unpacked_by_add_only,
    here_documents_become_files,
    existing_files_are_replaced,
    a_saved_image_can_be_loaded_elsewhere,
];

fn files_and_directories_go_where_docker_puts_them(world: &World) {
    world.write("a", "a");
    world.write("b", "b");
    world.write("dir/x", "x");
    world.write("dir/sub/y", "y");
    let image = world.build(
        "FROM scratch\nCOPY a /file\nCOPY a /into/\nCOPY a b /both/\nCOPY dir /dir\nCOPY dir/ /dir2/\nCOPY a /dir\nCOPY dir dir2/sub /m/\n\
         WORKDIR /w\nCOPY a .\nCOPY b ./renamed\nCOPY [\"a\", \"/with space\"]\nCOPY ./dir/../a /clean\n"
            .replace("COPY dir dir2/sub /m/\n", "COPY dir dir/sub /m/\n")
            .as_str(),
    );
    assert_eq!(
        world.paths(&image, ""),
        [
            "both/",
            "both/a",
            "both/b",
            "clean",
            "dir/",
            "dir/a",
            "dir/sub/",
            "dir/sub/y",
            "dir/x",
            "dir2/",
            "dir2/sub/",
            "dir2/sub/y",
            "dir2/x",
            "file",
            "into/",
            "into/a",
            "m/",
            "m/sub/",
            "m/sub/y",
            "m/x",
            "m/y",
            "w/",
            "w/a",
            "w/renamed",
            "with space"
        ]
    );
}

fn patterns_select_files(world: &World) {
    for path in ["one.txt", "two.txt", "x.md", "d/three.txt", "d/e/four.txt", "arr[0]"] {
        world.write(path, path);
    }
    let image = world.build(
        "FROM scratch\nCOPY *.txt /flat/\nCOPY **/*.txt /deep/\nCOPY ?.md /one/\nCOPY d/*/f[nop]ur.txt /c/\nCOPY \"arr\\\\[0]\" /l/\n",
    );
    assert_eq!(
        world.paths(&image, ""),
        [
            "c/",
            "c/four.txt",
            "deep/",
            "deep/four.txt",
            "deep/one.txt",
            "deep/three.txt",
            "deep/two.txt",
            "flat/",
            "flat/one.txt",
            "flat/two.txt",
            "l/",
            "l/arr[0]",
            "one/",
            "one/x.md"
        ]
    );
    let refused = world.refused("FROM scratch\nCOPY *.nope /x/");
    assert!(refused.starts_with("Dockerfile:2: COPY: nothing in the build context"), "{refused}");
}

fn dockerignore_leaves_files_out(world: &World) {
    for path in ["a", "b.log", "target/x", "target/keep/y", "src/m.rs", "src/z.log"] {
        world.write(path, path);
    }
    world.write(".dockerignore", "# no\nDockerfile\n.dockerignore\n*.log\ntarget\n!target/keep\n");
    let image = world.build("FROM scratch\nCOPY . /\n");
    assert_eq!(
        world.paths(&image, ""),
        ["a", "src/", "src/m.rs", "src/z.log", "target/", "target/keep/", "target/keep/y"]
    );
    let refused = world.refused("FROM scratch\nCOPY b.log /");
    assert!(
        refused.contains("\"b.log\" is excluded") && refused.contains(".dockerignore"),
        "{refused}"
    );
    // The one beside the Dockerfile counts more.
    world.write("other/File", "FROM scratch\nCOPY . /\n");
    world.write("other/File.dockerignore", "**\n!a\n");
    let mut options = world.options();
    options.dockerfile = Some(world.dir.join("context/other/File"));
    let image = world.build_with(&options).0.unwrap();
    assert_eq!(world.paths(&image, ""), ["a"]);
    world.write(".dockerignore", "ok\n[x\n");
    let refused = world.refused("FROM scratch\nCOPY . /");
    assert!(refused.contains(".dockerignore:2: the pattern"), "{refused}");
}

fn links_never_lead_out_of_the_context(world: &World) {
    world.write("real/f", "inside");
    std::fs::write(world.dir.join("secret"), "secret").unwrap();
    let context = world.dir.join("context");
    symlink(world.dir.join("secret"), context.join("absolute")).unwrap();
    symlink("../../secret", context.join("real/up")).unwrap();
    symlink("/real", context.join("rooted")).unwrap();
    symlink("real/f", context.join("link")).unwrap();
    for source in ["absolute", "real/up", "../secret", "real/../../secret"] {
        let refused = world.refused(&format!("FROM scratch\nCOPY {source} /x"));
        assert!(refused.starts_with("Dockerfile:2: COPY: "), "{refused}");
        assert!(refused.contains("build context"), "{refused}");
    }
    let refused = world.refused("FROM scratch\nCOPY real/up /x");
    assert!(
        refused.contains("is a symbolic link to \"../../secret\", which is not in"),
        "{refused}"
    );
    // Links that stay inside are followed when they are named, and kept when they are found.
    let image = world.build("FROM scratch\nCOPY link /file\nCOPY rooted /dir\nCOPY . /all\n");
    assert_eq!(world.text(&image, "file"), "inside");
    assert_eq!(world.text(&image, "dir/f"), "inside");
    world.look(&image, |root| {
        assert_eq!(std::fs::read_link(root.join("dir/up")).unwrap(), Path::new("../../secret"));
        assert!(root.join("all/link").is_symlink());
    });
}

fn links_of_the_image_resolve_inside_it(world: &World) {
    world.write("root/usr/lib/a", "a");
    symlink("usr/lib", world.dir.join("context/root/lib")).unwrap();
    symlink("/etc", world.dir.join("context/root/out")).unwrap();
    symlink("../../../../../../../../tmp/dhow-escape", world.dir.join("context/root/up")).unwrap();
    world.write("b", "b");
    let image =
        world.build("FROM scratch\nCOPY root /\nCOPY b /lib/\nCOPY root /\nCOPY b /lib/c\n");
    assert_eq!(world.paths(&image, "usr"), ["lib/", "lib/a", "lib/b", "lib/c"]);
    // A link to nothing is not written through.
    let refused = world.refused("FROM test\nCOPY b /out/x\n");
    assert!(refused.contains("/out cannot be written"), "{refused}");
    assert!(!Path::new("/etc/x").exists());
    // One to a file is, and stays.
    symlink("usr/lib/a", world.dir.join("context/root/through")).unwrap();
    let image =
        world.build("FROM scratch\nCOPY root /\nCOPY b /through\nCOPY <<b /through\nheard\nb\n");
    assert_eq!(world.text(&image, "usr/lib/a"), "heard\n");
    world.look(&image, |root| assert!(root.join("through").is_symlink()));
    let image = world.build("FROM test\nCOPY b /up\n");
    assert_eq!(world.text(&image, "up"), "b");
    assert!(!Path::new("/tmp/dhow-escape").exists());
}

fn owners_and_modes_are_set(world: &World) {
    world.base();
    let file = world.write("d/f", "x");
    std::os::unix::fs::chown(&file, Some(1234), Some(1234)).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o4751)).unwrap();
    let image = world.build(
        "FROM box\nCOPY d /plain\nCOPY --chown=web d /named\nCOPY --chown=9 d /number\nCOPY --chown=web:logs --chmod=640 d/f /both\n\
         ARG who=10:11\nCOPY --chown=$who d/f /new/dir/f\n",
    );
    let expected = [
        ("plain", 0, 0, 0o40755),
        ("plain/f", 0, 0, 0o104751),
        ("named/f", 33, 34, 0o104751),
        ("number/f", 9, 9, 0o104751),
        ("both", 33, 40, 0o100640),
        ("new/dir", 10, 11, 0o40755),
        ("new/dir/f", 10, 11, 0o104751),
    ];
    world.look(&image, |root| {
        for (path, uid, gid, mode) in expected {
            let found = root.join(path).metadata().unwrap();
            assert_eq!((found.uid(), found.gid(), found.mode()), (uid, gid, mode), "{path}");
        }
    });
    let refused = world.refused("FROM box\nCOPY --chown=nobody d /x");
    assert!(refused.contains("user \"nobody\" is not in /etc/passwd of the image"), "{refused}");
    let refused = world.refused("FROM box\nCOPY --chmod=u+x d /x");
    assert!(refused.contains("expected an octal number"), "{refused}");
}

fn hard_links_times_and_modes_survive(world: &World) {
    let file = world.write("d/one", "x");
    std::fs::hard_link(&file, world.dir.join("context/d/two")).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    std::fs::File::open(&file).unwrap().set_modified(time).unwrap();
    let directory = world.dir.join("context/d");
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o1777)).unwrap();
    std::fs::File::open(&directory).unwrap().set_modified(time).unwrap();
    let image = world.build("FROM scratch\nCOPY d /d\n");
    world.look(&image, |root| {
        let [d, one, two] = ["d", "d/one", "d/two"].map(|p| root.join(p).metadata().unwrap());
        assert_eq!(one.ino(), two.ino());
        assert_eq!((one.modified().unwrap(), d.modified().unwrap()), (time, time));
        assert_eq!(d.mode() & 0o7777, 0o1777);
    });
}

fn archives_are_unpacked_by_add_only(world: &World) {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, uid) in [("in/a", 5), ("in/../../../../escape", 6)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o600);
        header.set_uid(uid);
        header.set_gid(uid);
        // The library refuses such names; an attacker would not.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        if uid == 5 {
            archive.append(&header, &b"a"[..]).unwrap();
        } else {
            let mut bad = tar::Builder::new(Vec::new());
            bad.append(&header, &b"a"[..]).unwrap();
            world.write("bad.tar", bad.into_inner().unwrap());
        }
    }
    let plain = archive.into_inner().unwrap();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &plain).unwrap();
    world.write("a.tgz", packed.finish().unwrap());
    world.write("a.tar", plain);
    world.write("no.tar", "this is text");
    let image = world.build(
        "FROM scratch\nADD a.tgz /gz\nADD a.tar /plain/\nADD --chown=7 a.tar /owned\nADD no.tar /\nCOPY a.tar /copied\n",
    );
    assert_eq!(
        world.paths(&image, ""),
        [
            "copied",
            "gz/",
            "gz/in/",
            "gz/in/a",
            "no.tar",
            "owned/",
            "owned/in/",
            "owned/in/a",
            "plain/",
            "plain/in/",
            "plain/in/a"
        ]
    );
    world.look(&image, |root| {
        assert_eq!(root.join("gz/in/a").metadata().unwrap().uid(), 5);
        assert_eq!(root.join("owned/in/a").metadata().unwrap().uid(), 7);
    });
    let refused = world.refused("FROM scratch\nADD bad.tar /x/\n");
    assert!(refused.contains("Dockerfile:2: ADD: "), "{refused}");
    world.write("x.tar.xz", b"\xfd7zXZ\0rest");
    let refused = world.refused("FROM scratch\nADD x.tar.xz /\n");
    assert!(refused.contains("unpacking xz is not implemented"), "{refused}");
}

fn here_documents_become_files(world: &World) {
    let image = world.build(
        "FROM scratch\nENV N=1\nCOPY <<one <<-\"two\" /d/\nn=$N \\$N \"q\"\none\n\tn=$N\n\ttwo\nCOPY --chmod=700 <<EOF /script\n#!/bin/sh\nEOF\n",
    );
    assert_eq!(world.text(&image, "d/one"), "n=1 $N \"q\"\n");
    assert_eq!(world.text(&image, "d/two"), "n=$N\n");
    world.look(&image, |root| {
        assert_eq!(root.join("script").metadata().unwrap().mode() & 0o777, 0o700);
    });
}

fn existing_files_are_replaced(world: &World) {
    world.write("v1/f", "1");
    world.write("v2/f", "22");
    world.write("v1/d/x", "x");
    world.write("v3/d", "a file");
    let image = world.build("FROM scratch\nCOPY v1 /a\nCOPY v2 /a\nCOPY v2/f /a/f\n");
    assert_eq!(world.text(&image, "a/f"), "22");
    assert_eq!(world.paths(&image, "a"), ["d/", "d/x", "f"]);
    let refused = world.refused("FROM scratch\nCOPY v1 /a\nCOPY v3 /a\n");
    assert!(refused.contains("/a/d cannot be written: a directory is in the place"), "{refused}");
    let refused = world.refused("FROM scratch\nCOPY v1 /a\nCOPY v1 /a/f\n");
    assert!(refused.contains("/a/f cannot be written"), "{refused}");
}

fn a_saved_image_can_be_loaded_elsewhere(world: &World) {
    world.write("f", "1");
    let image = world.build("FROM scratch\nCOPY f /a/f\nCOPY f /a/g\nCMD [\"/a/f\"]\n");
    let mut archive = Vec::new();
    world.images.save("test", &mut archive).unwrap();
    let other = dhow_images::Images::open(&world.dir.join("other")).unwrap();
    let loaded = other.load(&mut &archive[..]).unwrap();
    assert_eq!(loaded[0].id, image.id);
    assert_eq!(world.paths(&loaded[0], ""), ["a/", "a/f", "a/g"]);
}
