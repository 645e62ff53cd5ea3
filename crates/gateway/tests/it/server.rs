//! The accept loop: timers, bounds, TLS, HTTP/2, stopping.

use std::time::Duration;

use aivillage_gateway::{GatewayConfig, TlsFiles};
use http_body_util::BodyExt as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::PATIENCE;
use crate::village::Village;

fn hasty() -> GatewayConfig {
    GatewayConfig { header_timeout: Duration::from_millis(200), ..GatewayConfig::default() }
}

/// Sends `bytes` and waits, bounded, for the server to hang up; returns what it said.
async fn until_cut(village: &Village, bytes: &[u8]) -> String {
    let (mut reader, mut writer) = TcpStream::connect(village.address).await.unwrap().into_split();
    let mut said = Vec::new();
    // A server that has refused need not take the rest, and closing over unread bytes resets the connection.
    let exchange = async { tokio::join!(writer.write_all(bytes), reader.read_to_end(&mut said)) };
    let _ = tokio::time::timeout(PATIENCE, exchange).await.expect("the server hangs up");
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn silent_and_half_sent_connections_are_cut() {
    let village = Village::configured(hasty()).await;
    for half in [
        &b""[..],
        b"G",
        b"GET /healthz HTTP/1.1\r\nHost: lo",
        b"PRI * HTTP/2.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let said = until_cut(&village, half).await;
        assert!(!said.contains("200 OK"), "{said}");
    }
    village.get("/healthz").send().await.ok();
}

#[tokio::test]
async fn an_idle_keep_alive_connection_is_cut_after_its_answer() {
    let village = Village::configured(hasty()).await;
    let said = until_cut(&village, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.1 200 OK"), "{said}");
}

#[tokio::test]
async fn endless_headers_are_refused() {
    let village = Village::start().await;
    let head = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: {}\r\n", "a".repeat(20_000));
    let said = until_cut(&village, head.as_bytes()).await;
    assert!(said.starts_with("HTTP/1.1 431"), "{said}");
}

#[tokio::test]
async fn malformed_requests_get_a_clear_answer_or_none_and_the_gateway_goes_on() {
    let village = Village::start().await;
    let post = "POST /v1/federated/training/create HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let get = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n";
    let close = "Connection: close\r\n\r\n";
    for (request, answer) in [
        ("NONSENSE\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        ("GET /healthz\r\n".to_owned(), "HTTP/1.1 400"),
        ("GET /healthz HTTP/9.9\r\nHost: localhost\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        ("GET /healthz and more HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        ("GET /health\0z HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        ("\0".repeat(4096), "HTTP/1.1 400"),
        ("\r\n".repeat(20_000), "HTTP/1.1 431"),
        (format!("{get}X: a\0b\r\n\r\n"), "HTTP/1.1 400"),
        (format!("{get}no colon\r\n\r\n"), "HTTP/1.1 400"),
        (format!("{get}X : a\r\n\r\n"), "HTTP/1.1 400"),
        (format!("{get}{}\r\n", "a: 1\r\n".repeat(5_000)), "HTTP/1.1 431"),
        (format!("{get}Host: evil.example\r\n{close}"), "HTTP/1.1 400"),
        (format!("GET /healthz HTTP/1.1\r\n{close}"), "HTTP/1.1 400"),
        (format!("{post}Content-Length: 2\r\n\r\n{{}}more than was declared\r\n\r\n"), "HTTP/1.1 400"),
        (format!("{post}Content-Length: -5\r\n\r\n{{}}"), "HTTP/1.1 400"),
        (format!("{post}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"), "HTTP/1.1 400"),
        (format!("{post}Content-Length: 1099511627776\r\n\r\n{{}}"), "HTTP/1.1 413"),
        (
            format!("{post}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"),
            "HTTP/1.1 400",
        ),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\nZZ\r\n{{}}\r\n0\r\n\r\n"), "HTTP/1.1 400"),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\n{}\r\n", "f".repeat(18)), "HTTP/1.1 400"),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\n2;{}", "x".repeat(60_000)), "HTTP/1.1 400"),
        (format!("{post}Transfer-Encoding: gzip\r\n\r\n{{}}"), "HTTP/1.1 400"),
        ("GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n".to_owned(), "HTTP/1.0 200"),
        (format!("{}{get}{close}", format!("{get}\r\n").repeat(50)), "HTTP/1.1 200"),
    ] {
        let said = until_cut(&village, request.as_bytes()).await;
        let begin: String = request.chars().take(200).collect();
        assert!(said.starts_with(answer), "{begin:?}: {said}");
    }
    // All 51 of the pipelined requests are answered, in order, and then the connection closes.
    let said = until_cut(&village, format!("{}{get}{close}", format!("{get}\r\n").repeat(50)).as_bytes()).await;
    assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 51);
    village.get("/healthz").send().await.ok();
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_until_one_ends() {
    let village = Village::configured(GatewayConfig { max_connections: 1, ..GatewayConfig::default() }).await;
    let holder = TcpStream::connect(village.address).await.unwrap();
    let waiting = tokio::spawn(village.get("/healthz").send());
    // The holder has the only slot; nothing may be answered before it lets go.
    assert!(
        tokio::time::timeout(Duration::from_millis(150), async {
            while !waiting.is_finished() {
                tokio::task::yield_now().await
            }
        })
        .await
        .is_err()
    );
    drop(holder);
    waiting.await.unwrap().ok();
}

#[tokio::test]
async fn requests_beyond_the_bound_are_429_and_open_streams_count() {
    let village = Village::configured(GatewayConfig { max_concurrent_requests: 1, ..GatewayConfig::default() }).await;
    let job = json!({"job_name": "x", "job_id": "j", "model_architecture": "mlp", "privacy_techniques": []});
    village.post("/v1/federated/training/create").json(&job).send().await.ok();
    let stream = village.get("/v1/federated/training/j/events").open().await;
    assert_eq!(stream.status(), 200);
    let busy = village.get("/v1/federated/training/jobs").send().await;
    busy.problem(429);
    assert!(!busy.header("retry-after").is_empty());
    village.get("/healthz").send().await.ok();
    drop(stream);
    let mut status = 429;
    while status == 429 {
        status = village.get("/v1/federated/training/jobs").send().await.status.as_u16();
    }
    assert_eq!(status, 200);
}

#[tokio::test]
async fn stopping_ends_event_streams_and_returns_long_before_the_drain_time() {
    let village = Village::start().await;
    let job = json!({"job_name": "x", "job_id": "j", "model_architecture": "mlp", "privacy_techniques": []});
    village.post("/v1/federated/training/create").json(&job).send().await.ok();
    let stream = village.get("/v1/federated/training/j/events").open().await;
    village.cancel.cancel();
    tokio::time::timeout(PATIENCE, village.gateway.stopped()).await.expect("the gateway stops");
    let end = tokio::time::timeout(PATIENCE, stream.into_body().collect()).await.expect("the stream ends");
    end.expect("the stream ends cleanly, it is not cut");
    assert!(TcpStream::connect(village.address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_client_that_never_finishes_does_not_hold_the_gateway_beyond_the_drain_time() {
    let config = GatewayConfig { drain: Duration::from_millis(200), ..GatewayConfig::default() };
    let village = Village::configured(config).await;
    let mut stream = TcpStream::connect(village.address).await.unwrap();
    let head = b"POST /v1/federated/training/create HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: 100\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head).await.unwrap();
    // "100 Continue" proves that the request is in work and waits for its body.
    let mut said = [0; 12];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut said)).await.unwrap().unwrap();
    assert_eq!(&said, b"HTTP/1.1 100");
    village.cancel.cancel();
    tokio::time::timeout(PATIENCE, village.gateway.stopped()).await.expect("the gateway stops");
}

#[tokio::test]
async fn a_job_whose_client_hung_up_is_created_all_the_same() {
    let village = Village::start().await;
    let body =
        json!({"job_name": "x", "job_id": "j", "model_architecture": "mlp", "privacy_techniques": []}).to_string();
    let mut stream = TcpStream::connect(village.address).await.unwrap();
    let head = format!(
        "POST /v1/federated/training/create HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    drop(stream);
    let found = async { while village.get("/v1/federated/training/status/j").send().await.status != 200 {} };
    tokio::time::timeout(PATIENCE, found).await.expect("the job is there");
}

#[tokio::test]
async fn http2_is_spoken_in_the_clear() {
    let village = Village::start().await;
    let said = {
        let mut stream = TcpStream::connect(village.address).await.unwrap();
        // Preface and an empty SETTINGS frame (RFC 9113, section 3.4): the server must answer with SETTINGS (type 4).
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").await.unwrap();
        let mut frame = [0; 9];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut frame)).await.unwrap().unwrap();
        frame
    };
    assert_eq!(said[3], 4, "{said:?}");
}

#[tokio::test]
async fn tls_is_spoken_when_there_is_a_certificate_and_plain_text_is_not_served_then() {
    let folder = tempfile::tempdir().unwrap();
    let files = TlsFiles { certificate: folder.path().join("cert.pem"), key: folder.path().join("key.pem") };
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let config = GatewayConfig { tls: Some(files), header_timeout: Duration::from_secs(2), ..GatewayConfig::default() };
    let village = Village::configured(config).await;
    assert!(village.gateway.tls);

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(client));
    let tcp = TcpStream::connect(village.address).await.unwrap();
    let mut stream = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&said).starts_with("HTTP/1.1 200 OK"));

    let plain = until_cut(&village, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(!plain.contains("200 OK"));
}

#[tokio::test]
async fn a_certificate_that_is_none_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let files = TlsFiles { certificate: folder.path().join("cert.pem"), key: folder.path().join("key.pem") };
    std::fs::write(&files.certificate, "hello").unwrap();
    let error =
        crate::village::try_start(GatewayConfig { tls: Some(files), ..GatewayConfig::default() }, "127.0.0.1:0").await;
    assert!(error.unwrap_err().to_string().contains("cert.pem"));
}

#[tokio::test]
async fn an_open_address_without_protection_is_refused_at_start() {
    let error = crate::village::try_start(GatewayConfig::default(), "0.0.0.0:0").await.unwrap_err();
    assert!(error.to_string().contains("allow_insecure"), "{error}");
    let accepted = GatewayConfig { allow_insecure: true, ..GatewayConfig::default() };
    crate::village::try_start(accepted, "0.0.0.0:0").await.unwrap();
}
