//! Reading tables, chains, rules, sets and elements from the kernel.

use std::io;

use super::attr::{Attributes, Writer};
use super::constants::*;
use super::dump::{dump, get};
use super::expr::{Expr, Verdict};
use super::message::Message;
use super::object::{Bytes, Chain, Data, Element, Hook, Rule, Set, Table};
use super::socket::Socket;
use super::userdata;

impl Table<'_> {
    /// The table's flags, if there is such a table.
    pub(crate) fn flags(self, socket: &mut Socket) -> io::Result<Option<u32>> {
        let each = |found: &mut Option<u32>, message: &Message<'_>| {
            let attributes = message.attributes();
            if attributes.text(NFTA_TABLE_NAME) == Some(self.name) && message.family() == Some(self.family) {
                *found = Some(attributes.be32(NFTA_TABLE_FLAGS).unwrap_or(0));
            }
        };
        Ok(dump(socket, NFT_MSG_GETTABLE, self.family, |_| {}, each, || None)?.flatten())
    }

    /// The names of the table's sets; for each that is to be there, whether it is as it has to be.
    pub(crate) fn sets(self, socket: &mut Socket, wanted: &[Set]) -> io::Result<Vec<(String, bool)>> {
        let each = |found: &mut Vec<(String, bool)>, message: &Message<'_>| {
            let attributes = message.attributes();
            if attributes.text(NFTA_SET_TABLE) == Some(self.name)
                && let Some(name) = attributes.text(NFTA_SET_NAME)
            {
                let right = wanted.iter().any(|set| set.name == name && set.is(&attributes));
                found.push((name.to_owned(), right));
            }
        };
        let fill = |w: &mut Writer<'_>| w.text(NFTA_SET_TABLE, self.name);
        Ok(dump(socket, NFT_MSG_GETSET, self.family, fill, each, Vec::new)?.unwrap_or_default())
    }

    /// The table's chains, without their rules.
    pub(crate) fn chains(self, socket: &mut Socket) -> io::Result<Vec<Chain>> {
        let each = |found: &mut Vec<Chain>, message: &Message<'_>| {
            let attributes = message.attributes();
            if attributes.text(NFTA_CHAIN_TABLE) == Some(self.name)
                && let Some(name) = attributes.text(NFTA_CHAIN_NAME)
            {
                let hook = attributes
                    .nested(NFTA_CHAIN_HOOK)
                    .map(|hook| Hook::parse(&attributes, &hook));
                found.push(Chain {
                    name: name.into(),
                    hook,
                    rules: Vec::new(),
                });
            }
        };
        let fill = |w: &mut Writer<'_>| w.text(NFTA_CHAIN_TABLE, self.name);
        Ok(dump(socket, NFT_MSG_GETCHAIN, self.family, fill, each, Vec::new)?.unwrap_or_default())
    }

    /// The table's rules in order, with the chain of each.
    pub(crate) fn rules(self, socket: &mut Socket) -> io::Result<Vec<(Box<str>, Rule)>> {
        let each = |found: &mut Vec<(Box<str>, Rule)>, message: &Message<'_>| {
            let attributes = message.attributes();
            if attributes.text(NFTA_RULE_TABLE) == Some(self.name) {
                found.extend(Rule::parse(&attributes));
            }
        };
        let fill = |w: &mut Writer<'_>| w.text(NFTA_RULE_TABLE, self.name);
        Ok(dump(socket, NFT_MSG_GETRULE, self.family, fill, each, Vec::new)?.unwrap_or_default())
    }

    /// The rules of one chain; `None` when there is no such chain.
    pub(crate) fn rules_of(self, socket: &mut Socket, chain: &str) -> io::Result<Option<Vec<Rule>>> {
        let each = |found: &mut Vec<Rule>, message: &Message<'_>| {
            let attributes = message.attributes();
            let ours = attributes.text(NFTA_RULE_TABLE) == Some(self.name);
            if ours && attributes.text(NFTA_RULE_CHAIN) == Some(chain) {
                found.extend(Rule::parse(&attributes).map(|(_, rule)| rule));
            }
        };
        let fill = |w: &mut Writer<'_>| {
            w.text(NFTA_RULE_TABLE, self.name);
            w.text(NFTA_RULE_CHAIN, chain);
        };
        let rules = dump(socket, NFT_MSG_GETRULE, self.family, fill, each, Vec::new)?;
        // Without rules the kernel does not say whether there is a chain; none of ours is empty.
        Ok(rules.filter(|rules| !rules.is_empty()))
    }

    /// One element of a set.
    pub(crate) fn element(self, socket: &mut Socket, set: &str, key: &Bytes) -> io::Result<Option<Element>> {
        let each = |found: &mut Option<Element>, message: &Message<'_>| {
            let list = message.attributes().nested(NFTA_SET_ELEM_LIST_ELEMENTS);
            let mut elements = list.into_iter().flatten();
            *found = elements.find_map(|(_, element)| Element::parse(&Attributes::new(element)));
        };
        let fill = |w: &mut Writer<'_>| {
            w.text(NFTA_SET_ELEM_LIST_TABLE, self.name);
            w.text(NFTA_SET_ELEM_LIST_SET, set);
            w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
                w.nest(NFTA_LIST_ELEM, |w| {
                    w.nest(NFTA_SET_ELEM_KEY, |w| w.bytes(NFTA_DATA_VALUE, key.as_slice()));
                });
            });
        };
        Ok(get(socket, NFT_MSG_GETSETELEM, self.family, fill, each, || None)?.flatten())
    }

    /// The elements of a set, each as `make` wants it.
    pub(crate) fn elements<T>(self, socket: &mut Socket, set: &str, make: impl Fn(Element) -> T) -> io::Result<Vec<T>> {
        let each = |found: &mut Vec<T>, message: &Message<'_>| {
            let list = message.attributes().nested(NFTA_SET_ELEM_LIST_ELEMENTS);
            let elements = list.into_iter().flatten();
            found.extend(elements.filter_map(|(_, element)| Element::parse(&Attributes::new(element)).map(&make)));
        };
        let fill = |w: &mut Writer<'_>| {
            w.text(NFTA_SET_ELEM_LIST_TABLE, self.name);
            w.text(NFTA_SET_ELEM_LIST_SET, set);
        };
        Ok(dump(socket, NFT_MSG_GETSETELEM, self.family, fill, each, Vec::new)?.unwrap_or_default())
    }
}

impl Rule {
    /// A rule and its chain. One that is not ours has expressions that we do not know: it comes out empty, which no
    /// rule of ours is.
    pub(crate) fn parse(message: &Attributes<'_>) -> Option<(Box<str>, Self)> {
        let chain = message.text(NFTA_RULE_CHAIN)?;
        let list = message.nested(NFTA_RULE_EXPRESSIONS).into_iter().flatten();
        let expressions: Option<Vec<Expr>> = list
            .map(|(_, element)| Expr::parse(&Attributes::new(element)))
            .collect();
        let comment = message
            .get(NFTA_RULE_USERDATA)
            .and_then(|bytes| userdata::parse_comment(NFTNL_UDATA_COMMENT, bytes));
        let rule = Self {
            expressions: expressions.unwrap_or_default(),
            comment: comment.unwrap_or_default().into(),
        };
        Some((chain.into(), rule))
    }
}

impl Hook {
    /// No hook of ours: something in the chain's head is not as we write it.
    const FOREIGN: Self = Self {
        number: u32::MAX,
        priority: 0,
    };

    pub(crate) fn parse(chain: &Attributes<'_>, hook: &Attributes<'_>) -> Self {
        let ours = chain.text(NFTA_CHAIN_TYPE) == Some("nat") && chain.be32(NFTA_CHAIN_POLICY) == Some(NF_ACCEPT);
        let number = hook.be32(NFTA_HOOK_HOOKNUM);
        let priority = hook.be32(NFTA_HOOK_PRIORITY).map(u32::cast_signed);
        match (ours, number, priority) {
            (true, Some(number), Some(priority)) => Self { number, priority },
            _ => Self::FOREIGN,
        }
    }
}

impl Element {
    /// An element of a list; `None` when it is larger than any of ours.
    pub(crate) fn parse(element: &Attributes<'_>) -> Option<Self> {
        let data = match element.nested(NFTA_SET_ELEM_DATA) {
            None => Data::None,
            Some(data) => match data.get(NFTA_DATA_VALUE) {
                Some(value) => Data::Value(Bytes::new(value)?),
                None => Data::Verdict(Verdict::parse(&data)?),
            },
        };
        let comment = element
            .get(NFTA_SET_ELEM_USERDATA)
            .and_then(|bytes| userdata::parse_comment(NFTNL_UDATA_COMMENT, bytes));
        Some(Self {
            key: Bytes::new(element.nested(NFTA_SET_ELEM_KEY)?.get(NFTA_DATA_VALUE)?)?,
            data,
            comment: comment.map(Box::from),
        })
    }
}

/// Every chain of every table of every family, as `FAMILY TABLE CHAIN`.
pub(crate) fn all_chains(socket: &mut Socket) -> io::Result<Vec<String>> {
    let each = |found: &mut Vec<String>, message: &Message<'_>| {
        let family = match message.family() {
            Some(NFPROTO_IPV4) => "ip",
            Some(NFPROTO_IPV6) => "ip6",
            Some(NFPROTO_INET) => "inet",
            _ => "other",
        };
        let attributes = message.attributes();
        let (table, chain) = (attributes.text(NFTA_CHAIN_TABLE), attributes.text(NFTA_CHAIN_NAME));
        if let (Some(table), Some(chain)) = (table, chain) {
            found.push(format!("{family} {table} {chain}"));
        }
    };
    Ok(dump(socket, NFT_MSG_GETCHAIN, NFPROTO_UNSPEC, |_| {}, each, Vec::new)?.unwrap_or_default())
}
