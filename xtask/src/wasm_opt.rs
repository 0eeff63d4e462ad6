//! `wasm-opt`, which makes programs for browsers smaller.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{output, run, target};

/// The release of binaryen's npm package that is fetched where there is no `wasm-opt`.
const BINARYEN: &str = "132.0.0";
/// Older ones do not know what today's compilers write.
const OLDEST_WASM_OPT: u32 = 116;

/// `wasm-opt`, from the path or, if there is `npm`, by it. `None` where there is neither: the program is then a fifth
/// larger.
pub fn find() -> Option<PathBuf> {
    let is_right = |program: &Path| {
        let said = output(Command::new(program).arg("--version"));
        said.and_then(|said| wasm_opt_version(&said))
            .is_some_and(|version| version >= OLDEST_WASM_OPT)
    };
    let folder = target().join("tools");
    let fetched = folder.join("node_modules/.bin/wasm-opt");
    let named = env::var_os("WASM_OPT").map(PathBuf::from);
    for program in named
        .into_iter()
        .chain(["wasm-opt".into(), fetched.clone()])
    {
        if is_right(&program) {
            return Some(program);
        }
    }
    output(Command::new("npm").arg("--version"))?;
    say!("installing binaryen {BINARYEN} into {}", folder.display());
    let installed = run(Command::new("npm")
        .args([
            "install",
            "--no-save",
            "--no-audit",
            "--no-fund",
            "--loglevel=error",
            "--prefix",
        ])
        .arg(&folder)
        .arg(format!("binaryen@{BINARYEN}")));
    if let Err(failure) = installed {
        complain!("warning: {failure}");
    }
    is_right(&fetched).then_some(fetched)
}

/// Of "wasm-opt version 116 (version_116)".
fn wasm_opt_version(said: &str) -> Option<u32> {
    said.split_whitespace().find_map(|word| word.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wasm_opt_says_its_version() {
        assert_eq!(
            wasm_opt_version("wasm-opt version 108 (version_108)"),
            Some(108)
        );
        assert_eq!(wasm_opt_version("wasm-opt"), None);
    }
}
