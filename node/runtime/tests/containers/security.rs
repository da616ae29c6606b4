//! Users, capabilities, seccomp, what is visible and writable.

use crate::harness::World;
use dhow_runtime::{Error, Mount, MountKind};
use std::rc::Rc;

crate::tests![
    users_and_groups_are_resolved_in_the_container,
    capabilities_are_cut,
    seccomp_and_no_new_privileges_are_applied,
    privileged_is_privileged,
    the_machine_is_out_of_sight,
    devices_are_the_usual_ones,
    mounts_are_made_as_told,
    a_read_only_root_is_read_only,
    links_in_an_image_do_not_lead_outside,
    no_descriptor_leaks,
];

async fn users_and_groups_are_resolved_in_the_container(world: Rc<World>) {
    let mut spec = world.shell("a", "id -u; id -g; id -G; echo $HOME; echo out > /dev/stdout");
    spec.process.user = "web".to_owned();
    spec.process.supplementary_groups = vec![77];
    assert_eq!(world.output(spec).await, (0, "33\n34\n34 40 77\n/tmp\nout\n".to_owned()));
    let mut spec = world.program("b", &["true"]);
    spec.process.user = "nobody".to_owned();
    let error = world.runtime.start(spec).await.unwrap_err().to_string();
    assert!(error.contains("unable to find user nobody"), "{error}");
    let mut spec = world.program("c", &["true"]);
    spec.process.must_not_be_root = true;
    let error = world.runtime.start(spec).await.unwrap_err();
    assert!(
        matches!(&error, Error::CannotStart { cause, .. } if cause.contains("runAsNonRoot")),
        "{error}"
    );
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim()
}

async fn capabilities_are_cut(world: Rc<World>) {
    let mut spec = world.program("a", &["cat", "/proc/self/status"]);
    spec.process.capabilities = vec!["CHOWN".to_owned(), "NET_BIND_SERVICE".to_owned()];
    let (_, status) = world.output(spec).await;
    for (set, bits) in
        [("CapPrm:", 0x401), ("CapEff:", 0x401), ("CapBnd:", 0x401), ("CapInh:", 0), ("CapAmb:", 0)]
    {
        assert_eq!(u64::from_str_radix(field(&status, set), 16).unwrap(), bits, "{set}");
    }
    let mut spec = world.program("b", &["cat", "/proc/self/status"]);
    spec.process.user = "33".to_owned();
    let (_, status) = world.output(spec).await;
    assert_eq!(field(&status, "CapEff:"), "0000000000000000");
    let mut spec = world.program("c", &["true"]);
    spec.process.capabilities = vec!["FLY".to_owned()];
    assert!(world.runtime.start(spec).await.unwrap_err().to_string().contains("FLY"));
}

async fn seccomp_and_no_new_privileges_are_applied(world: Rc<World>) {
    let script = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status; unshare -U true || echo refused; \
                  mount -t tmpfs x /tmp || echo refused";
    let mut spec = world.shell("a", script);
    spec.process.no_new_privileges = true;
    let (_, text) = world.output(spec).await;
    assert!(text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2"), "{text}");
    assert_eq!(text.matches("refused").count(), 2, "{text}");
    let mut spec = world.shell("b", "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status");
    spec.process.user = "web".to_owned();
    let (_, text) = world.output(spec).await;
    assert_eq!(text, "NoNewPrivs:\t0\nSeccomp:\t2\n");
    let mut spec = world.shell("c", "grep -E '^Seccomp:' /proc/self/status");
    spec.process.seccomp = false;
    assert_eq!(world.output(spec).await.1, "Seccomp:\t0\n");
}

async fn privileged_is_privileged(world: Rc<World>) {
    let script = "mount -t tmpfs x /tmp && echo mounted; touch /proc/sys/kernel/domainname && echo writable; \
                  grep Seccomp: /proc/self/status; ls /dev | wc -l";
    let mut spec = world.shell("a", script);
    spec.privileged = true;
    let (_, text) = world.output(spec).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..3], ["mounted", "writable", "Seccomp:\t0"]);
    let machine = std::fs::read_dir("/dev").unwrap().count();
    assert!(lines[3].parse::<usize>().unwrap() + 6 > machine, "{text} of {machine}");
}

async fn the_machine_is_out_of_sight(world: Rc<World>) {
    let script = "echo 1 > /proc/sys/kernel/domainname || echo ro-sys; cat /proc/kcore | wc -c; \
                  touch /sys/x || echo ro-sysfs; ls / | tr '\\n' ' '; echo; ls /proc | grep -c '^[0-9]'; \
                  ls /sys/firmware | wc -l; touch /sys/fs/cgroup/memory/x || echo ro-cgroup; \
                  awk '$2 ~ /^\\/(work|home|root|var|boot|mnt)/' /proc/mounts | wc -l; ip link | grep -c '^[0-9]'";
    let (_, text) = world.output(world.shell("a", script)).await;
    let quiet: Vec<&str> = text.lines().filter(|line| !line.contains(": ")).collect();
    assert_eq!(quiet[..3], ["ro-sys", "0", "ro-sysfs"], "{text}");
    assert_eq!(quiet[3], "bin dev etc proc root sys tmp ", "{text}");
    assert!(quiet[4].parse::<u32>().unwrap() <= 4, "{text}");
    assert_eq!(quiet[5..], ["0", "ro-cgroup", "0", "1"], "{text}");
}

async fn devices_are_the_usual_ones(world: Rc<World>) {
    let script = "cd /dev; echo *; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; \
                  echo x > /dev/null && echo fine; readlink /dev/stdout; test -c /dev/ptmx && echo ptmx";
    let (_, text) = world.output(world.shell("a", script)).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
    assert_eq!(lines[1..], ["3", "3", "fine", "/proc/self/fd/1", "ptmx"]);
}

async fn mounts_are_made_as_told(world: Rc<World>) {
    let data = world.dir.join("data");
    std::fs::create_dir_all(data.join("sub")).unwrap();
    std::fs::write(data.join("file"), "from outside\n").unwrap();
    let script = "cat /vol/file /etc/one; echo new > /vol/new && echo wrote; echo x > /ro/new || echo read-only; \
                  echo x > /ro/sub/y || echo below-too; grep ' /scratch ' /proc/mounts; stat -c %a /scratch";
    let mut spec = world.shell("a", script);
    let bind = |target: &str, source, read_only| Mount {
        target: target.into(),
        kind: MountKind::Bind(source),
        read_only,
        propagate: false,
    };
    // A mount below the source is read-only as well.
    dhow_kernel::mount::tmpfs(
        &data.join("sub"),
        "test",
        0,
        0o755,
        rustix::mount::MountFlags::empty(),
    )
    .unwrap();
    spec.mounts = vec![
        bind("/vol", data.clone(), false),
        bind("/ro", data.clone(), true),
        bind("/etc/one", data.join("file"), true),
        Mount {
            target: "/scratch".into(),
            kind: MountKind::Tmpfs { size: 1 << 20, mode: 0o1777 },
            read_only: false,
            propagate: false,
        },
    ];
    let (_, text) = world.output(spec).await;
    dhow_kernel::mount::unmount_lazily(&data.join("sub")).unwrap();
    assert!(text.starts_with("from outside\nfrom outside\nwrote\n"), "{text}");
    assert!(text.contains("read-only\n") && text.contains("below-too\n"), "{text}");
    assert!(text.contains("size=1024k") && text.contains("\n1777\n"), "{text}");
    assert_eq!(std::fs::read_to_string(data.join("new")).unwrap(), "new\n");
}

async fn a_read_only_root_is_read_only(world: Rc<World>) {
    let mut spec = world.shell("a", "touch /x 2>/dev/null || echo read-only; touch /dev/shm/x && echo shm; touch /made/x && echo made");
    spec.read_only_rootfs = true;
    spec.mounts = vec![Mount {
        target: "/made".into(),
        kind: MountKind::Tmpfs { size: 0, mode: 0o755 },
        read_only: false,
        propagate: false,
    }];
    assert_eq!(world.output(spec).await, (0, "read-only\nshm\nmade\n".to_owned()));
}

async fn links_in_an_image_do_not_lead_outside(world: Rc<World>) {
    let evil = world.dir.join("evil");
    let outside = world.dir.join("outside");
    std::fs::create_dir_all(&evil).unwrap();
    std::fs::create_dir_all(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, evil.join("link")).unwrap();
    std::os::unix::fs::symlink("../../../../../../nowhere/deep", evil.join("dangling")).unwrap();
    std::fs::write(world.dir.join("file"), "bound\n").unwrap();
    let mut spec =
        world.shell("a", "cat /dangling; cat /nowhere/deep; ls /link/sub && echo inside");
    let dhow_runtime::Rootfs::Overlay { lower, .. } = &mut spec.rootfs else { unreachable!() };
    lower.insert(0, evil);
    spec.mounts = vec![
        Mount {
            target: "/dangling".into(),
            kind: MountKind::Bind(world.dir.join("file")),
            read_only: true,
            propagate: false,
        },
        Mount {
            target: "/link/sub".into(),
            kind: MountKind::Tmpfs { size: 0, mode: 0o755 },
            read_only: false,
            propagate: false,
        },
    ];
    assert_eq!(world.output(spec).await, (0, "bound\nbound\ninside\n".to_owned()));
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

async fn no_descriptor_leaks(world: Rc<World>) {
    world.runtime.start(world.program("other", &["sleep", "1000"])).await.unwrap();
    let (_, text) = world.output(world.program("a", &["ls", "/proc/self/fd"])).await;
    // The fourth is the directory that is being listed.
    assert_eq!(text, "0\n1\n2\n3\n");
    let mut attached = world
        .runtime
        .exec("other", crate::harness::process(&["ls", "/proc/self/fd"]), false, true, false)
        .await
        .unwrap();
    assert_eq!(crate::harness::read_all(attached.stdout.take()).await, "0\n1\n2\n3\n");
}
