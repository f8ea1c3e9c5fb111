//! [`Period`]: Go's `time.Duration` as kube-proxy's configuration and flags write it: `30s`, `2h22m`, `1.5s`, `0`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A length of time in Go's notation. Never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "Written")]
pub struct Period(pub Duration);

/// How a file may write it: Go also takes a bare 0, and JSON numbers as nanoseconds.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Nanoseconds(u64),
}

/// The text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration such as 30s, 1m or 2h22m")]
pub struct NotAPeriod(String);

// === impl Period ===

impl Period {
    /// Whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// 0, which kube-proxy takes for "not set" in most fields.
    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl FromStr for Period {
    type Err = NotAPeriod;

    fn from_str(text: &str) -> Result<Self, NotAPeriod> {
        let bad = || NotAPeriod(text.into());
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest == "0" {
            return Ok(Self::default());
        }
        if rest.is_empty() {
            return Err(bad());
        }
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
            let (number, tail) = rest.split_at(digits);
            let number: f64 = number.parse().map_err(|_| bad())?;
            let end = tail
                .find(|c: char| c.is_ascii_digit() || c == '.')
                .unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let unit = match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(bad()),
            };
            let part = Duration::try_from_secs_f64(number * unit).map_err(|_| bad())?;
            total = total.checked_add(part).ok_or_else(bad)?;
            rest = tail;
        }
        Ok(Self(total))
    }
}

/// As Go prints it: `24h0m0s`, `1m0s`, `1.5s`, `200ms`, `0s`.
impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.0.as_secs();
        let rest = self.0.subsec_nanos();
        if whole == 0 && rest != 0 {
            let (unit, digits) = match rest {
                1_000_000.. => ("ms", 6),
                1_000.. => ("µs", 3),
                _ => ("ns", 0),
            };
            let scale = 10_u32.pow(digits);
            return write!(f, "{}{}{unit}", rest / scale, fraction(rest % scale, digits));
        }
        let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if whole >= 60 {
            write!(f, "{minutes}m")?;
        }
        write!(f, "{seconds}{}s", fraction(rest, 9))
    }
}

/// `.5` of 500 thousandths; nothing of 0.
fn fraction(part: u32, digits: u32) -> String {
    if part == 0 {
        return String::new();
    }
    let width = digits as usize;
    format!(".{part:0width$}").trim_end_matches('0').to_string()
}

impl TryFrom<Written> for Period {
    type Error = NotAPeriod;

    fn try_from(written: Written) -> Result<Self, NotAPeriod> {
        match written {
            Written::Text(text) => text.parse(),
            Written::Nanoseconds(nanoseconds) => Ok(Self(Duration::from_nanos(nanoseconds))),
        }
    }
}

impl From<Period> for String {
    fn from(period: Period) -> Self {
        period.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_as_go() {
        let check = |text: &str, expect: Option<&str>| {
            let period = text.parse::<Period>().ok().map(|period| period.to_string());
            assert_eq!(period.as_deref(), expect, "{text}");
        };
        check("30s", Some("30s"));
        check("24h", Some("24h0m0s"));
        check("2h22m", Some("2h22m0s"));
        check("1.5s", Some("1.5s"));
        check("90s", Some("1m30s"));
        check("0", Some("0s"));
        check("0s", Some("0s"));
        check("200ms", Some("200ms"));
        check("1h0.25s", Some("1h0m0.25s"));
        check("15us", Some("15µs"));
        check("", None);
        check("30", None);
        check("-1s", None);
        check("1 s", None);
        check("1d", None);
        check("s", None);
        check("99999999999999999999999h", None);
    }
}
