//! `cargo xtask web`: the arena as a web page.

use std::fs;
use std::path::Path;
use std::process::Command;

use wasm_bindgen_cli_support::Bindgen;

use crate::toolchain::{TARGET, Toolchain};
use crate::{Failure, Options, bundle, root, run, target, wasm_opt};

/// The example, and what it is called in the page.
const EXAMPLE: &str = "browser";
const NAME: &str = "arena";

/// The most that a release build may have, compressed by brotli. It has 4.2 MB.
const MAX_COMPRESSED: u64 = 5_000_000;

/// Builds it.
pub fn build(options: &Options) -> Result<(), Failure> {
    let toolchain = Toolchain::find()?;
    say!("building with {}", toolchain.describe());
    // A folder of its own, since it may be another compiler.
    let built = target().join("wasm");
    let (profile, folder) = match options.release {
        true => ("web", "web"),
        false => ("dev", "debug"),
    };
    run(toolchain
        .build()
        .current_dir(root())
        .args([
            "--example",
            EXAMPLE,
            "--features",
            "render",
            "--profile",
            profile,
        ])
        .arg("--target-dir")
        .arg(&built))?;
    let program = built
        .join(TARGET)
        .join(folder)
        .join("examples")
        .join(format!("{EXAMPLE}.wasm"));

    // What is from an earlier build and of another name would stay for ever.
    bundle::clear(&options.out)?;
    Bindgen::new()
        .input_path(&program)
        .web(true)
        .and_then(|bindgen| {
            bindgen
                .out_name(NAME)
                .typescript(false)
                .remove_name_section(options.release)
                .remove_producers_section(options.release)
                .generate(&options.out)
        })
        .map_err(|error| format!("{}: {error:#}", program.display()))?;

    if options.release {
        optimise(&options.out.join(format!("{NAME}_bg.wasm")))?;
    }
    bundle::add_page(&options.out, NAME)?;
    bundle::compress(&options.out, options.release)?;
    let compressed = bundle::report(&options.out)?;
    if options.release && compressed > MAX_COMPRESSED {
        return Err(format!(
            "the page has {compressed} bytes as browsers fetch it, more than the {MAX_COMPRESSED} that it may: see \
             which feature or dependency came in, or raise the limit in xtask/src/web.rs"
        ));
    }
    say!(
        "\nPlay with: cargo serve --web {0}\nor serve {0} with any web server, and add ?server=ws://HOST:PORT/",
        options.out.display()
    );
    Ok(())
}

/// Makes the program smaller, if there is what it takes.
fn optimise(program: &Path) -> Result<(), Failure> {
    let Some(wasm_opt) = wasm_opt::find() else {
        complain!(
            "note: the program could be a fifth smaller; install wasm-opt (binaryen 116 or newer), or npm, which \
             fetches it"
        );
        return Ok(());
    };
    say!("optimising with {}", wasm_opt.display());
    let optimised = program.with_extension("opt");
    run(Command::new(wasm_opt)
        // What the compiler uses, and all browsers of today have. With all features, it uses some that none has.
        .args([
            "-Oz",
            "--enable-bulk-memory",
            "--enable-multivalue",
            "--enable-mutable-globals",
            "--enable-nontrapping-float-to-int",
            "--enable-reference-types",
            "--enable-sign-ext",
            "--strip-producers",
            "--strip-debug",
        ])
        .arg(program)
        .arg("-o")
        .arg(&optimised))?;
    fs::rename(&optimised, program).map_err(|error| format!("{}: {error}", program.display()))
}
