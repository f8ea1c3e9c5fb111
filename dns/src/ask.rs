//! `portolan-dns answer`: what one name answers, as dig would print it, from a source that is read once.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name as ProtoName, Record, RecordType};
use hickory_proto::serialize::binary::BinDecodable;
use portolan_agent::source;
use portolan_model::{Delta, World};

use crate::answer::{Client, Transport, Verdict, answer};
use crate::config::{AnswerArgs, PATIENCE};
use crate::zone::names::{self, reverse_name, wire_from_text};
use crate::zone::{Zone, ZoneConfig};

/// Reads the source, answers, and prints.
///
/// # Errors
/// When the source cannot be read or the question is none.
pub async fn run(args: &AnswerArgs) -> Result<()> {
    let config = args.zone.zone()?;
    let (wire, type_) = question(args)?;
    let snapshot = source::read_once(args.zone.source(&config), PATIENCE).await?;
    for problem in &snapshot.problems {
        eprintln!("warning: {problem}");
    }
    print!("{}", say(&snapshot.world, config, &wire, type_)?);
    Ok(())
}

/// The name in wire form and the type that the arguments ask for.
fn question(args: &AnswerArgs) -> Result<(Box<[u8]>, RecordType)> {
    let address = args.name.parse::<IpAddr>().ok();
    let wire = match address {
        Some(ip) => reverse_name(ip),
        None => wire_from_text(&args.name).with_context(|| format!("{:?} is no name", args.name))?,
    };
    let type_ = match &args.type_ {
        None if address.is_some() => RecordType::PTR,
        None => RecordType::A,
        Some(text) => match text.to_ascii_uppercase().parse() {
            Ok(type_) => type_,
            Err(_) => bail!("{text:?} is no record type such as A, AAAA, SRV, PTR, CNAME or TXT"),
        },
    };
    Ok((wire, type_))
}

/// What a World answers, as text.
///
/// # Errors
/// When the name cannot be encoded.
pub fn say(world: &World, config: ZoneConfig, wire: &[u8], type_: RecordType) -> Result<String> {
    let mut delta = Delta::default();
    delta
        .services
        .extend(world.services().map(|view| view.service.name.clone()));
    delta
        .namespaces
        .extend(world.namespaces().map(|namespace| namespace.name.clone()));
    delta.pods.extend(world.pods().map(|pod| pod.name.clone()));
    let mut zone = Zone::new(config, 1);
    zone.apply(world, &delta, 1);
    zone.set_synced();
    let mut query = Message::new(0, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(ProtoName::from_bytes(wire)?, type_));
    let mut out = vec![0; crate::answer::edns::MAX_TCP];
    let name = names::text(wire);
    let reader = zone.reader();
    Ok(
        match answer(
            &query.to_vec()?,
            &reader.load(),
            &Client::new(Transport::Tcp, [127, 0, 0, 1]),
            &mut out,
        ) {
            Verdict::Answer(answered) => print(&Message::from_vec(&out[..answered.length])?),
            Verdict::Forward(forward) => {
                let mut text = String::new();
                for alias in &forward.aliases {
                    let (owner, target) = (names::text(&alias.owner), names::text(&alias.target));
                    text.push_str(&format!("{owner}\tIN\tCNAME\t{target}\n"));
                }
                let target = names::text(forward.target());
                text.push_str(&format!(
                    ";; {target} is in none of this cluster's zones: an upstream is asked for it\n"
                ));
                text
            }
            // Nobody may transfer: the policy of this command names no one.
            Verdict::Transfer(_) | Verdict::Drop => bail!("{name} {type_} is no question"),
        },
    )
}

fn print(message: &Message) -> String {
    let flags = [
        (message.metadata.authoritative, " aa"),
        (message.metadata.truncation, " tc"),
    ];
    let flags: String = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    let rcode = format!("{:?}", message.metadata.response_code).to_ascii_uppercase();
    let mut text = format!(";; status: {rcode}, flags: qr{flags}\n");
    for (title, records) in [
        ("ANSWER", &message.answers),
        ("AUTHORITY", &message.authorities),
        ("ADDITIONAL", &message.additionals),
    ] {
        if records.is_empty() {
            continue;
        }
        text.push_str(&format!(";; {title}\n"));
        for record in records {
            text.push_str(&line(record));
        }
    }
    text
}

fn line(record: &Record) -> String {
    let (name, ttl, type_) = (record.name.to_ascii(), record.ttl, record.record_type());
    format!("{name}\t{ttl}\tIN\t{type_}\t{}\n", record.data)
}
