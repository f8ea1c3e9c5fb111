//! How the source is doing, kind by kind, when somebody scrapes.

use std::fmt;
use std::time::UNIX_EPOCH;

use portolan_agent::source::{Health, KindHealth};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// What one gauge shows of a kind.
type Value = fn(&KindHealth) -> f64;

/// Shows a source's health.
#[derive(Debug)]
pub struct SourceMetrics(pub Health);

impl Collector for SourceMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let kinds = self.0.kinds();
        let gauges: [(&str, &str, Value); 3] = [
            (
                "connected",
                "1 while the source of this kind of object answers",
                |kind| f64::from(u8::from(kind.connected)),
            ),
            ("synced", "1 when this kind of object has been listed once", |kind| {
                f64::from(u8::from(kind.synced))
            }),
            (
                "since_seconds",
                "Since when the source of this kind is connected, or is not",
                |kind| kind.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            ),
        ];
        for (name, help, value) in gauges {
            let name = format!("portolan_proxy_source_{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for (kind, health) in &kinds {
                ConstGauge::new(value(health)).encode(family.encode_family(&[("kind", *kind)])?)?;
            }
        }
        let help = "Times that the source of this kind was lost";
        let mut family = encoder.encode_descriptor("portolan_proxy_source_losses", help, None, MetricType::Counter)?;
        for (kind, health) in &kinds {
            ConstCounter::new(health.losses).encode(family.encode_family(&[("kind", *kind)])?)?;
        }
        Ok(())
    }
}
