//! The kinds of load, and what each must reach.

/// One kind of load.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name in the table and for `--case`.
    pub name: &'static str,
    /// The generator's name of the test.
    pub test: &'static str,
    /// Clients.
    pub clients: u32,
    /// Connections that they share.
    pub connections: u32,
    /// Requests per second; 0 is as many as go.
    pub rate: u32,
    /// What is wanted.
    pub bars: Bars,
    /// Whether `--quick` has it too.
    pub quick: bool,
}

/// What is wanted; 0 is nothing.
#[derive(Debug, Clone, Copy)]
pub struct Bars {
    /// At least this share of the floor's rate.
    pub floor: f64,
    /// At least so many times etcd's rate.
    pub rate: f64,
    /// At most this share of etcd's CPU time per operation.
    pub cpu: f64,
    /// At most this share of etcd's p99.
    pub p99: f64,
}

const NONE: Bars = Bars { floor: 0.0, rate: 0.0, cpu: 0.0, p99: 0.0 };
const LEAN: Bars = Bars { floor: 0.9, rate: 0.0, cpu: 0.45, p99: 1.0 };

const fn case(name: &'static str, test: &'static str, clients: u32, connections: u32) -> Case {
    Case { name, test, clients, connections, rate: 0, bars: NONE, quick: false }
}

/// All of them.
pub const CASES: [Case; 17] = [
    Case { bars: LEAN, ..case("put-1", "put", 1, 1) },
    Case { bars: LEAN, quick: true, ..case("put-64", "put", 64, 8) },
    Case { bars: LEAN, ..case("put-512", "put", 512, 64) },
    Case { rate: 2_000, ..case("put-64-at-2000/s", "put", 64, 8) },
    case("get-1", "get", 1, 1),
    Case { bars: LEAN, quick: true, ..case("get-64", "get", 64, 8) },
    case("get-512", "get", 512, 64),
    Case { bars: LEAN, ..case("get-serializable-64", "get-serializable", 64, 8) },
    Case { rate: 2_000, ..case("get-64-at-2000/s", "get", 64, 8) },
    Case {
        bars: Bars { rate: 20.0, ..NONE },
        quick: true,
        ..case("range-500-of-100000-64", "range", 64, 8)
    },
    Case { bars: Bars { rate: 2.0, ..NONE }, quick: true, ..case("txn-cas-64", "cas", 64, 8) },
    case("lease-grant-revoke-64", "lease", 64, 8),
    case("lease-keep-alive-64", "keep-alive", 64, 8),
    case("mixed-64", "mixed", 64, 8),
    Case { rate: 100, ..case("watch-100-at-100/s", "watch", 1, 1) },
    case("watch-100-by-1", "watch", 1, 1),
    Case {
        bars: Bars { floor: 0.0, rate: 2.0, cpu: 1.0 / 3.0, p99: 0.5 },
        quick: true,
        ..case("watch-100-by-64", "watch", 64, 8)
    },
];
