//! The grammar of `txn`: compares, operations if they hold, operations if not,
//! each block ended by an empty line.

use std::ffi::OsString;
use std::io::BufRead;

use clap::{Parser, Subcommand};
use varve_types::{Compare, CompareResult, CompareTarget, RequestOp, TxnRequest};

use crate::cli::{DelArgs, GetArgs, PutArgs};
use crate::commands::del::DeleteOp;
use crate::commands::get::GetOp;
use crate::commands::put::PutOp;
use crate::failure::Failure;
use crate::go_format::{parse_int, quote, unquote};
use crate::words;

/// A compare that owns its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OwnedCompare {
    target: Target,
    result: CompareResult,
    key: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
enum Target {
    Version(i64),
    Create(i64),
    Mod(i64),
    Value(Vec<u8>),
    Lease(i64),
}

impl OwnedCompare {
    fn borrow(&self) -> Compare<'_> {
        Compare {
            result: self.result,
            target: match &self.target {
                Target::Version(number) => CompareTarget::Version(*number),
                Target::Create(number) => CompareTarget::Create(*number),
                Target::Mod(number) => CompareTarget::Mod(*number),
                Target::Value(value) => CompareTarget::Value(value),
                Target::Lease(number) => CompareTarget::Lease(*number),
            },
            key: &self.key,
            range_end: &[],
        }
    }
}

/// An operation that owns its bytes.
#[derive(Debug)]
pub(crate) enum OwnedOp {
    Get(GetOp),
    Put(PutOp),
    Delete(DeleteOp),
}

impl OwnedOp {
    fn borrow(&self) -> RequestOp<'_> {
        match self {
            Self::Get(op) => RequestOp::Range(op.request()),
            Self::Put(op) => RequestOp::Put(op.request()),
            Self::Delete(op) => RequestOp::DeleteRange(op.request()),
        }
    }
}

/// A whole transaction as it was typed.
#[derive(Debug, Default)]
pub(crate) struct Script {
    compares: Vec<OwnedCompare>,
    success: Vec<OwnedOp>,
    failure: Vec<OwnedOp>,
}

impl Script {
    /// Reads a transaction, calling `prompt` before each block.
    pub(crate) fn read(
        input: &mut impl BufRead,
        mut prompt: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        prompt("compares:")?;
        let compares = read_block(input, parse_compare)?;
        prompt("success requests (get, put, del):")?;
        let success = read_block(input, parse_op)?;
        prompt("failure requests (get, put, del):")?;
        let failure = read_block(input, parse_op)?;
        Ok(Self {
            compares,
            success,
            failure,
        })
    }

    /// The request.
    pub(crate) fn request(&self) -> TxnRequest<'_> {
        TxnRequest {
            compare: self.compares.iter().map(OwnedCompare::borrow).collect(),
            success: self.success.iter().map(OwnedOp::borrow).collect(),
            failure: self.failure.iter().map(OwnedOp::borrow).collect(),
        }
    }
}

fn read_block<T>(
    input: &mut impl BufRead,
    parse: impl Fn(&str) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let mut items = Vec::new();
    loop {
        let mut line = Vec::new();
        input
            .read_until(b'\n', &mut line)
            .map_err(Failure::invalid_input)?;
        if line.pop() != Some(b'\n') {
            return Err(Failure::invalid_input("EOF"));
        }
        let line = String::from_utf8(line)
            .map_err(|_| Failure::invalid_input("input is not UTF-8; write such bytes as \\xNN"))?;
        match line.trim() {
            "" => return Ok(items),
            line => items.push(parse(line)?),
        }
    }
}

/// Reads a compare such as `mod("key") > "0"`.
fn parse_compare(line: &str) -> Result<OwnedCompare, Failure> {
    let Some((target, rest)) = line.split_once('(') else {
        return Err(Failure::invalid_input(format!(
            "malformed comparison: {line}"
        )));
    };
    let (key, op, value) = match scan(rest) {
        Ok(parts) => parts,
        Err((key, op)) => {
            return Err(Failure::invalid_input(format!(
                "malformed comparison: {line}; got {target}({}) {op} \"\"",
                quote(&key)
            )));
        }
    };
    let number = || {
        std::str::from_utf8(&value)
            .ok()
            .and_then(|text| parse_int(text).ok())
            .ok_or_else(|| Failure::invalid_input(format!("invalid txn compare request: {line}")))
    };
    let target = match target {
        "ver" | "version" => Target::Version(number()?),
        "c" | "create" => Target::Create(number()?),
        "m" | "mod" => Target::Mod(number()?),
        "val" | "value" => Target::Value(value),
        "lease" => Target::Lease(number()?),
        _ => {
            return Err(Failure::invalid_input(format!(
                "malformed comparison: {line} (unknown target {target})"
            )));
        }
    };
    let result = match op {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        // etcdctl panics here.
        _ => {
            return Err(Failure::invalid_input(format!(
                "malformed comparison: {line} (unknown operator {op})"
            )));
        }
    };
    Ok(OwnedCompare {
        target,
        result,
        key,
    })
}

/// Key, operator and value of a compare.
type Parts<'l> = (Vec<u8>, &'l str, Vec<u8>);
/// As much of them as could be read.
type Partial<'l> = (Vec<u8>, &'l str);

/// Reads `"key") op "value"`.
fn scan(rest: &str) -> Result<Parts<'_>, Partial<'_>> {
    let (key, rest) = unquote(rest).ok_or_else(|| (Vec::new(), ""))?;
    let Some(rest) = rest.strip_prefix(") ").map(str::trim_start) else {
        return Err((key, ""));
    };
    let (op, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    match unquote(rest.trim_start()) {
        Some((value, _)) => Ok((key, op, value)),
        None => Err((key, op)),
    }
}

#[derive(Debug, Parser)]
#[command(
    no_binary_name = true,
    disable_help_flag = true,
    args_override_self = true,
    disable_help_subcommand = true,
    infer_subcommands = true
)]
struct OpLine {
    #[command(subcommand)]
    op: Op,
}

#[derive(Debug, Subcommand)]
enum Op {
    Put(PutArgs),
    Get(GetArgs),
    Del(DelArgs),
}

/// Reads an operation: `get`, `put` or `del` with their flags.
fn parse_op(line: &str) -> Result<OwnedOp, Failure> {
    let words: Vec<OsString> = words::split(line)?;
    if words.len() < 2 {
        return Err(Failure::invalid_input(format!(
            "invalid txn compare request: {line}"
        )));
    }
    let parsed = OpLine::try_parse_from(words)
        .map_err(|_| Failure::invalid_input(format!("invalid txn request: {line}")))?;
    Ok(match parsed.op {
        // A value that is missing cannot come from standard input: that holds the transaction.
        Op::Put(args) => OwnedOp::Put(PutOp::new(&args, || None)?),
        Op::Get(args) => OwnedOp::Get(GetOp::new(&args)?),
        Op::Del(args) => OwnedOp::Delete(DeleteOp::new(&args)?),
    })
}

#[cfg(test)]
mod tests {
    use varve_types::{DeleteRangeRequest, PutRequest, RangeRequest};

    use super::*;
    use crate::failure::{EXIT_BAD_ARGS, EXIT_INVALID_INPUT};

    fn read(text: &str) -> Result<Script, Failure> {
        Script::read(&mut text.as_bytes(), |_| Ok(()))
    }

    fn compare<'a>(result: CompareResult, key: &'a [u8], target: CompareTarget<'a>) -> Compare<'a> {
        Compare {
            result,
            target,
            key,
            range_end: b"",
        }
    }

    #[test]
    fn a_whole_transaction() {
        let script = read(
            "mod(\"k\") > \"0\"\n  ver(\"k\")  =  \"1\" extra \nc(\"a\\x00\") != \"-2\"\n\
             value(\"k\") < \"a b\"\nlease(\"k\") = \"9\"\n \n\
             put a \"x y\" --prev-kv\nget k --prefix --limit=5\n\ndel zz --from-key\n\n",
        )
        .unwrap();
        let request = script.request();
        use CompareResult::{Equal, Greater, Less, NotEqual};
        assert_eq!(
            request.compare,
            [
                compare(Greater, b"k", CompareTarget::Mod(0)),
                compare(Equal, b"k", CompareTarget::Version(1)),
                compare(NotEqual, b"a\0", CompareTarget::Create(-2)),
                compare(Less, b"k", CompareTarget::Value(b"a b")),
                compare(Equal, b"k", CompareTarget::Lease(9)),
            ]
        );
        assert_eq!(
            request.success,
            [
                RequestOp::Put(PutRequest {
                    key: b"a",
                    value: b"x y",
                    prev_kv: true,
                    ..PutRequest::default()
                }),
                RequestOp::Range(RangeRequest {
                    key: b"k",
                    range_end: b"l",
                    limit: 5,
                    ..RangeRequest::default()
                }),
            ]
        );
        assert_eq!(
            request.failure,
            [RequestOp::DeleteRange(DeleteRangeRequest {
                key: b"zz",
                range_end: b"\0",
                prev_kv: false,
            })]
        );
    }

    #[test]
    fn prompts() {
        let mut seen = Vec::new();
        let prompt = |text: &str| {
            seen.push(text.to_owned());
            Ok(())
        };
        Script::read(&mut &b"\n\n\n"[..], prompt).unwrap();
        assert_eq!(
            seen,
            [
                "compares:",
                "success requests (get, put, del):",
                "failure requests (get, put, del):"
            ]
        );
    }

    #[test]
    fn errors_are_etcdctls() {
        // Recorded from etcdctl 3.4.23.
        for (text, code, message) in [
            ("val(\"k\") = \"v\"", 3, "EOF"),
            ("val(\"k\") = \"v\"\n", 3, "EOF"),
            ("val(\"k\") = \"v\"\n\nput a b\n", 3, "EOF"),
            (
                "val(\"k\" = \"v\"\n",
                3,
                "malformed comparison: val(\"k\" = \"v\"; got val(\"k\")  \"\"",
            ),
            ("val k = v\n", 3, "malformed comparison: val k = v"),
            (
                "foo(\"k\") = \"v\"\n",
                3,
                "malformed comparison: foo(\"k\") = \"v\" (unknown target foo)",
            ),
            (
                "val(\"k\") = v\n",
                3,
                "malformed comparison: val(\"k\") = v; got val(\"k\") = \"\"",
            ),
            (
                "ver(\"k\") = \"v\"\n",
                3,
                "invalid txn compare request: ver(\"k\") = \"v\"",
            ),
            (
                "ver(\"k\") = 1\n",
                3,
                "malformed comparison: ver(\"k\") = 1; got ver(\"k\") = \"\"",
            ),
            (
                "val(\"k\")=\"v\"\n",
                3,
                "malformed comparison: val(\"k\")=\"v\"; got val(\"k\")  \"\"",
            ),
            (
                "val (\"k\") = \"v\"\n",
                3,
                "malformed comparison: val (\"k\") = \"v\" (unknown target val )",
            ),
            ("\nput\n", 3, "invalid txn compare request: put"),
            (
                "\nput a\n",
                EXIT_BAD_ARGS,
                "put command needs 1 argument and input from stdin or 2 arguments",
            ),
            ("\nfoo a\n", 3, "invalid txn request: foo a"),
            (
                "\nget a b --prefix\n",
                EXIT_BAD_ARGS,
                "too many arguments, only accept one argument when `--prefix` or `--from-key` is set",
            ),
            (
                "\nput a b --nope\n",
                3,
                "invalid txn request: put a b --nope",
            ),
            ("\nput s \"bad\\q\"\n", 3, "invalid syntax"),
            // etcdctl panics on the following.
            (
                "val(\"k\") ? \"v\"\n",
                EXIT_INVALID_INPUT,
                "malformed comparison: val(\"k\") ? \"v\" (unknown operator ?)",
            ),
        ] {
            assert_eq!(
                read(text).unwrap_err(),
                Failure::new(code, message),
                "{text:?}"
            );
        }
        assert!(read("val(\"\u{7f}\") = ()\n").is_err());
        let mut garbage = &b"\xff\xfe\n"[..];
        assert!(Script::read(&mut garbage, |_| Ok(())).is_err());
    }

    /// Scripts are put together from pieces that mean something to the grammar.
    #[test]
    fn whatever_is_typed_is_taken_or_refused() {
        let pieces = [
            "mod(",
            "val(",
            "ver(\"k\") = \"1\"\n",
            "c(",
            "lease(",
            "\"k\"",
            "\"",
            ")",
            ") ",
            "= ",
            "!= ",
            "> ",
            "\"1\"",
            "\"99999999999999999999\"",
            "\n",
            "\n\n",
            "put ",
            "put k v\n",
            "get ",
            "get k\n",
            "del ",
            "del k\n",
            "k ",
            "v ",
            "--prefix ",
            "--limit=",
            "--rev=",
            "-9223372036854775808 ",
            "--",
            "-",
            "'",
            "\\x",
            "\\xff",
            "\\u00",
            "\\",
            "é",
            "\0",
            "--order=",
            "--sort-by=KEY ",
            "--lease=",
            "--lease=7f ",
            "--from-key ",
        ];
        let mut random = varve_engine::backend::conformance::Random::new(1);
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..100_000 {
            let count = random.below(12);
            let parts = (0..count).map(|_| pieces[random.below(pieces.len())].as_bytes());
            let mut script = parts.collect::<Vec<_>>().concat();
            if random.below(4) == 0 && !script.is_empty() {
                let at = random.below(script.len());
                script[at] = random.number() as u8;
            }
            script.extend_from_slice(b"\n\n\n");
            match Script::read(&mut &script[..], |_| Ok(())) {
                Ok(script) => {
                    script.request();
                    taken += 1;
                }
                Err(_) => refused += 1,
            }
        }
        assert!(
            taken > 500 && refused > 500,
            "{taken} taken, {refused} refused"
        );
    }
}
