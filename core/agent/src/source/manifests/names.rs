//! The API's rules for names, labels and port names, and a hash that is the same in every build.

/// FNV-1a, 64 bit: stable over builds and machines, which addresses and slice names rely on.
pub(crate) fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// RFC 1123 label: lower case letters, digits and `-`, at most 63, letter or digit at both ends.
pub(crate) fn label(text: &str) -> Result<(), String> {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let good =
        (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-');
    good.then_some(()).ok_or_else(|| {
        format!("{text:?} is not a DNS label (lower case letters, digits and '-', at most 63, RFC 1123)")
    })
}

/// RFC 1035 label, which names of Services have to be: an RFC 1123 label that starts with a letter.
pub(crate) fn label_1035(text: &str) -> Result<(), String> {
    let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase());
    match label(text) {
        Ok(()) if starts_well => Ok(()),
        _ => Err(format!(
            "{text:?} is not a Service name (lower case letters, digits and '-', a letter first, at most 63, RFC 1035)"
        )),
    }
}

/// RFC 1123 subdomain: labels joined by dots, at most 253.
pub(crate) fn subdomain(text: &str) -> Result<(), String> {
    let good = text.len() <= 253 && text.split('.').all(|part| label(part).is_ok());
    good.then_some(()).ok_or_else(|| {
        format!("{text:?} is not a DNS name (lower case letters, digits, '-' and '.', at most 253, RFC 1123)")
    })
}

/// IANA service name (RFC 6335), which names of container ports have to be.
pub(crate) fn port_name(text: &str) -> Result<(), String> {
    let good =
        text.len() <= 15 && label(text).is_ok() && !text.contains("--") && text.bytes().any(|c| c.is_ascii_lowercase());
    good.then_some(()).ok_or_else(|| {
        format!("{text:?} is not a port name (lower case letters, digits and '-', at least one letter, at most 15, RFC 6335)")
    })
}

/// The value of a label.
pub(crate) fn label_value(text: &str) -> Result<(), String> {
    let good = text.is_empty() || is_qualified(text, 63);
    good.then_some(())
        .ok_or_else(|| format!("{text:?} is not a label value (letters, digits, '-', '_' and '.', at most 63)"))
}

/// The key of a label, with or without a prefix.
pub(crate) fn label_key(text: &str) -> Result<(), String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let good = is_qualified(name, 63) && prefix.is_none_or(|prefix| subdomain(prefix).is_ok());
    good.then_some(())
        .ok_or_else(|| format!("{text:?} is not a label key (such as app or example.com/app)"))
}

fn is_qualified(text: &str, max: usize) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= max
        && edge(text.chars().next())
        && edge(text.chars().next_back())
        && text
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}
