//! A Rust compiler for browsers.
//!
//! What a compiler needs beside itself is the standard library for `wasm32-unknown-unknown`. `rustup` installs it ready
//! made. Debian does not have it, but has its sources, from which its compiler makes it on the way.

use std::env;
use std::path::Path;
use std::process::Command;

use crate::{Failure, output};

/// What is built for.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// The oldest compiler that will do, as in `Cargo.toml`.
const OLDEST: (u32, u32) = (1, 95);

const DEBIANS_CARGO: &str = "/usr/bin/cargo";
const DEBIANS_RUSTC: &str = "/usr/bin/rustc";

/// A compiler that can build for browsers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The one that has built this program.
    Usual,
    /// Debian's, which has to build the standard library too.
    Debian,
}

impl Toolchain {
    /// The first that is there.
    pub fn find() -> Result<Self, Failure> {
        if sysroot(&usual("RUSTC", "rustc"))
            .is_some_and(|sysroot| has(&sysroot, &format!("lib/rustlib/{TARGET}/lib")))
        {
            return Ok(Self::Usual);
        }
        let debians = sysroot(DEBIANS_RUSTC);
        if Path::new(DEBIANS_CARGO).exists()
            && debians.is_some_and(|sysroot| has(&sysroot, "lib/rustlib/src/rust/library"))
            && version(DEBIANS_RUSTC).is_some_and(|version| version >= OLDEST)
        {
            return Ok(Self::Debian);
        }
        Err(format!(
            "there is no Rust compiler for {TARGET}; install one with one of\n  \
             rustup target add {TARGET}\n  \
             apt-get install rustc-web cargo-web rust-web-src lld-22 rust-web-llvm    (Debian)"
        ))
    }

    /// `cargo build` for browsers.
    pub fn build(self) -> Command {
        let mut command = match self {
            Self::Usual => Command::new(usual("CARGO", "cargo")),
            Self::Debian => Command::new(DEBIANS_CARGO),
        };
        command.args(["build", "--target", TARGET]);
        if self == Self::Debian {
            command
                .arg("-Zbuild-std=std,panic_abort")
                .env("RUSTC", DEBIANS_RUSTC)
                .env("RUSTC_BOOTSTRAP", "1");
            // What the usual cargo has set for its own compiler.
            for name in ["CARGO", "RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH"] {
                command.env_remove(name);
            }
        }
        command
    }

    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Usual => "this toolchain",
            Self::Debian => "Debian's compiler, standard library included",
        }
    }
}

/// A program of the toolchain in use.
fn usual(variable: &str, name: &str) -> String {
    env::var(variable).unwrap_or_else(|_| name.into())
}

fn sysroot(rustc: &str) -> Option<String> {
    output(
        Command::new(rustc)
            .args(["--print", "sysroot"])
            .env_remove("LD_LIBRARY_PATH"),
    )
}

fn has(sysroot: &str, path: &str) -> bool {
    Path::new(sysroot).join(path).exists()
}

fn version(rustc: &str) -> Option<(u32, u32)> {
    parse_version(&output(
        Command::new(rustc)
            .arg("--version")
            .env_remove("LD_LIBRARY_PATH"),
    )?)
}

/// Major and minor of the first thing that looks like a version.
pub fn parse_version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let (major, rest) = word.split_once('.')?;
        let minor = rest.split('.').next()?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(
            parse_version("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"),
            Some((1, 96))
        );
        assert_eq!(parse_version("rustc"), None);
    }
}
