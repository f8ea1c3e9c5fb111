//! Answers of the API server, piece by piece: lists and watches, in protobuf or in JSON.
//!
//! A list is read while it arrives, so that nothing but the object at hand has to fit into memory. JSON is for servers that
//! know nothing else; a list in JSON is read as a whole, which is why lists are asked for in pages.

use axum::http::HeaderValue;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, Status};
use serde::Deserialize;

use super::kinds::Watched;
use super::protobuf::Fields;

/// What we read, best first.
pub(crate) const ACCEPT_LIST: &str = "application/vnd.kubernetes.protobuf,application/json";
pub(crate) const ACCEPT_WATCH: &str = "application/vnd.kubernetes.protobuf;stream=watch,application/json";
/// What an object in protobuf begins with.
const MAGIC: &[u8] = b"k8s\0";

/// Why an answer cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the answer ends in the middle of an object")]
    Short,
    #[error("the answer holds a number of more than 64 bits")]
    Number,
    #[error("the answer holds a text that is not UTF-8")]
    Text,
    #[error("the answer holds a field of an unexpected type")]
    WireType,
    #[error("the answer is not an object in protobuf")]
    Magic,
    #[error("the answer is not the JSON that it should be: {0}")]
    Json(String),
}

/// What the server says of itself instead of what was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) message: String,
}

/// Whether an answer is in protobuf.
pub(crate) fn is_protobuf(content_type: Option<&HeaderValue>) -> bool {
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/vnd.kubernetes.protobuf"))
}

/// What was received and not yet worked off.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// How much of it has been worked off.
    done: usize,
}

/// A list that is being read.
#[derive(Debug, Default)]
pub(crate) struct ListBody {
    protobuf: bool,
    buffer: Buffer,
    /// How much of the list itself is still to come; `None` before it begins.
    left: Option<usize>,
    place: Place,
}

/// Where a list stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// `metadata.resourceVersion`: a watch goes on from there.
    pub(crate) version: String,
    /// `metadata.continue`: asks for the next page.
    pub(crate) more: Option<String>,
}

/// A watch that is being read.
#[derive(Debug, Default)]
pub(crate) struct WatchBody {
    protobuf: bool,
    buffer: Buffer,
}

/// What a watch tells.
#[derive(Debug, PartialEq)]
pub(crate) enum Told<K> {
    /// The object came or changed.
    Applied(K),
    /// It is gone.
    Deleted(K),
    /// Nothing has happened up to this version.
    Bookmark(K),
    /// The watch is over.
    Ended(Answer),
}

// === impl Buffer ===

impl Buffer {
    fn push(&mut self, chunk: &[u8]) {
        if self.done > 0 {
            self.bytes.drain(..self.done);
            self.done = 0;
        }
        self.bytes.extend_from_slice(chunk);
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.done..).unwrap_or_default()
    }
}

// === impl ListBody ===

impl ListBody {
    pub(crate) fn new(protobuf: bool) -> Self {
        Self {
            protobuf,
            ..Self::default()
        }
    }

    /// Takes in what has arrived and yields the objects in it to `each`.
    pub(crate) fn push<K: Watched>(
        &mut self,
        chunk: &[u8],
        names: bool,
        mut each: impl FnMut(K),
    ) -> Result<(), Malformed> {
        self.buffer.push(chunk);
        if !self.protobuf {
            return Ok(());
        }
        while let Some((field, message)) = self.next()? {
            match field {
                1 => self.place = place(message)?,
                2 => each(K::decode(Fields::new(message), names)?),
                _ => {}
            }
        }
        Ok(())
    }

    /// The next field of the list, once it is there in full.
    fn next(&mut self) -> Result<Option<(u32, &[u8])>, Malformed> {
        let left = match self.left {
            Some(left) => left,
            None => match self.begin()? {
                Some(left) => left,
                None => return Ok(None),
            },
        };
        let rest = self.buffer.bytes.get(self.buffer.done..).unwrap_or_default();
        let mut list = Fields::new(rest.get(..left).unwrap_or(rest));
        let before = list.rest().len();
        match list.next().transpose() {
            Ok(None) => Ok(None),
            Err(Malformed::Short) if before < left => Ok(None),
            Err(error) => Err(error),
            Ok(Some((field, value))) => {
                let read = before - list.rest().len();
                self.left = Some(left - read);
                self.buffer.done += read;
                Ok(Some((field, value.bytes()?)))
            }
        }
    }

    /// Finds the list in its envelope and yields its length.
    fn begin(&mut self) -> Result<Option<usize>, Malformed> {
        let rest = self.buffer.rest();
        let Some(envelope) = rest.strip_prefix(MAGIC) else {
            let early = MAGIC.starts_with(rest);
            return if early { Ok(None) } else { Err(Malformed::Magic) };
        };
        let mut envelope = Fields::new(envelope);
        loop {
            match envelope.announced() {
                Some((2, length)) => {
                    envelope.enter();
                    let length = usize::try_from(length).map_err(|_| Malformed::Number)?;
                    self.buffer.done += rest.len() - envelope.rest().len();
                    self.left = Some(length);
                    return Ok(self.left);
                }
                Some(_) if matches!(envelope.next(), Some(Ok(_))) => {}
                // The version and kind of the list are short.
                _ if rest.len() < 4096 => return Ok(None),
                _ => return Err(Malformed::Magic),
            }
        }
    }

    /// The answer is complete: where the list stands. A list in JSON yields its objects only now.
    pub(crate) fn finish<K: Watched>(self, mut each: impl FnMut(K)) -> Result<Place, Malformed> {
        if self.protobuf {
            return if self.left == Some(0) {
                Ok(self.place)
            } else {
                Err(Malformed::Short)
            };
        }
        let list: JsonList<K> = json(self.buffer.rest())?;
        list.items.into_iter().flatten().for_each(&mut each);
        Ok(Place {
            version: list.metadata.resource_version.unwrap_or_default(),
            more: list.metadata.continue_.filter(|more| !more.is_empty()),
        })
    }
}

// === impl WatchBody ===

impl WatchBody {
    pub(crate) fn new(protobuf: bool) -> Self {
        Self {
            protobuf,
            ..Self::default()
        }
    }

    /// Takes in what has arrived and yields what it tells to `each`.
    pub(crate) fn push<K: Watched>(
        &mut self,
        chunk: &[u8],
        names: bool,
        mut each: impl FnMut(Told<K>),
    ) -> Result<(), Malformed> {
        self.buffer.push(chunk);
        loop {
            let rest = self.buffer.rest();
            if self.protobuf {
                let Some((frame, after)) = rest.split_first_chunk().and_then(|(length, rest)| {
                    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
                }) else {
                    return Ok(());
                };
                let told = event(Fields::new(frame), names)?;
                self.buffer.done = self.buffer.bytes.len() - after.len();
                each(told);
            } else {
                let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                    return Ok(());
                };
                let line = rest.get(..end).unwrap_or_default().trim_ascii();
                let told = if line.is_empty() { None } else { Some(json_event(line)?) };
                self.buffer.done += end + 1;
                told.into_iter().for_each(&mut each);
            }
        }
    }
}

fn event<K: Watched>(event: Fields<'_>, names: bool) -> Result<Told<K>, Malformed> {
    let (mut kind, mut object) = ("", &[][..]);
    for field in event {
        match field? {
            (1, value) => kind = value.text()?,
            // RawExtension: its first field holds the object.
            (2, value) => object = only(value.fields()?, 1)?.unwrap_or_default(),
            _ => {}
        }
    }
    let object = unwrap(object)?;
    if kind == "ERROR" {
        return Ok(Told::Ended(status(object)?));
    }
    told(kind, K::decode(object, names)?)
}

fn told<K>(kind: &str, object: K) -> Result<Told<K>, Malformed> {
    match kind {
        "ADDED" | "MODIFIED" => Ok(Told::Applied(object)),
        "DELETED" => Ok(Told::Deleted(object)),
        "BOOKMARK" => Ok(Told::Bookmark(object)),
        _ => Err(Malformed::WireType),
    }
}

fn json_event<K: Watched>(line: &[u8]) -> Result<Told<K>, Malformed> {
    #[derive(Deserialize)]
    struct Kind {
        #[serde(rename = "type")]
        kind: String,
    }
    #[derive(Deserialize)]
    struct Holder<T> {
        object: T,
    }
    let Kind { kind } = json(line)?;
    if kind == "ERROR" {
        return Ok(Told::Ended(answer(json::<Holder<Status>>(line)?.object)));
    }
    told(&kind, json::<Holder<K>>(line)?.object)
}

#[derive(Deserialize)]
struct JsonList<K> {
    metadata: ListMeta,
    items: Option<Vec<K>>,
}

fn json<'de, T: Deserialize<'de>>(text: &'de [u8]) -> Result<T, Malformed> {
    serde_json::from_slice(text).map_err(|error| Malformed::Json(error.to_string()))
}

/// What a refusal says, in either encoding. Proxies before the server answer in whatever they like.
pub(crate) fn refusal(code: u16, body: &[u8]) -> Answer {
    let told = match body.starts_with(MAGIC) {
        true => unwrap(body).and_then(status).ok(),
        false => json(body).ok().map(answer),
    };
    let message = told.map(|told| told.message).filter(|message| !message.is_empty());
    let message = message.unwrap_or_else(|| {
        let text = String::from_utf8_lossy(body.get(..200).unwrap_or(body));
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    });
    Answer { code, message }
}

fn answer(status: Status) -> Answer {
    Answer {
        code: status
            .code
            .and_then(|code| u16::try_from(code).ok())
            .unwrap_or_default(),
        message: status.message.unwrap_or_default(),
    }
}

fn status(status: Fields<'_>) -> Result<Answer, Malformed> {
    let mut found = Answer::default();
    for field in status {
        match field? {
            (3, value) => found.message = value.text()?.into(),
            (6, value) => found.code = u16::try_from(value.int32()?).unwrap_or_default(),
            _ => {}
        }
    }
    Ok(found)
}

/// An object out of its envelope.
fn unwrap(object: &[u8]) -> Result<Fields<'_>, Malformed> {
    let envelope = object.strip_prefix(MAGIC).ok_or(Malformed::Magic)?;
    Ok(Fields::new(only(Fields::new(envelope), 2)?.unwrap_or_default()))
}

/// The bytes of the field of that number.
fn only(message: Fields<'_>, wanted: u32) -> Result<Option<&[u8]>, Malformed> {
    let mut found = None;
    for field in message {
        let (number, value) = field?;
        if number == wanted {
            found = Some(value.bytes()?);
        }
    }
    Ok(found)
}

fn place(meta: &[u8]) -> Result<Place, Malformed> {
    let mut found = Place::default();
    for field in Fields::new(meta) {
        match field? {
            (2, value) => found.version = value.text()?.into(),
            (3, value) => found.more = value.string()?,
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
