//! Plugin `cache`: what is kept of upstreams' answers.

use std::time::Duration;

use super::super::line::{Line, ZoneName, parse_duration};
use crate::cache::policy::{Bounds, Policy, Prefetch, Stale};

/// What it says.
#[derive(Clone, Debug)]
pub struct Cache {
    /// Only names in these zones; all of the block when empty.
    pub zones: Vec<ZoneName>,
    /// How they are kept.
    pub policy: Policy,
}

const KNOWN: &str = "success, denial, prefetch, serve_stale, servfail, disable, keepttl";
/// CoreDNS's limit (RFC 2308 section 7.1).
const MAX_SERVFAIL: Duration = Duration::from_secs(300);

/// Reads the plugin.
pub fn read(line: &mut Line<'_>) -> Cache {
    let mut policy = Policy::default();
    if let Some(ttl) = line.peek().and_then(|word| word.parse::<u32>().ok()) {
        line.word();
        policy.success.most = ttl;
        policy.denial.most = ttl;
    }
    let zones = line.zones();
    line.each(|line| option(line, &mut policy));
    Cache { zones, policy }
}

fn option(line: &mut Line<'_>, policy: &mut Policy) {
    match line.name.text.as_str() {
        "success" => bounds(line, &mut policy.success),
        "denial" => bounds(line, &mut policy.denial),
        "prefetch" => policy.prefetch = prefetch(line),
        "serve_stale" => policy.stale = stale(line),
        "servfail" => {
            let wanted = line.duration().unwrap_or(policy.servfail);
            if wanted > MAX_SERVFAIL {
                line.say("is longer than 5m", "give 5m or less (RFC 2308 section 7.1)");
            }
            policy.servfail = wanted;
        }
        "disable" => {
            let kind = line.one("success or denial");
            let mut zones = line.zones();
            if zones.is_empty() {
                zones.push((*b"\0").into());
            }
            match kind {
                Some("success") => policy.no_success.extend(zones),
                Some("denial") => policy.no_denial.extend(zones),
                Some(other) => line.say(format!("{other:?} cannot be disabled"), "give success or denial"),
                None => {}
            }
        }
        "keepttl" => policy.keep_ttl = true,
        _ => {
            line.rest();
            line.unknown(KNOWN);
        }
    }
    line.end();
}

/// `CAPACITY [TTL] [MINTTL]`. The cache is bounded by octets as a whole, so the capacity only has to be a number.
fn bounds(line: &mut Line<'_>, bounds: &mut Bounds) {
    let _: Option<u64> = line.parse("a number of answers");
    if line.peek().is_some() {
        bounds.most = line.parse("seconds").unwrap_or(bounds.most);
    }
    if line.peek().is_some() {
        bounds.least = line.parse("seconds").unwrap_or(bounds.least);
    }
}

/// `AMOUNT [[DURATION] [PERCENTAGE%]]`
fn prefetch(line: &mut Line<'_>) -> Option<Prefetch> {
    let mut found = Prefetch {
        amount: line.parse("a number of queries")?,
        ..Prefetch::default()
    };
    while let Some(word) = line.word() {
        let percentage = word.strip_suffix('%').and_then(|number| number.parse().ok());
        match (percentage, parse_duration(word)) {
            (Some(percentage @ 10..=90), _) => found.percentage = percentage,
            (Some(_), _) => line.say(format!("{word:?} is out of range"), "give 10% to 90%"),
            (None, Some(duration)) => found.within = duration,
            (None, None) => line.say(format!("takes no {word:?}"), "it takes AMOUNT [DURATION] [PERCENTAGE%]"),
        }
    }
    (found.amount > 0).then_some(found)
}

/// `[DURATION] [immediate | verify [TIMEOUT]]`; a duration of 0 turns it off.
fn stale(line: &mut Line<'_>) -> Option<Stale> {
    let mut found = Stale::default();
    while let Some(word) = line.word() {
        match (word, parse_duration(word)) {
            (_, Some(duration)) if duration.is_zero() => return None,
            (_, Some(duration)) => found.most = duration,
            ("immediate", _) => found.verify = Duration::ZERO,
            ("verify", _) => {
                if let Some(timeout) = line.peek().and_then(parse_duration) {
                    line.word();
                    found.verify = timeout;
                } else {
                    found.verify = Stale::default().verify;
                }
            }
            _ => line.say(
                format!("takes no {word:?}"),
                "it takes [DURATION] [immediate | verify [TIMEOUT]]",
            ),
        }
    }
    Some(found)
}
