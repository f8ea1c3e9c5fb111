//! Label selectors in the text form of the API: `app=web,tier in (front, back),!internal`.

use std::fmt;

use thiserror::Error;

/// A label selector. The empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    /// The values that it asks for; `None` asks for the label alone.
    values: Option<Vec<String>>,
    /// It asks for the opposite. An object without the label fulfils that.
    negated: bool,
}

/// Why a text is no selector.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{part:?} is no requirement such as app=web, app!=web, app in (web, api), app notin (web), app or !app")]
pub struct SelectorError {
    part: String,
}

// === impl Selector ===

impl Selector {
    /// Reads the text form (the one of `kubectl --selector`).
    ///
    /// # Errors
    /// Names the part that is no requirement.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for part in parts(text) {
            requirements.push(Requirement::parse(part.trim())?);
        }
        Ok(Self {
            requirements,
            text: text.trim().to_owned(),
        })
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether an object with these labels is selected. `label` gives a label's value.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = label(&requirement.key);
            let fulfilled = match (&requirement.values, value) {
                (None, value) => value.is_some(),
                (Some(values), Some(value)) => values.iter().any(|wanted| wanted == value),
                (Some(_), None) => false,
            };
            fulfilled != requirement.negated
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The requirements of a selector: what stands between commas that are outside of parentheses.
fn parts(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_u32);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    if text.trim().is_empty() {
        parts.clear();
    }
    parts
}

// === impl Requirement ===

impl Requirement {
    fn parse(part: &str) -> Result<Self, SelectorError> {
        let wrong = || SelectorError { part: part.to_owned() };
        let new = |key: &str, values: Option<Vec<String>>, negated: bool| {
            let key = key.trim();
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
            let values_legal = values.iter().flatten().all(|value| value.chars().all(legal));
            if key.is_empty() || !key.chars().all(legal) || !values_legal {
                return Err(wrong());
            }
            Ok(Self {
                key: key.to_owned(),
                values,
                negated,
            })
        };
        let one = |value: &str| Some(vec![value.trim().to_owned()]);
        if let Some((front, list)) = part.split_once('(') {
            let list = list.trim_end().strip_suffix(')').ok_or_else(wrong)?;
            let values = list.split(',').map(|value| value.trim().to_owned()).collect();
            let (key, operator) = front.trim().rsplit_once(char::is_whitespace).ok_or_else(wrong)?;
            return match operator {
                "in" => new(key, Some(values), false),
                "notin" => new(key, Some(values), true),
                _ => Err(wrong()),
            };
        }
        if let Some((key, value)) = part.split_once("!=") {
            return new(key, one(value), true);
        }
        if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            return new(key, one(value), false);
        }
        match part.strip_prefix('!') {
            Some(key) => new(key, None, true),
            None => new(part, None, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_choose_by_labels() {
        let labels = [("app", "web"), ("tier", "front"), ("k8s.io/name", "")];
        let check = |text: &str, expect: bool| {
            let selector = Selector::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let label = |key: &str| labels.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
            assert_eq!(selector.matches(label), expect, "{text}");
        };
        check("", true);
        check("app", true);
        check("!app", false);
        check("!other", true);
        check("app=web", true);
        check("app==web, tier=front", true);
        check("app = api", false);
        check("app!=web", false);
        check("other!=web", true);
        check("app in (api, web),tier", true);
        check("app notin (api,web)", false);
        check("other notin (api)", true);
        check("other in (api)", false);
        check("k8s.io/name=", true);
    }

    #[test]
    fn what_is_no_selector_is_named() {
        for text in ["app in web", "=web", "app=web,", "app near (web)", "app in (web", "a b"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }
}
