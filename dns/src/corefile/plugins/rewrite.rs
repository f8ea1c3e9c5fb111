//! Plugin `rewrite`: names are asked for under other names.

use regex::Regex;

use super::super::line::Line;

/// How a name is matched.
#[derive(Clone, Debug)]
pub enum Match {
    /// The whole name.
    Exact(String),
    /// Its beginning.
    Prefix(String),
    /// Its end.
    Suffix(String),
    /// A part of it.
    Substring(String),
    /// All that a regular expression takes; the replacement may name groups as `{1}`.
    Regex(Regex),
}

/// One rule. Names are text in lower case with the dot at their end.
#[derive(Clone, Debug)]
pub struct Rewrite {
    /// Which names.
    pub from: Match,
    /// What they become.
    pub to: String,
    /// Whether the next rule is tried on what it became.
    pub go_on: bool,
    /// `answer name`: rewrites of names in the answer, beside the question's name, which always is.
    pub answers: Vec<(Regex, String)>,
    /// `answer auto`: a suffix or an exact name in the answer is put back.
    pub auto: bool,
}

/// Reads the plugin.
pub fn read(line: &mut Line<'_>) -> Option<Rewrite> {
    let mut words = line.rest();
    let mut go_on = false;
    if let Some(first @ (&"stop" | &"continue")) = words.first() {
        go_on = *first == "continue";
        words.remove(0);
    }
    if words.first() != Some(&"name") {
        let field = words.first().copied().unwrap_or_default();
        line.say(
            format!("{field:?} is not supported"),
            "only names are rewritten: rewrite name [exact|prefix|suffix|substring|regex] FROM TO",
        );
        return None;
    }
    words.remove(0);
    let kinds = ["exact", "prefix", "suffix", "substring", "regex"];
    let kind = match words.first() {
        Some(kind) if kinds.contains(kind) && words.len() > 2 => words.remove(0),
        _ => "exact",
    };
    let [from, to, rest @ ..] = &words[..] else {
        line.say("lacks FROM or TO", "write rewrite name FROM TO");
        return None;
    };
    let lower = |text: &str| text.to_ascii_lowercase();
    let from = match kind {
        "exact" => Match::Exact(dotted(from)),
        "prefix" => Match::Prefix(lower(from)),
        "suffix" => Match::Suffix(dotted(from)),
        "substring" => Match::Substring(lower(from)),
        _ => Match::Regex(regex(line, from)?),
    };
    let to = match kind {
        "exact" | "suffix" => dotted(to),
        _ => lower(to),
    };
    let mut found = Rewrite {
        from,
        to,
        go_on,
        answers: Vec::new(),
        auto: false,
    };
    let mut rest = rest;
    while let [first, more @ ..] = rest {
        rest = match (*first, more) {
            ("answer", ["auto", more @ ..]) => {
                found.auto = true;
                more
            }
            ("answer", ["name", from, to, more @ ..]) => {
                found.answers.push((regex(line, from)?, lower(to)));
                more
            }
            ("answer", ["value", ..]) => {
                line.say("answer value is not supported", "use answer name or answer auto");
                return None;
            }
            (other, more) => {
                line.say(
                    format!("takes no {other:?}"),
                    "it takes answer auto and answer name FROM TO",
                );
                more
            }
        };
    }
    Some(found)
}

/// Lower case, with the dot at the end.
fn dotted(text: &str) -> String {
    let mut text = text.to_ascii_lowercase();
    if !text.ends_with('.') {
        text.push('.');
    }
    text
}

fn regex(line: &mut Line<'_>, text: &str) -> Option<Regex> {
    match regex::RegexBuilder::new(text)
        .case_insensitive(true)
        .size_limit(1 << 20)
        .build()
    {
        Ok(regex) => Some(regex),
        Err(error) => {
            let error = error.to_string();
            let last = error.lines().last().unwrap_or_default().to_owned();
            line.say(
                format!("{text:?} is no regular expression ({last})"),
                "mend the expression",
            );
            None
        }
    }
}
