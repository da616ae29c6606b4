//! What instructions do to the configuration.

use crate::harness::World;
use dhow_builder::Options;
use serde_json::json;
use std::os::unix::fs::MetadataExt as _;

crate::tests![
    an_image_from_scratch_has_its_configuration,
    variables_are_replaced_where_they_may_be,
    arguments_have_scopes_and_defaults,
    a_base_is_inherited,
    working_directories_are_made,
    what_a_base_leaves_is_run_in_images_made_from_it_and_only_there,
    a_command_that_is_no_list_after_all_is_told_of,
];

fn an_image_from_scratch_has_its_configuration(world: &World) {
    world.write("app", "x");
    let image = world.build(
        "# syntax=docker/dockerfile:1\nFROM scratch\nLABEL a=1 \"b c\"='d e'\nENV ONE=1 TWO=\"2 2\"\nENV THREE 3 3\n\
         COPY app /app\nUSER 5:6\nWORKDIR /srv\nWORKDIR data\nEXPOSE 80 53/udp 1000-1001\nVOLUME /v [\"/w\"]\nVOLUME [\"/w w\"]\n\
         STOPSIGNAL SIGINT\nSHELL [\"/bin/ash\", \"-ec\"]\nHEALTHCHECK --interval=5s --retries=2 CMD [\"/app\", \"check\"]\n\
         ENTRYPOINT [\"/app\"]\nCMD serve it\n",
    );
    assert_eq!(image.names, ["docker.io/library/test:latest"]);
    let config = world.config(&image);
    assert_eq!(config["os"], "linux");
    assert_eq!(
        config["config"],
        json!({
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "ONE=1", "TWO=2 2", "THREE=3 3"],
            "Labels": {"a": "1", "b c": "d e"},
            "User": "5:6",
            "WorkingDir": "/srv/data",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "1000/tcp": {}, "1001/tcp": {}},
            "Volumes": {"/v": {}, "[/w]": {}, "/w w": {}},
            "StopSignal": "SIGINT",
            "Shell": ["/bin/ash", "-ec"],
            "Healthcheck": {"Test": ["CMD", "/app", "check"], "Interval": 5_000_000_000u64, "Retries": 2},
            "Entrypoint": ["/app"],
            "Cmd": ["/bin/ash", "-ec", "serve it"],
        })
    );
    let history = config["history"].as_array().unwrap();
    assert_eq!(history.len(), 15);
    let layers = history.iter().filter(|step| step.get("empty_layer").is_none()).count();
    assert_eq!(layers, config["rootfs"]["diff_ids"].as_array().unwrap().len());
    assert_eq!(history[4]["created_by"], "USER 5:6");
    assert!(config["created"].as_str().unwrap().ends_with('Z'));
    assert_eq!(image.config.working_dir, "/srv/data");
}

fn what_a_base_leaves_is_run_in_images_made_from_it_and_only_there(world: &World) {
    world.base();
    world.write("app", "x");
    let base = "FROM box\nARG WHO=nobody\nONBUILD ARG WHO=you\nONBUILD COPY app /srv/\n\
                ONBUILD RUN cat /srv/app > /srv/copy && echo $WHO > /srv/who\nONBUILD ENV READY=1\n";
    let mut options = world.options();
    options.names = vec!["base".into()];
    world.write("Dockerfile", base);
    let (made, said) = world.build_with(&options);
    let config = world.config(&made.unwrap());
    assert_eq!(config["config"]["OnBuild"].as_array().unwrap().len(), 4);
    assert!(said.output.is_empty(), "{said:#?}");

    world.write("Dockerfile", "FROM base\nRUN test -n \"$READY\" && cat /srv/copy /srv/who\n");
    let options = Options { arguments: vec!["WHO=me".into()], ..world.options() };
    let (made, said) = world.build_with(&options);
    let config = world.config(&made.unwrap());
    assert_eq!(said.output, "xme\n");
    assert!(said.warnings.is_empty(), "{said:#?}");
    assert_eq!(said.steps[1], "ONBUILD ARG WHO=you");
    assert!(config["config"].get("OnBuild").is_none());
    // Nor in what is made from that.
    world.build("FROM test\nLABEL a=b\n");

    // A stage that leaves something does so for stages made from it.
    world.write(
        "Dockerfile",
        "FROM scratch AS other\nCOPY app /other\nFROM box AS first\n\
         ONBUILD COPY --from=other /other /here\nFROM first\nRUN cat /here\n",
    );
    let (made, said) = world.build_with(&world.options());
    made.unwrap();
    assert_eq!(said.output, "x");

    // What it leaves can be wrong here: the line is that of FROM.
    std::fs::remove_file(world.dir.join("context/app")).unwrap();
    let refused = world.refused("\nFROM base\n");
    assert!(refused.starts_with("Dockerfile:2: COPY: \"app\" is not in"), "{refused}");
}

fn a_command_that_is_no_list_after_all_is_told_of(world: &World) {
    world.write("Dockerfile", "FROM scratch\nENV A=1\nCMD [\"a\",\n");
    let (made, said) = world.build_with(&world.options());
    let config = world.config(&made.unwrap());
    assert_eq!(config["config"]["Cmd"], json!(["/bin/sh", "-c", "[\"a\","]));
    let told =
        "Dockerfile:3: CMD: [\"a\", is no JSON list of strings and goes to the shell as it is";
    assert_eq!(said.warnings, [told]);
}

fn variables_are_replaced_where_they_may_be(world: &World) {
    world.write("a-1", "one");
    let image = world.build(
        "FROM scratch\nENV V=1 W=${V:-unset}\nENV X=$V Y='$V' Z=\\$V\nCOPY a-$V /d-${V}/${NONE:-x}\nWORKDIR /w${V:+/set}\n\
         LABEL l$V=${W}\nEXPOSE ${V}080\nCMD echo $V\n",
    );
    let config = &world.config(&image)["config"];
    // Within one instruction the old values hold.
    assert_eq!(
        config["Env"].as_array().unwrap()[1..],
        [json!("V=1"), json!("W=unset"), json!("X=1"), json!("Y=$V"), json!("Z=$V")]
    );
    assert_eq!(config["WorkingDir"], "/w/set");
    assert_eq!(config["Labels"], json!({"l1": "unset"}));
    assert_eq!(config["ExposedPorts"], json!({"1080/tcp": {}}));
    assert_eq!(config["Cmd"][2], "echo $V");
    assert_eq!(world.text(&image, "d-1/x"), "one");
}

fn arguments_have_scopes_and_defaults(world: &World) {
    world.write(
        "Dockerfile",
        "ARG GLOBAL=g\nARG GIVEN=no\nFROM scratch AS one\nARG LOCAL=l\nLABEL a=$GLOBAL b=$LOCAL\nARG GLOBAL\n\
         LABEL c=$GLOBAL\nFROM one\nARG GIVEN NEVER\nARG OTHER=$GIVEN-x\nLABEL d=$LOCAL e=$GIVEN f=$OTHER g=$NEVER\n\
         ARG TARGETARCH\nENV GIVEN=env\nLABEL h=$GIVEN i=$TARGETARCH\n",
    );
    let mut options = world.options();
    options.arguments = vec!["GIVEN=yes".into(), "LATE=1".into(), "http_proxy=p".into()];
    let (image, said) = world.build_with(&options);
    let labels = image.unwrap().config.labels;
    let expected = [
        ("a", ""),
        ("b", "l"),
        ("c", "g"),
        ("d", ""),
        ("e", "yes"),
        ("f", "yes-x"),
        ("g", ""),
        ("h", "env"),
        ("i", "amd64"),
    ];
    for (name, value) in expected {
        assert_eq!(labels[name], value, "{name}");
    }
    assert_eq!(said.warnings.len(), 1, "{said:?}");
    assert!(said.warnings[0].contains("LATE"), "{said:?}");
}

fn a_base_is_inherited(world: &World) {
    world.write("f", "1");
    world.build("FROM scratch\nCOPY f /f\nENV A=1 B=2\nLABEL x=1\nUSER web\nENTRYPOINT [\"/e\"]\nCMD [\"c\"]");
    let image = world.build("FROM test\nCOPY f /g\nENV B=3 C=$A\nENTRYPOINT [\"/new\"]");
    let config = &world.config(&image)["config"];
    assert_eq!(config["Env"].as_array().unwrap()[1..], [json!("A=1"), json!("B=3"), json!("C=1")]);
    assert_eq!(config["Labels"], json!({"x": "1"}));
    assert_eq!(config["User"], "web");
    assert_eq!(config["Entrypoint"], json!(["/new"]));
    // It was meant for the other entry point.
    assert_eq!(config.get("Cmd"), None);
    assert_eq!(world.paths(&image, ""), ["f", "g"]);
    assert_eq!(world.config(&image)["history"].as_array().unwrap().len(), 9);
}

fn working_directories_are_made(world: &World) {
    let image = world.build("FROM scratch\nUSER 7\nWORKDIR /a/b\nWORKDIR ../c\nWORKDIR /a\n");
    assert_eq!(world.paths(&image, ""), ["a/", "a/b/", "a/c/"]);
    // Those belong to whom works in them, as with Docker; one that nobody knows is nobody yet.
    world.look(&image, |root| {
        let owner = |path: &str| {
            let found = std::fs::metadata(root.join(path)).unwrap();
            (found.uid(), found.gid())
        };
        assert_eq!([owner("a"), owner("a/b"), owner("a/c")], [(7, 7); 3]);
    });
    // One that is there needs no layer.
    assert_eq!(world.config(&image)["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
    let other =
        world.build("FROM scratch\nWORKDIR /r\nUSER unknown\nWORKDIR /u\nUSER 8:9\nWORKDIR /v\n");
    world.look(&other, |root| {
        for (path, uid, gid) in [("r", 0, 0), ("u", 0, 0), ("v", 8, 9)] {
            let found = std::fs::metadata(root.join(path)).unwrap();
            assert_eq!((found.uid(), found.gid()), (uid, gid), "{path}");
        }
    });
}
