//! exposition: `/metrics` in the format that was asked for.
//!
//! Prometheus asks for OpenMetrics and gets it. Everyone else gets the older text format 0.0.4, which is what Kubernetes'
//! components answer and what people's scripts read.

use prometheus_client::registry::Registry;

/// The content type of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The content type of the older format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The content type and the content.
///
/// # Errors
/// When a metric cannot be encoded.
pub(super) fn expose(registry: &Registry, accept: &str) -> Result<(&'static str, String), std::fmt::Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    if accept.contains("application/openmetrics-text") {
        return Ok((OPEN_METRICS, text));
    }
    Ok((TEXT, classic(&text)))
}

/// OpenMetrics as text format 0.0.4: a counter's name ends in `_total` everywhere, units and the end are not said.
fn classic(text: &str) -> String {
    let mut classic = String::with_capacity(text.len() + text.len() / 8);
    let mut help: Option<(&str, &str)> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').or(Some((rest, "")));
            continue;
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let kind = match kind {
                "unknown" => "untyped",
                "info" | "stateset" => "gauge",
                known => known,
            };
            if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
                classic.push_str(&format!("# HELP {name}{suffix} {help}\n"));
            }
            classic.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
            continue;
        }
        if !line.starts_with('#') {
            classic.push_str(line);
            classic.push('\n');
        }
    }
    classic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_names_counters_in_full() {
        let text = "# HELP a_b Things.\n# TYPE a_b counter\na_b_total{x=\"1\"} 2\n# HELP g Now.\n# TYPE g gauge\n# UNIT g seconds\n\
                    g 1.5\n# HELP h Took.\n# TYPE h histogram\nh_sum 1.0\nh_count 1\nh_bucket{le=\"+Inf\"} 1\n# EOF\n";
        let expect = "# HELP a_b_total Things.\n# TYPE a_b_total counter\na_b_total{x=\"1\"} 2\n# HELP g Now.\n# TYPE g gauge\n\
                      g 1.5\n# HELP h Took.\n# TYPE h histogram\nh_sum 1.0\nh_count 1\nh_bucket{le=\"+Inf\"} 1\n";
        assert_eq!(classic(text), expect);
    }
}
