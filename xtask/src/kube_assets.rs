//! `cargo xtask kube-assets`: the real control plane and the real peers that the tests talk to.
//!
//! Each program is looked for in the cache, in `KUBEBUILDER_ASSETS` and on PATH, and taken only in exactly the wanted
//! version: a test that passes beside another release proves nothing. What is found nowhere is built from its Go module.
//! The cache is outside `target/`, one for all checkouts of a machine, and holds complete programs only: each is built
//! under another name and renamed, and one lock keeps two builds apart.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::command::{output, run_logged, seconds, which};

const KUBERNETES: &str = "v1.36.3";
/// The release of the `k8s.io/*` staging modules that belongs to [`KUBERNETES`].
const STAGING: &str = "v0.36.3";
const ETCD: &str = "v3.6.16";
const COREDNS: &str = "v1.14.7";

const KUBERNETES_MODULE: &str = "k8s.io/kubernetes";
/// Without these the programs call themselves v0.0.0, also to their clients.
const KUBERNETES_LDFLAGS: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36";

/// Where a program's source is.
enum Module {
    /// `k8s.io/kubernetes/cmd/NAME`, whose module needs [`kubernetes_module`] to be built from outside.
    Kubernetes,
    /// The main package of a module, which builds as it is.
    Plain(&'static str),
}

/// One program that the tests run.
struct Asset {
    name: &'static str,
    version: &'static str,
    version_args: &'static [&'static str],
    module: Module,
}

const fn kubernetes(name: &'static str, version_args: &'static [&'static str]) -> Asset {
    Asset {
        name,
        version: KUBERNETES,
        version_args,
        module: Module::Kubernetes,
    }
}

/// The programs, the quick builds first.
static ASSETS: &[Asset] = &[
    Asset {
        name: "etcd",
        version: ETCD,
        version_args: &["--version"],
        module: Module::Plain("go.etcd.io/etcd/server/v3"),
    },
    Asset {
        name: "coredns",
        version: COREDNS,
        version_args: &["-version"],
        module: Module::Plain("github.com/coredns/coredns"),
    },
    kubernetes("kubectl", &["version", "--client"]),
    kubernetes("kube-proxy", &["--version"]),
    kubernetes("kube-controller-manager", &["--version"]),
    kubernetes("kube-apiserver", &["--version"]),
];

/// Provides every program and prints the folder that holds them; the folder is also the result.
pub fn run() -> Result<PathBuf> {
    let start = Instant::now();
    let cache = cache_dir()?;
    let bin = cache.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    let complete = || ASSETS.iter().all(|asset| is_wanted(asset, &bin.join(asset.name)));
    if !complete() {
        let _lock = lock(&cache)?;
        for asset in ASSETS {
            provide(asset, &cache, &bin)?;
        }
    }
    for asset in ASSETS {
        let at = fs::read_link(bin.join(asset.name)).unwrap_or_else(|_| bin.join(asset.name));
        println!("  {:24} {:10} {}", asset.name, asset.version, at.display());
    }
    println!("kube-assets: {} programs in {}", ASSETS.len(), seconds(start.elapsed()));
    println!("{}", bin.display());
    Ok(bin)
}

/// The folder for exactly these versions.
fn cache_dir() -> Result<PathBuf> {
    Ok(cache_base()?
        .join("kube-assets")
        .join(format!("k8s-{KUBERNETES}_etcd-{ETCD}_coredns-{COREDNS}")))
}

/// The project's folder in the user's cache, one for all checkouts of a machine.
pub fn cache_base() -> Result<PathBuf> {
    let home = || {
        std::env::var_os("HOME")
            .or_else(|| std::env::var_os("USERPROFILE"))
            .map(PathBuf::from)
    };
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute());
    let Some(base) = base.or_else(|| home().map(|home| home.join(".cache"))) else {
        bail!("neither XDG_CACHE_HOME nor HOME is set, so there is no place for the cache");
    };
    Ok(base.join("portolan"))
}

/// Waits for a build of another checkout or process.
fn lock(cache: &Path) -> Result<File> {
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => println!("  another build holds {}; waiting for it", path.display()),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Puts one program into `bin`: nothing to do, a link to one that was found, or a build.
fn provide(asset: &Asset, cache: &Path, bin: &Path) -> Result<()> {
    let target = bin.join(asset.name);
    match locate(asset, bin) {
        Some(found) if found == target => Ok(()),
        Some(found) => link(&found, &target),
        None => build(asset, cache, &target),
    }
}

/// A program of the wanted version: in the cache, then in `KUBEBUILDER_ASSETS`, then on PATH.
fn locate(asset: &Asset, bin: &Path) -> Option<PathBuf> {
    let kubebuilder = std::env::var_os("KUBEBUILDER_ASSETS").map(|dir| PathBuf::from(dir).join(asset.name));
    let candidates = [Some(bin.join(asset.name)), kubebuilder, which(asset.name)];
    candidates.into_iter().flatten().find(|file| is_wanted(asset, file))
}

/// Whether the file is there and says that it is the wanted version; one of another version is reported.
fn is_wanted(asset: &Asset, file: &Path) -> bool {
    if !file.is_file() {
        return false;
    }
    match output(Command::new(file).args(asset.version_args)) {
        Ok(text) if names_version(&text, asset.version) => true,
        Ok(text) => {
            let says = text.lines().next().unwrap_or_default();
            println!(
                "  {}: {} is not {} (says {says:?})",
                asset.name,
                file.display(),
                asset.version
            );
            false
        }
        Err(error) => {
            println!("  {}: {} does not run: {error:#}", asset.name, file.display());
            false
        }
    }
}

/// Whether a version text names exactly this version, with or without the `v`: `1.36.3`, not `1.36.30` or `1.36.3-rc.1`.
fn names_version(text: &str, version: &str) -> bool {
    let wanted = version.trim_start_matches('v');
    text.split(|c: char| c.is_whitespace() || c == ',').any(|word| {
        let word = word.strip_prefix("CoreDNS-").unwrap_or(word);
        word.trim_start_matches('v') == wanted
    })
}

#[cfg(unix)]
fn link(found: &Path, target: &Path) -> Result<()> {
    let _ = fs::remove_file(target);
    std::os::unix::fs::symlink(found, target).with_context(|| format!("cannot link {}", target.display()))
}

#[cfg(not(unix))]
fn link(found: &Path, target: &Path) -> Result<()> {
    fs::copy(found, target)
        .map(|_| ())
        .with_context(|| format!("cannot copy to {}", target.display()))
}

fn build(asset: &Asset, cache: &Path, target: &Path) -> Result<()> {
    if which("go").is_none() {
        bail!(
            "{} {} is not on this machine and Go is not there to build it: cargo xtask doctor --for test",
            asset.name,
            asset.version
        );
    }
    println!("  {}: building {} from its Go module", asset.name, asset.version);
    let log = cache.join("logs").join(format!("{}.log", asset.name));
    let partial = target.with_extension("partial");
    let package = match asset.module {
        Module::Kubernetes => format!("{KUBERNETES_MODULE}/cmd/{}", asset.name),
        Module::Plain(path) => path.to_owned(),
    };
    let mut go = go_build(asset, cache, &log)?;
    go.arg("-o").arg(&partial).arg(package);
    run_logged(asset.name, &mut go, &log)?;
    if !is_wanted(asset, &partial) {
        bail!("the {} that was built does not say {}", asset.name, asset.version);
    }
    fs::rename(&partial, target).with_context(|| format!("cannot rename {}", partial.display()))
}

/// The `go build` of one program, in a module of its own that requires exactly the wanted version.
fn go_build(asset: &Asset, cache: &Path, log: &Path) -> Result<Command> {
    let (dir, module, ldflags) = match asset.module {
        Module::Kubernetes => (
            cache.join("src/kubernetes"),
            kubernetes_module(log)?,
            KUBERNETES_LDFLAGS,
        ),
        Module::Plain(path) => {
            let module = GoModule {
                file: go_mod(path, asset.version, ""),
                sums: String::new(),
            };
            (cache.join("src").join(asset.name), module, "-s -w")
        }
    };
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for (name, text) in [("go.mod", &module.file), ("go.sum", &module.sums)] {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut go = go_in(&dir);
    // -mod=mod lets go complete the two files from the module proxy and the checksum database.
    go.args(["build", "-mod=mod", "-buildvcs=false", "-ldflags", ldflags]);
    Ok(go)
}

fn go_in(dir: &Path) -> Command {
    let mut go = Command::new("go");
    // A go.work or vendor setting of the caller's must not change what is built.
    go.current_dir(dir)
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .env_remove("GOFLAGS");
    go
}

/// What makes a folder a Go module.
struct GoModule {
    file: String,
    sums: String,
}

fn go_mod(path: &str, version: &str, rest: &str) -> String {
    format!("module kubeassets\n\ngo 1.26.0\n\nrequire {path} {version}\n{rest}")
}

/// Kubernetes' own module refers to its `k8s.io/*` parts by folders of its repository; the same parts are published as
/// modules of their own, so each folder is replaced by its published release.
fn kubernetes_module(log: &Path) -> Result<GoModule> {
    let cache = log.parent().unwrap_or(log);
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let wanted = format!("{KUBERNETES_MODULE}@{KUBERNETES}");
    println!("  kubernetes: fetching {wanted}");
    let json = output(go_in(cache).args(["mod", "download", "-json", &wanted]))?;
    let dir = source_dir(&json).with_context(|| format!("go mod download {wanted} names no folder: {json}"))?;
    let read = |name: &str| {
        let path = Path::new(&dir).join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let file = go_mod(KUBERNETES_MODULE, KUBERNETES, &staging_replacements(&read("go.mod")?));
    Ok(GoModule {
        file: format!("{file}\ngodebug default=go1.26\n"),
        sums: read("go.sum")?,
    })
}

/// The `Dir` of `go mod download -json`, which may print progress around its object.
fn source_dir(text: &str) -> Option<String> {
    let object = text.get(text.find('{')?..=text.rfind('}')?)?;
    let value: serde_json::Value = serde_json::from_str(object).ok()?;
    Some(value.get("Dir")?.as_str()?.to_owned())
}

/// `replace` lines that turn each `./staging/src/PATH` of Kubernetes' go.mod into the published module.
fn staging_replacements(go_mod: &str) -> String {
    let paths = go_mod
        .lines()
        .filter_map(|line| line.split_once("=> ./staging/src/"))
        .map(|(_, path)| path.trim());
    paths
        .map(|path| format!("\nreplace {path} => {path} {STAGING}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_version_is_accepted() {
        let check = |text, version, expect| assert_eq!(names_version(text, version), expect, "{text}");
        check("Kubernetes v1.36.3\n", "v1.36.3", true);
        check("Client Version: v1.36.3\nKustomize Version: v5.7.1", "v1.36.3", true);
        check("Kubernetes v1.36.30", "v1.36.3", false);
        check("Kubernetes v1.36.3-rc.1", "v1.36.3", false);
        check("etcd Version: 3.6.16\nGit SHA: Not provided", "v3.6.16", true);
        check("CoreDNS-1.14.7\nlinux/amd64, go1.26.8, \n", "v1.14.7", true);
        check("CoreDNS-1.11.7", "v1.14.7", false);
    }

    #[test]
    fn staging_folders_become_published_modules() {
        let text = "replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\texample.org/x => example.org/y v1.0.0\n)\n";
        assert_eq!(
            staging_replacements(text),
            format!("\nreplace k8s.io/api => k8s.io/api {STAGING}\n")
        );
    }

    #[test]
    fn the_source_folder_is_read_from_what_go_prints() {
        let text = "go: downloading k8s.io/kubernetes v1.36.3\n{\n\t\"Path\": \"k8s.io/kubernetes\",\n\t\"Dir\": \"/m/k\"\n}\n";
        assert_eq!(source_dir(text).as_deref(), Some("/m/k"));
        assert_eq!(source_dir("go: no such host"), None);
    }
}
