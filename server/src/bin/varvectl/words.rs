//! Splitting a line of `txn` or `watch -i` into words.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::failure::Failure;
use crate::go_format::unquote;

/// Splits at white space. Words in single quotes are taken as they are, words in double quotes
/// are read as Go string literals.
pub(crate) fn split(line: &str) -> Result<Vec<OsString>, Failure> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        rest = match first {
            '"' => match end_of_quoted(rest) {
                Some(end) => {
                    let (bytes, _) = unquote(&rest[..end])
                        .ok_or_else(|| Failure::invalid_input("invalid syntax"))?;
                    words.push(OsString::from_vec(bytes));
                    &rest[end..]
                }
                // A quote that is never closed is passed over, as etcdctl does.
                None => &rest[1..],
            },
            '\'' => match rest[1..].find('\'') {
                Some(length) => {
                    words.push(OsString::from(&rest[1..=length]));
                    &rest[length + 2..]
                }
                None => &rest[1..],
            },
            _ => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                words.push(OsString::from(&rest[..end]));
                &rest[end..]
            }
        }
        .trim_start();
    }
    Ok(words)
}

/// Where the double-quoted word that `text` starts with ends.
fn end_of_quoted(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for (line, expected) in [
            ("", vec![]),
            ("  put  a b ", vec!["put", "a", "b"]),
            (
                "put a 'single quoted' x",
                vec!["put", "a", "single quoted", "x"],
            ),
            (r#"put a "x y" z"#, vec!["put", "a", "x y", "z"]),
            (
                r#"put a "multi\nline\t\"q\"""#,
                vec!["put", "a", "multi\nline\t\"q\""],
            ),
            (r#"put s \"esc\""#, vec!["put", "s", r#"\"esc\""#]),
            ("put a '' b", vec!["put", "a", "", "b"]),
            ("put x -- -v", vec!["put", "x", "--", "-v"]),
            ("put x it's", vec!["put", "x", "it's"]),
        ] {
            let words = split(line).unwrap();
            assert_eq!(
                words,
                expected.iter().map(OsString::from).collect::<Vec<_>>()
            );
        }
        let failure = split(r#"put s "bad\q""#).unwrap_err();
        assert_eq!(failure, Failure::invalid_input("invalid syntax"));
    }
}
