//! What takes more than one cargo command.
//!
//!     cargo xtask web [--out DIR] [--release]       the arena as a web page

/// Prints a line on stdout. Where nobody reads it any more, as in `cargo xtask --help | head -1`, `println!` would panic.
macro_rules! say {
    ($($line:tt)*) => {
        crate::print_to(std::io::stdout().lock(), format_args!($($line)*))
    };
}

/// The same on stderr.
macro_rules! complain {
    ($($line:tt)*) => {
        crate::print_to(std::io::stderr().lock(), format_args!($($line)*))
    };
}

mod bundle;
mod toolchain;
mod wasm_opt;
mod web;

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use lexopt::Parser;

const USAGE: &str = "\
usage: cargo xtask web [--out DIR] [--release]

Builds the arena for browsers, with its page, into a folder that any web server can serve.

  --out DIR  the folder; target/web by default
  --release  optimised for size: takes many minutes, and makes a tenth of the bytes";

fn print_to(mut out: impl Write, line: fmt::Arguments) {
    // What cannot be printed is not.
    let _ = writeln!(out, "{line}");
}

/// What ends a task, for people to read.
type Failure = String;

fn main() -> ExitCode {
    let options = match Options::parse(Parser::from_env()) {
        Ok(Some(options)) => options,
        Ok(None) => {
            say!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            complain!("error: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match web::build(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// What `web` is told.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    out: PathBuf,
    release: bool,
}

impl Options {
    /// `None` if what is wanted is help.
    fn parse(mut parser: Parser) -> Result<Option<Self>, lexopt::Error> {
        use lexopt::Arg::{Long, Short, Value};
        let mut options = Self {
            out: root().join("target/web"),
            release: false,
        };
        let mut task = None;
        while let Some(arg) = parser.next()? {
            match arg {
                Value(value) if task.is_none() && value == "web" => task = Some(value),
                Long("out") => options.out = parser.value()?.into(),
                Long("release") => options.release = true,
                Long("help") | Short('h') => return Ok(None),
                other => return Err(other.unexpected()),
            }
        }
        match task {
            Some(_) => Ok(Some(options)),
            None => Err("say what to do".into()),
        }
    }
}

/// The repository's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this package is a folder of the repository")
}

/// Where things are built: cargo's target folder.
fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// Runs a command to its end, with its output on the screen.
fn run(command: &mut Command) -> Result<(), Failure> {
    let name = command.get_program().display().to_string();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{name}` has failed ({status})")),
        Err(error) => Err(format!("`{name}` cannot be run: {error}")),
    }
}

/// What a command prints, if it can be run and does not fail.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_understood() {
        let parse = |args: &[&str]| Options::parse(Parser::from_args(args));
        let options = parse(&["web", "--release", "--out", "/somewhere"]).expect("fine");
        let expected = Options {
            out: "/somewhere".into(),
            release: true,
        };
        assert_eq!(options, Some(expected));
        assert_eq!(parse(&["--help"]).expect("fine"), None);
        for line in [&[][..], &["wasm"], &["web", "web"], &["web", "--out"]] {
            assert!(parse(line).is_err(), "{line:?} is a mistake");
        }
    }
}
