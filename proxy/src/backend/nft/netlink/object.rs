//! Tables, chains, rules, sets and elements, and how each writes itself into a batch.

use std::cmp::Ordering;
use std::fmt;

use super::attr::Attributes;
use super::batch::Batch;
use super::constants::*;
use super::expr::{Expr, Verdict};
use super::userdata;

/// What a field of a key or of a value means: tells `nft list` how to print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    Mark,
}

impl Type {
    /// The number in nft's `datatype.h`.
    fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
        }
    }

    /// Bytes in registers: every field takes whole 32-bit registers.
    fn length(self) -> u32 {
        if self == Self::Ipv6 { 16 } else { 4 }
    }

    /// The number of a type that is made of several: six bits each, as in nft.
    fn number_of(types: &[Self]) -> u32 {
        types.iter().fold(0, |number, t| (number << 6) | t.number())
    }

    fn length_of(types: &[Self]) -> u32 {
        match types {
            // Only a field among others is padded.
            [Self::Protocol] => 1,
            [Self::Port] => 2,
            types => types.iter().map(|t| t.length()).sum(),
        }
    }
}

/// What a map holds beside the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DataType {
    /// Nothing: a set.
    None,
    Verdict,
    Value(&'static [Type]),
}

/// How many elements rules may add to a set: strangers cause them, so that there has to be a limit.
const DYNAMIC_SIZE: u32 = 1 << 20;

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) key: &'static [Type],
    pub(crate) data: DataType,
    /// Elements may expire, and rules may add them.
    pub(crate) dynamic: bool,
    pub(crate) comment: &'static str,
}

/// Where a base chain is hooked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    /// `NF_INET_*`.
    pub(crate) number: u32,
    pub(crate) priority: i32,
}

/// A chain with its rules. One with a hook is of type `nat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: Box<str>,
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Rule>,
}

/// A rule: its expressions run in order until one does not match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) expressions: Vec<Expr>,
    pub(crate) comment: Box<str>,
}

/// A key or a value as it lies in registers: at most two IPv6 addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Bytes {
    bytes: [u8; Self::MAX],
    length: u8,
}

impl Bytes {
    const MAX: usize = 32;
    pub(crate) const EMPTY: Self = Self {
        bytes: [0; Self::MAX],
        length: 0,
    };

    /// Bytes from the kernel, if they fit.
    pub(crate) fn new(bytes: &[u8]) -> Option<Self> {
        let mut found = Self::EMPTY;
        found.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        found.length = u8::try_from(bytes.len()).ok()?;
        Some(found)
    }

    /// These bytes and then a field, padded to whole registers. Keys are made of at most eight registers.
    #[must_use]
    pub(crate) fn then(mut self, field: &[u8]) -> Self {
        let start = usize::from(self.length);
        let padded = field.len().div_ceil(4) * 4;
        debug_assert!(start + padded <= Self::MAX, "a key of more than eight registers");
        if let Some(place) = self.bytes.get_mut(start..start + field.len()) {
            place.copy_from_slice(field);
            self.length = u8::try_from(start + padded).unwrap_or(u8::MAX);
        }
        self
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

/// Byte by byte, and then by length. A load sorts a hundred thousand of them, so that they are compared as numbers.
impl Ord for Bytes {
    fn cmp(&self, other: &Self) -> Ordering {
        let numbers = |bytes: &Self| {
            let (halves, _) = bytes.bytes.as_chunks::<16>();
            let number = |half: usize| halves.get(half).map_or(0, |half| u128::from_be_bytes(*half));
            (number(0), number(1), bytes.length)
        };
        numbers(self).cmp(&numbers(other))
    }
}

impl PartialOrd for Bytes {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What an element holds beside its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Data {
    None,
    Value(Bytes),
    Verdict(Verdict),
}

/// An element as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Bytes,
    pub(crate) data: Data,
    pub(crate) comment: Option<Box<str>>,
}

// === writing ===

/// A table of one family, as the address of objects in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table<'a> {
    /// `NFPROTO_*`.
    pub(crate) family: u8,
    pub(crate) name: &'a str,
}

impl Table<'_> {
    /// Creates the table unless it is there.
    pub(crate) fn create(self, batch: &mut Batch, comment: &str) {
        batch.message(NFT_MSG_NEWTABLE, NLM_F_CREATE, self.family, Batch::SHARED, |w| {
            w.text(NFTA_TABLE_NAME, self.name);
            w.bytes(NFTA_TABLE_USERDATA, &userdata::comment(NFTNL_UDATA_COMMENT, comment));
        });
    }

    /// Deletes the table with everything in it.
    pub(crate) fn delete(self, batch: &mut Batch) {
        batch.message(NFT_MSG_DELTABLE, 0, self.family, Batch::SHARED, |w| {
            w.text(NFTA_TABLE_NAME, self.name);
        });
    }

    pub(crate) fn create_set(self, batch: &mut Batch, set: &Set, id: u32) {
        batch.message(NFT_MSG_NEWSET, NLM_F_CREATE, self.family, Batch::SHARED, |w| {
            w.text(NFTA_SET_TABLE, self.name);
            w.text(NFTA_SET_NAME, set.name);
            w.be32(NFTA_SET_FLAGS, set.flags());
            w.be32(NFTA_SET_KEY_TYPE, Type::number_of(set.key));
            w.be32(NFTA_SET_KEY_LEN, Type::length_of(set.key));
            match &set.data {
                DataType::None => {}
                DataType::Verdict => w.be32(NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT),
                DataType::Value(types) => {
                    w.be32(NFTA_SET_DATA_TYPE, Type::number_of(types));
                    w.be32(NFTA_SET_DATA_LEN, Type::length_of(types));
                }
            }
            if set.dynamic {
                w.nest(NFTA_SET_DESC, |w| w.be32(NFTA_SET_DESC_SIZE, DYNAMIC_SIZE));
            }
            w.be32(NFTA_SET_ID, id);
            w.bytes(
                NFTA_SET_USERDATA,
                &userdata::comment(NFTNL_UDATA_SET_COMMENT, set.comment),
            );
        });
    }

    pub(crate) fn create_chain(self, batch: &mut Batch, chain: &Chain, owner: u32) {
        batch.message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, self.family, owner, |w| {
            w.text(NFTA_CHAIN_TABLE, self.name);
            w.text(NFTA_CHAIN_NAME, &chain.name);
            if let Some(hook) = chain.hook {
                w.nest(NFTA_CHAIN_HOOK, |w| {
                    w.be32(NFTA_HOOK_HOOKNUM, hook.number);
                    w.bytes(NFTA_HOOK_PRIORITY, &hook.priority.to_be_bytes());
                });
                w.be32(NFTA_CHAIN_POLICY, NF_ACCEPT);
                w.text(NFTA_CHAIN_TYPE, "nat");
            }
        });
    }

    /// Appends a chain's rules.
    pub(crate) fn create_rules(self, batch: &mut Batch, chain: &Chain, owner: u32) {
        for rule in &chain.rules {
            batch.message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, self.family, owner, |w| {
                w.text(NFTA_RULE_TABLE, self.name);
                w.text(NFTA_RULE_CHAIN, &chain.name);
                w.nest(NFTA_RULE_EXPRESSIONS, |w| {
                    for expression in &rule.expressions {
                        expression.write(w);
                    }
                });
                if !rule.comment.is_empty() {
                    w.bytes(
                        NFTA_RULE_USERDATA,
                        &userdata::comment(NFTNL_UDATA_COMMENT, &rule.comment),
                    );
                }
            });
        }
    }

    /// Deletes all rules of a chain.
    pub(crate) fn flush_chain(self, batch: &mut Batch, chain: &str) {
        batch.message(NFT_MSG_DELRULE, 0, self.family, Batch::SHARED, |w| {
            w.text(NFTA_RULE_TABLE, self.name);
            w.text(NFTA_RULE_CHAIN, chain);
        });
    }

    /// Deletes a chain that is empty and that nothing refers to.
    pub(crate) fn delete_chain(self, batch: &mut Batch, chain: &str) {
        batch.message(NFT_MSG_DELCHAIN, 0, self.family, Batch::SHARED, |w| {
            w.text(NFTA_CHAIN_TABLE, self.name);
            w.text(NFTA_CHAIN_NAME, chain);
        });
    }

    pub(crate) fn add_element(
        self,
        batch: &mut Batch,
        set: &'static str,
        (key, data): (&Bytes, &Data),
        comment: &str,
        owner: u32,
    ) {
        batch.element(NFT_MSG_NEWSETELEM, self.family, (self.name, set), owner, |w| {
            w.nest(NFTA_SET_ELEM_KEY, |w| w.bytes(NFTA_DATA_VALUE, key.as_slice()));
            match data {
                Data::None => {}
                Data::Value(value) => w.nest(NFTA_SET_ELEM_DATA, |w| w.bytes(NFTA_DATA_VALUE, value.as_slice())),
                Data::Verdict(verdict) => w.nest(NFTA_SET_ELEM_DATA, |w| verdict.write(w)),
            }
            if !comment.is_empty() {
                w.bytes(NFTA_SET_ELEM_USERDATA, &userdata::comment(NFTNL_UDATA_COMMENT, comment));
            }
        });
    }

    pub(crate) fn delete_element(self, batch: &mut Batch, set: &'static str, key: &Bytes, owner: u32) {
        batch.element(NFT_MSG_DELSETELEM, self.family, (self.name, set), owner, |w| {
            w.nest(NFTA_SET_ELEM_KEY, |w| w.bytes(NFTA_DATA_VALUE, key.as_slice()));
        });
    }
}

impl Set {
    fn flags(&self) -> u32 {
        let map = if self.data == DataType::None { 0 } else { NFT_SET_MAP };
        let dynamic = if self.dynamic {
            NFT_SET_TIMEOUT | NFT_SET_EVAL
        } else {
            0
        };
        map | dynamic
    }

    /// Whether the kernel's set is this one.
    pub(crate) fn is(&self, found: &Attributes<'_>) -> bool {
        let (data_type, data_length) = match &self.data {
            DataType::None => (None, None),
            DataType::Verdict => (Some(NFT_DATA_VERDICT), None),
            DataType::Value(types) => (Some(Type::number_of(types)), Some(Type::length_of(types))),
        };
        found.be32(NFTA_SET_FLAGS).unwrap_or(0) == self.flags()
            && found.be32(NFTA_SET_KEY_TYPE) == Some(Type::number_of(self.key))
            && found.be32(NFTA_SET_KEY_LEN) == Some(Type::length_of(self.key))
            && found.be32(NFTA_SET_DATA_TYPE) == data_type
            // For verdicts the kernel tells the size of its own structure.
            && (data_length.is_none() || found.be32(NFTA_SET_DATA_LEN) == data_length)
    }
}
