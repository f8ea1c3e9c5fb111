//! Where the real kube-proxy does something else than a scenario expects, and why: a table from the scenarios' `except`.
//!
//! The page `docs/differences.md` holds that table for people who do not run the suite; a test keeps the two the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::scenario::Scenario;
use crate::subject::ProxySubject;

/// The rows of a Markdown table, one a scenario or step that kube-proxy is not asked and our nft backend is: what a user
/// sees with ours, in which mode kube-proxy differs, and the reason.
pub fn table(scenarios: &[Scenario]) -> String {
    let mut text = String::from(
        "| what a user sees with Portolan | scenario | not with kube-proxy in mode | because |\n|---|---|---|---|\n",
    );
    for scenario in scenarios {
        row(&mut text, scenario, None, &scenario.except);
        for (number, step) in (1..).zip(&scenario.steps) {
            row(&mut text, scenario, Some(number), &step.except);
        }
    }
    text
}

fn row(text: &mut String, scenario: &Scenario, step: Option<usize>, except: &BTreeMap<ProxySubject, String>) {
    // A step that nft leaves out as well is about another backend of ours.
    if except.contains_key(&ProxySubject::Nft) {
        return;
    }
    let place = step.map_or_else(String::new, |number| format!(", step {number}"));
    for (mode, subject) in [
        ("nftables", ProxySubject::KubeProxy),
        ("iptables", ProxySubject::KubeProxyIptables),
    ] {
        if let Some(why) = except.get(&subject) {
            // A pipe would begin another column.
            let cell = |text: &str| text.replace('|', "\\|");
            let _ = writeln!(
                text,
                "| {} | {}{place} | {mode} | {} |",
                cell(&scenario.title),
                scenario.name,
                cell(why)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn reasons_of_scenarios_and_of_steps_become_rows() {
        let scenario = Scenario::parse(
            "name",
            "scenario: a | b\nexcept: {kube-proxy: It does not., userspace: It cannot.}\nsteps:\n  \
             - {except: {kube-proxy-iptables: Nor this.}, pause: 1}\n  - {except: {kube-proxy: As nft., nft: Another step.}, pause: 1}\n",
        )
        .unwrap();
        let table = table(&[scenario]);
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| a \\| b | name | nftables | It does not. |",
                "| a \\| b | name, step 1 | iptables | Nor this. |",
            ]
        );
    }

    #[test]
    fn the_page_has_the_table_of_these_scenarios() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let table = table(&Scenario::read_all(&here.join("scenarios")).unwrap());
        let page = std::fs::read_to_string(here.join("../docs/differences.md")).unwrap();
        assert!(
            page.contains(&table),
            "docs/differences.md is not up to date; cargo test -p portolan-lab --test suite -- --differences prints:\n{table}"
        );
    }
}
