//! Every verb of kubectl, as its users type it.

use e2e::Shell;

fn smoke(s: &Shell) {
    s.ok("kubectl run web --image=busybox -- httpd -f -h /www");
    s.ok("kubectl wait --for=condition=Ready pod/web --timeout=30s");
    s.is("kubectl exec web -- cat /www/index.html", "ahoy");
}

#[test]
fn kubectl() {
    let machine = e2e::Machine::new("kubectl");
    e2e::run(&machine, &[("smoke", smoke)]);
}
