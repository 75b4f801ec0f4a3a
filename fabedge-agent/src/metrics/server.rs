//! The HTTP server. It reads the last status; it never asks the engine, so a stuck pass cannot block a probe.

use std::net::SocketAddr;

use axum::http::{StatusCode, header};
use axum::routing::get;
use axum::{Router, extract::State, response::IntoResponse};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::source::Current;
use crate::status::Status;

/// What a probe is answered from.
#[derive(Clone)]
struct Reports {
    /// What the last pass left.
    status: watch::Receiver<Status>,
    /// The newest document, which a pass may still be about to apply.
    newest: watch::Receiver<Current>,
}

/// Serves until the process ends.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    listen: SocketAddr,
    status: watch::Receiver<Status>,
    newest: watch::Receiver<Current>,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(Reports { status, newest });
    axum::serve(listener, router).await
}

async fn metrics(State(reports): State<Reports>) -> impl IntoResponse {
    // Neither is there before the first pass; what is wrong with them later is a problem that the status names.
    let dropped = crate::firewall::dropped().await.unwrap_or_default();
    let counters = crate::datapath::read::counters().unwrap_or_default();
    let text = super::exposition(&reports.status.borrow(), &counters, &dropped, resident_bytes());
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
}

async fn readyz(State(reports): State<Reports>) -> impl IntoResponse {
    let ready = reports.status.borrow().has_applied(&reports.newest.borrow());
    match ready {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

/// Resident memory of this process (proc(5), `/proc/self/statm`, second field, in pages).
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}
