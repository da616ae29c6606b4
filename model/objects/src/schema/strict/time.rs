//! What Go's `time.Parse` says of a text that is no RFC 3339 time.

/// The error of a text, if it has one. With `micro`, the fraction of six digits is mandatory.
pub fn error(text: &str, micro: bool) -> Option<String> {
    let (layout, fraction) = if micro {
        ("2006-01-02T15:04:05.000000Z07:00", Some(".000000"))
    } else {
        ("2006-01-02T15:04:05Z07:00", None)
    };
    let mut rest = text;
    let fail = |rest: &str, element: &str| {
        Some(format!("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {element:?}"))
    };
    let range = |name: &str| Some(format!("parsing time {text:?}: {name} out of range"));
    let mut numbers = [0u32; 6];
    let elements = ["2006", "-", "01", "-", "02", "T", "15", ":", "04", ":", "05"];
    let mut filled = 0;
    for element in elements {
        if element.as_bytes()[0].is_ascii_digit() {
            let (head, tail) = match rest.split_at_checked(element.len()) {
                Some((head, tail)) if head.bytes().all(|b| b.is_ascii_digit()) => (head, tail),
                _ => return fail(rest, element),
            };
            numbers[filled] = head.parse().unwrap_or_default();
            let name = match filled {
                1 if !(1..=12).contains(&numbers[1]) => Some("month"),
                3 if numbers[3] > 23 => Some("hour"),
                4 if numbers[4] > 59 => Some("minute"),
                5 if numbers[5] > 59 => Some("second"),
                _ => None,
            };
            if let Some(name) = name {
                return range(name);
            }
            filled += 1;
            rest = tail;
        } else {
            match rest.strip_prefix(element) {
                Some(tail) => rest = tail,
                None => return fail(rest, element),
            }
        }
    }
    let digits = rest
        .strip_prefix(['.', ','])
        .map_or(0, |tail| tail.bytes().take_while(u8::is_ascii_digit).count());
    match fraction {
        Some(element) if digits != 6 => return fail(rest, element),
        _ if digits > 0 => rest = &rest[digits + 1..],
        _ => {}
    }
    let zone = rest;
    rest = match rest.as_bytes() {
        [b'Z', ..] => &rest[1..],
        [b'+' | b'-', a, b, b':', c, d, ..] if [a, b, c, d].iter().all(|x| x.is_ascii_digit()) => {
            &rest[6..]
        }
        _ => return fail(zone, "Z07:00"),
    };
    if !rest.is_empty() {
        return Some(format!("parsing time {text:?}: extra text: {rest:?}"));
    }
    let date = jiff::civil::Date::new(numbers[0] as i16, numbers[1] as i8, numbers[2] as i8);
    if date.is_err() { range("day") } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_times_have_no_error() {
        for text in ["2020-01-31T00:00:00Z", "2020-02-29T23:59:59.5+02:00"] {
            assert_eq!(error(text, false), None);
        }
        assert_eq!(error("2020-01-31T00:00:00.000001Z", true), None);
    }

    #[test]
    fn errors_name_what_could_not_be_read() {
        for (text, micro, end) in [
            ("yesterday", false, r#": cannot parse "yesterday" as "2006""#),
            ("2020-01-01", false, r#": cannot parse "" as "T""#),
            ("2020-01-01T00:00:00.5Z", true, r#": cannot parse ".5Z" as ".000000""#),
            ("2020-01-01T00:00:00Z", true, r#": cannot parse "Z" as ".000000""#),
            ("2020-01-01T00:00:00", false, r#": cannot parse "" as "Z07:00""#),
            ("2020-13-01T00:00:00Z", false, "Z\": month out of range"),
            ("2021-02-29T00:00:00Z", false, "Z\": day out of range"),
            ("2020-01-01T00:00:00Zx", false, r#"Zx": extra text: "x""#),
        ] {
            let error = error(text, micro).unwrap();
            assert!(error.ends_with(end), "{error}");
        }
    }
}
