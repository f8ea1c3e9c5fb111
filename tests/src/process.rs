//! Processes of the lab: started inside a namespace and a cgroup, logged to a file, ended by their owner.
//!
//! A [`Place`] says where a process lives. The child itself moves there between fork and exec, so the caller's own thread
//! never leaves its namespaces.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::netns::Netns;

/// Where a process lives: network namespace, cgroup, host name and resolver configuration.
#[derive(Debug, Clone)]
pub struct Place {
    /// The network namespace.
    pub netns: Arc<Netns>,
    /// The cgroup2 directory; `None` stays in the caller's.
    pub cgroup: Option<PathBuf>,
    /// The host name that the process sees; `None` keeps the machine's.
    pub hostname: Option<String>,
    /// A file that the process sees as `/etc/resolv.conf`; `None` keeps the machine's.
    pub resolv_conf: Option<PathBuf>,
}

/// A running process with its log. Dropping it kills the process.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    child: Mutex<Child>,
    log: PathBuf,
}

// === impl Place ===

impl Place {
    /// A command that will run here once it is spawned. It leads a process group of its own, so a Ctrl-C at the terminal
    /// reaches the lab's owner only, which then takes everything down in order.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let enter = Enter::new(self);
        // SAFETY: `Enter::enter` makes only system calls on data that was prepared before the fork; it does not allocate.
        unsafe {
            command.process_group(0).pre_exec(move || enter.enter());
        }
        command
    }

    /// Runs a program here to its end and returns its standard output.
    ///
    /// # Errors
    /// When it cannot be started or fails; the message holds what it wrote to standard error.
    pub fn output<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        let mut command = self.command(&program);
        let output = command.args(args).stdin(Stdio::null()).output();
        let what = program.as_ref().to_string_lossy().into_owned();
        let output = output.with_context(|| format!("{what} cannot be started in {}", self.netns.name()))?;
        if !output.status.success() {
            bail!(
                "{what} in {}: {}: {}",
                self.netns.name(),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// What a child needs to move to its place, prepared before the fork.
struct Enter {
    netns: Arc<Netns>,
    cgroup_procs: Option<CString>,
    hostname: Option<CString>,
    resolv_conf: Option<CString>,
}

// === impl Enter ===

impl Enter {
    fn new(place: &Place) -> Self {
        // A path with a NUL byte inside cannot exist; it is dropped here and the process stays where it was.
        let text = |s: &OsStr| CString::new(s.as_bytes()).ok();
        Self {
            netns: Arc::clone(&place.netns),
            cgroup_procs: place
                .cgroup
                .as_ref()
                .and_then(|dir| text(dir.join("cgroup.procs").as_os_str())),
            hostname: place.hostname.as_ref().and_then(|name| text(OsStr::new(name))),
            resolv_conf: place.resolv_conf.as_ref().and_then(|file| text(file.as_os_str())),
        }
    }

    fn enter(&self) -> io::Result<()> {
        let check = |result: i32| {
            if result < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        };
        // SAFETY: plain system calls with valid C strings and descriptors, in the child after fork.
        unsafe {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            check(libc::sigprocmask(
                libc::SIG_SETMASK,
                &raw const none,
                std::ptr::null_mut(),
            ))?;
            if let Some(file) = &self.cgroup_procs {
                let fd = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                check(fd)?;
                let written = libc::write(fd, c"0".as_ptr().cast(), 1);
                check(i32::try_from(written).unwrap_or(-1))?;
                libc::close(fd);
            }
            check(libc::setns(self.netns.raw_fd(), libc::CLONE_NEWNET))?;
            if let Some(name) = &self.hostname {
                check(libc::unshare(libc::CLONE_NEWUTS))?;
                check(libc::sethostname(name.as_ptr(), name.as_bytes().len()))?;
            }
            if let Some(file) = &self.resolv_conf {
                let none = std::ptr::null();
                check(libc::unshare(libc::CLONE_NEWNS))?;
                check(libc::mount(
                    none,
                    c"/".as_ptr(),
                    none,
                    libc::MS_REC | libc::MS_PRIVATE,
                    none.cast(),
                ))?;
                check(libc::mount(
                    file.as_ptr(),
                    c"/etc/resolv.conf".as_ptr(),
                    none,
                    libc::MS_BIND,
                    none.cast(),
                ))?;
            }
        }
        Ok(())
    }
}

// === impl Process ===

impl Process {
    /// Starts `command` (made by [`Place::command`]) with output appended to `log`.
    ///
    /// # Errors
    /// When the log cannot be written or the program cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("log {} cannot be written", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .spawn()
            .with_context(|| format!("{name}: {program} cannot be started"))?;
        Ok(Self {
            name: name.to_owned(),
            pid: child.id(),
            child: Mutex::new(child),
            log: log.to_owned(),
        })
    }

    /// The name it was started with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The file that holds its output.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.lock().try_wait().ok().flatten()
    }

    /// Ends it at once (SIGKILL) and waits for its end.
    pub fn kill(&self) {
        let mut child = self.lock();
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Asks it to end (SIGTERM), waits up to `patience`, then kills it. Returns how it ended when it obeyed.
    pub fn terminate(&self, patience: Duration) -> Option<ExitStatus> {
        self.signal(libc::SIGTERM);
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
        None
    }

    /// The last `lines` lines of its log, under a heading; for messages about a failure.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        let tail = all
            .get(all.len().saturating_sub(lines)..)
            .unwrap_or_default()
            .join("\n");
        format!("--- last lines of {} ({})\n{tail}\n", self.name, self.log.display())
    }

    /// Sends `signal` while the process has not been waited for, so the id cannot have been given to another one.
    fn signal(&self, signal: i32) {
        let mut child = self.lock();
        if let Ok(None) = child.try_wait()
            && let Ok(pid) = i32::try_from(child.id())
        {
            // SAFETY: the lock is held and the child is not reaped, so `pid` is still ours.
            unsafe {
                libc::kill(pid, signal);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Calls `ready` every few milliseconds until it is true, at most for `patience`.
pub fn wait_until(patience: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if ready() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
