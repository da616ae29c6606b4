//! Quantities: `100m`, `1Gi`, `1e3`.
//!
//! Follows `k8s.io/apimachinery/pkg/api/resource`: a decimal number with a binary suffix (`Ki`,
//! `Mi`...), a decimal one (`n`, `u`, `m`, `k`, `M`...) or an exponent, exact to 10^-9.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

/// Billionths in one.
const NANO: i128 = 1_000_000_000;

/// How a quantity is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `12Mi`.
    Binary,
    /// `12M`.
    #[default]
    Decimal,
    /// `12e6`.
    Exponent,
}

/// An exact amount.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// A text that is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text does not have the form of a quantity.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Form,
    /// The suffix is not known.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const BINARY: [(&str, u32); 6] =
    [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

impl Quantity {
    /// So many bytes, written with binary suffixes.
    #[must_use]
    pub fn from_bytes(bytes: i64) -> Self {
        Self { nanos: i128::from(bytes) * NANO, format: Format::Binary }
    }

    /// From JSON: a string or a number.
    ///
    /// # Errors
    /// When it is neither, or no quantity.
    pub fn from_json(value: &serde_json::Value) -> Result<Self, QuantityError> {
        match value {
            serde_json::Value::String(text) => text.parse(),
            serde_json::Value::Number(number) => number.to_string().parse(),
            _ => Err(QuantityError::Form),
        }
    }

    /// Whole units, rounded up (away from zero), as upstream's `Value()`.
    #[must_use]
    pub fn value(&self) -> i64 {
        clamp(round_up(self.nanos, NANO))
    }

    /// Thousandths, rounded up, as upstream's `MilliValue()`.
    #[must_use]
    pub fn milli_value(&self) -> i64 {
        clamp(round_up(self.nanos, NANO / 1000))
    }

    /// Whether it is nothing.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether it is less than nothing.
    #[must_use]
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it has a part smaller than one.
    #[must_use]
    pub fn is_fractional(&self) -> bool {
        self.nanos % NANO != 0
    }

    /// How it is written.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }
}

fn clamp(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

fn round_up(n: i128, unit: i128) -> i128 {
    let whole = n / unit;
    if n % unit == 0 { whole } else { whole + n.signum() }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(QuantityError::Form);
        }
        let (shift, power, format) = scale(suffix)?;
        // The value is digits * 10^(power - decimals) * 2^shift.
        let digits: String = [whole, fraction].concat();
        let digits = digits.trim_start_matches('0');
        let mut nanos: i128 = match digits {
            "" => 0,
            d if d.len() > 24 => i128::from(i64::MAX) * NANO,
            d => d.parse().map_err(|_| QuantityError::Form)?,
        };
        nanos = nanos.saturating_mul(1_i128 << shift);
        let places = power + 9 - i32::try_from(fraction.len()).unwrap_or(i32::MAX / 2);
        for _ in 0..places.clamp(0, 64) {
            nanos = nanos.saturating_mul(10);
        }
        let mut inexact = false;
        for _ in 0..places.saturating_neg().clamp(0, 64) {
            inexact |= nanos % 10 != 0;
            nanos /= 10;
        }
        nanos += i128::from(inexact);
        let most = i128::from(i64::MAX) * NANO;
        nanos = nanos.min(most);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

/// Binary shift, decimal power and format of a suffix.
fn scale(suffix: &str) -> Result<(u32, i32, Format), QuantityError> {
    if let Some((_, power)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((0, *power, Format::Decimal));
    }
    if let Some((_, shift)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Ok((*shift, 0, Format::Binary));
    }
    match suffix.strip_prefix(['e', 'E']) {
        Some(power) => {
            let power: i32 = power.parse().map_err(|_| QuantityError::Suffix)?;
            Ok((0, power.clamp(-100, 100), Format::Exponent))
        }
        None if suffix.chars().all(|c| "einumkKMGTPE+-0123456789".contains(c)) => {
            Err(QuantityError::Suffix)
        }
        None => Err(QuantityError::Form),
    }
}

/// The canonical text: no fraction, the greatest suffix that allows it.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        if self.format == Format::Binary && !small && self.nanos % NANO == 0 {
            let units = self.nanos / NANO;
            let best = BINARY.iter().rev().find(|(_, shift)| units % (1_i128 << shift) == 0);
            return match best {
                Some((suffix, shift)) => write!(f, "{}{suffix}", units >> shift),
                None => write!(f, "{units}"),
            };
        }
        let mut digits = self.nanos;
        let mut power = -9;
        while digits % 1000 == 0 && power < 18 {
            digits /= 1000;
            power += 3;
        }
        match (self.format, power) {
            (_, 0) => write!(f, "{digits}"),
            (Format::Exponent, _) => write!(f, "{digits}e{power}"),
            _ => {
                let suffix = DECIMAL.iter().find(|(_, p)| *p == power).map_or("", |(s, _)| s);
                write!(f, "{digits}{suffix}")
            }
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The format of the sum is that of the left side, unless that is zero.
impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_sub(other.nanos), format }
    }
}

/// The sum of all.
impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn canonical_texts() {
        let cases = [
            ("0", "0"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1", "1"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1.5", "1500m"),
            ("1Gi", "1Gi"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Mi", "512Ki"),
            ("100Ki", "100Ki"),
            ("128974848", "128974848"),
            ("1e3", "1e3"),
            ("1E", "1E"),
            ("1000k", "1M"),
            ("-5", "-5"),
            ("1000", "1k"),
            ("250u", "250u"),
        ];
        for (text, want) in cases {
            assert_eq!(q(text).to_string(), want, "{text}");
        }
    }

    #[test]
    fn refusals() {
        for bad in ["", "x", "1.2.3", ".", "1 Gi", "abcd"] {
            assert_eq!(bad.parse::<Quantity>(), Err(QuantityError::Form), "{bad}");
        }
        for bad in ["1Kii", "1mi", "1ee3"] {
            assert_eq!(bad.parse::<Quantity>(), Err(QuantityError::Suffix), "{bad}");
        }
    }

    #[test]
    fn arithmetic() {
        assert!(q("1Gi") > q("1G") && q("1000m") == q("1"));
        assert_eq!((q("100m") + q("0.9")).to_string(), "1");
        assert_eq!((q("1Gi") - q("512Mi")).to_string(), "512Mi");
        assert_eq!([q("64Mi"), q("64Mi")].into_iter().sum::<Quantity>().to_string(), "128Mi");
        assert_eq!((q("100m").value(), q("1.5").milli_value(), q("1Ki").value()), (1, 1500, 1024));
    }
}
