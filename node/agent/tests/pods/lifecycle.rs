//! From bound to ready, from deleted to gone, and everything that can happen in between.

use crate::feed::condition;
use crate::lab::{FOREVER, Lab, shell};
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

crate::tests![
    a_pod_runs_becomes_ready_and_ends_gracefully,
    a_pod_that_ends_well_has_succeeded,
    a_pod_that_ends_badly_has_failed_and_says_why,
    a_container_that_ends_again_and_again_waits_longer,
    init_containers_run_in_order_before_the_others,
    a_failed_init_container_fails_a_pod_that_does_not_restart,
    a_sidecar_starts_first_and_ends_last,
    hooks_run_after_the_start_and_before_the_end,
    a_program_that_ignores_its_signal_is_killed,
    a_grace_period_is_as_long_as_it_says_whatever_the_clock_of_who_deletes,
    a_missing_image_is_told_and_found_when_it_comes,
    a_program_that_is_not_there_is_told,
    a_pod_that_takes_too_long_fails,
    a_changed_image_restarts_the_container,
    containers_may_share_their_processes_and_be_looked_into,
    memory_over_the_limit_ends_a_container,
    a_pod_that_takes_more_of_the_disk_than_it_may_is_evicted,
    resources_change_while_containers_run,
    a_resize_that_does_not_fit_waits_and_one_that_asks_for_it_restarts,
    the_node_registers_and_renews_its_lease,
];

/// Ready once the script has set its trap: before, its shell does not hear the signal.
fn up() -> serde_json::Value {
    json!({"exec": {"command": ["test", "-e", "/work/up"]}})
}

pub fn container(status: &PodStatus, name: &str) -> ContainerStatus {
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let found = lists.into_iter().flatten().flatten().find(|c| c.name == name);
    found.cloned().unwrap_or_default()
}

pub fn waiting(status: &PodStatus, name: &str) -> (String, String) {
    let state = container(status, name).state.and_then(|s| s.waiting).unwrap_or_default();
    (state.reason.unwrap_or_default(), state.message.unwrap_or_default())
}

async fn a_pod_runs_becomes_ready_and_ends_gracefully(lab: Arc<Lab>) {
    let begun = Instant::now();
    lab.feed.create(shell("web", FOREVER));
    lab.feed.until_ready("web").await;
    println!("  bound to ready: {:.2?}", begun.elapsed());
    let status = lab.feed.pod("web").unwrap().status.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert!(status.pod_ip.as_deref().unwrap().starts_with("10.77.0."));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    let main = container(&status, "main");
    assert!(main.ready && main.started == Some(true) && main.restart_count == 0);
    assert!(main.container_id.unwrap().starts_with("dhow://"));
    assert!(main.image_id.starts_with("sha256:"));
    for kind in ["Initialized", "ContainersReady", "PodScheduled", "PodReadyToStartContainers"] {
        assert_eq!(condition(&status, kind), "True", "{kind}");
    }
    for reason in ["Pulled", "Created", "Started"] {
        lab.feed.until_event(reason, "").await;
    }
    println!("  status writes: {}", lab.feed.lock().reports);
    let begun = Instant::now();
    lab.feed.delete("web", 5);
    lab.feed.until("its end", |s| s.finished == ["web"]).await;
    println!("  deleted to gone: {:.2?}", begun.elapsed());
    lab.feed.until_event("Killing", "Stopping container main").await;
    assert!(lab.runtime.containers().await.unwrap().is_empty());
}

async fn a_pod_that_ends_well_has_succeeded(lab: Arc<Lab>) {
    let mut pod = shell("job", "echo done > /dev/termination-log");
    pod["spec"]["restartPolicy"] = json!("Never");
    let begun = Instant::now();
    lab.feed.create(pod);
    lab.feed.until_pod("job", "success", |s| s.phase.as_deref() == Some("Succeeded")).await;
    println!("  bound to succeeded: {:.2?}", begun.elapsed());
    let status = lab.feed.pod("job").unwrap().status.unwrap();
    let ended = container(&status, "main").state.unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (0, Some("Completed")));
    assert_eq!(ended.message.as_deref(), Some("done\n"));
    assert_eq!(condition(&status, "Ready"), "False");
    // Its log outlives its sandbox.
    assert_eq!(lab.logs("job", Default::default()).await, "");
}

async fn a_pod_that_ends_badly_has_failed_and_says_why(lab: Arc<Lab>) {
    let mut pod = shell("job", "echo first; echo last; exit 3");
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["containers"][0]["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    lab.feed.create(pod);
    lab.feed.until_pod("job", "failure", |s| s.phase.as_deref() == Some("Failed")).await;
    let status = lab.feed.pod("job").unwrap().status.unwrap();
    let ended = container(&status, "main").state.unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (3, Some("Error")));
    assert_eq!(ended.message.as_deref(), Some("first\nlast\n"));
}

async fn a_container_that_ends_again_and_again_waits_longer(lab: Arc<Lab>) {
    lab.feed.create(shell("crash", "echo run; exit 1"));
    // The first restart is immediate, the second waits ten seconds.
    lab.feed.until_pod("crash", "back-off", |s| waiting(s, "main").0 == "CrashLoopBackOff").await;
    let status = lab.feed.pod("crash").unwrap().status.unwrap();
    let main = container(&status, "main");
    assert_eq!(main.restart_count, 1);
    assert_eq!(main.last_state.unwrap().terminated.unwrap().exit_code, 1);
    assert!(
        waiting(&status, "main").1.starts_with("back-off 10s restarting failed container=main")
    );
    assert_eq!(status.phase.as_deref(), Some("Running"));
    lab.feed.until_event("BackOff", "restarting failed container main").await;
    let previous = dhow_intents::LogRequest { previous: true, ..Default::default() };
    assert_eq!(lab.logs("crash", previous).await, "run\n");
}

async fn init_containers_run_in_order_before_the_others(lab: Arc<Lab>) {
    let mut pod = shell("ordered", "cat /work/order; trap 'exit 0' TERM; sleep 1000 & wait");
    let mount = json!([{"name": "work", "mountPath": "/work"}]);
    let step = |name: &str| {
        json!({"name": name, "image": "busybox", "volumeMounts": mount,
            "command": ["sh", "-c", format!("echo {name} >> /work/order")]})
    };
    pod["spec"]["initContainers"] = json!([step("one"), step("two")]);
    pod["spec"]["containers"][0]["volumeMounts"] = mount.clone();
    pod["spec"]["volumes"] = json!([{"name": "work", "emptyDir": {}}]);
    lab.feed.create(pod);
    lab.feed.until_ready("ordered").await;
    let follow = dhow_intents::LogRequest { tail_lines: Some(2), ..Default::default() };
    lab.until_output("ordered", "cat /work/order | grep -c .", "2").await;
    assert_eq!(lab.logs("ordered", follow).await, "one\ntwo\n");
    let status = lab.feed.pod("ordered").unwrap().status.unwrap();
    assert!(container(&status, "one").ready);
}

async fn a_failed_init_container_fails_a_pod_that_does_not_restart(lab: Arc<Lab>) {
    let mut pod = shell("never", "true");
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["initContainers"] =
        json!([{"name": "bad", "image": "busybox", "command": ["false"]}]);
    lab.feed.create(pod);
    lab.feed.until_pod("never", "failure", |s| s.phase.as_deref() == Some("Failed")).await;
    let status = lab.feed.pod("never").unwrap().status.unwrap();
    assert_eq!(waiting(&status, "main").0, "PodInitializing");
    assert_eq!(condition(&status, "Initialized"), "False");
}

async fn a_sidecar_starts_first_and_ends_last(lab: Arc<Lab>) {
    let mut pod = shell(
        "pair",
        "test -e /work/side || exit 9; trap 'test -e /work/side; echo $? > /work/last; exit 0' TERM; touch /work/up; sleep 1000 & wait",
    );
    let mount = json!([{"name": "work", "mountPath": "/work"}]);
    let side = "trap 'rm /work/side; exit 0' TERM; touch /work/side; sleep 1000 & wait";
    pod["spec"]["initContainers"] = json!([{"name": "side", "image": "busybox", "restartPolicy": "Always",
        "command": ["sh", "-c", side], "volumeMounts": mount,
        "startupProbe": {"exec": {"command": ["test", "-e", "/work/side"]}}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = mount.clone();
    pod["spec"]["containers"][0]["readinessProbe"] = up();
    let host = lab.dir.join("shared");
    pod["spec"]["volumes"] =
        json!([{"name": "work", "hostPath": {"path": host, "type": "DirectoryOrCreate"}}]);
    lab.feed.create(pod);
    lab.feed.until_ready("pair").await;
    lab.feed.delete("pair", 5);
    lab.feed.until("its end", |s| s.finished == ["pair"]).await;
    assert_eq!(std::fs::read_to_string(host.join("last")).unwrap(), "0\n");
    assert!(!host.join("side").exists());
}

async fn hooks_run_after_the_start_and_before_the_end(lab: Arc<Lab>) {
    let host = lab.dir.join("shared");
    let mut pod = shell(
        "hooked",
        "trap 'echo term >> /work/log; exit 0' TERM; touch /work/up; sleep 1000 & wait",
    );
    let run = |word: &str| json!({"exec": {"command": ["sh", "-c", format!("echo {word} >> /work/log")]}});
    pod["spec"]["containers"][0]["lifecycle"] =
        json!({"postStart": run("post"), "preStop": run("pre")});
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "work", "mountPath": "/work"}]);
    pod["spec"]["containers"][0]["readinessProbe"] = up();
    pod["spec"]["volumes"] = json!([{"name": "work", "hostPath": {"path": host}}]);
    lab.feed.create(pod);
    lab.feed.until_ready("hooked").await;
    lab.feed.delete("hooked", 5);
    lab.feed.until("its end", |s| s.finished == ["hooked"]).await;
    assert_eq!(std::fs::read_to_string(host.join("log")).unwrap(), "post\npre\nterm\n");
}

async fn a_program_that_ignores_its_signal_is_killed(lab: Arc<Lab>) {
    let mut pod = shell("deaf", "trap '' TERM; while true; do sleep 1; done");
    // Longer than anything is waited for here: it is who deletes that says how long.
    pod["spec"]["terminationGracePeriodSeconds"] = json!(600);
    lab.feed.create(pod);
    lab.feed.until_ready("deaf").await;
    lab.feed.delete("deaf", 1);
    lab.feed.until("its end", |s| s.finished == ["deaf"]).await;
}

async fn a_grace_period_is_as_long_as_it_says_whatever_the_clock_of_who_deletes(lab: Arc<Lab>) {
    let out = lab.dir.join("out");
    std::fs::create_dir(&out).unwrap();
    let mut pod = shell(
        "slow",
        "trap 'sleep 0.5; touch /out/well; exit 0' TERM; touch /out/up; sleep 1000 & wait",
    );
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"] = json!([{"name": "out", "mountPath": "/out"}]);
    pod["spec"]["volumes"] = json!([{"name": "out", "hostPath": {"path": out}}]);
    lab.feed.create(pod);
    lab.feed.until_ready("slow").await;
    // Its trap is set.
    lab.until_output("slow", "test -e /out/up && echo up", "up").await;
    lab.feed.change("slow", |pod| {
        let past = k8s_openapi::jiff::Timestamp::now().as_second() - 3600;
        let past = k8s_openapi::jiff::Timestamp::from_second(past).unwrap();
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(past));
        pod.metadata.deletion_grace_period_seconds = Some(20);
    });
    lab.feed.until("its end", |s| s.finished == ["slow"]).await;
    assert!(out.join("well").exists(), "it was killed");
}

async fn a_missing_image_is_told_and_found_when_it_comes(lab: Arc<Lab>) {
    let mut pod = shell("late", FOREVER);
    pod["spec"]["containers"][0]["image"] = json!("late:1");
    lab.feed.create(pod);
    lab.feed.until_pod("late", "reason", |s| waiting(s, "main").0 == "ErrImagePull").await;
    let status = lab.feed.pod("late").unwrap().status.unwrap();
    assert!(waiting(&status, "main").1.contains("dhow image load"));
    lab.feed.until_event("Failed", "late:1").await;
    lab.images.tag("busybox", "late:1").unwrap();
    lab.agent().images_changed();
    lab.feed.until_ready("late").await;
}

async fn a_program_that_is_not_there_is_told(lab: Arc<Lab>) {
    let mut pod = shell("absent", "");
    pod["spec"]["containers"][0]["command"] = json!(["/no/such/program"]);
    lab.feed.create(pod);
    lab.feed.until_pod("absent", "reason", |s| waiting(s, "main").0 == "RunContainerError").await;
    let status = lab.feed.pod("absent").unwrap().status.unwrap();
    assert!(
        waiting(&status, "main").1.contains("/no/such/program"),
        "{:?}",
        waiting(&status, "main")
    );
    lab.feed.until_event("Failed", "/no/such/program").await;
}

async fn a_pod_that_takes_too_long_fails(lab: Arc<Lab>) {
    let mut pod = shell("slow", FOREVER);
    pod["spec"]["activeDeadlineSeconds"] = json!(1);
    lab.feed.create(pod);
    lab.feed.until_pod("slow", "failure", |s| s.phase.as_deref() == Some("Failed")).await;
    let status = lab.feed.pod("slow").unwrap().status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
}

async fn a_changed_image_restarts_the_container(lab: Arc<Lab>) {
    lab.feed.create(shell("web", FOREVER));
    lab.feed.until_ready("web").await;
    lab.images.tag("busybox", "other:1").unwrap();
    lab.feed.change("web", |pod| {
        pod.spec.as_mut().unwrap().containers[0].image = Some("other:1".into());
    });
    lab.feed
        .until_pod("web", "restart", |s| {
            container(s, "main").restart_count == 1 && condition(s, "Ready") == "True"
        })
        .await;
    lab.feed.until_event("Killing", "definition changed").await;
}

async fn containers_may_share_their_processes_and_be_looked_into(lab: Arc<Lab>) {
    let mut pod = shell("shared", FOREVER);
    pod["spec"]["shareProcessNamespace"] = json!(true);
    let second = json!({"name": "second", "image": "busybox", "command": ["sleep", "4321"]});
    pod["spec"]["containers"].as_array_mut().unwrap().push(second);
    lab.feed.create(pod);
    lab.feed.until_ready("shared").await;
    let find = "grep -l 4321 /proc/[0-9]*/cmdline | grep -vc self";
    assert_ne!(lab.exec("shared", "main", find).await.1, "0\n");
    // One that is restarted is among the others again, which do not notice.
    let one = "head -c 9 /proc/1/cmdline; for p in $(busybox pidof sleep); do \
               grep -q 4321 /proc/$p/cmdline && kill -9 $p; done; exit 0";
    assert_eq!(lab.exec("shared", "main", one).await.1, "dhow-init");
    let again =
        |s: &PodStatus| container(s, "second").restart_count == 1 && container(s, "second").ready;
    lab.feed.until_pod("shared", "a restart", again).await;
    assert_eq!(
        container(&lab.feed.pod("shared").unwrap().status.unwrap(), "main").restart_count,
        0
    );
    assert_ne!(lab.exec("shared", "main", find).await.1, "0\n");
    lab.feed.change("shared", |pod| {
        let debug = json!([{"name": "debug", "image": "busybox", "targetContainerName": "main",
            "command": ["sleep", "1000"]}]);
        pod.spec.as_mut().unwrap().ephemeral_containers = serde_json::from_value(debug).unwrap();
    });
    let runs = |s: &PodStatus| {
        let told = s.ephemeral_container_statuses.iter().flatten().next();
        told.and_then(|c| c.state.as_ref()).is_some_and(|s| s.running.is_some())
    };
    lab.feed.until_pod("shared", "the ephemeral container", runs).await;
    assert_ne!(lab.exec("shared", "debug", find).await.1, "0\n");
}

async fn memory_over_the_limit_ends_a_container(lab: Arc<Lab>) {
    for (name, limited) in [("hungry", "/spec/containers/0"), ("hungry-whole", "/spec")] {
        let mut pod = shell(name, "x=0123456789; while true; do x=$x$x; done");
        pod["spec"]["restartPolicy"] = json!("Never");
        let limit = json!({"limits": {"memory": "16Mi"}});
        pod.pointer_mut(limited).unwrap()["resources"] = limit;
        lab.feed.create(pod);
        lab.feed.until_pod(name, "failure", |s| s.phase.as_deref() == Some("Failed")).await;
        let status = lab.feed.pod(name).unwrap().status.unwrap();
        let ended = container(&status, "main").state.unwrap().terminated.unwrap();
        assert_eq!((ended.exit_code, ended.reason.as_deref()), (137, Some("OOMKilled")));
        assert_eq!(status.qos_class.as_deref(), Some("Burstable"));
    }
}

async fn a_pod_that_takes_more_of_the_disk_than_it_may_is_evicted(lab: Arc<Lab>) {
    let mut volume = shell("scratch", "head -c 3000000 /dev/zero > /scratch/file; sleep 1000");
    volume["spec"]["volumes"] = json!([{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]);
    let main = &mut volume["spec"]["containers"][0];
    main["volumeMounts"] = json!([{"name": "scratch", "mountPath": "/scratch"}]);
    let mut layer = shell("layer", "head -c 3000000 /dev/zero > /file; sleep 1000");
    let limit = json!({"limits": {"ephemeral-storage": "1Mi"}});
    layer["spec"]["containers"][0]["resources"] = limit.clone();
    let mut modest = shell("modest", FOREVER);
    modest["spec"]["containers"][0]["resources"] = limit;
    for pod in [volume, layer, modest] {
        lab.feed.create(pod);
    }
    for (name, told) in [
        ("scratch", "EmptyDir volume \"scratch\" exceeds the limit"),
        ("layer", "exceeds the total limit"),
    ] {
        lab.feed.until_pod(name, "its eviction", |s| s.reason.as_deref() == Some("Evicted")).await;
        let status = lab.feed.pod(name).unwrap().status.unwrap();
        assert_eq!(status.phase.as_deref(), Some("Failed"));
        assert!(status.message.unwrap().contains(told));
        lab.feed.until_event("Evicted", told).await;
    }
    lab.feed.until_ready("modest").await;
}

async fn the_node_registers_and_renews_its_lease(lab: Arc<Lab>) {
    lab.feed.until("a lease", |s| s.lease.is_some() && s.node.is_some()).await;
    let node = lab.feed.lock().node.clone().unwrap();
    let status = node.status.clone().unwrap();
    assert!(status.images.unwrap()[0].names.as_ref().unwrap()[0].contains("busybox"));
    assert_eq!(status.conditions.unwrap().last().unwrap().type_, "Ready");
}

fn sized(cpu: &str, memory: &str) -> serde_json::Value {
    json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}})
}

fn resize(lab: &Lab, name: &str, resources: serde_json::Value) {
    lab.feed.change(name, |pod| {
        pod.spec.as_mut().unwrap().containers[0].resources =
            Some(serde_json::from_value(resources).unwrap());
    });
}

/// What the status says that the container has.
fn cpu(status: &PodStatus) -> String {
    let has = container(status, "main").resources.and_then(|r| r.limits).unwrap_or_default();
    has.get("cpu").map(|q| q.0.clone()).unwrap_or_default()
}

async fn resources_change_while_containers_run(lab: Arc<Lab>) {
    let mut pod = shell("web", FOREVER);
    pod["spec"]["containers"][0]["resources"] = sized("100m", "32Mi");
    lab.feed.create(pod);
    lab.feed.until_ready("web").await;
    resize(&lab, "web", sized("300m", "64Mi"));
    lab.feed.until_pod("web", "resize", |s| cpu(s) == "300m").await;
    let status = lab.feed.pod("web").unwrap().status.unwrap();
    let main = container(&status, "main");
    assert_eq!(main.restart_count, 0);
    assert_eq!(main.allocated_resources.unwrap()["memory"].0, "64Mi");
    assert_eq!(condition(&status, "PodResizeInProgress"), "");
    let limits = lab.runtime.containers().await.unwrap().remove(0).spec.limits;
    assert_eq!((limits.cpu_limit_millis, limits.memory_limit), (300, 64 << 20));
    let sandbox = lab.runtime.sandboxes().await.unwrap().remove(0).spec.limits;
    assert_eq!((sandbox.cpu_limit_millis, sandbox.memory_limit), (300, 64 << 20));
    // One that forks without end stops here, and not where the machine has no number left.
    assert!((1..=16384).contains(&sandbox.pids_limit), "{sandbox:?}");
    lab.feed.until_event("ResizeCompleted", "").await;
    // Another agent knows what it has, and goes on downwards.
    lab.stop().await;
    lab.start().await;
    resize(&lab, "web", sized("200m", "48Mi"));
    lab.feed.until_pod("web", "resize", |s| cpu(s) == "200m").await;
    // The kernel does not take memory away that is in use: it is told, and what was asked for
    // next is tried at once.
    resize(&lab, "web", sized("200m", "4Ki"));
    lab.feed.until_pod("web", "trouble", |s| condition(s, "PodResizeInProgress") == "True").await;
    lab.feed.until_event("ResizeError", "main").await;
    let begun = Instant::now();
    resize(&lab, "web", sized("250m", "48Mi"));
    lab.feed
        .until_pod("web", "resize", |s| {
            cpu(s) == "250m" && condition(s, "PodResizeInProgress").is_empty()
        })
        .await;
    // What failed is tried again after ten.
    assert!(begun.elapsed().as_secs() < 8, "{:?}", begun.elapsed());
}

async fn a_resize_that_does_not_fit_waits_and_one_that_asks_for_it_restarts(lab: Arc<Lab>) {
    let mut pod = shell("web", FOREVER);
    pod["spec"]["containers"][0]["resources"] = sized("100m", "32Mi");
    pod["spec"]["containers"][0]["resizePolicy"] =
        json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    lab.feed.create(pod);
    lab.feed.until_ready("web").await;
    resize(&lab, "web", sized("9999", "32Mi"));
    lab.feed.until_pod("web", "condition", |s| condition(s, "PodResizePending") == "True").await;
    let status = lab.feed.pod("web").unwrap().status.unwrap();
    let told = status.conditions.iter().flatten().find(|c| c.type_ == "PodResizePending").unwrap();
    assert_eq!(told.reason.as_deref(), Some("Infeasible"));
    assert_eq!(cpu(&status), "100m");
    resize(&lab, "web", sized("100m", "40Mi"));
    lab.feed
        .until_pod("web", "restart", |s| {
            container(s, "main").restart_count == 1 && condition(s, "PodResizePending").is_empty()
        })
        .await;
    // Another pod takes the room that this one then asks for.
    let cores = std::thread::available_parallelism().unwrap().get();
    let mut large = shell("large", FOREVER);
    large["spec"]["terminationGracePeriodSeconds"] = json!(1);
    large["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": format!("{}m", cores * 1000 - 200)}});
    lab.feed.create(large);
    lab.feed.until_ready("large").await;
    resize(&lab, "web", sized("500m", "40Mi"));
    lab.feed.until_pod("web", "condition", |s| condition(s, "PodResizePending") == "True").await;
    lab.feed.until_event("ResizeDeferred", "cpu").await;
    lab.feed.delete("large", 0);
    lab.feed.until_pod("web", "resize", |s| cpu(s) == "500m").await;
}
