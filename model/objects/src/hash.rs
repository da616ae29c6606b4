//! A hash that is the same in every process, on every machine and in every version: FNV-1a, 64 bits.
//!
//! It names things that have to be found again after a restart. It is no defence against somebody
//! who looks for two texts with the same hash.

use std::hash::Hasher;

/// The hasher; the standard library's gives other numbers in every process.
#[derive(Debug, Clone, Copy)]
pub struct Stable(u64);

impl Default for Stable {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Stable {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// The hash of a sequence of bytes.
pub fn stable(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let mut hasher = Stable::default();
    for byte in bytes {
        hasher.write(&[byte]);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_values_come_out() {
        // Of the reference implementation, http://www.isthe.com/chongo/tech/comp/fnv/.
        assert_eq!(stable([]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(stable(*b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(stable(*b"foobar"), 0x8594_4171_f739_67e8);
    }
}
