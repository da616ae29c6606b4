//! Resource quantities as Kubernetes writes them: `100m`, `1.5`, `64Mi`, `2e3`.

use dhow_objects::quantity;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

fn read(text: &str) -> Option<quantity::Quantity> {
    text.trim().parse().ok()
}

/// Reads a quantity in thousandths of its unit, rounded up; `None` when it is malformed.
pub fn millis(text: &str) -> Option<i128> {
    read(text).map(|quantity| quantity.milli_value().into())
}

/// Reads a quantity in whole units, rounded up; `None` when it is malformed.
pub fn units(text: &str) -> Option<i128> {
    read(text).map(|quantity| quantity.value().into())
}

/// One resource of a list in thousandths, 0 when it is absent or malformed.
pub fn millis_of(list: Option<&BTreeMap<String, Quantity>>, resource: &str) -> u64 {
    list.and_then(|l| l.get(resource))
        .and_then(|q| millis(&q.0))
        .and_then(|m| u64::try_from(m).ok())
        .unwrap_or(0)
}

/// One resource of a list in whole units, 0 when it is absent or malformed.
pub fn units_of(list: Option<&BTreeMap<String, Quantity>>, resource: &str) -> u64 {
    list.and_then(|l| l.get(resource))
        .and_then(|q| units(&q.0))
        .and_then(|m| u64::try_from(m).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suffix_has_its_factor() {
        assert_eq!(millis("100m"), Some(100));
        assert_eq!(millis("1.5"), Some(1500));
        assert_eq!(units("64Mi"), Some(64 << 20));
        assert_eq!(units("2e3"), Some(2000));
        assert_eq!(units("2E"), Some(2_000_000_000_000_000_000));
        assert_eq!(units("0.1"), Some(1));
        assert_eq!(millis("1u"), Some(1));
        assert_eq!(millis("-1"), Some(-1000));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "m", "1.2.3", "1Qi", "x", "1e"] {
            assert_eq!(millis(text), None, "{text}");
        }
    }
}
