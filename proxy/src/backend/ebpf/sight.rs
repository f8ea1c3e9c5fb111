//! What the programs count, with names: read from the kernel when somebody asks, from any thread.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use portolan_abi::Counters;
use portolan_model::ServiceName;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::sys;

/// A Service port, as metrics name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortLabels {
    pub(crate) service: ServiceName,
    pub(crate) port: Box<str>,
    pub(crate) protocol: &'static str,
    pub(crate) family: &'static str,
}

/// Counters and map sizes of the generation in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sight {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    counters: Option<OwnedFd>,
    processors: usize,
    ports: BTreeMap<u32, PortLabels>,
    /// Name of a map, elements in it, elements that it has room for.
    maps: Vec<(&'static str, usize, u32)>,
    /// Times that a change did not fit and larger maps were made.
    growths: u64,
}

// === impl Sight ===

impl Sight {
    /// Looks at the counters of another generation from now on.
    pub(crate) fn switch(&self, counters: OwnedFd) {
        let mut inner = self.lock();
        inner.processors = aya::util::nr_cpus().unwrap_or(1);
        inner.counters = Some(counters);
    }

    /// Counts a growth.
    pub(crate) fn grown(&self) {
        self.lock().growths += 1;
    }

    /// Notes how full the maps are.
    pub(crate) fn set_maps(&self, maps: Vec<(&'static str, usize, u32)>) {
        self.lock().maps = maps;
    }

    /// How full the maps are.
    pub(crate) fn maps(&self) -> Vec<(&'static str, usize, u32)> {
        self.lock().maps.clone()
    }

    /// Replaces all names. Counters go on: an earlier process may have begun them.
    pub(crate) fn set_ports(&self, ports: BTreeMap<u32, PortLabels>) {
        self.lock().ports = ports;
    }

    /// Takes names in and out. Whoever is new begins at zero.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn change_ports(&self, gone: &[u32], named: impl Iterator<Item = (u32, PortLabels)>) -> io::Result<()> {
        let mut inner = self.lock();
        for number in gone {
            inner.ports.remove(number);
        }
        for (number, labels) in named {
            if inner.ports.get(&number) == Some(&labels) {
                continue;
            }
            if let Some(counters) = &inner.counters {
                let zero = vec![Counters::default(); inner.processors];
                match sys::update_each(counters.as_fd(), number, &zero) {
                    // Larger maps are about to be made, which begin at zero.
                    Err(error) if error.raw_os_error() != Some(libc::E2BIG) => return Err(error),
                    _ => {}
                }
            }
            inner.ports.insert(number, labels);
        }
        Ok(())
    }

    /// Every Service port that counted something.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn read(&self) -> io::Result<Vec<(PortLabels, Counters)>> {
        let inner = self.lock();
        let Some(map) = &inner.counters else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for (number, labels) in &inner.ports {
            let each: Vec<Counters> = sys::lookup_each(map.as_fd(), *number, inner.processors)?;
            let sum = each.iter().fold(Counters::default(), |sum, one| Counters {
                connections: sum.connections.wrapping_add(one.connections),
                refused: sum.refused.wrapping_add(one.refused),
            });
            if sum != Counters::default() {
                found.push((labels.clone(), sum));
            }
        }
        Ok(found)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PortLabels {
    fn labels(&self) -> [(&'static str, String); 5] {
        [
            ("namespace", self.service.namespace.to_string()),
            ("service", self.service.name.to_string()),
            ("port", self.port.to_string()),
            ("protocol", self.protocol.to_owned()),
            ("ip_family", self.family.to_owned()),
        ]
    }
}

impl Collector for Sight {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counted = match self.read() {
            Ok(counted) => counted,
            Err(error) => {
                tracing::warn!(%error, "cannot read the counters of the eBPF programs");
                Vec::new()
            }
        };
        let mut family = encoder.encode_descriptor(
            "portolan_service_connections",
            "Connections that sockets of this node opened to a Service port, and flows of unconnected sockets",
            None,
            MetricType::Counter,
        )?;
        for (labels, counters) in &counted {
            let labels = labels.labels();
            let one = family.encode_family(&labels)?;
            ConstCounter::new(counters.connections).encode(one)?;
        }
        let mut family = encoder.encode_descriptor(
            "portolan_service_connections_refused",
            "Connections of this node's sockets that were refused because the Service port has no endpoint",
            None,
            MetricType::Counter,
        )?;
        for (labels, counters) in counted.iter().filter(|(_, counters)| counters.refused > 0) {
            let labels = labels.labels();
            let one = family.encode_family(&labels)?;
            ConstCounter::new(counters.refused).encode(one)?;
        }
        let (maps, growths) = {
            let inner = self.lock();
            (inner.maps.clone(), inner.growths)
        };
        let mut family = encoder.encode_descriptor(
            "portolan_ebpf_map_elements",
            "Elements in an eBPF map",
            None,
            MetricType::Gauge,
        )?;
        for (map, count, _) in &maps {
            let labels = [("map", *map)];
            let one = family.encode_family(&labels)?;
            ConstGauge::new(i64::try_from(*count).unwrap_or(i64::MAX)).encode(one)?;
        }
        let mut family = encoder.encode_descriptor(
            "portolan_ebpf_map_size",
            "Elements that an eBPF map has room for before larger ones are made",
            None,
            MetricType::Gauge,
        )?;
        for (map, _, size) in &maps {
            let labels = [("map", *map)];
            let one = family.encode_family(&labels)?;
            ConstGauge::new(i64::from(*size)).encode(one)?;
        }
        let grown = encoder.encode_descriptor(
            "portolan_ebpf_map_growths",
            "Times that larger eBPF maps were made",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(growths).encode(grown)
    }
}
