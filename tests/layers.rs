//! The layers that ARCHITECTURE.md lists are those of the source.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// For each module of the crate, the line in the list on which it stands.
fn layers(architecture: &str) -> HashMap<String, usize> {
    let list = architecture
        .split_once("## Layers")
        .and_then(|(_, section)| section.split_once("src/\n"))
        .and_then(|(_, list)| list.split_once("```"))
        .map(|(list, _)| list)
        .expect("ARCHITECTURE.md lists the layers");
    let mut layers = HashMap::new();
    for (line, text) in list.lines().enumerate() {
        // Deeper lines go on with the description of the one above.
        if !text.starts_with("  ") || text.starts_with("   ") {
            continue;
        }
        let names = text.trim_start().split("  ").next().unwrap_or_default();
        for name in names.split_whitespace() {
            let before = layers.insert(name.to_owned(), line);
            assert_eq!(before, None, "`{name}` is listed twice");
        }
    }
    layers
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules of this crate that code names, without comments and tests.
fn imports(code: &str) -> BTreeSet<String> {
    let code = code
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(code);
    let lines = code
        .lines()
        .map(|line| line.split("//").next().unwrap_or(line));
    let code: String = lines.collect::<Vec<_>>().join(" ");
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        // Several may be named at once: `crate::{a, b::C}`.
        let names = match after.strip_prefix('{') {
            Some(list) => list.split_once('}').map_or(list, |(list, _)| list),
            None => after,
        };
        let parts = match after.starts_with('{') {
            true => names.split(',').collect(),
            false => vec![names],
        };
        for part in parts {
            let name: String = part
                .trim_start()
                .chars()
                .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
                .collect();
            found.insert(name);
        }
    }
    found
}

/// What is wrong with a module's imports.
fn violations(layers: &HashMap<String, usize>, module: &str, code: &str) -> Vec<String> {
    let Some(own) = layers.get(module) else {
        return vec![format!("`{module}` is not in the list of layers")];
    };
    let imports = imports(code).into_iter();
    let higher = imports.filter(|name| layers.get(name).is_some_and(|layer| layer > own));
    let mut wrong: Vec<_> = higher
        .map(|name| format!("`{module}` imports `{name}`, which is a higher layer"))
        .collect();
    let sides = [("server", "client"), ("client", "server")];
    for (side, other) in sides {
        if module == side && code_names(code, other) {
            wrong.push(format!("`{side}` imports `{other}`"));
        }
    }
    wrong
}

fn code_names(code: &str, module: &str) -> bool {
    imports(code).contains(module)
}

#[test]
fn each_layer_imports_only_those_before_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let architecture = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let layers = layers(&architecture);
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    assert!(files.len() > 100, "the source is where it was");
    let mut wrong = Vec::new();
    for file in files {
        let path = file.strip_prefix(root.join("src")).unwrap();
        // Tests use whole apps.
        let is_test = path.components().any(|part| {
            let name = part.as_os_str().to_string_lossy();
            name == "tests" || name.ends_with("tests.rs")
        });
        if is_test {
            continue;
        }
        let first = path.components().next().unwrap().as_os_str();
        let module = Path::new(first)
            .file_stem()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let code = fs::read_to_string(&file).unwrap();
        for violation in violations(&layers, &module, &code) {
            wrong.push(format!("{}: {violation}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_import_of_a_higher_layer_is_found() {
    let layers = layers(
        "## Layers\n```text\nsrc/\n  tick  values\n  registry\n  server client  plugins\n```",
    );
    let import = "use crate::tick::Tick;\nuse crate::server::ServerConfig;\n";
    assert_eq!(violations(&layers, "registry", import).len(), 1);
    assert_eq!(violations(&layers, "server", import).len(), 0);
    assert_eq!(violations(&layers, "client", import).len(), 1);
    let several = "use crate::{tick, client::Connection};";
    assert_eq!(violations(&layers, "registry", several).len(), 1);
    assert_eq!(violations(&layers, "unknown", "").len(), 1);
}
