//! As much of an API server as answers reads with what it was given.

use std::sync::Arc;

use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Answers on a port until the test program ends.
pub fn start(objects: Vec<Value>) -> u16 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let objects = Arc::new(objects);
    let router = axum::Router::new().fallback(move |uri: Uri| {
        let objects = Arc::clone(&objects);
        async move { answer(uri.path(), &objects) }
    });
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || runtime.block_on(async { axum::serve(listener, router).await }));
    port
}

/// `/api/v1/namespaces/NAMESPACE/KINDS[/NAME]`, `/apis/GROUP/VERSION/KINDS`.
fn answer(path: &str, objects: &[Value]) -> Response {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let rest = if parts[0] == "api" {
        &parts[2..]
    } else {
        &parts[3..]
    };
    let rest = match rest {
        ["namespaces", "kube-system", rest @ ..] => rest,
        rest => rest,
    };
    let kind = match rest[0] {
        "pods" => "Pod",
        "nodes" => "Node",
        "services" => "Service",
        "configmaps" => "ConfigMap",
        "daemonsets" => "DaemonSet",
        _ => return missing(),
    };
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    match rest.get(1) {
        Some(name) => match found.find(|object| object["metadata"]["name"] == *name) {
            Some(object) => said(StatusCode::OK, object),
            None => missing(),
        },
        None => {
            let items: Vec<&Value> = found.collect();
            let list = json!({"kind": format!("{kind}List"), "metadata": {}, "items": items});
            said(StatusCode::OK, &list)
        }
    }
}

fn missing() -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "not found", "reason": "NotFound",
        "code": 404,
    });
    said(StatusCode::NOT_FOUND, &status)
}

fn said(code: StatusCode, object: &Value) -> Response {
    (
        code,
        [(header::CONTENT_TYPE, "application/json")],
        object.to_string(),
    )
        .into_response()
}
