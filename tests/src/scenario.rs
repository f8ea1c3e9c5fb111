//! Scenario files: objects, then steps that change them and checks that say what traffic must do.
//!
//! The format is described, with an example, at the top of `tests/README.md`. This module only reads it; it knows nothing
//! of namespaces or daemons, so a wrong file is found before a lab is raised.

pub mod check;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::{ADDRESS_ANNOTATION, PodState};
use crate::lab::Listen;
use crate::object::ObjectKey;
use crate::subject::ProxySubject;

use self::check::Check;

/// One scenario file.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The file's name without its ending.
    pub name: String,
    /// One sentence: what a user sees.
    pub title: String,
    /// The rows of the requirements that it shows.
    pub covers: Vec<String>,
    /// Subjects that cannot carry it, and why.
    pub except: BTreeMap<ProxySubject, String>,
    /// The only source of objects that it makes sense with.
    pub source: Option<ObjectSource>,
    /// Objects that exist before the first step.
    pub objects: Vec<Value>,
    /// Servers on machines instead of in pods: machine and ports.
    pub servers: Vec<(String, Vec<Listen>)>,
    /// What happens and is checked, in order.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Clone)]
pub struct Step {
    /// Subjects on which the step is left out, and why.
    pub except: BTreeMap<ProxySubject, String>,
    /// What it does.
    pub action: Action,
}

/// What a step does.
#[derive(Debug, Clone)]
pub enum Action {
    /// Checks, all at the same time, each until it holds.
    Check(Vec<Check>),
    /// Creates or replaces objects.
    Apply(Vec<Value>),
    /// Merges changes into objects.
    Patch(Vec<(ObjectKey, Value)>),
    /// Deletes objects.
    Delete(Vec<ObjectKey>),
    /// Deletes workloads and leaves their pods.
    Orphan(Vec<ObjectKey>),
    /// Puts pods into a state.
    Pod(Vec<(String, PodState)>),
    /// Sends an outside route to a node, or takes it away.
    Route(Vec<(String, Option<String>)>),
    /// Opens connections that later checks name.
    Open(Vec<(String, Check)>),
    /// Starts traffic that goes on until a later check names it.
    Traffic(Vec<(String, Check)>),
    /// Does something to the proxy of a node, or to the DNS server (`dns`).
    Daemon(Vec<(String, DaemonAction)>),
    /// Starts every proxy again with these fields of `KubeProxyConfiguration`.
    Config(Value),
    /// Runs shell text in a namespace; it has to succeed.
    Run(Vec<(String, String)>),
    /// Waits.
    Pause(Duration),
}

/// Where a scenario's objects are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectSource {
    /// A folder of manifests.
    Manifests,
    /// An API server.
    Api,
}

/// What is done to a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DaemonAction {
    /// SIGKILL.
    Kill,
    /// SIGTERM, waiting for its end.
    Stop,
    /// Starts it and waits until it is ready.
    Start,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    scenario: String,
    #[serde(default)]
    covers: Vec<String>,
    #[serde(default)]
    except: BTreeMap<String, String>,
    source: Option<ObjectSource>,
    #[serde(default)]
    pods: BTreeMap<String, PodLine>,
    #[serde(default)]
    objects: Vec<Value>,
    #[serde(default)]
    servers: BTreeMap<String, Vec<PortLine>>,
    steps: Vec<StepFile>,
}

/// A pod in one line. Everything that a manifest could say about it and a scenario needs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PodLine {
    node: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    ports: Vec<PortLine>,
    address: Option<String>,
    hostname: Option<String>,
    subdomain: Option<String>,
    #[serde(default)]
    host_network: bool,
    ready: Option<bool>,
}

/// `8080`, `8081/UDP` or `http=8080/TCP`.
#[derive(Deserialize)]
#[serde(untagged)]
enum PortLine {
    Number(u16),
    Text(String),
}

/// One line, or a list of them. A line with a comma must not stand in a `[...]` list: YAML would cut it there.
#[derive(Deserialize)]
#[serde(untagged)]
enum Lines {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StepFile {
    #[serde(default)]
    except: BTreeMap<String, String>,
    check: Option<Lines>,
    pods: Option<BTreeMap<String, PodLine>>,
    apply: Option<Vec<Value>>,
    patch: Option<BTreeMap<String, Value>>,
    delete: Option<Vec<String>>,
    orphan: Option<Vec<String>>,
    pod: Option<BTreeMap<String, String>>,
    route: Option<BTreeMap<String, Option<String>>>,
    open: Option<BTreeMap<String, String>>,
    traffic: Option<BTreeMap<String, String>>,
    daemon: Option<BTreeMap<String, DaemonAction>>,
    config: Option<Value>,
    run: Option<BTreeMap<String, String>>,
    pause: Option<f64>,
}

// === impl Scenario ===

impl Scenario {
    /// Reads every `*.yaml` below `dir`, sorted by name.
    ///
    /// # Errors
    /// When a file cannot be read or understood; the message names the file and the place in it.
    pub fn read_all(dir: &Path) -> Result<Vec<Self>> {
        let entries = std::fs::read_dir(dir).with_context(|| format!("{} cannot be read", dir.display()))?;
        let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.retain(|file| file.extension().is_some_and(|ending| ending == "yaml"));
        files.sort();
        files
            .iter()
            .map(|file| {
                let text = std::fs::read_to_string(file)?;
                let name = file.file_stem().unwrap_or_default().to_string_lossy();
                Self::parse(&name, &text).with_context(|| file.display().to_string())
            })
            .collect()
    }

    /// Reads one scenario.
    ///
    /// # Errors
    /// When the text is not of the format.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| anyhow::anyhow!("{error}"))?;
        let mut objects = pods(file.pods)?;
        objects.extend(file.objects);
        for object in &objects {
            ObjectKey::of(object)?;
        }
        let steps = file.steps.into_iter().enumerate();
        let steps: Result<Vec<Step>> = steps
            .map(|(n, step)| step.read().with_context(|| format!("step {}", n + 1)))
            .collect();
        let servers = pairs(file.servers, |machine, ports| {
            let listen = ports.iter().map(|port| Ok(port.read()?.1)).collect::<Result<_>>()?;
            Ok((machine, listen))
        });
        Ok(Self {
            servers: servers.context("servers")?,
            name: name.to_owned(),
            title: file.scenario,
            covers: file.covers,
            except: subjects(file.except)?,
            source: file.source,
            objects,
            steps: steps?,
        })
    }

    /// Whether any of its checks asks a name, so that it needs a DNS server.
    pub fn needs_dns(&self) -> bool {
        self.steps.iter().any(|step| match &step.action {
            Action::Check(checks) => checks.iter().any(Check::needs_dns),
            Action::Open(list) | Action::Traffic(list) => list.iter().any(|(_, check)| check.needs_dns()),
            Action::Daemon(list) => list.iter().any(|(name, _)| name == "dns"),
            _ => false,
        })
    }
}

// === impl StepFile ===

impl StepFile {
    fn read(self) -> Result<Step> {
        let except = subjects(self.except)?;
        let mut found: Vec<Action> = Vec::new();
        if let Some(lines) = self.check {
            let lines = match lines {
                Lines::One(line) => vec![line],
                Lines::Many(lines) => lines,
            };
            found.push(Action::Check(
                lines.iter().map(|line| Check::parse(line)).collect::<Result<_>>()?,
            ));
        }
        if let Some(list) = self.pods {
            found.push(Action::Apply(pods(list)?));
        }
        if let Some(objects) = self.apply {
            found.push(Action::Apply(objects));
        }
        if let Some(map) = self.patch {
            found.push(Action::Patch(pairs(map, |key, patch| {
                Ok((ObjectKey::parse(&key)?, patch))
            })?));
        }
        let keys = |keys: Vec<String>| keys.iter().map(|key| ObjectKey::parse(key)).collect::<Result<_>>();
        if let Some(list) = self.delete {
            found.push(Action::Delete(keys(list)?));
        }
        if let Some(list) = self.orphan {
            found.push(Action::Orphan(keys(list)?));
        }
        if let Some(map) = self.pod {
            found.push(Action::Pod(pairs(map, |name, state| {
                Ok((name, PodState::parse(&state)?))
            })?));
        }
        if let Some(map) = self.route {
            found.push(Action::Route(map.into_iter().collect()));
        }
        if let Some(map) = self.open {
            found.push(Action::Open(pairs(map, |name, line| {
                Ok((name, Check::parse_target(&line)?))
            })?));
        }
        if let Some(map) = self.traffic {
            found.push(Action::Traffic(pairs(map, |name, line| {
                Ok((name, Check::parse_target(&line)?))
            })?));
        }
        if let Some(map) = self.daemon {
            found.push(Action::Daemon(map.into_iter().collect()));
        }
        found.extend(self.config.map(Action::Config));
        if let Some(map) = self.run {
            found.push(Action::Run(map.into_iter().collect()));
        }
        if let Some(seconds) = self.pause {
            found.push(Action::Pause(Duration::try_from_secs_f64(seconds)?));
        }
        ensure!(
            found.len() == 1,
            "a step has exactly one action, this one has {}",
            found.len()
        );
        let action = found.pop().context("a step has an action")?;
        Ok(Step { except, action })
    }
}

fn pairs<V, T>(map: BTreeMap<String, V>, read: impl Fn(String, V) -> Result<T>) -> Result<Vec<T>> {
    map.into_iter().map(|(key, value)| read(key, value)).collect()
}

fn subjects(map: BTreeMap<String, String>) -> Result<BTreeMap<ProxySubject, String>> {
    map.into_iter()
        .map(|(name, why)| Ok((ProxySubject::parse(&name)?, why)))
        .collect()
}

/// The Pod objects of `pods:` lines. A name may be `namespace/name`.
fn pods(lines: BTreeMap<String, PodLine>) -> Result<Vec<Value>> {
    lines
        .into_iter()
        .map(|(name, line)| {
            let (namespace, name) = name.split_once('/').unwrap_or(("default", &name));
            let ports: Result<Vec<Value>> = line.ports.iter().map(PortLine::object).collect();
            let ports = ports.with_context(|| format!("pod {name}"))?;
            let mut object = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": name, "namespace": namespace, "labels": line.labels },
                "spec": {
                    "nodeName": line.node, "hostNetwork": line.host_network,
                    "containers": [{ "name": "server", "image": "portolan-probe", "ports": ports }],
                },
            });
            let mut set = |path: [&str; 2], value: Option<Value>| {
                if let Some(value) = value {
                    object[path[0]][path[1]] = value;
                }
            };
            set(["spec", "hostname"], line.hostname.map(Value::from));
            set(["spec", "subdomain"], line.subdomain.map(Value::from));
            set(
                ["metadata", "annotations"],
                line.address.map(|a| json!({ ADDRESS_ANNOTATION: a })),
            );
            if line.ready == Some(false) {
                object["status"] = json!({ "conditions": [{ "type": "Ready", "status": "False" }] });
            }
            Ok(object)
        })
        .collect()
}

// === impl PortLine ===

impl PortLine {
    fn read(&self) -> Result<(Option<&str>, Listen)> {
        let text = match self {
            Self::Number(port) => {
                return Ok((
                    None,
                    Listen {
                        protocol: "TCP".to_owned(),
                        port: *port,
                    },
                ));
            }
            Self::Text(text) => text,
        };
        let (name, rest) = text
            .split_once('=')
            .map_or((None, text.as_str()), |(name, rest)| (Some(name), rest));
        let (port, protocol) = rest.split_once('/').unwrap_or((rest, "TCP"));
        let port = port
            .parse()
            .with_context(|| format!("{text:?} is not PORT, PORT/UDP or NAME=PORT"))?;
        Ok((
            name,
            Listen {
                protocol: protocol.to_owned(),
                port,
            },
        ))
    }

    fn object(&self) -> Result<Value> {
        let (name, Listen { protocol, port }) = self.read()?;
        let mut object = json!({ "containerPort": port, "protocol": protocol });
        if let Some(name) = name {
            object["name"] = name.into();
        }
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_reads_as_it_is_written() {
        let text = "
scenario: Something holds
covers: [D1]
except: {userspace: It cannot.}
pods:
  web-1: {node: node-1, labels: {app: web}, ports: [8080, dns=53/UDP], address: 10.244.1.6, ready: false}
objects:
  - {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}
steps:
  - check: web-1 -> 10.96.0.80:80 => web-1, source web-1
  - pod: {web-1: ready}
    except: {kube-proxy: It does not.}
  - patch: {service/web: {spec: {type: NodePort}}}
  - route: {203.0.113.10: node-1, 203.0.113.11: null}
  - pause: 0.5
";
        let scenario = Scenario::parse("x", text).unwrap();
        assert_eq!(scenario.objects[0]["spec"]["containers"][0]["ports"][1]["name"], "dns");
        assert_eq!(
            scenario.objects[0]["metadata"]["annotations"][ADDRESS_ANNOTATION],
            "10.244.1.6"
        );
        assert_eq!(scenario.except[&ProxySubject::Userspace], "It cannot.");
        assert_eq!(scenario.steps.len(), 5);
        assert!(matches!(&scenario.steps[3].action, Action::Route(list) if list[1].1.is_none()));
        assert!(!scenario.needs_dns());
    }

    #[test]
    fn every_file_reads_and_says_what_it_shows() {
        let all = Scenario::read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")).unwrap();
        for scenario in &all {
            assert!(
                !scenario.covers.is_empty() && !scenario.title.is_empty(),
                "{}",
                scenario.name
            );
            assert!(!scenario.steps.is_empty(), "{}", scenario.name);
        }
        assert!(all.len() > 40, "{}", all.len());
    }

    #[test]
    fn mistakes_are_named() {
        let check = |steps: &str, said: &str| {
            let text = format!("scenario: x\nsteps:\n{steps}");
            let error = format!("{:#}", Scenario::parse("x", &text).unwrap_err());
            assert!(error.contains(said), "{error}");
        };
        check(
            "  - {pause: 1, delete: [pod/x]}\n",
            "exactly one action, this one has 2",
        );
        check("  - check: a => b => c\n", "step 1");
        check("  - pod: {web: asleep}\n", "asleep");
        check("  - chek: x\n", "chek");
    }
}
