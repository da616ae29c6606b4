//! Every error names the file and the line, says what was expected, and changes nothing.

use crate::harness::World;

crate::tests![
    errors_name_the_line_and_what_was_expected,
    what_has_no_content_is_not_copied,
    a_failed_build_keeps_the_old_image,
];

fn errors_name_the_line_and_what_was_expected(world: &World) {
    world.write("app", "x");
    let context = world.dir.join("context");
    let context = context.display();
    for (dockerfile, expected) in [
        ("FROM scratch\n\nCOPY app.bin /", format!("Dockerfile:3: COPY: \"app.bin\" is not in the build context {context} (nearest: \"app\")")),
        ("FROM scratch\nCOYP app /", "Dockerfile:2: unknown instruction COYP; did you mean COPY?".into()),
        ("FROM nothere:1", "Dockerfile:1: FROM: image nothere:1 is not on this machine; load it with 'dhow image load'".into()),
        ("FROM UPPER", "Dockerfile:1: FROM: image name \"UPPER\" is invalid".into()),
        ("RUN x", "Dockerfile:1: RUN: expected FROM first".into()),
        ("# empty", "Dockerfile:1: the file has no instructions; expected FROM".into()),
        ("FROM scratch\nENV A", "Dockerfile:2: ENV: \"A\" has no value; expected NAME=VALUE ...".into()),
        ("FROM scratch\nENV A=${B", "Dockerfile:2: ENV: ${B is not closed".into()),
        ("FROM scratch\nEXPOSE http", "Dockerfile:2: EXPOSE: \"http\" is no port".into()),
        ("FROM scratch\nSTOPSIGNAL SIGNOPE", "Dockerfile:2: STOPSIGNAL: \"SIGNOPE\" is no signal".into()),
        ("FROM scratch\nCOPY --form=x app /", "Dockerfile:2: COPY: the flag --form is not implemented; known here: --from".into()),
        ("FROM scratch\nCOPY app app /x", "Dockerfile:2: COPY: with several sources the target has to be a directory".into()),
        ("FROM scratch\nONBUILD FROM x", "Dockerfile:2: ONBUILD: FROM cannot be left".into()),
        ("FROM scratch\nADD https://x/y /", "Dockerfile:2: ADD: fetching https://x/y is not implemented".into()),
        ("FROM --platform=linux/s390x scratch", "Dockerfile:1: FROM: building for \"linux/s390x\" is not implemented".into()),
        ("FROM scratch\nUSER $NONE", "Dockerfile:2: USER: the user is empty".into()),
        ("FROM scratch\nRUN <<EOF\nx", "Dockerfile:2: RUN: the here-document <<EOF does not end".into()),
    ] {
        let refused = world.refused(dockerfile);
        assert!(refused.starts_with(&expected), "{dockerfile:?}: {refused}");
    }
    assert!(world.images.list().unwrap().is_empty());
    let mut options = world.options();
    options.dockerfile = Some("/nowhere/Dockerfile".into());
    let refused = world.build_with(&options).0.unwrap_err().to_string();
    assert!(refused.contains("there is no /nowhere/Dockerfile"), "{refused}");
    let mut options = world.options();
    options.names = vec!["Bad Name".into()];
    let refused = world.build_with(&options).0.unwrap_err().to_string();
    assert!(refused.contains("image name \"Bad Name\" is invalid"), "{refused}");
}

fn what_has_no_content_is_not_copied(world: &World) {
    world.write("app", "x");
    let context = world.dir.join("context");
    let _socket = std::os::unix::net::UnixListener::bind(context.join("app.sock")).unwrap();
    let refused = world.refused("FROM scratch\nCOPY app.sock /\n");
    assert!(
        refused.starts_with("Dockerfile:2: COPY: \"app.sock\" is a socket or a device"),
        "{refused}"
    );
    // Among others it is left out.
    let image = world.build("FROM scratch\nCOPY app* /all/\nCOPY . /dir/\n");
    assert_eq!(world.paths(&image, ""), ["all/", "all/app", "dir/", "dir/Dockerfile", "dir/app"]);
}

fn a_failed_build_keeps_the_old_image(world: &World) {
    world.write("app", "1");
    let old = world.build("FROM scratch\nCOPY app /\n");
    world.refused("FROM scratch\nCOPY app /other\nCOPY nope /\n");
    assert_eq!(world.images.get("test").unwrap(), old);
}
