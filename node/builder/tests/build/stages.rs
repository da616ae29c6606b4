//! Several stages in one file.

use crate::harness::World;
use std::os::unix::fs::MetadataExt;

crate::tests![
    files_come_from_stages_and_images,
    a_target_stops_early,
    a_stage_goes_on_from_another,
];

fn files_come_from_stages_and_images(world: &World) {
    world.base();
    world.write("src", "source");
    let image = world.build(
        "FROM scratch AS First\nCOPY --chown=3:4 src /out/bin\nFROM scratch AS never\nCOPY missing /\nFROM scratch\n\
         COPY --from=first /out /a\nCOPY --from=0 out/bin /b\nCOPY --from=box /etc/pass* /c/\n",
    );
    assert_eq!(world.paths(&image, ""), ["a/", "a/bin", "b", "c/", "c/passwd"]);
    world.look(&image, |root| {
        assert_eq!(root.join("a/bin").metadata().unwrap().uid(), 3);
        assert_eq!(root.join("b").metadata().unwrap().gid(), 4);
    });
    for (line, expected) in [
        ("COPY --from=first /nope /", "\"/nope\" is not in stage first"),
        ("COPY --from=first /out/bim /", "(nearest: \"out/bin\")"),
        (
            "COPY --from=frist /out /",
            "--from=frist is no stage above, and image frist is not on this machine",
        ),
        ("COPY --from=2 /out /", "there is no stage 2 above this one"),
    ] {
        let refused = world
            .refused(&format!("FROM scratch AS first\nCOPY src /out/bin\nFROM scratch\n{line}\n"));
        assert!(refused.starts_with("Dockerfile:4: COPY: "), "{refused}");
        assert!(refused.contains(expected), "{refused}");
    }
}

fn a_target_stops_early(world: &World) {
    world.write("f", "1");
    world.write(
        "Dockerfile",
        "FROM scratch AS a\nCOPY f /a\nFROM a AS b\nCOPY f /b\nFROM b\nCOPY f /c\n",
    );
    for (target, expected) in [("a", &["a"][..]), ("B", &["a", "b"]), ("2", &["a", "b", "c"])] {
        let mut options = world.options();
        options.target = Some(target.into());
        let image = world.build_with(&options).0.unwrap();
        assert_eq!(world.paths(&image, ""), expected);
    }
    let mut options = world.options();
    options.target = Some("z".into());
    let refused = world.build_with(&options).0.unwrap_err().to_string();
    assert!(refused.contains("no stage \"z\"; its stages are a, b"), "{refused}");
}

fn a_stage_goes_on_from_another(world: &World) {
    world.write("f", "1");
    let image = world.build(
        "FROM scratch AS a\nCOPY f /a\nENV A=1\nCMD [\"a\"]\nFROM a\nCOPY f /b\nENTRYPOINT [\"e\"]\n",
    );
    assert_eq!(image.config.env.last().unwrap(), "A=1");
    assert_eq!((image.config.cmd.len(), image.config.entrypoint.len()), (0, 1));
    assert_eq!(world.paths(&image, ""), ["a", "b"]);
}
