//! Plugin `log`: which queries are logged.

use super::super::line::{Line, ZoneName};

/// Responses that are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// With records.
    Success,
    /// NXDOMAIN and NODATA.
    Denial,
    /// SERVFAIL, REFUSED, NOTIMP and the like.
    Error,
}

/// What it says.
#[derive(Clone, Debug)]
pub struct Log {
    /// Only names in these zones; all when empty.
    pub zones: Vec<ZoneName>,
    /// Only these; all when empty.
    pub classes: Vec<Class>,
}

/// Reads the plugin. A format is a format of CoreDNS's; here the fields are those of its common format.
pub fn read(line: &mut Line<'_>) -> Log {
    let mut found = Log {
        zones: Vec::new(),
        classes: Vec::new(),
    };
    let words = line.rest();
    for word in words {
        if word.contains('{') {
            if !matches!(word, "{common}" | "{combined}") {
                line.say(
                    "has a format of its own",
                    "remove it; every line has the fields of {combined}",
                );
            }
        } else if let Some(zones) = super::super::line::parse_zone(word) {
            found.zones.extend(zones);
        } else {
            line.say(format!("{word:?} is no zone"), "write one such as example.org");
        }
    }
    line.each(|line| {
        if line.name.text == "class" {
            for word in line.rest() {
                match word {
                    "all" => found.classes.extend([Class::Success, Class::Denial, Class::Error]),
                    "success" => found.classes.push(Class::Success),
                    "denial" => found.classes.push(Class::Denial),
                    "error" => found.classes.push(Class::Error),
                    other => line.say(format!("{other:?} is no class"), "give all, success, denial or error"),
                }
            }
        } else {
            line.rest();
            line.unknown("class");
        }
    });
    found
}
