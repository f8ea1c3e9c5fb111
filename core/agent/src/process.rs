//! What a daemon costs and what was built, as metrics: `process_*` in the names that every Prometheus client uses, and
//! `portolan_build_info`.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::version::BUILD;

/// Registers both.
pub fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(Process));
}

#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let labels = [
            ("version", BUILD.version),
            ("target", BUILD.target),
            ("commit", BUILD.commit),
        ];
        let mut family = encoder.encode_descriptor("portolan_build_info", "What was built", None, MetricType::Gauge)?;
        ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)?;
        #[cfg(target_os = "linux")]
        linux::encode(&mut encoder)?;
        Ok(())
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::*;

    pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        // Without /proc there is nothing to say.
        let Some(stat) = Stat::read() else { return Ok(()) };
        let name = "process_cpu_seconds";
        let counter = encoder.encode_descriptor(name, "User and system CPU time", None, MetricType::Counter)?;
        ConstCounter::new(stat.cpu_seconds).encode(counter)?;
        let mut gauge = |name: &str, help: &str, value: f64| {
            let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(gauge)
        };
        gauge("process_resident_memory_bytes", "Resident memory", stat.resident_bytes)?;
        gauge("process_virtual_memory_bytes", "Virtual memory", stat.virtual_bytes)?;
        if let Some(start) = stat.started {
            gauge(
                "process_start_time_seconds",
                "When the process started, since 1970",
                start,
            )?;
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            gauge("process_open_fds", "Open file descriptors", open.count() as f64)?;
        }
        Ok(())
    }

    struct Stat {
        cpu_seconds: f64,
        resident_bytes: f64,
        virtual_bytes: f64,
        started: Option<f64>,
    }

    impl Stat {
        fn read() -> Option<Self> {
            let text = std::fs::read_to_string("/proc/self/stat").ok()?;
            // The name, in brackets, may hold anything; what counts comes after it.
            let fields: Vec<f64> = text
                .rsplit_once(')')?
                .1
                .split_whitespace()
                .skip(1)
                .map(|f| f.parse().unwrap_or(0.0))
                .collect();
            // /proc counts in USER_HZ, which is 100 on every architecture that Linux has left, and pages of this machine.
            const TICKS: f64 = 100.0;
            let field = |number: usize| fields.get(number - 4).copied();
            let boot = std::fs::read_to_string("/proc/stat").ok();
            let boot = boot
                .as_deref()
                .and_then(|text| text.lines().find_map(|line| line.strip_prefix("btime ")));
            let boot: Option<f64> = boot.and_then(|seconds| seconds.parse().ok());
            Some(Self {
                cpu_seconds: (field(14)? + field(15)?) / TICKS,
                virtual_bytes: field(23)?,
                resident_bytes: resident()?,
                started: boot.zip(field(22)).map(|(boot, ticks)| boot + ticks / TICKS),
            })
        }
    }

    /// `VmRSS`, which is in kB whatever the size of a page.
    fn resident() -> Option<f64> {
        let text = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kilobytes * 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_shows_itself() {
        let mut registry = Registry::default();
        register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("portolan_build_info{version="), "{text}");
        if cfg!(target_os = "linux") {
            let value = |name: &str| {
                let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
                line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                    .unwrap_or(-1.0)
            };
            assert!(value("process_resident_memory_bytes") > 1e6, "{text}");
            assert!(
                value("process_cpu_seconds_total") >= 0.0 && value("process_open_fds") >= 3.0,
                "{text}"
            );
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap()
                .as_secs_f64();
            assert!((now - value("process_start_time_seconds")).abs() < 3600.0, "{text}");
        }
    }
}
