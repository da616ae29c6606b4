//! Addresses of the machine's pods: which are free, and in which order they are given out.

use ipnet::Ipv4Net;
use std::collections::{HashSet, VecDeque};
use std::net::Ipv4Addr;

/// The addresses of one network. Those never used come first, then those freed longest ago, so an
/// address rests as long as possible before another pod gets it.
#[derive(Debug)]
pub(crate) struct Addresses {
    network: Ipv4Net,
    next: u32,
    used: HashSet<Ipv4Addr>,
    freed: VecDeque<Ipv4Addr>,
}

impl Addresses {
    /// All of the network but its first two addresses (network, machine), the last (broadcast)
    /// and `reserved`.
    pub(crate) fn new(network: Ipv4Net, reserved: &[Ipv4Addr]) -> Self {
        let first = u32::from(network.network());
        let mut used: HashSet<Ipv4Addr> = reserved.iter().copied().collect();
        used.extend([network.network(), machine(network), network.broadcast()]);
        Self { network, next: first.saturating_add(2), used, freed: VecDeque::new() }
    }

    /// Takes this address; false if it is taken or not of this network.
    pub(crate) fn claim(&mut self, address: Ipv4Addr) -> bool {
        if !self.network.contains(&address) || !self.used.insert(address) {
            return false;
        }
        self.freed.retain(|a| *a != address);
        true
    }

    /// After a restart nobody knows which addresses were freed last: go on after the highest.
    pub(crate) fn resume(&mut self) {
        let highest = self.used.iter().filter(|a| **a != self.network.broadcast()).max();
        let Some(highest) = highest.filter(|a| self.network.contains(*a)) else { return };
        let first = u32::from(self.network.network()).saturating_add(2);
        let next = u32::from(*highest).saturating_add(1).max(first);
        for address in (first..next).map(Ipv4Addr::from) {
            if !self.used.contains(&address) {
                self.freed.push_back(address);
            }
        }
        self.next = next;
    }

    /// Takes any free address.
    pub(crate) fn allocate(&mut self) -> Option<Ipv4Addr> {
        let last = u32::from(self.network.broadcast());
        while self.next < last {
            let address = Ipv4Addr::from(self.next);
            self.next += 1;
            if self.used.insert(address) {
                return Some(address);
            }
        }
        let address = self.freed.pop_front()?;
        self.used.insert(address);
        Some(address)
    }

    /// Gives an address back.
    pub(crate) fn release(&mut self, address: Ipv4Addr) {
        if self.used.remove(&address) && u32::from(address) < self.next {
            self.freed.push_back(address);
        }
    }
}

/// The machine's own address: the first of its pods' network.
pub(crate) fn machine(network: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network()).saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Addresses {
        Addresses::new("10.1.0.0/29".parse().unwrap(), &["10.1.0.4".parse().unwrap()])
    }

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 1, 0, last)
    }

    #[test]
    fn gives_every_address_once_and_skips_the_reserved() {
        let mut a = small();
        let all: Vec<_> = std::iter::from_fn(|| a.allocate()).collect();
        assert_eq!(all, [ip(2), ip(3), ip(5), ip(6)]);
    }

    #[test]
    fn a_freed_address_comes_back_last() {
        let mut a = small();
        assert_eq!(a.allocate(), Some(ip(2)));
        a.release(ip(2));
        assert_eq!(a.allocate(), Some(ip(3)));
        assert_eq!(a.allocate(), Some(ip(5)));
        a.release(ip(5));
        assert_eq!(a.allocate(), Some(ip(6)));
        assert_eq!(a.allocate(), Some(ip(2)));
        assert_eq!(a.allocate(), Some(ip(5)));
        assert_eq!(a.allocate(), None);
    }

    #[test]
    fn a_claimed_address_is_nobody_elses() {
        let mut a = small();
        assert!(a.claim(ip(3)));
        assert!(!a.claim(ip(3)));
        assert!(!a.claim(Ipv4Addr::new(10, 2, 0, 3)));
        a.resume();
        assert_eq!(a.allocate(), Some(ip(5)));
        assert_eq!(a.allocate(), Some(ip(6)));
        assert_eq!(a.allocate(), Some(ip(2)));
        assert_eq!(a.allocate(), None);
    }

    #[test]
    fn an_address_claimed_ahead_and_freed_is_given_once() {
        let mut a = small();
        assert!(a.claim(ip(6)));
        a.release(ip(6));
        let all: Vec<_> = std::iter::from_fn(|| a.allocate()).collect();
        assert_eq!(all, [ip(2), ip(3), ip(5), ip(6)]);
    }
}
