//! The folder that is served.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::{Failure, root};

/// What is worth compressing. Images are compressed already.
const COMPRESSED: [&str; 3] = ["html", "js", "wasm"];
/// Tells a folder that this program has made, and may empty, from others.
const MARK: &str = ".bevy_tandem";

/// Makes an empty folder, or empties one that an earlier build has made.
pub fn clear(out: &Path) -> Result<(), Failure> {
    let is_empty = fs::read_dir(out).map_or(true, |mut entries| entries.next().is_none());
    if !is_empty {
        if !out.join(MARK).exists() {
            return Err(format!(
                "{} has files that are not of an earlier build; empty it, or choose another folder with --out",
                out.display()
            ));
        }
        fs::remove_dir_all(out).map_err(|error| at(out, &error))?;
    }
    fs::create_dir_all(out).map_err(|error| at(out, &error))?;
    write(&out.join(MARK), b"")
}

/// Adds the page and the images to the program.
pub fn add_page(out: &Path, name: &str) -> Result<(), Failure> {
    let images = out.join("assets");
    fs::create_dir_all(&images).map_err(|error| at(&images, &error))?;
    for path in files(&root().join("assets"))? {
        let is_of_the_game = path.extension().is_some_and(|extension| extension == "png")
            && path.file_stem().is_some_and(|stem| stem != "screenshot");
        if let Some(file) = path.file_name().filter(|_| is_of_the_game) {
            fs::copy(&path, images.join(file)).map_err(|error| at(&path, &error))?;
        }
    }
    let program = read(&out.join(format!("{name}_bg.wasm")))?;
    let template = root().join("examples/arena/web/index.html");
    let page = String::from_utf8_lossy(&read(&template)?)
        .replace("WASM_BYTES", &program.len().to_string())
        .replace("BUILD", &fingerprint(&program));
    write(&out.join("index.html"), page.as_bytes())
}

/// Names a build, so that a browser that has another one does not mix the two.
fn fingerprint(program: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    program.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Puts a `.gz` and a `.br` beside each file that gains by it, for servers that send such: all that this repository
/// has, and nginx with `gzip_static`.
pub fn compress(out: &Path, thoroughly: bool) -> Result<(), Failure> {
    for path in files(out)? {
        let extension = path.extension().and_then(|extension| extension.to_str());
        if !extension.is_some_and(|extension| COMPRESSED.contains(&extension)) {
            continue;
        }
        let bytes = read(&path)?;
        let (gzip, brotli) = match thoroughly {
            true => (gzip(&bytes, 9), brotli(&bytes, 11)),
            false => (gzip(&bytes, 3), brotli(&bytes, 2)),
        };
        for (ending, compressed) in [("gz", gzip), ("br", brotli)] {
            let compressed = compressed.map_err(|error| at(&path, &error))?;
            write(&with_ending(&path, ending), &compressed)?;
        }
    }
    Ok(())
}

fn gzip(bytes: &[u8], level: u32) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn brotli(bytes: &[u8], quality: i32) -> io::Result<Vec<u8>> {
    let params = brotli::enc::BrotliEncoderParams {
        quality,
        lgwin: 22,
        size_hint: bytes.len(),
        ..Default::default()
    };
    let mut compressed = Vec::new();
    brotli::BrotliCompress(&mut &*bytes, &mut compressed, &params)?;
    Ok(compressed)
}

/// Prints what a visitor has to load. Returns how much that is with brotli.
pub fn report(out: &Path) -> Result<u64, Failure> {
    let mut paths = files(out)?;
    paths.extend(files(&out.join("assets"))?);
    let mut totals = [0; 3];
    say!("\n{:<28}{:>14}{:>14}{:>14}", "", "bytes", "gzip", "brotli");
    for path in &paths {
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, None | Some("gz" | "br")) {
            continue;
        }
        let plain = size(path)?;
        let sizes = [
            plain,
            size(&with_ending(path, "gz")).unwrap_or(plain),
            size(&with_ending(path, "br")).unwrap_or(plain),
        ];
        for (total, size) in totals.iter_mut().zip(sizes) {
            *total += size;
        }
        if plain > 10_000 {
            let name = path.strip_prefix(out).unwrap_or(path).display().to_string();
            print_row(&name, sizes);
        }
    }
    print_row("all together", totals);
    Ok(totals[2])
}

fn print_row(name: &str, [plain, gzip, brotli]: [u64; 3]) {
    say!("{name:<28}{plain:>14}{gzip:>14}{brotli:>14}");
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = fs::read_dir(folder).map_err(|error| at(folder, &error))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| at(folder, &error))?.path();
        if path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".");
    name.push(ending);
    name.into()
}

fn size(path: &Path) -> Result<u64, Failure> {
    fs::metadata(path)
        .map(|metadata| metadata.len())
        .map_err(|error| at(path, &error))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| at(path, &error))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    File::create(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(|error| at(path, &error))
}

fn at(path: &Path, error: &io::Error) -> Failure {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn compressed_bytes_are_the_same() {
        let bytes: Vec<u8> = (0..50_000_u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        let gzip = gzip(&bytes, 9).expect("memory takes all");
        let mut back = Vec::new();
        flate2::read::GzDecoder::new(&*gzip)
            .read_to_end(&mut back)
            .expect("gzip");
        assert!(back == bytes && gzip.len() < bytes.len(), "gzip");

        let compressed = brotli(&bytes, 11).expect("memory takes all");
        back.clear();
        brotli::BrotliDecompress(&mut &*compressed, &mut back).expect("brotli");
        assert!(back == bytes && compressed.len() < bytes.len(), "brotli");
    }

    #[test]
    fn folders_of_others_are_left_alone() {
        let folder = std::env::temp_dir().join(format!("xtask-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("letter.txt"), "dear").expect("a file");
        let refused = clear(&folder);
        let is_there = folder.join("letter.txt").exists();
        fs::remove_dir_all(&folder).expect("removable");
        assert!(refused.is_err() && is_there, "{refused:?}");

        clear(&folder).expect("made");
        fs::write(folder.join("old.js"), "").expect("a file");
        clear(&folder).expect("emptied");
        let is_gone = !folder.join("old.js").exists();
        fs::remove_dir_all(&folder).expect("removable");
        assert!(is_gone, "what an earlier build has left");
    }
}
