//! A machine and pods made of network namespaces, with real sockets in them.
#![allow(dead_code)]

use dhow_dataplane::{Config, Dataplane};
use dhow_intents::{Backend, Owner, Protocol, ServiceIntent, ServicePort};
use dhow_kernel::net::{Batch, namespace, route};
use std::future::Future;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub const NAME: &str = "dhowt";
pub const NODE: &str = "n1";
/// Longer than anything here takes; sockets fail rather than hang.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a test as a machine of its own: a thread in a new network namespace with `lo` up.
pub fn machine<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let body = move || {
        namespace::enter_new().expect("a network namespace needs root");
        loopback_up();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    let joined = std::thread::Builder::new().spawn(body).unwrap().join();
    if let Err(panic) = joined {
        std::panic::resume_unwind(panic);
    }
}

pub fn loopback_up() {
    let mut batch = Batch::new();
    batch.link_up(1);
    route::open().unwrap().transact(&batch).unwrap();
}

pub fn config() -> Config {
    Config {
        name: NAME.into(),
        pod_cidr: "10.200.1.0/24".parse().unwrap(),
        cluster_cidr: "10.200.0.0/16".parse().unwrap(),
        service_cidr: "10.201.0.0/16".parse().unwrap(),
        dns_ip: Ipv4Addr::new(10, 201, 0, 10),
        node_ip: Ipv4Addr::new(192, 0, 2, 1),
        node_name: NODE.into(),
    }
}

pub async fn open() -> Dataplane {
    Dataplane::open(config()).await.unwrap()
}

/// A pod: a network namespace, attached.
pub struct Pod {
    pub id: String,
    pub namespace: OwnedFd,
    pub address: Ipv4Addr,
}

pub fn owner(kind: &str, name: &str, revision: u64) -> Owner {
    Owner { kind: kind.into(), namespace: "shop".into(), name: name.into(), revision }
}

pub fn path(namespace: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", namespace.as_raw_fd()).into()
}

impl Pod {
    pub async fn new(plane: &Dataplane, name: &str) -> Self {
        let namespace = namespace::create().unwrap();
        let id = format!("uid-{name}");
        let address =
            plane.attach(&id, &owner("pod", name, 7), &path(&namespace), None).await.unwrap();
        Self { id, namespace, address }
    }

    /// Does something in the pod's namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        namespace::within(&self.namespace, || Ok(work())).unwrap()
    }

    /// A datagram socket in the pod with a time-out, connected.
    pub fn udp(&self, to: SocketAddrV4) -> UdpSocket {
        let socket = self.within(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(to).unwrap();
        socket
    }

    pub fn at(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, port)
    }

    /// Answers every TCP connection with `NAME CLIENT\n`, then echoes.
    pub fn serve(&self, port: u16) {
        let listener = self.within(|| TcpListener::bind(("0.0.0.0", port)).unwrap());
        serve(listener, self.id.trim_start_matches("uid-").to_owned());
    }

    /// Answers every datagram with the pod's name.
    pub fn serve_udp(&self, port: u16) {
        let socket = self.within(|| UdpSocket::bind(("0.0.0.0", port)).unwrap());
        let name = self.id.trim_start_matches("uid-").to_owned();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), from);
            }
        });
    }

    /// Connects from inside the pod.
    pub fn connect(&self, to: impl Into<SocketAddr>) -> std::io::Result<Client> {
        let to = to.into();
        self.within(|| Client::new(to))
    }
}

pub fn serve(listener: TcpListener, name: String) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), name) = (stream, name.clone()) else { return };
            std::thread::spawn(move || {
                let from = stream.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
                let _ = stream.write_all(format!("{name} {from}\n").as_bytes());
                let mut buffer = [0; 65536];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Who answers a datagram.
pub fn ask_udp(socket: &UdpSocket) -> std::io::Result<String> {
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// A connection that was greeted.
pub struct Client {
    pub stream: TcpStream,
    /// Who answered.
    pub server: String,
    /// Which address the server saw.
    pub seen_as: String,
}

impl Client {
    pub fn new(to: SocketAddr) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = Vec::new();
        let mut byte = [0];
        while byte[0] != b'\n' {
            stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        let line = String::from_utf8(line).unwrap();
        let (server, seen_as) = line.trim().split_once(' ').unwrap();
        Ok(Self { stream, server: server.into(), seen_as: seen_as.into() })
    }

    pub fn echo(&mut self, text: &str) -> String {
        self.stream.write_all(text.as_bytes()).unwrap();
        let mut buffer = vec![0; text.len()];
        self.stream.read_exact(&mut buffer).unwrap();
        String::from_utf8(buffer).unwrap()
    }
}

pub fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 201, 1, last)
}

/// A service with one port on `10.201.1.LAST`.
pub fn service(
    name: &str,
    last: u8,
    protocol: Protocol,
    port: u16,
    backends: &[SocketAddrV4],
) -> ServiceIntent {
    let backend = |a: &SocketAddrV4| Backend { address: (*a).into(), node: NODE.into() };
    ServiceIntent {
        owner: owner("svc", name, 41),
        cluster_ips: vec![ip(last).into()],
        external_ips: vec![],
        affinity_seconds: 0,
        external_local: false,
        internal_local: false,
        ports: vec![ServicePort {
            name: String::new(),
            protocol,
            port,
            node_port: 0,
            backends: backends.iter().map(backend).collect(),
            leaving: vec![],
        }],
    }
}

pub async fn set(plane: &Dataplane, intent: ServiceIntent) {
    plane.apply(&[Arc::new(intent)], &[]).await.unwrap();
}

/// A client outside of the cluster: a namespace on a link of its own to the machine, with the
/// machine as its router. The machine's address there is the configured node address.
pub struct Stranger {
    namespace: OwnedFd,
    pub address: Ipv4Addr,
}

impl Stranger {
    pub fn new() -> Self {
        let namespace = namespace::create().unwrap();
        let address = Ipv4Addr::new(192, 0, 2, 2);
        let node = config().node_ip;
        let mut make = Batch::new();
        let macs = ([0x0a, 0, 0, 0, 0, 1], [0x0a, 0, 0, 0, 0, 2]);
        make.create_veth("wan", macs.0, "wan", macs.1, namespace.as_fd());
        make.dress_link("wan", "test", false);
        make.get_link("wan");
        let mut socket = route::open().unwrap();
        let wan = socket.transact_link(&make).unwrap();
        let mut dress = Batch::new();
        dress.add_address(wan.index, node, 24);
        socket.transact(&dress).unwrap();
        namespace::within(&namespace, || {
            let mut socket = route::open()?;
            let mut look = Batch::new();
            look.get_link("wan");
            let wan = socket.transact_link(&look)?;
            let mut dress = Batch::new();
            dress.link_up(1);
            dress.link_up(wan.index);
            dress.add_address(wan.index, address, 24);
            dress.set_route((Ipv4Addr::UNSPECIFIED, 0), wan.index, Some(node), None, 4);
            socket.transact(&dress).map(|_| ())
        })
        .unwrap();
        Self { namespace, address }
    }

    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        namespace::within(&self.namespace, || Ok(work())).unwrap()
    }

    pub fn connect(&self, to: impl Into<SocketAddr>) -> std::io::Result<Client> {
        let to = to.into();
        self.within(|| Client::new(to))
    }

    /// Answers like a pod.
    pub fn serve(&self, port: u16) {
        let listener = self.within(|| TcpListener::bind(("0.0.0.0", port)).unwrap());
        serve(listener, "stranger".into());
    }
}

/// What a program prints in the calling thread's namespace.
pub fn output(program: &str, arguments: &[&str]) -> String {
    let out = std::process::Command::new(program).args(arguments).output().unwrap();
    assert!(out.status.success(), "{program} {arguments:?}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}
