//! Handshakes between the two sides, and with OpenSSL.
#![allow(clippy::unwrap_used, reason = "a failed test is what a panic is for")]

mod authority;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::symlink,
    process::{Command, Stdio},
    sync::Arc,
};

use authority::{Authority, Folder};
use rustls::pki_types::ServerName;
use tidegate_model::fleet::{Address, CertificateFiles, SpiffeId, UpstreamTls};
use tidegate_tls::{ClientTls, HTTP1, HTTP2, Renewable, Resumption, ServerTls, TlsError};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const GATEWAY: &str = "spiffe://example.org/ns/ingress/sa/gateway";

fn trusting(ca: std::path::PathBuf) -> UpstreamTls {
    UpstreamTls { server_name: None, ca: Some(ca), identity: None, client_certificate: None }
}

fn identity(uri: &str) -> Option<SpiffeId> {
    Some(SpiffeId::try_from(uri.to_owned()).unwrap())
}

fn client(tls: &UpstreamTls) -> ClientTls {
    ClientTls::load(tls, &[HTTP2, HTTP1], Resumption::On).unwrap()
}

struct Handshake {
    /// The certificate that the server showed.
    certificate: Vec<u8>,
    alpn: Option<Vec<u8>>,
    resumed: bool,
}

/// A handshake in memory, after which the server says a word, so that the client has its tickets.
async fn shake(
    server: &ServerTls,
    client: &ClientTls,
    name: ServerName<'static>,
) -> std::io::Result<Handshake> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let acceptor = TlsAcceptor::from(server.config());
    let connector = TlsConnector::from(client.config());
    let serve = async {
        let mut stream = acceptor.accept(far).await?;
        stream.write_all(b"x").await?;
        stream.shutdown().await
    };
    let connect = async {
        let mut stream = connector.connect(name, near).await?;
        stream.read_to_end(&mut Vec::new()).await?;
        let session = stream.get_ref().1;
        Ok(Handshake {
            certificate: session.peer_certificates().unwrap()[0].to_vec(),
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
            resumed: session.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
        })
    };
    let (_served, connected) = tokio::join!(serve, connect);
    connected
}

fn name(text: &str) -> ServerName<'static> {
    ServerName::try_from(text.to_owned()).unwrap()
}

fn der(files: &CertificateFiles) -> Vec<u8> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    CertificateDer::from_pem_file(&files.chain).unwrap().to_vec()
}

#[tokio::test]
async fn the_certificate_is_chosen_by_the_name_that_is_asked_for() {
    let (folder, authority) = (Folder::new(), Authority::new());
    let first = authority.files(&folder, "first", &["first.example.com", "10.0.0.1"]);
    let wild = authority.files(&folder, "wild", &["*.shop.example.com"]);
    let exact = authority.files(&folder, "exact", &["www.shop.example.com"]);
    let server = ServerTls::load(&[first.clone(), wild.clone(), exact.clone()], &[HTTP2, HTTP1]).unwrap();
    let client = client(&trusting(authority.write(&folder, "ca.crt")));

    for (asked, shown) in [
        ("first.example.com", &first),
        ("a.shop.example.com", &wild),
        ("WWW.shop.example.com", &exact),
        ("10.0.0.1", &first),
    ] {
        let handshake = shake(&server, &client, name(asked)).await.unwrap();
        assert_eq!(handshake.certificate, der(shown), "{asked}");
        assert_eq!(handshake.alpn.as_deref(), Some(HTTP2));
    }
    let unknown = shake(&server, &client, name("b.a.shop.example.com")).await;
    assert!(
        unknown.is_err(),
        "a wildcard stands for one label, so this gets the first one, which is not for it"
    );
}

#[test]
fn a_host_of_another_certificate_is_not_served_like_the_name_that_was_asked_for() {
    let (authority, folder) = (Authority::new(), Folder::new());
    let one = authority.files(&folder, "one", &["a.test", "b.test", "*.wild.test"]);
    let two = authority.files(&folder, "two", &["other.test"]);
    let server = ServerTls::load(&[one, two], &[HTTP1]).unwrap();
    for (sni, host) in [
        (Some("a.test"), "a.test"),
        (Some("a.test"), "A.test."),
        (Some("a.test"), "b.test"),
        (Some("a.test"), "x.wild.test"),
        (Some("other.test"), "other.test"),
        (Some("unknown.test"), "unknown.test"),
        // The first certificate is served for what none is for.
        (Some("a.test"), "unknown.test"),
        (None, "other.test"),
    ] {
        assert!(server.serves_alike(sni, host), "{sni:?} {host}");
    }
    for (sni, host) in [
        ("a.test", "other.test"),
        ("other.test", "a.test"),
        ("other.test", "unknown.test"),
        ("other.test", "x.other.test"),
        ("unknown.test", "other.test"),
    ] {
        assert!(!server.serves_alike(Some(sni), host), "{sni} {host}");
    }
}

#[tokio::test]
async fn sessions_are_resumed_unless_the_client_wants_whole_handshakes() {
    let (folder, authority) = (Folder::new(), Authority::new());
    let files = authority.files(&folder, "a", &["a.example.com"]);
    let server = ServerTls::load(&[files], &[HTTP1]).unwrap();
    let tls = trusting(authority.write(&folder, "ca.crt"));
    let always_whole = ClientTls::load(&tls, &[HTTP1], Resumption::Off).unwrap();
    let resuming = client(&tls);

    for (client, resumed) in [(&resuming, true), (&always_whole, false)] {
        assert!(!shake(&server, client, name("a.example.com")).await.unwrap().resumed);
        assert_eq!(shake(&server, client, name("a.example.com")).await.unwrap().resumed, resumed);
    }
}

#[tokio::test]
async fn new_files_are_used_at_once_and_bad_ones_never() {
    let (folder, authority) = (Folder::new(), Authority::new());
    let files = authority.files(&folder, "a", &["a.example.com"]);
    let server = ServerTls::load(std::slice::from_ref(&files), &[HTTP1]).unwrap();
    let tls = trusting(authority.write(&folder, "ca.crt"));
    // A resumed session shows no certificate, only the client's memory of one.
    let client = ClientTls::load(&tls, &[HTTP1], Resumption::Off).unwrap();
    let old = der(&files);
    assert!(!server.renew().unwrap(), "nothing has changed");

    // A chain without its key, as in the middle of a rotation that writes one file after the other.
    let (chain, key) = authority.issue(&["a.example.com"]);
    fs::write(&files.chain, &chain).unwrap();
    let error = server.renew().unwrap_err();
    assert!(matches!(error, TlsError::Certificate { .. }), "{error}");
    assert_eq!(server.problem(), Some(error.to_string()));
    assert!(!server.renew().unwrap(), "what was refused is not tried again");
    assert_eq!(shake(&server, &client, name("a.example.com")).await.unwrap().certificate, old);

    fs::write(&files.key, &key).unwrap();
    assert!(server.renew().unwrap());
    assert_eq!(server.problem(), None);
    assert_eq!(shake(&server, &client, name("a.example.com")).await.unwrap().certificate, der(&files));

    fs::remove_file(&files.key).unwrap();
    assert!(matches!(server.renew(), Err(TlsError::Read { .. })));
    assert!(matches!(server.renew(), Err(TlsError::Read { .. })), "a missing file is looked for each time");
    fs::write(&files.key, &key).unwrap();
    assert!(!server.renew().unwrap());
    assert_eq!(server.problem(), None, "it is back, and the same");
}

#[tokio::test]
async fn a_swapped_symbolic_link_is_noticed() {
    let (folder, authority) = (Folder::new(), Authority::new());
    let old = authority.files(&folder, "old", &["a.example.com"]);
    let new = authority.files(&folder, "new", &["a.example.com"]);
    let link = |name: &str| folder.path().join(name);
    symlink(&old.chain, link("live.crt")).unwrap();
    symlink(&old.key, link("live.key")).unwrap();
    let files = CertificateFiles { chain: link("live.crt"), key: link("live.key") };
    let server = ServerTls::load(&[files], &[HTTP1]).unwrap();
    let client = client(&trusting(authority.write(&folder, "ca.crt")));

    for (target, live) in [(&new.chain, "live.crt"), (&new.key, "live.key")] {
        symlink(target, link("next")).unwrap();
        fs::rename(link("next"), link(live)).unwrap();
    }

    assert!(server.renew().unwrap());
    assert_eq!(shake(&server, &client, name("a.example.com")).await.unwrap().certificate, der(&new));
}

#[tokio::test]
async fn a_secret_that_kubernetes_swaps_is_noticed() {
    // Given a Secret as it is mounted: each file a link through `..data`, that a link to the folder of one version.
    let (folder, authority) = (Folder::new(), Authority::new());
    let at = |name: &str| folder.path().join(name);
    let publish = |version: &str, source: &CertificateFiles| {
        fs::create_dir(at(version)).unwrap();
        fs::copy(&source.chain, at(version).join("tls.crt")).unwrap();
        fs::copy(&source.key, at(version).join("tls.key")).unwrap();
        symlink(version, at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
    };
    publish("..v1", &authority.files(&folder, "old", &["a.example.com"]));
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), at(name)).unwrap();
    }
    let files = CertificateFiles { chain: at("tls.crt"), key: at("tls.key") };
    let server = ServerTls::load(&[files], &[HTTP1]).unwrap();
    let client = client(&trusting(authority.write(&folder, "ca.crt")));

    // When the folder is swapped and the old one removed, then the new certificate is in use.
    let new = authority.files(&folder, "new", &["a.example.com"]);
    publish("..v2", &new);
    fs::remove_dir_all(at("..v1")).unwrap();
    assert!(server.renew().unwrap());
    assert_eq!(shake(&server, &client, name("a.example.com")).await.unwrap().certificate, der(&new));
}

#[tokio::test]
async fn a_server_is_known_by_its_identity_alone() {
    let (folder, authority) = (Folder::new(), Authority::new());
    let ca = authority.write(&folder, "ca.crt");
    let shown = |names: &[&str], signer: &Authority, file: &str| {
        ServerTls::load(&[signer.files(&folder, file, names)], &[HTTP2]).unwrap()
    };
    let wanted = client(&UpstreamTls { identity: identity(GATEWAY), ..trusting(ca.clone()) });
    let endpoint = wanted.server_name(&"10.1.0.10:8443".parse::<Address>().unwrap()).unwrap();

    let right = shown(&[GATEWAY], &authority, "right");
    assert!(shake(&right, &wanted, endpoint.clone()).await.is_ok());

    let stranger = Authority::new();
    for (why, server) in [
        ("a longer path", shown(&[&format!("{GATEWAY}-2")], &authority, "longer")),
        ("another case", shown(&["spiffe://Example.org/ns/ingress/sa/gateway"], &authority, "case")),
        ("no identity", shown(&["10.1.0.10"], &authority, "none")),
        ("two identities", shown(&[GATEWAY, "spiffe://example.org/x"], &authority, "two")),
        ("another authority", shown(&[GATEWAY], &stranger, "stranger")),
    ] {
        assert!(shake(&server, &wanted, endpoint.clone()).await.is_err(), "{why}");
    }
}

#[tokio::test]
async fn without_an_identity_the_name_is_checked() {
    let (folder, authority) = (Folder::new(), Authority::new());
    let ca = authority.write(&folder, "ca.crt");
    let server =
        ServerTls::load(&[authority.files(&folder, "a", &["gateway.example.com"])], &[HTTP2]).unwrap();
    let endpoint: Address = "10.1.0.10:8443".parse().unwrap();

    let by_address = client(&trusting(ca.clone()));
    assert!(shake(&server, &by_address, by_address.server_name(&endpoint).unwrap()).await.is_err());
    let by_name =
        client(&UpstreamTls { server_name: Some("gateway.example.com".to_owned()), ..trusting(ca) });
    assert!(shake(&server, &by_name, by_name.server_name(&endpoint).unwrap()).await.is_ok());
}

#[tokio::test]
async fn new_authorities_are_trusted_and_old_sessions_forgotten() {
    let (folder, authority, next) = (Folder::new(), Authority::new(), Authority::new());
    let ca = authority.write(&folder, "ca.crt");
    let server = ServerTls::load(&[authority.files(&folder, "a", &["a.example.com"])], &[HTTP1]).unwrap();
    let client = client(&trusting(ca));
    assert!(shake(&server, &client, name("a.example.com")).await.is_ok());

    next.write(&folder, "ca.crt");
    assert!(client.renew().unwrap());

    assert!(
        shake(&server, &client, name("a.example.com")).await.is_err(),
        "a resumed session would pass here"
    );
}

/// Runs a blocking command's output to its end, away from the runtime that serves it.
async fn output(mut command: Command) -> String {
    tokio::task::spawn_blocking(move || {
        let output = command.stdin(Stdio::null()).output().expect("openssl runs");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn openssl_is_served_with_the_right_certificate() {
    let (folder, authority) = (Folder::new(), Authority::new());
    let first = authority.files(&folder, "first", &["first.example.com"]);
    let second = authority.files(&folder, "second", &["second.example.com"]);
    let server = ServerTls::load(&[first, second], &[HTTP2, HTTP1]).unwrap();
    let ca = authority.write(&folder, "ca.crt");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(server.config());
    let serving = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(socket).await {
                let _gone = stream.shutdown().await;
            }
        }
    });

    for version in ["-tls1_2", "-tls1_3"] {
        let mut command = Command::new("openssl");
        command.args([
            "s_client",
            "-connect",
            &address.to_string(),
            "-servername",
            "second.example.com",
            version,
        ]);
        command.args([
            "-verify_hostname",
            "second.example.com",
            "-verify_return_error",
            "-alpn",
            "http/1.1",
            "-CAfile",
        ]);
        command.arg(&ca);
        let said = output(command).await;
        assert!(said.contains("Verification: OK"), "{said}");
        assert!(said.contains("ALPN protocol: http/1.1"), "{said}");
    }
    serving.abort();
}

#[tokio::test]
async fn openssl_is_shown_the_client_certificate() {
    let (folder, authority) = (Folder::new(), Authority::new());
    let ca = authority.write(&folder, "ca.crt");
    let gateway = authority.files(&folder, "gateway", &[GATEWAY]);
    let edge = authority.files(&folder, "edge", &["spiffe://example.org/edge"]);
    let mut server = Command::new("openssl")
        .args([
            "s_server",
            "-accept",
            "127.0.0.1:0",
            "-Verify",
            "1",
            "-verify_return_error",
            "-naccept",
            "1",
            "-CAfile",
        ])
        .arg(&ca)
        .arg("-cert")
        .arg(&gateway.chain)
        .arg("-key")
        .arg(&gateway.key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl runs");
    drop(server.stdin.as_mut().map(|stdin| stdin.write_all(b"hello\n")));
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    // It says `ACCEPT 127.0.0.1:PORT` once it listens.
    let address = loop {
        let line = lines.next().expect("openssl listens").unwrap();
        if let Some(address) = line.strip_prefix("ACCEPT ") {
            break address.to_owned();
        }
    };
    let client =
        client(&UpstreamTls { identity: identity(GATEWAY), client_certificate: Some(edge), ..trusting(ca) });

    let socket = tokio::net::TcpStream::connect(&address).await.unwrap();
    let connector = TlsConnector::from(Arc::clone(&client.config()));
    let mut stream = connector.connect(name("127.0.0.1"), socket).await.unwrap();
    // With TLS 1.3 a server that refuses our certificate says so only after our handshake has ended.
    let mut word = [0; 5];
    stream.read_exact(&mut word).await.unwrap();

    assert_eq!(&word, b"hello");
    drop(stream);
    drop(server.stdin.take());
    server.wait().unwrap();
}
