//! Measures the pod network in network namespaces of its own; needs root.
//!
//! `cargo run --release -p dhow-dataplane --example measure_services` prints milliseconds for attaching and
//! detaching pods and for programming services, and the throughput through a service against
//! straight to the pod, min/median/max of interleaved runs.

#[path = "../tests/lab/mod.rs"]
mod lab;

use dhow_intents::Protocol::Tcp;
use lab::{Pod, ip, machine, open, service, set};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn line(what: &str, mut values: Vec<f64>, unit: &str) {
    values.sort_by(f64::total_cmp);
    let (first, last) = (values[0], values[values.len() - 1]);
    let median = values[values.len() / 2];
    println!("{what:<44} {first:>9.3} {median:>9.3} {last:>9.3} {unit}");
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Gigabits in a second that arrive through one connection.
fn throughput(client: &Pod, to: SocketAddrV4, sink: &TcpListener) -> f64 {
    let mut sender = client.within(|| TcpStream::connect(to).expect("connect"));
    let (mut receiver, _) = sink.accept().expect("accept");
    let writer = std::thread::spawn(move || {
        let block = vec![0; 1 << 17];
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(700) && sender.write_all(&block).is_ok() {}
    });
    let mut buffer = vec![0; 1 << 17];
    let (start, mut bytes) = (Instant::now(), 0_u64);
    while let Ok(n @ 1..) = receiver.read(&mut buffer) {
        bytes += n as u64;
    }
    let seconds = start.elapsed().as_secs_f64();
    writer.join().expect("writer");
    bytes as f64 * 8e-9 / seconds
}

/// Connections made and greeted in a second.
fn connections(client: &Pod, to: SocketAddrV4) -> f64 {
    let start = Instant::now();
    client.within(|| {
        for _ in 0..300 {
            lab::Client::new(to.into()).expect("connect");
        }
    });
    300.0 / start.elapsed().as_secs_f64()
}

fn main() {
    machine(|| async {
        println!("{:<44} {:>9} {:>9} {:>9}", "", "min", "median", "max");
        let plane = open().await;
        let spaces: Vec<_> =
            (0..50).map(|_| dhow_kernel::net::namespace::create().expect("namespace")).collect();
        let mut times = Vec::new();
        for (n, space) in spaces.iter().enumerate() {
            let (id, owner) = (format!("p{n}"), lab::owner("pod", &format!("p{n}"), 1));
            let start = Instant::now();
            plane.attach(&id, &owner, &lab::path(space), None).await.expect("attach");
            times.push(milliseconds(start));
        }
        line("attach a pod", times, "ms");
        let mut times = Vec::new();
        for n in 0..spaces.len() {
            let start = Instant::now();
            plane.detach(&format!("p{n}")).await.expect("detach");
            times.push(milliseconds(start));
        }
        line("detach a pod", times, "ms");

        let all: Vec<_> = (0..1000_u16)
            .map(|n| {
                let [high, low] = n.to_be_bytes();
                let backend = |b: u8| SocketAddrV4::new([10, 200, 200, b].into(), 8080);
                let backends = [backend(1), backend(2), backend(3)];
                let mut intent = service(&format!("s{n}"), 0, Tcp, 80, &backends);
                intent.cluster_ips = vec![Ipv4Addr::new(10, 201, 100 + high, low).into()];
                Arc::new(intent)
            })
            .collect();
        let start = Instant::now();
        plane.apply(&all, &[]).await.expect("apply");
        line("program 1,000 services of 3 backends", vec![milliseconds(start)], "ms");
        let mut times = Vec::new();
        for n in 0..50_u8 {
            let backends: Vec<_> =
                (0..=n % 4).map(|b| SocketAddrV4::new([10, 200, 201, b].into(), 80)).collect();
            let start = Instant::now();
            set(&plane, service("one", 9, Tcp, 80, &backends)).await;
            times.push(milliseconds(start));
        }
        line("change one service beside them", times, "ms");

        let (client, server) = (Pod::new(&plane, "c").await, Pod::new(&plane, "s").await);
        let sink = server.within(|| TcpListener::bind("0.0.0.0:9000").expect("listen"));
        server.serve(8080);
        set(&plane, service("sink", 1, Tcp, 80, &[server.at(9000)])).await;
        set(&plane, service("web", 2, Tcp, 80, &[server.at(8080)])).await;
        let at = |last| SocketAddrV4::new(ip(last), 80);
        let (mut direct, mut through, mut ratio) = (vec![], vec![], vec![]);
        let (mut plain, mut balanced) = (vec![], vec![]);
        for turn in 0..10 {
            // Turn about, so that neither always comes first.
            let (d, t);
            if turn % 2 == 0 {
                d = throughput(&client, server.at(9000), &sink);
                t = throughput(&client, at(1), &sink);
            } else {
                t = throughput(&client, at(1), &sink);
                d = throughput(&client, server.at(9000), &sink);
            }
            direct.push(d);
            through.push(t);
            ratio.push(t / d);
            plain.push(connections(&client, server.at(8080)));
            balanced.push(connections(&client, at(2)));
        }
        line("throughput straight to the pod", direct, "Gbit/s");
        line("throughput through the service", through, "Gbit/s");
        line("through / straight", ratio, "");
        line("connections straight to the pod", plain, "1/s");
        line("connections through the service", balanced, "1/s");
    });
}
