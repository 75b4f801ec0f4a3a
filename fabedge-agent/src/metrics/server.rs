//! The HTTP server. It reads the last status; it never asks the engine, so a stuck pass cannot block a probe.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::routing::get;
use axum::{Router, extract::State, response::IntoResponse};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::warn;

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

/// How long to wait before an address is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Serves until the process ends. While the address cannot be bound, it is tried again: on a node whose role has changed,
/// the agent of the other role still has it for a moment.
///
/// # Errors
/// When what arrives cannot be served.
pub async fn serve(
    listen: SocketAddr,
    status: watch::Receiver<Status>,
    newest: watch::Receiver<Current>,
) -> std::io::Result<()> {
    let listener = bind(listen).await;
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(Reports { status, newest });
    axum::serve(listener, router).await
}

async fn bind(listen: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => return listener,
            Err(error) if !told => {
                warn!(%error, %listen, "no metrics and no health endpoints until this can be bound; choose another address with --metrics-listen");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_in_use_is_bound_once_it_is_free() {
        let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = first.local_addr().unwrap();
        let second = tokio::spawn(bind(listen));
        tokio::time::sleep(RETRY / 2).await;
        assert!(!second.is_finished());
        drop(first);
        let second = tokio::time::timeout(RETRY * 3, second).await.unwrap().unwrap();
        assert_eq!(second.local_addr().unwrap(), listen);
    }
}
