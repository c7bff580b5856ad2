//! Counters for `/metrics`.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Labels of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// What was asked for.
    pub class: &'static str,
    /// How it ended.
    pub status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// The metrics; a clone counts into the same ones.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<ClassLabel, Histogram>,
    refetches: Family<ReasonLabel, Counter>,
    writes: Family<StatusLabel, Counter>,
    snapshots: Family<ResultLabel, Counter>,
    snapshot_bytes: Counter,
    snapshot_seconds: Histogram,
    live_requests: Gauge,
    /// Streams of events.
    pub streams: Gauge,
    /// Requests that are held and answered when their table is touched.
    pub wakeful: Gauge,
    /// Shapes attached to the feed.
    pub attached_shapes: Gauge,
    /// 1 while the feed is connected.
    pub feed_connected: Gauge,
    /// Times that the feed was lost.
    pub reconnects: Counter,
    /// Passes over the log for requests that are far behind.
    pub shared_passes: Counter,
    /// Operations that the feed reported.
    pub operations: Counter,
    /// Transactions that moved too many rows of a shape for the feed.
    pub skipped: Counter,
    /// From being woken to all live shapes having their operations.
    pub feed_seconds: Histogram,
    /// Bytes in the tails of live shapes.
    pub tail_bytes: Gauge,
    /// Bytes of snapshots that are kept.
    pub spool_bytes: Gauge,
    /// Newest position in the database.
    pub head: Gauge,
    /// Position up to which the feed has reported.
    pub evaluated: Gauge,
    /// 1 while the feed has not reported all that is there.
    pub behind: Gauge,
    /// Connections of the request pool.
    pub pool_size: Gauge,
    /// Those of them that are free.
    pub pool_free: Gauge,
}

/// A request that is held.
pub struct Held(Gauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 17))
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut metrics = Metrics {
            registry: Arc::default(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(seconds),
            refetches: Family::default(),
            writes: Family::default(),
            snapshots: Family::default(),
            snapshot_bytes: Counter::default(),
            snapshot_seconds: seconds(),
            live_requests: Gauge::default(),
            streams: Gauge::default(),
            wakeful: Gauge::default(),
            attached_shapes: Gauge::default(),
            feed_connected: Gauge::default(),
            reconnects: Counter::default(),
            shared_passes: Counter::default(),
            operations: Counter::default(),
            skipped: Counter::default(),
            feed_seconds: seconds(),
            tail_bytes: Gauge::default(),
            spool_bytes: Gauge::default(),
            head: Gauge::default(),
            evaluated: Gauge::default(),
            behind: Gauge::default(),
            pool_size: Gauge::default(),
            pool_free: Gauge::default(),
        };
        metrics.registry = Arc::new(metrics.register());
        metrics
    }

    fn register(&self) -> Registry {
        let mut registry = Registry::with_prefix("shapefeed");
        let it = &mut registry;
        it.register("requests", "Requests for shapes", self.requests.clone());
        it.register_with_unit(
            "request",
            "Time to the answer",
            Unit::Seconds,
            self.request_seconds.clone(),
        );
        it.register(
            "refetches",
            "Answers that make a client start over",
            self.refetches.clone(),
        );
        it.register("writes", "Transactions of clients", self.writes.clone());
        it.register("snapshots", "Snapshots taken", self.snapshots.clone());
        it.register(
            "snapshot_bytes",
            "Bytes of snapshots taken",
            self.snapshot_bytes.clone(),
        );
        it.register_with_unit(
            "snapshot",
            "Time to take a snapshot",
            Unit::Seconds,
            self.snapshot_seconds.clone(),
        );
        it.register(
            "live_requests",
            "Requests that are held",
            self.live_requests.clone(),
        );
        it.register(
            "wakeful_requests",
            "Held requests that are answered when their table is touched",
            self.wakeful.clone(),
        );
        it.register("streams", "Streams of events", self.streams.clone());
        it.register(
            "attached_shapes",
            "Shapes attached to the feed",
            self.attached_shapes.clone(),
        );
        it.register(
            "feed_connected",
            "1 while the feed is connected",
            self.feed_connected.clone(),
        );
        it.register(
            "reconnects",
            "Times that the feed was lost",
            self.reconnects.clone(),
        );
        it.register(
            "shared_passes",
            "Passes over the log for requests that are far behind",
            self.shared_passes.clone(),
        );
        it.register(
            "operations",
            "Operations that the feed reported",
            self.operations.clone(),
        );
        it.register(
            "skipped_moves",
            "Transactions that moved too many rows of a shape for the feed: its log was read instead",
            self.skipped.clone(),
        );
        it.register_with_unit(
            "feed",
            "Time to hand out what is new",
            Unit::Seconds,
            self.feed_seconds.clone(),
        );
        it.register(
            "tail_bytes",
            "Bytes in the tails of live shapes",
            self.tail_bytes.clone(),
        );
        it.register(
            "spool_bytes",
            "Bytes of snapshots that are kept",
            self.spool_bytes.clone(),
        );
        it.register(
            "head_position",
            "Newest position in the database",
            self.head.clone(),
        );
        it.register(
            "feed_position",
            "Position up to which the feed has reported",
            self.evaluated.clone(),
        );
        it.register(
            "feed_behind",
            "1 while the feed has not reported all that is there",
            self.behind.clone(),
        );
        it.register(
            "pool_connections",
            "Connections of the request pool",
            self.pool_size.clone(),
        );
        it.register(
            "pool_free_connections",
            "Those of them that are free",
            self.pool_free.clone(),
        );
        registry
    }

    /// A request was answered.
    pub fn request(&self, class: &'static str, status: u16, seconds: f64) {
        self.requests
            .get_or_create(&RequestLabels { class, status })
            .inc();
        self.request_seconds
            .get_or_create(&ClassLabel { class })
            .observe(seconds);
    }

    /// A request is held until this is dropped, as it also is when the client goes away.
    pub fn held(&self) -> Held {
        self.live_requests.inc();
        Held(self.live_requests.clone())
    }

    /// The same of one that wants to be woken.
    pub fn wakeful(&self) -> Held {
        self.wakeful.inc();
        Held(self.wakeful.clone())
    }

    /// The same of a stream of events.
    pub fn streaming(&self) -> Held {
        self.streams.inc();
        Held(self.streams.clone())
    }

    /// A client has to start over. What a reason says of names and numbers is not counted, so that there are few.
    pub fn refetch(&self, reason: &str) {
        let words = reason
            .split(['"', '('])
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let words = words.take_while(|word| !word.contains(|c: char| c.is_ascii_digit()));
        let reason = words.collect::<Vec<_>>().join(" ");
        let reason = if reason.is_empty() {
            "gone".into()
        } else {
            reason
        };
        self.refetches.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A client's transaction was applied, rejected, or is to be sent again.
    pub fn written(&self, status: &'static str) {
        self.writes.get_or_create(&StatusLabel { status }).inc();
    }

    /// A snapshot was taken (so many bytes), or failed.
    pub fn snapshot(&self, bytes: Option<u64>, seconds: f64) {
        let result = if bytes.is_some() { "ok" } else { "failed" };
        self.snapshots.get_or_create(&ResultLabel { result }).inc();
        self.snapshot_bytes.inc_by(bytes.unwrap_or(0));
        self.snapshot_seconds.observe(seconds);
    }

    /// The text that Prometheus scrapes.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes any text");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_for_prometheus() {
        let metrics = Metrics::new();
        metrics.request("live", 200, 0.01);
        metrics.refetch("truncate 12345");
        metrics.refetch("table \"public\".\"t\" does not exist");
        metrics.refetch("");
        let text = metrics.text();
        assert!(
            text.contains(r#"shapefeed_requests_total{class="live",status="200"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"shapefeed_refetches_total{reason="truncate"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"shapefeed_refetches_total{reason="gone"} 1"#),
            "{text}"
        );
    }
}
