//! What was built: for `--version`, `/version`, the metric `portolan_build_info` and the user agent.

use serde::Serialize;

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// For `--version`: the version, the target it was built for and the source commit (`unknown` unless the environment
/// variable `PORTOLAN_COMMIT` named it when it was built).
pub const LONG_VERSION: &str = env!("PORTOLAN_BUILD_LONG");

/// What was built, as `/version` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Build {
    /// The version.
    pub version: &'static str,
    /// The target it was built for, such as `x86_64-unknown-linux-gnu`.
    pub target: &'static str,
    /// The source commit.
    pub commit: &'static str,
}

/// This build.
pub const BUILD: Build = Build {
    version: VERSION,
    target: env!("PORTOLAN_BUILD_TARGET"),
    commit: env!("PORTOLAN_BUILD_COMMIT"),
};
