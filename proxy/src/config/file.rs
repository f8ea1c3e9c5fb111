//! Reads a configuration file, and says of each field that means nothing here what it is and where it stands.
//!
//! A value that cannot be is an error with its line. An unknown field is none (kube-proxy goes on as well, so that a file
//! for a newer release works), but it is named: a misspelt field changes nothing, which must not go unnoticed.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use super::{API_VERSION, KIND, KubeProxyConfiguration};

/// More than any configuration: the file is read as a whole.
const MAX_BYTES: u64 = 1 << 20;

/// Fields for which kube-proxy tells 0 from "not set". In every other field an empty value means the default.
const ZERO_COUNTS: [&str; 9] = [
    "conntrack.maxPerCore",
    "conntrack.min",
    "conntrack.tcpCloseWaitTimeout",
    "conntrack.tcpEstablishedTimeout",
    "iptables.localhostNodePorts",
    "iptables.masqueradeBit",
    "iptables.snatNodeInternalIP",
    "nftables.masqueradeBit",
    "oomScoreAdj",
];

/// A configuration, and what is to be said about it once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// Every field, defaults filled in.
    pub config: KubeProxyConfiguration,
    /// Where it came from; `None`: the command line.
    pub file: Option<PathBuf>,
    /// Fields that the file sets, by path, with their lines.
    pub set: Vec<(String, u64)>,
    /// Fields that nobody knows, as `line 7: conntrack.maxPerCor`.
    pub unknown: Vec<String>,
}

/// Why a file is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("--config {file}: {cause}", file = file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The system's answer.
        #[source]
        cause: std::io::Error,
    },
    /// It is not what kube-proxy's configuration looks like.
    #[error("--config {file}: {place}{cause}", file = file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// `line 7: conntrack.min: `, as far as it is known.
        place: String,
        /// What is wrong.
        cause: String,
    },
}

/// Reads a file of YAML or JSON.
///
/// # Errors
/// When it cannot be read, is no `KubeProxyConfiguration` of version v1alpha1 or has a value that cannot be.
pub fn load(file: &Path) -> Result<Loaded, ConfigError> {
    let unreadable = |cause| ConfigError::Unreadable {
        file: file.into(),
        cause,
    };
    let size = std::fs::metadata(file).map_err(unreadable)?.len();
    if size > MAX_BYTES {
        return Err(unreadable(std::io::Error::other(format!(
            "{size} bytes are no configuration"
        ))));
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    let mut loaded = parse(&text).map_err(|(place, cause)| ConfigError::Invalid {
        file: file.into(),
        place,
        cause,
    })?;
    loaded.file = Some(file.into());
    Ok(loaded)
}

/// Reads the text of a file; an error is a place and a cause.
pub(super) fn parse(text: &str) -> Result<Loaded, (String, String)> {
    let tree: Tree = serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location().filter(|place| place.line() > 0);
        let place = place
            .map(|place| format!("line {}: ", place.line()))
            .unwrap_or_default();
        let cause = error.without_snippet().to_string();
        (place, cause.split_whitespace().collect::<Vec<_>>().join(" "))
    })?;
    let mut set = Vec::new();
    tree.walk("", &mut set);
    let line_of = |path: &str| set.iter().find(|(known, _)| known == path).map(|(_, line)| *line);
    let at = |path: &str| match line_of(path) {
        Some(line) => format!("line {line}: {path}: "),
        None => format!("{path}: "),
    };
    let value = tree.value("");
    for (field, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        match value.get(field).and_then(Value::as_str) {
            Some(found) if found == wanted => {}
            Some(found) => return Err((at(field), format!("{found:?} is not {wanted}"))),
            None => {
                return Err((
                    String::new(),
                    format!("{field} is missing; kube-proxy's configuration has {wanted}"),
                ));
            }
        }
    }
    let config = serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { String::new() } else { at(&path) };
        (place, error.into_inner().to_string())
    })?;
    let known = serde_json::to_value(KubeProxyConfiguration::default()).unwrap_or_default();
    let (set, unknown): (Vec<_>, Vec<_>) = set.into_iter().partition(|(path, _)| is_known(path, &known));
    let unknown = unknown
        .into_iter()
        .map(|(path, line)| format!("line {line}: {path}"))
        .collect();
    Ok(Loaded {
        config,
        file: None,
        set,
        unknown,
    })
}

/// Whether there is a field of that path. Below a map that users fill, every key is one.
fn is_known(path: &str, known: &Value) -> bool {
    let free = |path: &str| {
        ["featureGates.", "logging.options.", "logging.flushFrequency."]
            .iter()
            .any(|free| path.starts_with(free))
    };
    if free(path) {
        return true;
    }
    let mut at = known;
    for key in path.split('.') {
        match at.get(key) {
            Some(below) => at = below,
            None => return false,
        }
    }
    true
}

/// A document that remembers the lines of its keys.
enum Tree {
    Map(Vec<(String, u64, Tree)>),
    List(Vec<Tree>),
    Plain(Value),
}

impl Tree {
    /// The paths of all leaves with their lines.
    fn walk(&self, above: &str, found: &mut Vec<(String, u64)>) {
        let Self::Map(entries) = self else { return };
        for (key, line, below) in entries {
            let path = join(above, key);
            if matches!(below, Self::Map(entries) if !entries.is_empty()) {
                below.walk(&path, found);
            } else {
                found.push((path, *line));
            }
        }
    }

    /// The plain value, without what only means "the default".
    fn value(&self, path: &str) -> Value {
        match self {
            Self::Plain(value) => value.clone(),
            Self::List(items) => Value::Array(items.iter().map(|item| item.value(path)).collect()),
            Self::Map(entries) => {
                let kept = entries.iter().filter_map(|(key, _, below)| {
                    let path = join(path, key);
                    let value = below.value(&path);
                    let zero_counts = ZERO_COUNTS.contains(&&*path);
                    (!value.is_null() && (zero_counts || !is_empty(&value))).then(|| (key.clone(), value))
                });
                Value::Object(kept.collect::<Map<_, _>>())
            }
        }
    }
}

fn join(above: &str, key: &str) -> String {
    if above.is_empty() {
        key.into()
    } else {
        format!("{above}.{key}")
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(_) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text.parse::<super::Period>().is_ok_and(super::Period::is_zero),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Plain(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Plain(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Plain(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Plain(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Plain(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Plain(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Plain(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut found = Vec::new();
        while let Some(item) = items.next_element()? {
            found.push(item);
        }
        Ok(Tree::List(found))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Tree, A::Error> {
        let mut found = Vec::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            let line = key.referenced.line();
            found.push((key.value, line, entries.next_value()?));
        }
        Ok(Tree::Map(found))
    }
}
