//! documents: the text of a file into the values of its documents. Every bound on untrusted text is here.

use serde_json::Value;

/// YAML aliases of one file may stand for this many nodes: plenty for people, little for a bomb.
const MAX_ALIAS_EVENTS: usize = 100_000;
/// The document, counted from 1, and what is wrong in it.
pub(crate) type SyntaxError = (Option<usize>, String);

/// The documents of a YAML file.
pub(crate) fn parse_yaml(text: &str) -> Result<Vec<Value>, SyntaxError> {
    let mut options = serde_saphyr::options! {
        // Room for 100,000 Services in one file; aliases stay short of a bomb.
        budget: serde_saphyr::budget! {
            max_events: 50_000_000,
            max_nodes: 50_000_000,
            max_documents: 1_000_000,
            max_aliases: 10_000,
            max_depth: 64,
        },
        with_snippet: false,
    };
    options.alias_limits.max_total_replayed_events = MAX_ALIAS_EVENTS;
    let mut bytes = text.as_bytes();
    let mut documents = Vec::new();
    for document in serde_saphyr::read_with_options(&mut bytes, options) {
        match document {
            Ok(value) => documents.push(value),
            Err(error) => {
                let place = error.location().filter(|place| place.line() > 0);
                let place = place.map(|place| format!("line {}, column {}: ", place.line(), place.column()));
                let cause = format!(
                    "{}{}",
                    place.unwrap_or_default(),
                    one_line(&error.without_snippet().to_string())
                );
                return Err((Some(documents.len() + 1), cause));
            }
        }
    }
    Ok(documents)
}

/// The documents of a JSON file: one value after the other.
pub(crate) fn parse_json(text: &str) -> Result<Vec<Value>, SyntaxError> {
    let mut documents = Vec::new();
    for document in serde_json::Deserializer::from_str(text).into_iter() {
        match document {
            Ok(value) => documents.push(value),
            // serde_json's own message ends in the line and the column.
            Err(error) => return Err((Some(documents.len() + 1), error.to_string())),
        }
    }
    Ok(documents)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Numbers the documents and opens Lists, whose items keep the number of their document.
pub(crate) fn flatten(documents: Vec<Value>) -> Vec<(usize, Value)> {
    let mut found = Vec::new();
    for (i, value) in documents.into_iter().enumerate() {
        flatten_into(i + 1, value, 0, &mut found);
    }
    found
}

fn flatten_into(document: usize, mut value: Value, depth: usize, found: &mut Vec<(usize, Value)>) {
    let kind = value.get("kind").and_then(Value::as_str);
    // The depth of YAML is bounded; the depth of JSON is bounded by serde_json (128).
    let is_list = kind.is_some_and(|kind| kind.ends_with("List")) && value.get("items").is_some_and(Value::is_array);
    if !is_list || depth > 8 {
        found.push((document, value));
        return;
    }
    // Items of a typed list (ServiceList) carry neither kind nor apiVersion.
    let kind = kind
        .map(|kind| kind.trim_end_matches("List").to_string())
        .filter(|kind| !kind.is_empty());
    let api_version = value.get("apiVersion").cloned();
    let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) else {
        return;
    };
    for mut item in items {
        if let (Some(kind), Value::Object(fields)) = (&kind, &mut item) {
            fields.entry("kind").or_insert_with(|| kind.clone().into());
            if let Some(api_version) = &api_version {
                fields.entry("apiVersion").or_insert_with(|| api_version.clone());
            }
        }
        flatten_into(document, item, depth + 1, found);
    }
}
