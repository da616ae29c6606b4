//! What instructions do to the configuration.

use crate::harness::World;
use serde_json::json;

crate::tests![
    an_image_from_scratch_has_its_configuration,
    variables_are_replaced_where_they_may_be,
    arguments_have_scopes_and_defaults,
    a_base_is_inherited,
    working_directories_are_made,
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
    // One that is there needs no layer.
    assert_eq!(world.config(&image)["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
}
