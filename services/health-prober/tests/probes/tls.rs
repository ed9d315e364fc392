//! Probes of endpoints with TLS.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use http::uri::Scheme;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use tidegate_health_prober::probe::{Connection, ProbeTransport, probe};
use tidegate_model::{
    fleet::{Address, CertificateFiles, SpiffeId, Upstream, UpstreamProtocol, UpstreamTls},
    health::Probe,
    observation::{Failure, ProbeOutcome},
};
use tidegate_tls::{HTTP1, HTTP2, ServerTls};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use super::{
    Origin, check, get, grpc,
    origin::{answer, serve_http2},
    soon, upstream,
};

const GATEWAY: &str = "spiffe://example.org/gateway";

/// An HTTPS origin that shows `GATEWAY`, and the file with its authority.
struct Gateway {
    address: Address,
    ca: PathBuf,
    /// The schemes of requests over HTTP/2.
    schemes: Arc<Mutex<Vec<Option<Scheme>>>>,
    task: JoinHandle<()>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
        drop(self.ca.parent().map(fs::remove_dir_all));
    }
}

impl Gateway {
    async fn start(name: &str) -> Gateway {
        Gateway::start_with(name, HTTP1).await
    }

    /// Speaks `protocol` only.
    async fn start_with(name: &str, protocol: &'static [u8]) -> Gateway {
        let folder = std::env::temp_dir().join(format!("tidegate-probes-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "authority");
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = vec![SanType::URI(GATEWAY.try_into().unwrap())];
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let leaf_pem = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap().pem();
        let write = |file: &str, text: &str| {
            fs::write(folder.join(file), text).unwrap();
            folder.join(file)
        };
        let files = CertificateFiles {
            chain: write("leaf.crt", &leaf_pem),
            key: write("leaf.key", &key.serialize_pem()),
        };
        let tls = ServerTls::load(&[files], &[protocol]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Ip(listener.local_addr().unwrap());
        let schemes = Arc::<Mutex<Vec<_>>>::default();
        let seen = schemes.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = TlsAcceptor::from(tls.config()).accept(stream).await else { continue };
                if protocol == HTTP2 {
                    serve_http2(stream, |request| {
                        seen.lock().unwrap().push(request.uri().scheme().cloned());
                    })
                    .await;
                } else {
                    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned();
                    answer(stream, vec![ok], |_| {}).await;
                }
            }
        });
        Gateway { address, ca: write("ca.crt", &ca_pem), schemes, task }
    }

    fn transport(&self, identity: &str) -> ProbeTransport {
        let tls = UpstreamTls {
            server_name: None,
            ca: Some(self.ca.clone()),
            identity: Some(SpiffeId::try_from(identity.to_owned()).unwrap()),
            client_certificate: None,
        };
        ProbeTransport::new(&Upstream { tls: Some(tls), ..upstream(UpstreamProtocol::Auto) }).unwrap()
    }
}

#[tokio::test]
async fn an_https_endpoint_with_the_right_identity_passes() {
    let gateway = Gateway::start("right").await;
    let transport = gateway.transport(GATEWAY);

    let (outcome, connection) = probe(&transport, &gateway.address, &get(Some("ok")), None).await.unwrap();
    assert_eq!(outcome, ProbeOutcome::Pass);
    assert!(matches!(connection, Some(Connection::Http1(_))), "by ALPN, although HTTP/2 was offered");

    let (outcome, _) = probe(&transport, &gateway.address, &check(Probe::Tcp), None).await.unwrap();
    assert_eq!(outcome, ProbeOutcome::Pass);
}

#[tokio::test]
async fn over_tls_requests_over_http_2_say_so() {
    let gateway = Gateway::start_with("http2", HTTP2).await;
    let transport = gateway.transport(GATEWAY);
    for check in [get(None), grpc("up")] {
        let (outcome, _) = probe(&transport, &gateway.address, &check, None).await.unwrap();
        assert_eq!(outcome, ProbeOutcome::Pass);
    }
    assert_eq!(*gateway.schemes.lock().unwrap(), [Some(Scheme::HTTPS), Some(Scheme::HTTPS)]);
}

#[tokio::test]
async fn another_identity_fails_every_kind_of_probe() {
    let gateway = Gateway::start("wrong").await;
    let transport = gateway.transport("spiffe://example.org/other");
    for check in [get(None), check(Probe::Tcp)] {
        let (outcome, _) = probe(&transport, &gateway.address, &check, None).await.unwrap();
        assert_eq!(outcome, ProbeOutcome::Fail(Failure::Tls));
    }
}

#[tokio::test]
async fn a_process_that_hangs_does_not_answer_a_handshake() {
    let gateway = Gateway::start("hangs").await;
    let silent = Origin::silent().await;
    let (outcome, _) =
        probe(&gateway.transport(GATEWAY), &silent.address(), &soon(check(Probe::Tcp)), None).await.unwrap();
    assert_eq!(outcome, ProbeOutcome::Fail(Failure::NoResponse));
}
