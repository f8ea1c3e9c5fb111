//! Expressions: the instructions that rules are made of.
//!
//! An [`Expr`] knows how to write itself and how to recognise itself in what the kernel lists, so that a rule that
//! someone else changed is found. Registers are the kernel's 32-bit ones, counted from 0 here.

use super::attr::{Attributes, Writer};
use super::constants::*;

/// `NFT_REG32_00`: the first of sixteen 32-bit registers.
const NFT_REG32_00: u32 = 8;

/// A 32-bit register, 0 to 15. A wider value goes on in the following ones.
pub(crate) type Register = u8;

/// Where a packet goes next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(Box<str>),
    Goto(Box<str>),
}

impl Verdict {
    /// The chain that this verdict refers to.
    pub(crate) fn chain(&self) -> Option<&str> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Accept | Self::Drop | Self::Return => None,
        }
    }

    /// The content of `NFTA_DATA_VERDICT`'s parent.
    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        let code = match self {
            Self::Accept => NF_ACCEPT,
            Self::Drop => NF_DROP,
            Self::Return => NFT_RETURN,
            Self::Jump(_) => NFT_JUMP,
            Self::Goto(_) => NFT_GOTO,
        };
        writer.nest(NFTA_DATA_VERDICT, |w| {
            w.be32(NFTA_VERDICT_CODE, code);
            if let Some(chain) = self.chain() {
                w.text(NFTA_VERDICT_CHAIN, chain);
            }
        });
    }

    pub(crate) fn parse(data: &Attributes<'_>) -> Option<Self> {
        let verdict = data.nested(NFTA_DATA_VERDICT)?;
        let chain = || verdict.text(NFTA_VERDICT_CHAIN).map(Box::from);
        Some(match verdict.be32(NFTA_VERDICT_CODE)? {
            NF_ACCEPT => Self::Accept,
            NF_DROP => Self::Drop,
            NFT_RETURN => Self::Return,
            NFT_JUMP => Self::Jump(chain()?),
            NFT_GOTO => Self::Goto(chain()?),
            _ => return None,
        })
    }
}

/// One instruction. Names are those of `nft --debug=netlink`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expr {
    /// Loads bytes of a header.
    Payload {
        base: u32,
        offset: u32,
        len: u32,
        dreg: Register,
    },
    /// Loads a property of the packet.
    Meta { key: u32, dreg: Register },
    /// Sets a property of the packet.
    MetaSet { key: u32, sreg: Register },
    /// Loads a property of the connection; `original` reads the direction of its first packet.
    Ct { key: u32, dreg: Register, original: bool },
    /// Goes on when the register equals (or, with `not`, differs from) the value.
    Cmp { sreg: Register, not: bool, value: Vec<u8> },
    /// `dreg = (sreg & mask) ^ xor`.
    Bitwise {
        sreg: Register,
        dreg: Register,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    /// Goes on when the key is in the set. `dreg` takes a map's value; a verdict map needs none.
    Lookup {
        set: Box<str>,
        sreg: Register,
        dreg: Option<Dreg>,
        not: bool,
    },
    /// A random number below `modulus`, in host byte order.
    Random { modulus: u32, dreg: Register },
    /// Loads a constant.
    Constant { value: Vec<u8>, dreg: Register },
    /// Adds an element to a map, or renews its timeout (milliseconds).
    Update {
        set: Box<str>,
        key: Register,
        data: Register,
        timeout: u64,
    },
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// Replaces destination address and port.
    Dnat {
        family: u8,
        address: Register,
        port: Register,
    },
    /// Replaces the destination by the node itself and this port.
    Redirect { port: Register },
    /// Replaces the source by the address of the interface and a random port.
    Masquerade,
    /// Refuses: a TCP reset, or an ICMP error with this code.
    Reject { tcp_reset: bool, code: u8 },
    /// What kind of address the source is (`RTN_*`).
    SourceType { dreg: Register },
}

/// Where a lookup puts what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dreg {
    /// Into registers, beginning with this one.
    Data(Register),
    /// A verdict: acted upon at once.
    Verdict,
}

fn register(number: Register) -> u32 {
    NFT_REG32_00 + u32::from(number)
}

/// The kernel names a register by its 128-bit number (1 to 4) when it can.
fn parse_register(number: u32) -> Option<Register> {
    match number {
        1..=4 => u8::try_from((number - 1) * 4).ok(),
        NFT_REG32_00..=23 => u8::try_from(number - NFT_REG32_00).ok(),
        _ => None,
    }
}

// === impl Expr ===

impl Expr {
    /// The kernel's name of the expression.
    fn name(&self) -> &'static str {
        match self {
            Self::Payload { .. } => "payload",
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Ct { .. } => "ct",
            Self::Cmp { .. } => "cmp",
            Self::Bitwise { .. } => "bitwise",
            Self::Lookup { .. } => "lookup",
            Self::Random { .. } => "numgen",
            Self::Constant { .. } | Self::Verdict(_) => "immediate",
            Self::Update { .. } => "dynset",
            Self::Dnat { .. } => "nat",
            Self::Redirect { .. } => "redir",
            Self::Masquerade => "masq",
            Self::Reject { .. } => "reject",
            Self::SourceType { .. } => "fib",
        }
    }

    /// Writes the expression as an element of `NFTA_RULE_EXPRESSIONS`.
    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        writer.nest(NFTA_LIST_ELEM, |w| {
            w.text(NFTA_EXPR_NAME, self.name());
            w.nest(NFTA_EXPR_DATA, |w| self.write_data(w));
        });
    }

    // The numbers are the attributes of each expression in nf_tables.h, in the order of their enum.
    fn write_data(&self, w: &mut Writer<'_>) {
        let data = |w: &mut Writer<'_>, kind, value: &[u8]| w.nest(kind, |w| w.bytes(NFTA_DATA_VALUE, value));
        match self {
            Self::Payload {
                base,
                offset,
                len,
                dreg,
            } => {
                w.be32(1, register(*dreg));
                w.be32(2, *base);
                w.be32(3, *offset);
                w.be32(4, *len);
            }
            Self::Meta { key, dreg } => {
                w.be32(1, register(*dreg));
                w.be32(2, *key);
            }
            Self::MetaSet { key, sreg } => {
                w.be32(2, *key);
                w.be32(3, register(*sreg));
            }
            Self::Ct { key, dreg, original } => {
                w.be32(1, register(*dreg));
                w.be32(2, *key);
                if *original {
                    w.bytes(3, &[0]);
                }
            }
            Self::Cmp { sreg, not, value } => {
                w.be32(1, register(*sreg));
                w.be32(2, if *not { NFT_CMP_NEQ } else { NFT_CMP_EQ });
                data(w, 3, value);
            }
            Self::Bitwise { sreg, dreg, mask, xor } => {
                w.be32(1, register(*sreg));
                w.be32(2, register(*dreg));
                w.be32(3, u32::try_from(mask.len()).unwrap_or(0));
                data(w, 4, mask);
                data(w, 5, xor);
            }
            Self::Lookup { set, sreg, dreg, not } => {
                w.text(1, set);
                w.be32(2, register(*sreg));
                match dreg {
                    Some(Dreg::Data(dreg)) => w.be32(3, register(*dreg)),
                    Some(Dreg::Verdict) => w.be32(3, 0),
                    None => {}
                }
                if *not {
                    w.be32(5, 1);
                }
            }
            Self::Random { modulus, dreg } => {
                w.be32(1, register(*dreg));
                w.be32(2, *modulus);
                w.be32(3, NFT_NG_RANDOM);
                w.be32(4, 0);
            }
            Self::Constant { value, dreg } => {
                w.be32(1, register(*dreg));
                data(w, 2, value);
            }
            Self::Update {
                set,
                key,
                data,
                timeout,
            } => {
                w.text(1, set);
                w.be32(3, NFT_DYNSET_OP_UPDATE);
                w.be32(4, register(*key));
                w.be32(5, register(*data));
                w.be64(6, *timeout);
            }
            Self::Verdict(verdict) => {
                w.be32(1, 0);
                w.nest(2, |w| verdict.write(w));
            }
            Self::Dnat { family, address, port } => {
                w.be32(1, NFT_NAT_DNAT);
                w.be32(2, u32::from(*family));
                w.be32(3, register(*address));
                w.be32(5, register(*port));
            }
            Self::Redirect { port } => w.be32(1, register(*port)),
            Self::Masquerade => w.be32(1, NF_NAT_RANGE_PROTO_RANDOM_FULLY),
            Self::Reject { tcp_reset, code } => {
                w.be32(
                    1,
                    if *tcp_reset {
                        NFT_REJECT_TCP_RST
                    } else {
                        NFT_REJECT_ICMP_UNREACH
                    },
                );
                w.bytes(2, &[*code]);
            }
            Self::SourceType { dreg } => {
                w.be32(1, register(*dreg));
                w.be32(2, NFT_FIB_RESULT_ADDRTYPE);
                w.be32(3, NFTA_FIB_F_SADDR);
            }
        }
    }

    /// The expression in one element of `NFTA_RULE_EXPRESSIONS`; `None` for one that we never write.
    pub(crate) fn parse(element: &Attributes<'_>) -> Option<Self> {
        let name = element.text(NFTA_EXPR_NAME)?;
        // `masq` without flags carries no data.
        let a = element.nested(NFTA_EXPR_DATA).unwrap_or(Attributes::new(&[]));
        let reg = |kind| parse_register(a.be32(kind)?);
        let data = |kind| Some(a.nested(kind)?.get(NFTA_DATA_VALUE)?.to_vec());
        Some(match name {
            "payload" => Self::Payload {
                base: a.be32(2)?,
                offset: a.be32(3)?,
                len: a.be32(4)?,
                dreg: reg(1)?,
            },
            "meta" => match a.get(3) {
                Some(_) => Self::MetaSet {
                    key: a.be32(2)?,
                    sreg: reg(3)?,
                },
                None => Self::Meta {
                    key: a.be32(2)?,
                    dreg: reg(1)?,
                },
            },
            "ct" => Self::Ct {
                key: a.be32(2)?,
                dreg: reg(1)?,
                original: match a.get(3) {
                    None => false,
                    Some([0]) => true,
                    Some(_) => return None,
                },
            },
            "cmp" => Self::Cmp {
                sreg: reg(1)?,
                not: match a.be32(2)? {
                    NFT_CMP_EQ => false,
                    NFT_CMP_NEQ => true,
                    _ => return None,
                },
                value: data(3)?,
            },
            // NFTA_BITWISE_OP other than 0 is a shift.
            "bitwise" if a.be32(6).unwrap_or(0) == 0 => Self::Bitwise {
                sreg: reg(1)?,
                dreg: reg(2)?,
                mask: data(4)?,
                xor: data(5)?,
            },
            "lookup" => Self::Lookup {
                set: a.text(1)?.into(),
                sreg: reg(2)?,
                dreg: match a.be32(3) {
                    None => None,
                    Some(0) => Some(Dreg::Verdict),
                    Some(number) => Some(Dreg::Data(parse_register(number)?)),
                },
                not: a.be32(5).unwrap_or(0) != 0,
            },
            "numgen" if a.be32(3)? == NFT_NG_RANDOM && a.be32(4).unwrap_or(0) == 0 => Self::Random {
                modulus: a.be32(2)?,
                dreg: reg(1)?,
            },
            "immediate" if a.be32(1)? == 0 => Self::Verdict(Verdict::parse(&a.nested(2)?)?),
            "immediate" => Self::Constant {
                value: data(2)?,
                dreg: reg(1)?,
            },
            "dynset" if a.be32(3)? == NFT_DYNSET_OP_UPDATE => Self::Update {
                set: a.text(1)?.into(),
                key: reg(4)?,
                data: reg(5)?,
                timeout: a.be64(6)?,
            },
            "nat" if a.be32(1)? == NFT_NAT_DNAT => Self::Dnat {
                family: u8::try_from(a.be32(2)?).ok()?,
                address: reg(3)?,
                port: reg(5)?,
            },
            "redir" => Self::Redirect { port: reg(1)? },
            "masq" if a.be32(1) == Some(NF_NAT_RANGE_PROTO_RANDOM_FULLY) => Self::Masquerade,
            "reject" => Self::Reject {
                tcp_reset: a.be32(1)? == NFT_REJECT_TCP_RST,
                code: a.get(2).and_then(|code| code.first().copied()).unwrap_or(0),
            },
            "fib" if a.be32(2)? == NFT_FIB_RESULT_ADDRTYPE && a.be32(3)? == NFTA_FIB_F_SADDR => {
                Self::SourceType { dreg: reg(1)? }
            }
            _ => return None,
        })
    }
}
