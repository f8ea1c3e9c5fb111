//! `cargo xtask tidy`: the rules of the code base that no compiler checks.
//!
//! Which crate may know which, what the pure crates must never reach, how long a file may be, what must not be committed.
//! Each finding names the file, the line and the rule.

mod graph;
mod sources;

use anyhow::Result;

use crate::suite::Tally;

/// One broken rule at one place.
type Finding = String;

/// Checks every rule; each counts as one test.
pub fn run() -> Result<Tally> {
    let graph = graph::Graph::load()?;
    let sources = sources::load(&graph)?;
    let rules: [(&str, Vec<Finding>); 6] = [
        ("crates know only those they may know", graph.forbidden_arrows()),
        (
            "pure crates depend on no runtime, client or kernel library",
            graph.impure_dependencies(),
        ),
        ("every crate takes the workspace's lints", graph.own_lints()),
        (
            "pure crates touch no file, socket, process or clock",
            sources::impure(&sources),
        ),
        (
            "files are of a size that can be read, and say what they are",
            sources::shape(&sources),
        ),
        ("nothing unfinished, no test switched off", sources::markers(&sources)),
    ];
    let mut tally = Tally::default();
    for (rule, findings) in rules {
        println!("{:8} {rule}", if findings.is_empty() { "ok" } else { "BROKEN" });
        for finding in &findings {
            println!("           {finding}");
        }
        tally.count(&if findings.is_empty() { Ok(()) } else { Err(()) });
    }
    println!("tidy: {} files in {} crates", sources.len(), graph.members().count());
    Ok(tally)
}
