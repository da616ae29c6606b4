//! Resource quantities as Kubernetes writes them: `100m`, `1.5`, `64Mi`, `2e3`.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// Reads a quantity in thousandths of its unit, rounded up; `None` when it is malformed.
pub fn millis(text: &str) -> Option<i128> {
    let text = text.trim();
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 24 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let mut divisor: i128 = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let mut factor: i128 = 1000;
    match suffix {
        "" => {}
        "n" => divisor = divisor.checked_mul(1_000_000_000)?,
        "u" => divisor = divisor.checked_mul(1_000_000)?,
        "m" => factor = 1,
        "k" => factor *= 1000,
        "M" => factor *= 1000i128.pow(2),
        "G" => factor *= 1000i128.pow(3),
        "T" => factor *= 1000i128.pow(4),
        "P" => factor *= 1000i128.pow(5),
        "E" => factor *= 1000i128.pow(6),
        "Ki" => factor *= 1024,
        "Mi" => factor *= 1024i128.pow(2),
        "Gi" => factor *= 1024i128.pow(3),
        "Ti" => factor *= 1024i128.pow(4),
        "Pi" => factor *= 1024i128.pow(5),
        "Ei" => factor *= 1024i128.pow(6),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let scale = 10i128.checked_pow(power.unsigned_abs())?;
            if power < 0 {
                divisor = divisor.checked_mul(scale)?;
            } else {
                factor = factor.checked_mul(scale)?;
            }
        }
    }
    let scaled = digits.checked_mul(factor)?;
    let rounded = scaled.checked_add(divisor - 1)? / divisor;
    Some(if negative { -rounded } else { rounded })
}

/// Reads a quantity in whole units, rounded up; `None` when it is malformed.
pub fn units(text: &str) -> Option<i128> {
    millis(text).map(|m| if m >= 0 { (m + 999) / 1000 } else { m / 1000 })
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
        for text in ["", "m", "1.2.3", "1Qi", "x", "1e", "99999999999999999999999999"] {
            assert_eq!(millis(text), None, "{text}");
        }
    }
}
