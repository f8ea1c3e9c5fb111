//! Corefile text into words: white space, quotes, comments, environment variables. Never fails on any bytes but says
//! where a quote does not end.

use std::sync::Arc;

use super::Problem;

/// What stands in the template of NodeLocal DNSCache for values that whoever installs it puts in.
pub const PILLARS: [&str; 3] = [
    "__PILLAR__LOCAL__DNS__",
    "__PILLAR__DNS__SERVER__",
    "__PILLAR__DNS__DOMAIN__",
];

/// Where a word stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named.
    pub file: Arc<str>,
    /// Counted from 1.
    pub line: u32,
}

/// One word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Without its quotes, with environment variables put in.
    pub text: String,
    /// Where it begins.
    pub place: Place,
    /// It was quoted, so that `{` and `}` are text.
    pub quoted: bool,
}

// === impl Word ===

impl Word {
    /// Whether it opens a block.
    pub fn opens(&self) -> bool {
        !self.quoted && self.text == "{"
    }

    /// Whether it closes a block.
    pub fn closes(&self) -> bool {
        !self.quoted && self.text == "}"
    }
}

/// Splits text into words. `variable` looks up environment variables; one that is not set is empty, as in CoreDNS.
pub fn words(
    file: &Arc<str>,
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
    problems: &mut Vec<Problem>,
) -> Vec<Word> {
    let mut found = Vec::new();
    let mut line = 1;
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            '\n' => line += 1,
            '#' => while rest.next_if(|c| *c != '\n').is_some() {},
            c if c.is_whitespace() => {}
            c => {
                let place = Place {
                    file: file.clone(),
                    line,
                };
                let mut word = String::new();
                let quoted = c == '"';
                if quoted {
                    if !quoted_word(&mut rest, &mut word, &mut line) {
                        problems.push(Problem::at(&place, "", "a quote does not end").advise("close it with \""));
                    }
                } else {
                    word.push(c);
                    while let Some(c) = rest.next_if(|c| !c.is_whitespace()) {
                        word.push(c);
                    }
                }
                found.push(Word {
                    text: substitute(&word, variable),
                    place,
                    quoted,
                });
            }
        }
    }
    found
}

/// Reads up to the closing quote; `\"` is a quote. Says whether there was one.
fn quoted_word(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, word: &mut String, line: &mut u32) -> bool {
    while let Some(c) = rest.next() {
        match c {
            '"' => return true,
            '\\' if rest.peek() == Some(&'"') => word.extend(rest.next()),
            c => {
                *line += u32::from(c == '\n');
                word.push(c);
            }
        }
    }
    false
}

/// Puts environment variables in: `{$NAME}` and `{%NAME%}`.
fn substitute(word: &str, variable: &dyn Fn(&str) -> Option<String>) -> String {
    let mut done = String::with_capacity(word.len());
    let mut rest = word;
    while let Some(start) = rest.find('{') {
        let (before, from) = rest.split_at(start);
        done.push_str(before);
        let close = match from.get(1..2) {
            Some("$") => "}",
            Some("%") => "%}",
            _ => "",
        };
        match from
            .get(2..)
            .and_then(|name| name.find(close).filter(|_| !close.is_empty()))
        {
            Some(length) => {
                done.push_str(&variable(&from[2..2 + length]).unwrap_or_default());
                rest = &from[2 + length + close.len()..];
            }
            None => {
                done.push('{');
                rest = &from[1..];
            }
        }
    }
    done.push_str(rest);
    for name in PILLARS {
        if done.contains(name)
            && let Some(value) = variable(name)
        {
            done = done.replace(name, &value);
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &[(&str, u32)]) {
        let variable = |name: &str| (name == "A").then(|| "value".to_owned());
        let mut problems = Vec::new();
        let found = words(&"Corefile".into(), text, &variable, &mut problems);
        let found: Vec<_> = found.iter().map(|w| (w.text.as_str(), w.place.line)).collect();
        assert_eq!(found, expect, "{text:?}");
        assert_eq!(problems, [], "{text:?}");
    }

    #[test]
    fn text_becomes_words() {
        check("a b\n c", &[("a", 1), ("b", 1), ("c", 2)]);
        check("a # b\nc#d", &[("a", 1), ("c#d", 2)]);
        check("a \"b c\\\" d\ne\" f", &[("a", 1), ("b c\" d\ne", 1), ("f", 2)]);
        check("{$A} x{%A%}y {$B}z", &[("value", 1), ("xvaluey", 1), ("z", 1)]);
        check(
            "{$A {%A} {{ .Name }} {",
            &[("{$A", 1), ("{%A}", 1), ("{{", 1), (".Name", 1), ("}}", 1), ("{", 1)],
        );
        check("\u{feff}é {$é}", &[("é", 1), ("", 1)]);
    }

    #[test]
    fn a_quote_that_does_not_end_is_said() {
        let mut problems = Vec::new();
        words(&"Corefile".into(), "a\n\"b", &|_| None, &mut problems);
        assert_eq!(
            problems[0].to_string(),
            "Corefile:2: a quote does not end; close it with \""
        );
    }
}
