//! The crates and what they depend on, as `cargo metadata` tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Finding;
use crate::command::{cargo, output};

/// What each crate of the workspace may know of the others. The daemons never know each other.
const ARROWS: &[(&str, &[&str])] = &[
    ("portolan-model", &[]),
    ("portolan-plan", &["portolan-model"]),
    ("portolan-agent", &["portolan-model"]),
    ("portolan-abi", &[]),
    ("portolan-ebpf", &["portolan-abi"]),
    (
        "portolan-proxy",
        &["portolan-model", "portolan-plan", "portolan-agent", "portolan-abi"],
    ),
    ("portolan-dns", &["portolan-model", "portolan-agent"]),
    (
        "portolan-lab",
        &[
            "portolan-model",
            "portolan-plan",
            "portolan-agent",
            "portolan-proxy",
            "portolan-dns",
        ],
    ),
    ("xtask", &["portolan-lab"]),
];

/// Crates that decide and never act.
pub const PURE: &[&str] = &["portolan-model", "portolan-plan", "portolan-abi"];

/// First parts of the names of libraries that act: runtimes, clients, sockets, the kernel.
const ACTING: &[&str] = &[
    "async-std",
    "axum",
    "aya",
    "hyper",
    "kube",
    "mio",
    "mnl",
    "neli",
    "netlink",
    "nftnl",
    "nix",
    "notify",
    "reqwest",
    "rtnetlink",
    "rustix",
    "smol",
    "socket2",
    "tokio",
];

/// The workspace's crates and everything below them.
pub struct Graph {
    packages: BTreeMap<String, Package>,
    members: Vec<String>,
    /// Package id to the ids it needs when it is built for use (not for its tests or build script).
    needs: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Resolve,
}

/// A crate.
#[derive(Deserialize)]
pub struct Package {
    id: String,
    /// Its name in Cargo.toml.
    pub name: String,
    /// The path of its Cargo.toml.
    pub manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// `null` for normal dependencies, else `dev` or `build`.
    kind: Option<String>,
}

impl Graph {
    /// Asks cargo.
    pub fn load() -> Result<Self> {
        let text = output(cargo().args(["metadata", "--format-version", "1", "--quiet"]))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        // Warnings of cargo may stand before the object.
        let object = text.find('{').and_then(|start| text.get(start..)).unwrap_or(text);
        let mut stream = serde_json::Deserializer::from_str(object).into_iter::<Metadata>();
        let metadata = stream
            .next()
            .context("cargo metadata printed nothing")?
            .context("cannot read cargo metadata")?;
        let normal = |dependency: &Dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
        let needs = metadata.resolve.nodes.into_iter().map(|node| {
            (
                node.id,
                node.deps
                    .into_iter()
                    .filter(normal)
                    .map(|dependency| dependency.pkg)
                    .collect(),
            )
        });
        Ok(Graph {
            needs: needs.collect(),
            packages: metadata
                .packages
                .into_iter()
                .map(|package| (package.id.clone(), package))
                .collect(),
            members: metadata.workspace_members,
        })
    }

    /// The crates of the workspace.
    pub fn members(&self) -> impl Iterator<Item = &Package> {
        self.members.iter().filter_map(|id| self.packages.get(id))
    }

    fn needs_of<'a>(&'a self, package: &Package) -> impl Iterator<Item = &'a Package> + use<'a> {
        self.needs
            .get(&package.id)
            .into_iter()
            .flatten()
            .filter_map(|id| self.packages.get(id))
    }

    /// Crates that know one that they must not know.
    pub fn forbidden_arrows(&self) -> Vec<Finding> {
        let own: BTreeSet<&str> = self.members().map(|package| package.name.as_str()).collect();
        let mut findings = Vec::new();
        for package in self.members() {
            let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package.name) else {
                findings.push(format!(
                    "{}: a new crate needs its line in xtask/src/tidy/graph.rs",
                    package.name
                ));
                continue;
            };
            for needed in self.needs_of(package).map(|needed| needed.name.as_str()) {
                if own.contains(needed) && !allowed.contains(&needed) {
                    findings.push(format!("{} must not depend on {needed}", package.name));
                }
            }
        }
        findings
    }

    /// Ways from a pure crate to a library that acts.
    pub fn impure_dependencies(&self) -> Vec<Finding> {
        let pure = self.members().filter(|package| PURE.contains(&package.name.as_str()));
        pure.flat_map(|package| self.ways_to_acting(package)).collect()
    }

    fn ways_to_acting(&self, from: &Package) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut seen = BTreeSet::new();
        let mut open = vec![(from, from.name.clone())];
        while let Some((package, way)) = open.pop() {
            for needed in self.needs_of(package) {
                if !seen.insert(&needed.id) {
                    continue;
                }
                let way = format!("{way} -> {}", needed.name);
                if acts(&needed.name) {
                    findings.push(format!("{way}: {} must stay pure", from.name));
                } else {
                    open.push((needed, way));
                }
            }
        }
        findings
    }

    /// Crates whose Cargo.toml does not take the workspace's lints.
    pub fn own_lints(&self) -> Vec<Finding> {
        let takes = |package: &&Package| {
            let text = std::fs::read_to_string(&package.manifest_path).unwrap_or_default();
            let mut lines = text
                .lines()
                .map(str::trim)
                .skip_while(|line| *line != "[lints]")
                .skip(1);
            lines.find(|line| !line.is_empty()) == Some("workspace = true")
        };
        let without = self.members().filter(|package| !takes(package));
        without
            .map(|package| format!("{}: no `[lints] workspace = true`", package.manifest_path.display()))
            .collect()
    }
}

fn acts(name: &str) -> bool {
    ACTING.iter().any(|acting| {
        name.strip_prefix(acting)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &str, Option<&str>)]) -> Graph {
        let names: BTreeSet<&str> = edges.iter().flat_map(|(from, to, _)| [*from, *to]).collect();
        let packages: Vec<_> = names
            .iter()
            .map(|name| serde_json::json!({"id": name, "name": name, "manifest_path": "Cargo.toml"}))
            .collect();
        let nodes: Vec<_> = names
            .iter()
            .map(|name| {
                let deps = edges.iter().filter(|(from, _, _)| from == name);
                let deps: Vec<_> = deps
                    .map(|(_, to, kind)| serde_json::json!({"pkg": to, "dep_kinds": [{"kind": kind}]}))
                    .collect();
                serde_json::json!({"id": name, "deps": deps})
            })
            .collect();
        let members: Vec<&&str> = names
            .iter()
            .filter(|name| ARROWS.iter().any(|(own, _)| own == *name))
            .collect();
        let metadata =
            serde_json::json!({"packages": packages, "workspace_members": members, "resolve": {"nodes": nodes}});
        Graph::parse(&format!("warning: something\n{metadata}")).expect("this is what cargo metadata prints")
    }

    #[test]
    fn arrows_point_one_way() {
        let good = graph(&[
            ("portolan-plan", "portolan-model", None),
            ("portolan-dns", "portolan-agent", None),
        ]);
        assert!(good.forbidden_arrows().is_empty());
        let bad = graph(&[
            ("portolan-model", "portolan-plan", None),
            ("portolan-dns", "portolan-proxy", None),
        ]);
        assert_eq!(bad.forbidden_arrows().len(), 2);
    }

    #[test]
    fn a_runtime_below_a_pure_crate_is_found_with_its_way() {
        let found =
            graph(&[("portolan-plan", "harmless", None), ("harmless", "tokio-util", None)]).impure_dependencies();
        assert_eq!(
            found,
            ["portolan-plan -> harmless -> tokio-util: portolan-plan must stay pure"]
        );
        let in_tests_only = graph(&[("portolan-plan", "tokio", Some("dev"))]);
        assert!(in_tests_only.impure_dependencies().is_empty());
    }

    #[test]
    fn names_are_compared_by_their_first_part() {
        for (name, expect) in [
            ("kube", true),
            ("kube-client", true),
            ("kubernetes-types", false),
            ("k8s-openapi", false),
        ] {
            assert_eq!(acts(name), expect, "{name}");
        }
    }
}
