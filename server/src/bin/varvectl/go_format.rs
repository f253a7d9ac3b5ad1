//! Values as Go reads and prints them, since etcdctl's users know them that way.

use std::time::Duration;

/// Reads a duration such as `5s`, `1m30s`, `1.5h` or `300ms`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {}", quote(text.as_bytes()));
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let number_end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let number: f64 = rest[..number_end].parse().map_err(|_| invalid())?;
        rest = &rest[number_end..];
        let unit_end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = &rest[..unit_end];
        rest = &rest[unit_end..];
        let seconds = match unit {
            "" => {
                return Err(format!(
                    "time: missing unit in duration {}",
                    quote(text.as_bytes())
                ));
            }
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => {
                return Err(format!(
                    "time: unknown unit {} in duration {}",
                    quote(unit.as_bytes()),
                    quote(text.as_bytes())
                ));
            }
        };
        total += number * seconds;
    }
    Duration::try_from_secs_f64(total).map_err(|_| invalid())
}

/// Prints a duration as Go's `String` does: `1.234567ms`, `2s`, `1m30s`.
pub(crate) fn duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let (unit, per_unit) = match nanos {
        0 => return "0s".to_owned(),
        1..1_000 => return format!("{nanos}ns"),
        1_000..1_000_000 => ("µs", 1_000),
        1_000_000..1_000_000_000 => ("ms", 1_000_000),
        _ => ("s", 1_000_000_000),
    };
    let minute = 60 * 1_000_000_000;
    let (minutes, nanos) = match unit {
        "s" => (nanos / minute, nanos % minute),
        _ => (0, nanos),
    };
    let prefix = match (minutes / 60, minutes % 60) {
        (0, 0) => String::new(),
        (0, minutes) => format!("{minutes}m"),
        (hours, minutes) => format!("{hours}h{minutes}m"),
    };
    let digits = per_unit.to_string().len() - 1;
    let fraction = format!("{:0digits$}", nanos % per_unit);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{prefix}{}{point}{fraction}{unit}", nanos / per_unit)
}

/// Reads a decimal `i64`.
pub(crate) fn parse_int(text: &str) -> Result<i64, String> {
    parse_int_radix(text, 10)
}

/// Reads an `i64` in `radix`.
pub(crate) fn parse_int_radix(text: &str, radix: u32) -> Result<i64, String> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    i64::from_str_radix(text, radix).map_err(|error| {
        let reason = match error.kind() {
            PosOverflow | NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        format!(
            "strconv.ParseInt: parsing {}: {reason}",
            quote(text.as_bytes())
        )
    })
}

/// Go's `strconv.ParseUint(text, 16, 64)`, as ids are given.
pub(crate) fn parse_hex_id(text: &str) -> Result<u64, String> {
    let fails = |why: &str| {
        format!(
            "strconv.ParseUint: parsing {}: {why}",
            quote(text.as_bytes())
        )
    };
    if text.is_empty() || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(fails("invalid syntax"));
    }
    u64::from_str_radix(text, 16).map_err(|_| fails("value out of range"))
}

/// Reads a truth value.
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!(
            "strconv.ParseBool: parsing {}: invalid syntax",
            quote(text.as_bytes())
        )),
    }
}

/// Prints bytes as `%q` does.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            quote_char(c, &mut out);
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

fn quote_char(c: char, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        c if is_printable(c) => out.push(c),
        c if c < ' ' || c == '\x7f' => out.push_str(&format!("\\x{:02x}", c as u32)),
        c if (c as u32) < 0x10000 => out.push_str(&format!("\\u{:04x}", c as u32)),
        c => out.push_str(&format!("\\U{:08x}", c as u32)),
    }
}

/// The standard library knows, but only tells by what it escapes; behind a letter, so that
/// combining marks count as printable.
fn is_printable(c: char) -> bool {
    let text: String = ['a', c].iter().collect();
    c == '\'' || text.escape_debug().count() == 2
}

/// Reads a Go string literal at the start of `text`, in double quotes or back quotes: the bytes
/// it stands for, and what follows it.
pub(crate) fn unquote(text: &str) -> Option<(Vec<u8>, &str)> {
    if let Some(raw) = text.strip_prefix('`') {
        let end = raw.find('`')?;
        return Some((raw[..end].replace('\r', "").into_bytes(), &raw[end + 1..]));
    }
    let mut rest = text.strip_prefix('"')?;
    let mut bytes = Vec::new();
    loop {
        let c = rest.chars().next()?;
        rest = &rest[c.len_utf8()..];
        match c {
            '"' => return Some((bytes, rest)),
            '\n' => return None,
            '\\' => rest = unescape(rest, &mut bytes)?,
            c => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

fn unescape<'t>(text: &'t str, bytes: &mut Vec<u8>) -> Option<&'t str> {
    let kind = *text.as_bytes().first()?;
    let simple = match kind {
        b'a' => Some(7),
        b'b' => Some(8),
        b'f' => Some(12),
        b'n' => Some(b'\n'),
        b'r' => Some(b'\r'),
        b't' => Some(b'\t'),
        b'v' => Some(11),
        b'\\' | b'"' => Some(kind),
        _ => None,
    };
    if let Some(byte) = simple {
        bytes.push(byte);
        return Some(&text[1..]);
    }
    let (digits, radix, skip) = match kind {
        b'x' => (2, 16, 1),
        b'u' => (4, 16, 1),
        b'U' => (8, 16, 1),
        b'0'..=b'7' => (3, 8, 0),
        _ => return None,
    };
    let number = text.get(skip..skip + digits)?;
    if !number.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let number = u32::from_str_radix(number, radix).ok()?;
    match kind {
        b'u' | b'U' => {
            let c = char::from_u32(number)?;
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        _ => bytes.push(u8::try_from(number).ok()?),
    }
    Some(&text[skip + digits..])
}

/// Prints a size as `humanize.Bytes` does: `20 kB`, `1.6 MB`.
pub(crate) fn size(bytes: u64) -> String {
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let exponent = ((bytes as f64).ln() / 1000f64.ln()).floor();
    let value = (bytes as f64 / 1000f64.powf(exponent) * 10.0 + 0.5).floor() / 10.0;
    let decimals = if value < 10.0 { 1 } else { 0 };
    // `u64::MAX` is in the exabytes.
    let unit = units.get(exponent as usize).unwrap_or(&"EB");
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_in() {
        for (text, millis) in [
            ("5s", 5000),
            ("0", 0),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("300ms", 300),
            ("+2s", 2000),
            (".5s", 500),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)));
        }
        let message = |text| parse_duration(text).unwrap_err();
        assert_eq!(message("5"), "time: missing unit in duration \"5\"");
        assert_eq!(message(""), "time: invalid duration \"\"");
        assert_eq!(message("x"), "time: invalid duration \"x\"");
        assert_eq!(message("-5s"), "time: invalid duration \"-5s\"");
        assert_eq!(message("1..5s"), "time: invalid duration \"1..5s\"");
        assert_eq!(message("5d"), "time: unknown unit \"d\" in duration \"5d\"");
    }

    #[test]
    fn durations_out() {
        for (nanos, text) in [
            (0, "0s"),
            (15, "15ns"),
            (1_500, "1.5µs"),
            (1_437_554, "1.437554ms"),
            (1_000_445_565, "1.000445565s"),
            (2_000_000_000, "2s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(duration(Duration::from_nanos(nanos)), text);
        }
    }

    #[test]
    fn quoting() {
        // As etcdctl 3.4.23 prints these bytes with -w fields.
        assert_eq!(
            quote(b"a\"b\\c\n\t\x01\xff\xc3\xa9"),
            r#""a\"b\\c\n\t\x01\xffé""#
        );
        assert_eq!(quote(b"it's\x7f"), r#""it's\x7f""#);
        assert_eq!(
            quote("\u{200b}\u{e0001}e\u{301}".as_bytes()),
            "\"\\u200b\\U000e0001e\u{301}\""
        );
    }

    #[test]
    fn unquoting() {
        let read = |text| unquote(text).map(|(bytes, rest)| (bytes, rest.to_owned()));
        assert_eq!(
            read(r#""a b") x"#),
            Some((b"a b".to_vec(), ") x".to_owned()))
        );
        assert_eq!(
            read(r#""a\x41b\u00e9\101\"""#),
            Some(("aAbéA\"".as_bytes().to_vec(), String::new()))
        );
        assert_eq!(read("`raw\\n`"), Some((b"raw\\n".to_vec(), String::new())));
        for bad in [
            r#""open"#,
            r#""bad\q""#,
            r#""\x4""#,
            r#""\ud800""#,
            "none",
            r#""\777""#,
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        let every: Vec<u8> = (0..=255).collect();
        assert_eq!(unquote(&quote(&every)), Some((every, "")));
    }

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (9, "9 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (20_480, "20 kB"),
            (25_000, "25 kB"),
            (1_572_864, "1.6 MB"),
            (82_854_982, "83 MB"),
            (u64::MAX, "18 EB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(parse_int("-5"), Ok(-5));
        assert_eq!(
            parse_int("x").unwrap_err(),
            "strconv.ParseInt: parsing \"x\": invalid syntax"
        );
        assert_eq!(
            parse_int("9223372036854775808").unwrap_err(),
            "strconv.ParseInt: parsing \"9223372036854775808\": value out of range"
        );
        assert_eq!(parse_int_radix("694d", 16), Ok(0x694d));
        assert_eq!(parse_bool("T"), Ok(true));
        assert!(parse_bool("yes").is_err());
    }
}
