//! `cargo xtask image`: an OCI image of each daemon from a release build on this machine, without a container builder, a base
//! image or a network.
//!
//! The root file system is the one of `deploy/images/Containerfile`: `deploy/images/rootfs.sh` makes both. An image is one
//! layer of one program and its C library, as an OCI layout in a tar file, which `ctr --namespace k8s.io images import`,
//! `podman load` and `skopeo` take. The same programs give the same bytes: no time stamps, no owner, a sorted layer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::command::{cargo, output, run as run_command, target_dir, workspace};
use crate::doctor::is_root;

/// The user of images whose program needs no right of root: the one that `rootfs.sh` writes down.
const USER: &str = "65532:65532";
/// The daemons, and whom each runs as where the pod does not say.
const PROGRAMS: [(&str, Option<&str>); 2] = [("portolan-proxy", None), ("portolan-dns", Some(USER))];

/// Arguments of `cargo xtask image`.
#[derive(clap::Args)]
pub struct Args {
    /// The folder that the archives are written to; default: images below the target directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// What stands before the program's name in the image's
    #[arg(long, default_value = "localhost/")]
    prefix: String,
    /// The images' tag
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// Take the programs in this folder, of whatever architecture, instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// Builds the daemons and writes an archive for each.
///
/// # Errors
/// When the build, `rootfs.sh`, `tar`, `gzip` or `sha256sum` fails, and when a program does not start in its own root file
/// system.
pub fn run(args: &Args) -> Result<()> {
    let programs = match &args.programs {
        Some(folder) => folder.clone(),
        None => build()?,
    };
    let out = args.out.clone().unwrap_or_else(|| target_dir().join("images"));
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    for (program, user) in PROGRAMS {
        let name = format!("{}{program}:{}", args.prefix, args.tag);
        let archive = out.join(format!("{program}.tar"));
        write(&programs.join(program), user, &name, &archive)?;
        let size = fs::metadata(&archive)
            .with_context(|| format!("cannot look at {}", archive.display()))?
            .len();
        println!(
            "{name}: {}, {:.1} MiB",
            archive.display(),
            size as f64 / f64::from(1 << 20)
        );
    }
    Ok(())
}

/// Makes a release build; where its programs are.
fn build() -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--release", "--locked"]);
    if let Some(commit) = commit() {
        build.env("PORTOLAN_COMMIT", commit);
    }
    run_command(
        PROGRAMS
            .iter()
            .fold(&mut build, |build, (name, _)| build.args(["-p", name])),
    )?;
    Ok(target_dir().join("release"))
}

/// The commit that is built; without git, or outside of a checkout, the program says `unknown`.
fn commit() -> Option<String> {
    let text = output(
        Command::new("git")
            .current_dir(workspace())
            .args(["rev-parse", "--short=12", "HEAD"]),
    )
    .ok()?;
    Some(text.trim().to_owned())
}

fn write(binary: &Path, user: Option<&str>, name: &str, archive: &Path) -> Result<()> {
    let program = binary.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let platform = platform(&fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?)
        .with_context(|| binary.display().to_string())?;
    let work = archive.with_extension("parts");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    let root = work.join("rootfs");
    let layout = work.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
    run_command(
        Command::new("sh")
            .arg(workspace().join("deploy/images/rootfs.sh"))
            .args([binary, &root]),
    )?;
    if platform.rust == std::env::consts::ARCH {
        starts(program, &root)?;
    }

    let layer = work.join("layer.tar");
    tar(&root, &layer)?;
    // The configuration names the layer as it is unpacked, the manifest as it is kept.
    let config = configuration(program, user, &platform, &format!("sha256:{}", sha256(&layer)?));
    run_command(Command::new("gzip").args(["--no-name", "--best"]).arg(&layer))?;
    let layer = store(&work.join("layer.tar.gz"), &blobs)?;
    let config = store_json(&work, &blobs, &config)?;
    let manifest = store_json(&work, &blobs, &manifest(&config, &layer))?;
    fs::write(layout.join("index.json"), index(name, &manifest).to_string())
        .and_then(|()| fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#))
        .with_context(|| format!("cannot write to {}", layout.display()))?;
    tar(&layout, archive)?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
}

/// Starts the program where nothing else is: a library that `rootfs.sh` missed shows here and not on somebody's node.
fn starts(program: &str, root: &Path) -> Result<()> {
    if !is_root() {
        println!("{program}: not tried in its root file system, which takes root");
        return Ok(());
    }
    let said = output(
        Command::new("chroot")
            .arg(root)
            .arg(format!("/{program}"))
            .arg("--version"),
    )
    .with_context(|| format!("{program} does not start in its own root file system"))?;
    if !said.starts_with(program) {
        bail!("{program} --version says {said:?}");
    }
    Ok(())
}

/// A tar file of a folder's content that depends on nothing but the content.
fn tar(folder: &Path, file: &Path) -> Result<()> {
    run_command(
        Command::new("tar")
            .args(["--create", "--format=gnu", "--sort=name", "--mtime=@0"])
            .args(["--owner=0", "--group=0", "--numeric-owner", "--mode=u+rw,go-w,a+rX"])
            .arg("--file")
            .arg(file)
            .arg("--directory")
            .arg(folder)
            .args(
                fs::read_dir(folder)
                    .with_context(|| format!("cannot read {}", folder.display()))?
                    .flatten()
                    .map(|entry| entry.file_name())
                    .collect::<std::collections::BTreeSet<_>>(),
            ),
    )
}

/// Moves a file to its place among the blobs; its digest and size in bytes.
fn store(file: &Path, blobs: &Path) -> Result<(String, u64)> {
    let hash = sha256(file)?;
    let size = fs::metadata(file)
        .with_context(|| format!("cannot look at {}", file.display()))?
        .len();
    fs::rename(file, blobs.join(&hash)).with_context(|| format!("cannot move {}", file.display()))?;
    Ok((format!("sha256:{hash}"), size))
}

fn sha256(file: &Path) -> Result<String> {
    let said = output(Command::new("sha256sum").arg("--").arg(file))?;
    let hash = said.split_whitespace().next().filter(|hash| hash.len() == 64);
    Ok(hash.with_context(|| format!("sha256sum says {said:?}"))?.to_owned())
}

fn store_json(work: &Path, blobs: &Path, value: &Value) -> Result<(String, u64)> {
    let file = work.join("blob.json");
    fs::write(&file, value.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
    store(&file, blobs)
}

/// An architecture: in Rust's words, and with its variant in OCI's (those of Go).
#[derive(Debug, PartialEq, Eq)]
struct Platform {
    rust: &'static str,
    oci: &'static str,
    variant: Option<&'static str>,
}

/// What a program is for, by its ELF header: a magic, and the machine at offset 18 (elf.h).
fn platform(program: &[u8]) -> Result<Platform> {
    let machine = match program {
        [0x7f, b'E', b'L', b'F', _, 1, ..] => program.get(18..20),
        _ => None,
    };
    let (rust, oci, variant) = match machine {
        Some([62, 0]) => ("x86_64", "amd64", None),
        Some([183, 0]) => ("aarch64", "arm64", None),
        Some([40, 0]) => ("arm", "arm", Some("v7")),
        Some([243, 0]) => ("riscv64", "riscv64", None),
        Some(other) => bail!("machine {other:?} has no name for images yet"),
        None => bail!("this is no little-endian ELF program"),
    };
    Ok(Platform { rust, oci, variant })
}

/// OCI image configuration (image-spec 1.1, config.md).
fn configuration(program: &str, user: Option<&str>, platform: &Platform, layer: &str) -> Value {
    let mut inner = json!({ "Entrypoint": [format!("/{program}")], "WorkingDir": "/" });
    if let Some(user) = user {
        inner["User"] = user.into();
    }
    let mut config = json!({
        "architecture": platform.oci,
        "os": "linux",
        "config": inner,
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    });
    if let Some(variant) = platform.variant {
        config["variant"] = variant.into();
    }
    config
}

/// OCI image manifest (image-spec 1.1, manifest.md) of a configuration and one layer.
fn manifest((config, config_size): &(String, u64), (layer, layer_size): &(String, u64)) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config,
            "size": config_size,
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": layer,
            "size": layer_size,
        }],
    })
}

/// The index of a layout with one image. containerd takes the name from its own annotation, others from the standard one.
fn index(name: &str, (manifest, size): &(String, u64)) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest,
            "size": size,
            "annotations": {
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name,
            },
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive of a program that every machine has, read back as a container runtime reads it: each descriptor names a
    /// blob of its size and digest, and the layer holds the program.
    #[test]
    fn an_image_is_what_its_descriptors_say() {
        let work = target_dir().join("xtask/test-image");
        let _ = fs::remove_dir_all(&work);
        let blobs = work.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("a folder");
        let root = work.join("rootfs");
        fs::create_dir_all(root.join("etc")).expect("a folder");
        fs::write(root.join("program"), "content").expect("a file");
        tar(&root, &work.join("layer.tar")).expect("tar");
        tar(&root, &work.join("again.tar")).expect("tar");
        assert_eq!(
            fs::read(work.join("layer.tar")).expect("the layer"),
            fs::read(work.join("again.tar")).expect("the layer, again")
        );
        let digest = format!("sha256:{}", sha256(&work.join("layer.tar")).expect("sha256sum"));
        let config = configuration("program", Some(USER), &here(), &digest);
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest]));
        let layer = store(&work.join("layer.tar"), &blobs).expect("a layer");
        let config = store_json(&work, &blobs, &config).expect("a configuration");
        let value = manifest(&config, &layer);
        for descriptor in [&value["config"], &value["layers"][0]] {
            let digest = descriptor["digest"].as_str().expect("a digest");
            let blob = blobs.join(digest.trim_start_matches("sha256:"));
            let content = fs::read(&blob).expect("the blob that the digest names");
            assert_eq!(Some(content.len() as u64), descriptor["size"].as_u64());
            let said = output(Command::new("sha256sum").arg(&blob)).expect("sha256sum");
            assert_eq!(
                format!("sha256:{}", said.split_whitespace().next().unwrap_or_default()),
                digest
            );
        }
        let listed = output(
            Command::new("tar")
                .arg("--list")
                .arg("--file")
                .arg(blobs.join(&layer.0[7..])),
        )
        .expect("tar");
        assert_eq!(listed, "etc/\nprogram\n");
        fs::remove_dir_all(&work).expect("the folder goes");
    }

    fn here() -> Platform {
        let program = std::env::current_exe().and_then(fs::read).expect("this program");
        platform(&program).expect("a program of this machine")
    }

    #[test]
    fn a_program_says_what_it_is_for() {
        assert_eq!(here().rust, std::env::consts::ARCH);
        let of = |machine: u8| {
            let mut header = [0; 64];
            header[..6].copy_from_slice(b"\x7fELF\x02\x01");
            header[18] = machine;
            platform(&header)
        };
        let check = |machine, oci, variant| {
            let found = of(machine).expect("known");
            assert_eq!((found.oci, found.variant), (oci, variant));
        };
        check(62, "amd64", None);
        check(183, "arm64", None);
        check(40, "arm", Some("v7"));
        of(8).expect_err("no image runs there");
        platform(b"#!/bin/sh").expect_err("a script");
        platform(b"\x7fELF\x02\x01").expect_err("a header that is cut off");
    }
}
