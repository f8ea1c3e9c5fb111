//! The protobuf wire format, as far as reading objects needs it. Everything is borrowed from the bytes that are read.

use super::body::Malformed;

/// The fields of a message, in the order in which they were written.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

/// What a field holds. What no Kubernetes object uses is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// An integer or a truth value.
    Number(u64),
    /// Text, bytes or a message.
    Bytes(&'a [u8]),
    /// A number of fixed size.
    Fixed,
}

// === impl Fields ===

impl<'a> Fields<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// What has not been read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The number of the next field and the length of its bytes, where these have not arrived in full yet.
    pub(crate) fn announced(&self) -> Option<(u32, u64)> {
        let mut ahead = self.clone();
        let tag = ahead.number().ok()?;
        let length = (tag & 7 == 2).then(|| ahead.number().ok()).flatten()?;
        Some((u32::try_from(tag >> 3).ok()?, length))
    }

    /// Goes past what [`Fields::announced`] has read.
    pub(crate) fn enter(&mut self) {
        let _ = self.number().and_then(|_| self.number());
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for (index, byte) in self.rest.iter().enumerate().take(10) {
            number |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.rest = self.rest.get(index + 1..).unwrap_or_default();
                return Ok(number);
            }
        }
        Err(if self.rest.len() < 10 {
            Malformed::Short
        } else {
            Malformed::Number
        })
    }

    fn bytes(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(length).map_err(|_| Malformed::Short)?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn field(&mut self) -> Result<(u32, Value<'a>), Malformed> {
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Value::Number(self.number()?),
            1 => self.bytes(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.number()?;
                Value::Bytes(self.bytes(length)?)
            }
            5 => self.bytes(4).map(|_| Value::Fixed)?,
            _ => return Err(Malformed::WireType),
        };
        Ok((u32::try_from(tag >> 3).map_err(|_| Malformed::Number)?, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Malformed>;

    /// After an error there is nothing more.
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

// === impl Value ===

impl<'a> Value<'a> {
    pub(crate) fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) | Self::Fixed => Err(Malformed::WireType),
        }
    }

    /// The fields of a message.
    pub(crate) fn fields(self) -> Result<Fields<'a>, Malformed> {
        self.bytes().map(Fields::new)
    }

    pub(crate) fn text(self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed::Text)
    }

    /// A text; `None` when it is empty, which is how Kubernetes writes one that is not there.
    pub(crate) fn string(self) -> Result<Option<String>, Malformed> {
        let text = self.text()?;
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    /// An `int32`: negative ones are written as if they had 64 bits.
    pub(crate) fn int32(self) -> Result<i32, Malformed> {
        match self {
            Self::Number(number) => Ok(number.cast_signed() as i32),
            Self::Bytes(_) | Self::Fixed => Err(Malformed::WireType),
        }
    }

    pub(crate) fn flag(self) -> Result<bool, Malformed> {
        match self {
            Self::Number(number) => Ok(number != 0),
            Self::Bytes(_) | Self::Fixed => Err(Malformed::WireType),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_in_order_with_what_they_hold() {
        // 1: 300, 2: "ab", 3: fixed64, 4: fixed32, 5: -1 as int32.
        let message = [
            &[0x08, 0xac, 0x02, 0x12, 2, b'a', b'b', 0x19][..],
            &[0; 8],
            &[0x25, 0, 0, 0, 0, 0x28],
            &[0xff; 9],
            &[1],
        ]
        .concat();
        let fields: Vec<_> = Fields::new(&message).collect::<Result<_, _>>().unwrap();
        let bytes = Value::Bytes(b"ab");
        assert_eq!(fields[..2], [(1, Value::Number(300)), (2, bytes)]);
        assert_eq!(fields[2..4], [(3, Value::Fixed), (4, Value::Fixed)]);
        assert_eq!(fields[4].1.int32(), Ok(-1));
        assert_eq!(bytes.text(), Ok("ab"));
    }

    #[test]
    fn whatever_is_cut_or_wrong_is_an_error_and_the_end() {
        let check = |message: &[u8], expect: Malformed| {
            let mut fields = Fields::new(message);
            assert_eq!(fields.next(), Some(Err(expect)), "{message:?}");
            assert_eq!(fields.next(), None);
        };
        check(&[0x08], Malformed::Short);
        check(&[0x12, 3, b'a'], Malformed::Short);
        check(
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            Malformed::Short,
        );
        check(&[0xff; 11], Malformed::Number);
        check(&[0x0b], Malformed::WireType);
        assert_eq!(Value::Bytes(&[0xff]).text(), Err(Malformed::Text));
        assert_eq!(Value::Number(1).text(), Err(Malformed::WireType));
    }
}
