//! DNS over TLS, HTTPS and QUIC, with clients that are not ours: rustls, quinn and plain HTTP/1.1.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use hickory_proto::op::{Message, ResponseCode};
use portolan_dns::server::{Encrypted, ListenError, Options, Scheme, TcpLimits, TlsFiles, bind};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::fixture::{CLUSTER, config, query, said, zone};
use crate::live::{Live, PATIENCE, Setup, Upstream, framed};

/// A certificate for `localhost` that signs itself, in a folder.
pub struct Identity {
    pub folder: tempfile::TempDir,
}

impl Identity {
    pub fn new() -> Self {
        let identity = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        identity.renew();
        identity
    }

    fn renew(&self) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(self.folder.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(self.folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    }

    pub fn files(&self) -> TlsFiles {
        TlsFiles {
            certificate: self.folder.path().join("cert.pem"),
            key: self.folder.path().join("key.pem"),
            client_ca: None,
        }
    }

    /// A client that trusts nobody else.
    fn client(&self, protocol: &[u8]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let file = self.folder.path().join("cert.pem");
        roots.add(CertificateDer::from_pem_file(file).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        config
    }

    fn connect(&self, address: SocketAddr, protocol: &[u8]) -> StreamOwned<ClientConnection, TcpStream> {
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(Arc::new(self.client(protocol)), name).unwrap();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        StreamOwned::new(connection, stream)
    }
}

fn live(identity: &Identity, scheme: Scheme, upstream: Option<&Upstream>) -> Live {
    let encrypted = Encrypted {
        address: "127.0.0.1:0".parse().unwrap(),
        scheme,
        tls: identity.files(),
    };
    Live::start(
        &zone(CLUSTER, config()),
        Setup {
            encrypted: vec![encrypted],
            upstreams: upstream.iter().map(|upstream| upstream.address).collect(),
            ..Setup::default()
        },
    )
}

#[test]
fn tls_carries_what_tcp_does() {
    let (identity, upstream) = (Identity::new(), Upstream::start());
    let live = live(&identity, Scheme::Tls, Some(&upstream));
    let mut stream = identity.connect(live.encrypted[0], b"dot");
    // Several queries on one connection, one of them for upstreams.
    for name in ["web.shop.svc A", "gone.shop.svc A", "www.example.com. A"] {
        stream.write_all(&framed(&query(name).to_vec().unwrap())).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut bytes = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut bytes).unwrap();
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!(reply.queries, query(name).queries);
        assert_eq!(reply.answers.len(), usize::from(!name.starts_with("gone")), "{name}");
    }
    // Without TLS nothing is said.
    let mut plain = TcpStream::connect(live.encrypted[0]).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    plain
        .write_all(&framed(&query("web.shop.svc A").to_vec().unwrap()))
        .unwrap();
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest);
    assert!(
        Message::from_vec(rest.get(2..).unwrap_or_default()).is_err(),
        "{rest:?}"
    );
}

/// A request over HTTP/1.1; the status line and the body.
fn request(identity: &Identity, address: SocketAddr, head: &str, body: &[u8]) -> (String, Vec<u8>, String) {
    let mut stream = identity.connect(address, b"http/1.1");
    let length = body.len();
    let head = format!("{head} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n");
    let head = match body.is_empty() {
        true => format!("{head}\r\n"),
        false => format!("{head}content-type: application/dns-message\r\n\r\n"),
    };
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut all = Vec::new();
    // Whoever closes without a goodbye is no matter of this test.
    let _ = stream.read_to_end(&mut all);
    let end = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(all[..end].to_vec()).unwrap();
    let status = head.lines().next().unwrap().to_owned();
    (status, all[end + 4..].to_vec(), head)
}

#[test]
fn https_carries_one_message_a_request() {
    let (identity, upstream) = (Identity::new(), Upstream::start());
    let live = live(&identity, Scheme::Https, Some(&upstream));
    let address = live.encrypted[0];
    for name in ["web.shop.svc A", "gone.shop.svc A", "www.example.com. A"] {
        let sent = query(name).to_vec().unwrap();
        let (status, body, head) = request(&identity, address, "POST /dns-query", &sent);
        assert_eq!(status, "HTTP/1.1 200 OK", "{name}");
        assert!(head.contains("content-type: application/dns-message"), "{head}");
        let age = if name.starts_with("www") {
            "max-age=60"
        } else {
            "max-age=5"
        };
        assert!(head.contains(age), "{head}");
        let posted = Message::from_vec(&body).unwrap();
        assert_eq!(posted.queries, query(name).queries);
        let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&sent);
        let (_, body, _) = request(&identity, address, &format!("GET /dns-query?dns={text}"), b"");
        assert_eq!(said(&Message::from_vec(&body).unwrap()), said(&posted), "{name}");
    }
    for (head, body, expect) in [
        ("GET /dns-query", &b""[..], "400"),
        ("GET /dns-query?dns=!", b"", "400"),
        ("POST /dns-query", b"x", "400"),
        ("POST /dns-query", &[0; 66_000][..], "413"),
        ("PUT /dns-query", b"x", "405"),
        ("GET /other", b"", "404"),
    ] {
        let (status, ..) = request(&identity, address, head, body);
        assert!(status.contains(expect), "{head}: {status}");
    }
}

#[test]
fn quic_carries_one_message_a_stream() {
    let (identity, upstream) = (Identity::new(), Upstream::start());
    let live = live(&identity, Scheme::Quic, Some(&upstream));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(identity.client(b"doq")).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
        let connection = endpoint.connect(live.encrypted[0], "localhost").unwrap().await.unwrap();
        for name in ["web.shop.svc A", "gone.shop.svc A", "www.example.com. A"] {
            let mut sent = query(name);
            sent.metadata.id = 0;
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            send.write_all(&framed(&sent.to_vec().unwrap())).await.unwrap();
            send.finish().unwrap();
            let bytes = receive.read_to_end(70_000).await.unwrap();
            assert_eq!(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])), bytes.len() - 2);
            let reply = Message::from_vec(&bytes[2..]).unwrap();
            assert_eq!((reply.metadata.id, &reply.queries), (0, &sent.queries));
            assert_eq!(reply.answers.len(), usize::from(!name.starts_with("gone")), "{name}");
        }
        // A message id that is not 0 ends the connection (RFC 9250 section 4.2.1).
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(&framed(&query("web.shop.svc A").to_vec().unwrap()))
            .await
            .unwrap();
        send.finish().unwrap();
        assert!(receive.read_to_end(70_000).await.is_err());
        let quinn::ConnectionError::ApplicationClosed(closed) = connection.closed().await else {
            panic!("closed in another way")
        };
        assert_eq!(closed.error_code, quinn::VarInt::from_u32(2));
    });
}

#[test]
fn a_certificate_that_cannot_be_used_is_named() {
    let identity = Identity::new();
    let listen = |files: TlsFiles| {
        let error = bind(Options {
            listen: Vec::new(),
            threads: 1,
            tcp: TcpLimits::default(),
            encrypted: vec![Encrypted {
                address: "127.0.0.1:0".parse().unwrap(),
                scheme: Scheme::Tls,
                tls: files,
            }],
        });
        let Err(error @ ListenError::Tls { .. }) = error else {
            panic!("{error:?}")
        };
        error.to_string()
    };
    let missing = TlsFiles {
        key: Path::new("/nowhere/key.pem").into(),
        ..identity.files()
    };
    let error = listen(missing);
    assert!(error.contains("a private key from /nowhere/key.pem"), "{error}");
    let swapped = TlsFiles {
        certificate: identity.files().key,
        ..identity.files()
    };
    let error = listen(swapped);
    assert!(error.contains("cannot read certificates from"), "{error}");
    let other = TlsFiles {
        key: Identity::new().folder.keep().join("key.pem"),
        ..identity.files()
    };
    let error = listen(other.clone());
    std::fs::remove_dir_all(other.key.parent().unwrap()).unwrap();
    assert!(error.contains("cannot be used"), "{error}");
}

#[test]
fn refusals_come_over_every_transport() {
    let identity = Identity::new();
    let live = live(&identity, Scheme::Https, None);
    let sent = query("cluster.local. AXFR").to_vec().unwrap();
    let (_, body, _) = request(&identity, live.encrypted[0], "POST /dns-query", &sent);
    assert_eq!(
        Message::from_vec(&body).unwrap().metadata.response_code,
        ResponseCode::Refused
    );
}
