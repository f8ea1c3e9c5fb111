//! Comments, in libnftnl's type-length-value form, so that `nft list` prints them.

/// A comment as user data of the kind (`NFTNL_UDATA_*_COMMENT`). A text that is too long for the form is cut.
pub(crate) fn comment(kind: u8, text: &str) -> Vec<u8> {
    // The length is one byte and counts the NUL; the kernel takes 256 bytes in all.
    let mut end = text.len().min(253);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = text.get(..end).unwrap_or_default();
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut bytes = Vec::with_capacity(text.len() + 3);
    bytes.extend_from_slice(&[kind, length]);
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

/// The comment of the kind in user data.
pub(crate) fn parse_comment(kind: u8, mut bytes: &[u8]) -> Option<&str> {
    while let Some((&[found, length], rest)) = bytes.split_first_chunk::<2>() {
        let value = rest.get(..usize::from(length))?;
        if found == kind {
            return std::str::from_utf8(value.strip_suffix(&[0])?).ok();
        }
        bytes = rest.get(usize::from(length)..)?;
    }
    None
}
