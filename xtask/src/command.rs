//! Starting other programs: where they are, how they are watched, what is shown of them when they fail.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The oldest rustc that the workspace builds with (`rust-version` in Cargo.toml).
pub const RUST: (u32, u32) = (1, 95);
/// How often a long command says that it is still at work.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How much of a failed command's log is shown.
const SHOWN_LINES: usize = 40;

/// The top folder of the checkout.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Where `cargo` puts what it builds, for this checkout and environment.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// The cargo that runs this program, in the top folder of the checkout.
///
/// What `cargo run` tells this program of its own package must not reach that cargo: ring's build script watches those
/// variables, so ring and everything behind it would be built anew whenever xtask and a person take turns.
pub fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(workspace()).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    command
}

/// The first executable of this name on PATH.
pub fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

#[cfg(unix)]
fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(file: &Path) -> bool {
    file.is_file() || file.with_extension("exe").is_file()
}

/// What a short command prints on both its outputs; its failure, with that text, is an error.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    let mut text = String::from_utf8_lossy(&done.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&done.stderr));
    if !done.status.success() {
        bail!("{name}: {}: {}", done.status, text.trim());
    }
    Ok(text)
}

/// What a tool says of its version, if that is `least` or newer.
pub fn version(command: &mut Command, least: (u32, u32)) -> Result<String> {
    let text = one_line(output(command)?);
    match parse_version(&text) {
        Some(found) if found >= least => Ok(text),
        Some(_) => bail!("{text} is older than {}.{}", least.0, least.1),
        None => bail!("no version in {text:?}"),
    }
}

/// The first `MAJOR.MINOR` of a version text, `go1.26.8` and `rustc 1.95.0 (…)` alike.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    text.split(|c: char| !c.is_ascii_digit() && c != '.').find_map(|word| {
        let mut numbers = word.split('.');
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    })
}

/// The text without its line breaks and runs of blanks.
pub fn one_line(text: impl ToString) -> String {
    text.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs a command whose own output the reader should see.
pub fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} ended with {status}");
    }
    Ok(())
}

/// Becomes another program, so that it is the one that Ctrl-C reaches; where that is impossible, runs it to its end.
#[cfg(unix)]
pub fn replace(command: &mut Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let name = command.get_program().to_string_lossy().into_owned();
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {name}"))
}

#[cfg(not(unix))]
pub fn replace(command: &mut Command) -> Result<()> {
    run(command)
}

/// Runs a long command into a log file: a line every ten seconds while it is at work, the end of the log if it fails.
pub fn run_logged(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let err = out
        .try_clone()
        .with_context(|| format!("cannot write {}", log.display()))?;
    let name = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .with_context(|| format!("{what}: cannot start {name}"))?;
    let mut said = start;
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("{what}: lost {name}"))? {
            break status;
        }
        if said.elapsed() >= HEARTBEAT {
            said = Instant::now();
            let last = tail(log, 1).trim().chars().take(90).collect::<String>();
            println!("  {what}: {} {last}", seconds(start.elapsed()));
        }
        thread::sleep(Duration::from_millis(100));
    };
    if !status.success() {
        bail!(
            "{what}: {name} ended with {status}; the end of {}:\n{}",
            log.display(),
            tail(log, SHOWN_LINES)
        );
    }
    println!("  {what}: done in {}", seconds(start.elapsed()));
    Ok(())
}

/// A duration as people read it: `0.4 s`, `12 s`, `3 min 05 s`.
pub fn seconds(took: Duration) -> String {
    match took.as_secs() {
        0..=9 => format!("{:.1} s", took.as_secs_f64()),
        whole @ 10..=119 => format!("{whole} s"),
        whole => format!("{} min {:02} s", whole / 60, whole % 60),
    }
}

/// The last lines of a file that may still be growing.
fn tail(file: &Path, lines: usize) -> String {
    const WINDOW: u64 = 16 * 1024;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(file)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let check = |millis, expect: &str| assert_eq!(seconds(Duration::from_millis(millis)), expect);
        check(420, "0.4 s");
        check(12_300, "12 s");
        check(185_000, "3 min 05 s");
    }

    #[test]
    fn versions_are_found_in_what_tools_print() {
        let check = |text, expect| assert_eq!(parse_version(text), expect, "{text}");
        check("rustc 1.95.0 (59807616e 2026-04-14)", Some((1, 95)));
        check("go version go1.26.8 linux/amd64", Some((1, 26)));
        check("no digits", None);
        check("1", None);
    }

    #[test]
    fn a_failed_command_shows_the_end_of_its_log() {
        let log = target_dir().join("xtask/test-run-logged.log");
        let mut command = Command::new("cargo");
        command.arg("no-such-subcommand-of-cargo");
        let error = run_logged("probe", &mut command, &log).expect_err("cargo accepted an unknown subcommand");
        let text = format!("{error:#}");
        assert!(text.contains("no-such-subcommand-of-cargo"), "{text}");
        assert!(text.contains("test-run-logged.log"), "{text}");
    }
}
