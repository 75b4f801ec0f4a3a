//! `/healthz`, `/readyz` and `/metrics`. They read what the passes left; they never ask for one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::core::Collector;
use prometheus::{Encoder, Gauge, IntCounter, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;

use crate::finding::{Finding, Severity};
use crate::publish::Report;

/// What users are told by.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    /// The status of an object.
    Status,
    /// An Event about one.
    Event,
}

/// What the operator tells about itself.
#[derive(Debug, Default)]
pub struct Status {
    leader: AtomicBool,
    passes: AtomicU64,
    documents: AtomicU64,
    certificates: AtomicU64,
    removed: AtomicU64,
    failures: AtomicU64,
    errors: AtomicU64,
    warnings: AtomicU64,
    microseconds: AtomicU64,
    /// What is waited for before the work can begin.
    awaits: Mutex<Option<String>>,
    /// On a member: whether its host is heard of.
    host_heard: Mutex<Option<bool>>,
    statuses: AtomicU64,
    status_failures: AtomicU64,
    events: AtomicU64,
    event_failures: AtomicU64,
}

impl Status {
    /// Sets what is waited for before the work can begin.
    pub fn wait_for(&self, what: Option<String>) {
        *self.awaits.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// Sets whether this operator leads.
    pub fn set_leader(&self, leads: bool) {
        self.leader.store(leads, Ordering::Relaxed);
    }

    /// Whether this operator leads.
    pub fn leads(&self) -> bool {
        self.leader.load(Ordering::Relaxed)
    }

    /// Sets whether the host of this member is heard of.
    pub fn host_heard(&self, heard: bool) {
        *self.host_heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(heard);
    }

    /// Takes down what a pass did.
    pub fn pass<E>(&self, report: &Report<E>, findings: &[Finding], failures: usize, took: Duration) {
        let count = |severity| {
            findings
                .iter()
                .filter(|finding| finding.severity == severity)
                .count() as u64
        };
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.documents
            .fetch_add(report.documents.len() as u64, Ordering::Relaxed);
        self.certificates
            .fetch_add(report.certificates.len() as u64, Ordering::Relaxed);
        self.removed
            .fetch_add(report.removed.len() as u64, Ordering::Relaxed);
        self.failures.store(failures as u64, Ordering::Relaxed);
        self.errors.store(count(Severity::Error), Ordering::Relaxed);
        self.warnings.store(count(Severity::Warning), Ordering::Relaxed);
        self.microseconds
            .store(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// Takes down that users were told something: whether that took a write, none when it failed.
    pub fn told(&self, what: Told, wrote: Option<bool>) {
        let (written, failures) = match what {
            Told::Status => (&self.statuses, &self.status_failures),
            Told::Event => (&self.events, &self.event_failures),
        };
        match wrote {
            Some(true) => _ = written.fetch_add(1, Ordering::Relaxed),
            Some(false) => {}
            None => _ = failures.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn exposition(&self) -> prometheus::Result<String> {
        let registry = Registry::new();
        let add = |collector: Box<dyn Collector>| registry.register(collector);
        let now = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let about = Opts::new("fabedge_build_info", "Version of the operator; always 1.");
        let about = IntGaugeVec::new(about, &["component", "version"])?;
        about
            .with_label_values(&["operator", env!("CARGO_PKG_VERSION")])
            .set(1);
        add(Box::new(about))?;
        for (name, help, value) in [
            (
                "passes",
                "Passes over everything that the API server shows.",
                &self.passes,
            ),
            ("documents_written", "Documents written.", &self.documents),
            ("certificates_issued", "Certificates issued.", &self.certificates),
            (
                "nodes_removed",
                "Nodes whose document and certificate were removed.",
                &self.removed,
            ),
            (
                "statuses_written",
                "Statuses of Communities and Clusters written.",
                &self.statuses,
            ),
            (
                "status_failures",
                "Statuses that could not be written.",
                &self.status_failures,
            ),
            ("events_written", "Events written or counted up.", &self.events),
            (
                "event_failures",
                "Events that could not be written.",
                &self.event_failures,
            ),
        ] {
            let counter = IntCounter::new(format!("fabedge_operator_{name}_total"), help)?;
            counter.inc_by(now(value));
            add(Box::new(counter))?;
        }
        for (name, help, value) in [
            ("leader", "1 when this operator leads.", self.leads().into()),
            (
                "failures",
                "What the last pass could not do.",
                now(&self.failures),
            ),
            ("errors", "Errors in objects that users wrote.", now(&self.errors)),
            (
                "warnings",
                "Warnings about objects that users wrote.",
                now(&self.warnings),
            ),
        ] {
            let gauge = IntGauge::new(format!("fabedge_operator_{name}"), help)?;
            gauge.set(value.try_into().unwrap_or(i64::MAX));
            add(Box::new(gauge))?;
        }
        if let Some(heard) = *self.host_heard.lock().unwrap_or_else(PoisonError::into_inner) {
            let help = "1 when this member cluster hears of its host; what stands goes on without.";
            let gauge = IntGauge::new("fabedge_operator_host_heard", help)?;
            gauge.set(heard.into());
            add(Box::new(gauge))?;
        }
        let seconds = Gauge::new("fabedge_operator_pass_seconds", "How long the last pass took.")?;
        seconds.set(now(&self.microseconds) as f64 / 1e6);
        add(Box::new(seconds))?;
        let mut text = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Whether it does its work: a standby does by standing by, a leader once a pass has succeeded.
    fn ready(&self) -> Result<&'static str, String> {
        if let Some(what) = &*self.awaits.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(format!("waiting: {what}\n"));
        }
        if !self.leads() {
            return Ok("standing by\n");
        }
        match (
            self.passes.load(Ordering::Relaxed),
            self.failures.load(Ordering::Relaxed),
        ) {
            (0, _) => Err("no pass yet\n".to_owned()),
            (_, 0) => Ok("leading\n"),
            _ => Err("the last pass failed in part; the log says where\n".to_owned()),
        }
    }
}

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, status: Arc<Status>) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(status);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "health and metrics are no longer served");
    }
}

async fn metrics(State(status): State<Arc<Status>>) -> impl IntoResponse {
    match status.exposition() {
        Ok(text) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
            text,
        ),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            format!("{error}\n"),
        ),
    }
}

async fn readyz(State(status): State<Arc<Status>>) -> impl IntoResponse {
    match status.ready() {
        Ok(how) => (StatusCode::OK, how.to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_ready_after_a_pass_that_did_everything() {
        let status = Status::default();
        assert_eq!(status.ready(), Ok("standing by\n"));
        status.set_leader(true);
        status.wait_for(Some("a network plugin".to_owned()));
        assert_eq!(status.ready(), Err("waiting: a network plugin\n".to_owned()));
        status.wait_for(None);
        assert_eq!(status.ready(), Err("no pass yet\n".to_owned()));
        let nothing: Report = Report::default();
        status.pass(&nothing, &[], 1, Duration::ZERO);
        assert!(status.ready().is_err());
        status.pass(&nothing, &[], 0, Duration::from_millis(3));
        assert_eq!(status.ready(), Ok("leading\n"));
        let text = status.exposition().unwrap();
        assert!(text.contains("fabedge_operator_passes_total 2"), "{text}");
        for wrote in [Some(true), Some(false), None] {
            status.told(Told::Event, wrote);
        }
        status.told(Told::Status, Some(true));
        let text = status.exposition().unwrap();
        for line in [
            "statuses_written_total 1",
            "status_failures_total 0",
            "events_written_total 1",
            "event_failures_total 1",
        ] {
            let line = format!("\nfabedge_operator_{line}\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert!(text.contains("fabedge_operator_leader 1"), "{text}");
        assert!(!text.contains("host_heard"), "only a member has a host");
        status.host_heard(false);
        let text = status.exposition().unwrap();
        assert!(text.contains("\nfabedge_operator_host_heard 0\n"), "{text}");
    }
}
