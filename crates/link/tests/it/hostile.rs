//! Peers that are not what they should be: strangers, old TLS, slow and oversized requests.

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::ports::{Transport, Uplink, UplinkError};
use aivillage_base::wire::Up;
use aivillage_link::{Identity, LinkConfig, LinkError, MESSAGE_MAX, SERVER_NAME, join};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::middleman::Middleman;
use crate::village::{Node, PATIENCE, Village, config, soon};

/// TLS to the link by hand, trusting its CA; with a node's certificate and key, or without.
async fn by_hand(
    village: &Village,
    node: Option<(&str, PrivateKeyDer<'static>)>,
) -> impl AsyncRead + AsyncWrite + Unpin + use<> {
    let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate(village.authority.ca_pem())).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let tls = match node {
        None => tls.with_no_client_auth(),
        Some((pem, key)) => tls.with_client_auth_cert(vec![certificate(pem)], key).unwrap(),
    };
    let stream = TcpStream::connect(village.server.address()).await.unwrap();
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap()
}

async fn stranger(village: &Village) -> impl AsyncRead + AsyncWrite + Unpin + use<> {
    by_hand(village, None).await
}

async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut all = Vec::new();
    // A peer that cuts us off may do so without a TLS goodbye.
    let _ = soon(stream.read_to_end(&mut all)).await;
    String::from_utf8_lossy(&all).into_owned()
}

async fn ask(village: &Village, request: String) -> String {
    let mut stream = stranger(village).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    rest(&mut stream).await
}

#[tokio::test]
async fn without_a_certificate_only_join_and_renew_exist() {
    let village = Village::start().await;
    for (method, path) in [
        ("GET", "/link/v1/events"),
        ("POST", "/link/v1/messages"),
        ("PUT", "/link/v1/updates"),
        ("GET", "/link/v1/blobs/00"),
        ("GET", "/"),
        ("GET", "/metrics"),
    ] {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        let answer = ask(&village, request).await;
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("not_authenticated"), "{path}: {answer}");
    }
    for path in ["/link/v1/join", "/link/v1/renew"] {
        let request = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}");
        let answer = ask(&village, request).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{path}: {answer}");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = ask(&village, request).await;
        assert!(answer.starts_with("HTTP/1.1 405"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn an_oversized_join_is_refused_without_reading_on() {
    let village = Village::start().await;
    let declared = "POST /link/v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 8193\r\n\r\n";
    let answer = ask(&village, declared.to_owned()).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("8192"), "{answer}");

    let mut stream = stranger(&village).await;
    let head = b"POST /link/v1/join HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(4096));
    let sending = async {
        let mut sent = 0usize;
        while stream.write_all(chunk.as_bytes()).await.is_ok() && stream.flush().await.is_ok() {
            sent += 4096;
        }
        sent
    };
    // The gateway closes; what the kernel's buffers took is all that could be sent.
    let sent = soon(sending).await;
    assert!(sent < 64 << 20, "{sent}");
    assert!(village.registry.nodes().is_empty());
}

#[tokio::test]
async fn a_request_head_beyond_the_cap_is_refused() {
    let village = Village::start().await;
    let long = "x".repeat(20_000);
    let request = format!("POST /link/v1/join HTTP/1.1\r\nHost: x\r\nX-Long: {long}\r\n\r\n");
    let answer = ask(&village, request).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn half_open_connections_and_slow_headers_are_cut() {
    let village = Village::start().await;
    // No TLS at all.
    let mut silent = TcpStream::connect(village.server.address()).await.unwrap();
    assert_eq!(rest(&mut silent).await, "");
    // TLS, then half a head.
    let mut slow = stranger(&village).await;
    slow.write_all(b"POST /link/v1/join HTTP/1.1\r\nHost:").await.unwrap();
    let answer = rest(&mut slow).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    // A head, then a body that drips: cut all the same.
    let mut dripping = stranger(&village).await;
    let head = b"POST /link/v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 8000\r\n\r\n";
    dripping.write_all(head).await.unwrap();
    let drip = async {
        while dripping.write_all(b"x").await.is_ok() && dripping.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(drip).await;
}

#[tokio::test]
async fn strangers_cannot_take_the_places_of_nodes() {
    let village = Village::with(LinkConfig { strangers: 2, ..config() }).await;
    let mut node = village.node("a").await;
    node.welcomed().await;
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(TcpStream::connect(village.server.address()).await.unwrap());
    }
    // A node with an open connection is not touched, and new ones get in when the handshakes run out of time.
    node.link.send(&Up::Leave).await.unwrap();
    let other = village.node("b").await;
    soon(other.link.send(&Up::Leave)).await.unwrap();
}

/// Places of one host among the strangers.
const HOST_MAX: usize = 16;

#[tokio::test]
async fn a_host_that_holds_its_places_open_is_refused_at_once_and_others_still_join() {
    // Handshakes may take longer than the test: nothing but the refusal ends a silent connection.
    let village = Village::with(LinkConfig { handshake: PATIENCE * 3, ..config() }).await;
    let mut held = Vec::new();
    for _ in 0..HOST_MAX {
        held.push(TcpStream::connect(village.server.address()).await.unwrap());
    }
    let mut one_more = TcpStream::connect(village.server.address()).await.unwrap();
    assert_eq!(rest(&mut one_more).await, "");
    let identity = Identity::generate().unwrap();
    let token = village.token("elsewhere").await;
    let here = join(&village.address(), &token, &identity, &village.clock()).await.unwrap_err();
    assert!(matches!(here, LinkError::Unreachable { .. }), "{here}");
    let elsewhere = Middleman::from([127, 0, 0, 2], &village).await;
    let joined = soon(join(&elsewhere.address, &token, &identity, &village.clock())).await.unwrap();
    assert_eq!(joined.name.as_str(), "elsewhere");
    // Whoever lets go of a place leaves it to the next of the same host.
    held.pop();
    let again = async { while join(&village.address(), &token, &identity, &village.clock()).await.is_err() {} };
    soon(again).await;
}

#[tokio::test]
async fn nodes_with_a_certificate_do_not_count_as_strangers_of_their_host() {
    let village = Village::with(LinkConfig { handshake: PATIENCE * 3, ..config() }).await;
    let mut nodes = Vec::new();
    for i in 0..=HOST_MAX {
        let mut node = village.node(&format!("site-{i}")).await;
        node.welcomed().await;
        nodes.push(node);
    }
    assert_eq!(village.streams.connected().len(), HOST_MAX + 1);
}

#[tokio::test]
async fn tls_1_2_is_refused_with_the_protocol_alert() {
    let village = Village::start().await;
    let mut stream = TcpStream::connect(village.server.address()).await.unwrap();
    stream.write_all(&client_hello_1_2()).await.unwrap();
    let mut alert = [0u8; 7];
    soon(stream.read_exact(&mut alert)).await.unwrap();
    // Alert record, fatal (2), protocol_version (70), RFC 8446 §6.
    assert_eq!((alert[0], alert[5], alert[6]), (21, 2, 70), "{alert:?}");
}

/// A ClientHello that offers TLS 1.2 only (RFC 5246 §7.4.1.2): ECDHE-ECDSA, P-256, ECDSA-SHA256.
fn client_hello_1_2() -> Vec<u8> {
    let extensions = [
        &[0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x17][..],
        &[0x00, 0x0b, 0x00, 0x02, 0x01, 0x00],
        &[0x00, 0x0d, 0x00, 0x04, 0x00, 0x02, 0x04, 0x03],
    ]
    .concat();
    let mut body = vec![0x03, 0x03];
    body.extend_from_slice(&[7; 32]);
    body.push(0);
    body.extend_from_slice(&[0x00, 0x02, 0xc0, 0x2b, 0x01, 0x00]);
    body.extend_from_slice(&u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&extensions);
    let length = |n: usize| u16::try_from(n).unwrap().to_be_bytes();
    let mut record = vec![0x16, 0x03, 0x01];
    record.extend_from_slice(&length(body.len() + 4));
    record.extend_from_slice(&[0x01, 0x00]);
    record.extend_from_slice(&length(body.len()));
    record.extend_from_slice(&body);
    record
}

#[tokio::test]
async fn a_certificate_of_another_authority_does_not_get_in() {
    let (ours, other) = (Village::start().await, Village::start().await);
    let (identity, mut enrolment) = other.join("mole").await;
    // It trusts our CA and shows the other's certificate.
    enrolment.ca_pem = ours.authority.ca_pem().to_owned();
    enrolment.link = ours.address();
    let mut mole = Node::start(enrolment, identity, ours.clock());
    let refused = mole.link.send(&Up::Leave).await;
    assert!(matches!(refused, Err(UplinkError::Refused(_))), "{refused:?}");
    let error = mole.ended().await.unwrap_err();
    assert!(matches!(error, LinkError::CertificateRejected(_)), "{error}");
    assert!(ours.streams.connected().is_empty());
}

#[tokio::test]
async fn a_node_does_not_talk_to_a_gateway_of_another_authority() {
    let (ours, other) = (Village::start().await, Village::start().await);
    let (identity, mut enrolment) = ours.join("a").await;
    enrolment.link = other.address();
    let node = Node::start(enrolment, identity, ours.clock());
    let error = node.link.send(&Up::Leave).await.unwrap_err();
    assert!(matches!(&error, UplinkError::Unreachable(why) if why.contains("another authority")), "{error}");
}

#[tokio::test]
async fn an_enrolment_of_another_identity_is_refused_before_dialling() {
    let village = Village::start().await;
    let (_, enrolment) = village.join("a").await;
    let other = Arc::new(Identity::generate().unwrap());
    let client = aivillage_link::LinkClient::new(
        enrolment,
        other,
        village.clock(),
        Box::new(|_| Ok(())),
        aivillage_link::client::ClientConfig::default(),
    );
    assert!(matches!(client, Err(LinkError::BadEnrolment(_))));
}

#[tokio::test]
async fn an_enrolled_node_that_speaks_by_hand_gets_ranges_and_typed_refusals() {
    let village = Village::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity.key");
    let identity = Identity::open_or_create(&path, None).unwrap();
    let token = village.token("hand").await;
    let enrolment = join(&village.address(), &token, &identity, &village.clock()).await.unwrap();
    let blob = village.blob(bytes::Bytes::from_static(b"0123456789")).await.digest;
    let close = "Host: x\r\nConnection: close\r\n";
    let front = serde_json::to_string(&crate::calls::header(&bytes::Bytes::from(vec![0; 50_000]))).unwrap();
    let large = format!("aivillage-update: {front}\r\n");
    let huge = format!("Content-Length: {}\r\n", MESSAGE_MAX + 1);
    for (request, status, holds) in [
        (format!("GET /link/v1/blobs/{blob} HTTP/1.1\r\n{close}Range: bytes=4-\r\n\r\n"), 206, "456789"),
        (format!("GET /link/v1/blobs/{blob} HTTP/1.1\r\n{close}Range: bytes=99-\r\n\r\n"), 200, "0123456789"),
        (format!("GET /link/v1/blobs/rubbish HTTP/1.1\r\n{close}\r\n"), 400, "malformed"),
        (format!("POST /link/v1/messages HTTP/1.1\r\n{close}Content-Length: 2\r\n\r\n{{}}"), 400, "no message"),
        (format!("POST /link/v1/messages HTTP/1.1\r\n{close}{huge}\r\n"), 413, "too_large"),
        (format!("PUT /link/v1/updates HTTP/1.1\r\n{close}Content-Length: 0\r\n\r\n"), 400, "aivillage-update"),
        (format!("GET /link/v1/updates HTTP/1.1\r\n{close}\r\n"), 400, "aivillage-update"),
        (format!("GET /link/v1/updates HTTP/1.1\r\n{close}{large}\r\n"), 200, "{\"offset\":0}"),
        (format!("PUT /link/v1/updates HTTP/1.1\r\n{close}{large}Content-Length: 9\r\n\r\n"), 400, "upload-offset"),
        (
            format!("PUT /link/v1/updates HTTP/1.1\r\n{close}{large}upload-offset: 8\r\nContent-Length: 9\r\n\r\n"),
            409,
            "0 bytes of the update are here",
        ),
        (format!("DELETE /link/v1/updates HTTP/1.1\r\n{close}\r\n"), 405, "GET and PUT"),
        (format!("GET /link/v1/messages HTTP/1.1\r\n{close}\r\n"), 405, "POST"),
        (format!("GET /nothing HTTP/1.1\r\n{close}\r\n"), 404, "not_found"),
    ] {
        let key = PrivateKeyDer::from_pem_file(&path).unwrap();
        let mut stream = by_hand(&village, Some((&enrolment.certificate_pem, key))).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        let first = format!("HTTP/1.1 {status}");
        assert!(answer.starts_with(&first) && answer.contains(holds), "{request}: {answer}");
    }
}
