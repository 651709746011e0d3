//! Tests of the server's encryption, with a client of another library.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Instant;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::ssl::{SslConnector, SslMethod, SslStream, SslVersion};
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509, X509NameBuilder};

use super::limits::{HEADER_TIME, WRITE_TIME};
use super::tests::{SOON, connect, event, repeated, rest, server_connections};
use super::*;

/// Writes a new key, and a certificate of it for 127.0.0.1.
fn write_certificate(folder: &Path, name: &str) -> TlsFiles {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut named = X509NameBuilder::new().unwrap();
    named.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
    let named = named.build();
    let mut made = X509::builder().unwrap();
    made.set_version(2).unwrap();
    made.set_serial_number(&BigNum::from_u32(7).unwrap().to_asn1_integer().unwrap()).unwrap();
    made.set_subject_name(&named).unwrap();
    made.set_issuer_name(&named).unwrap();
    made.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    made.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
    made.set_pubkey(&key).unwrap();
    let alternative = SubjectAlternativeName::new().ip("127.0.0.1").build(&made.x509v3_context(None, None)).unwrap();
    made.append_extension(alternative).unwrap();
    made.sign(&key, MessageDigest::sha256()).unwrap();
    let files = TlsFiles { certificate: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) };
    fs::write(&files.certificate, made.build().to_pem().unwrap()).unwrap();
    fs::write(&files.key, key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    files
}

fn server(files: &TlsFiles, answer: impl Fn(&HttpRequest) -> HttpReply + Send + Sync + 'static) -> Server {
    let endpoint = Endpoint { address: "127.0.0.1:0".into(), tls: Some(files.clone()), ..Endpoint::default() };
    let answering: RequestHandler = Arc::new(answer);
    Server::start(&endpoint, &answering, |_| false).unwrap()
}

/// Connects by OpenSSL, which verifies the certificate; speaks no later version than `most`.
fn encrypted(address: SocketAddr, files: &TlsFiles, most: SslVersion) -> SslStream<TcpStream> {
    let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
    connector.set_ca_file(&files.certificate).unwrap();
    connector.set_max_proto_version(Some(most)).unwrap();
    connector.build().connect("127.0.0.1", connect(address)).unwrap()
}

#[test]
fn encrypted_answers_are_those_of_any_server() {
    let folder = tempfile::tempdir().unwrap();
    let files = write_certificate(folder.path(), "own");
    let server = server(&files, |asked| match asked.path.as_str() {
        "/rows" => HttpReply::later(AnswerKind::Rows, || HttpReply::Pieces("text/plain", repeated(PIECE, 300))),
        "/events" => HttpReply::later(AnswerKind::Events, || {
            let (sender, given) = std::sync::mpsc::channel();
            for n in 0..3 {
                sender.send(ServerEvent { last: n == 2, ..event(format!("data: {n}\n\n")) }).unwrap();
            }
            HttpReply::Events(Box::new(tests::Given(given, Arc::default())))
        }),
        path => HttpReply::text(200, path),
    });
    assert_eq!(server.url(), format!("https://{}", server.address()));
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        for (path, length, end) in [("/x", 3, "/x\n"), ("/rows", 300 * PIECE, "~~~"), ("/events", 27, "data: 2\n\n")] {
            let (head, body) = tests::ask_raw(encrypted(server.address(), &files, version), path, "");
            assert!(head.starts_with("http/1.1 200 ") && body.len() == length, "{head}: {} bytes", body.len());
            assert!(body.ends_with(end.as_bytes()), "{path}");
        }
        // Requests on one connection.
        let mut stream = encrypted(server.address(), &files, version);
        for _ in 0..3 {
            stream.write_all(b"GET /again HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let (mut said, mut piece) = (String::new(), [0; 1024]);
            while !said.ends_with("/again\n") {
                let read = stream.read(&mut piece).unwrap();
                assert!(read > 0, "closed after {said}");
                said += std::str::from_utf8(&piece[..read]).unwrap();
            }
        }
    }
    // Whoever does not speak TLS gets nothing.
    let mut plain = connect(server.address());
    plain.write_all(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(!rest(plain).contains("/x"));
}

#[cfg(feature = "cli")]
#[test]
fn the_client_asks_only_whom_it_trusts() {
    let folder = tempfile::tempdir().unwrap();
    let (files, other) = (write_certificate(folder.path(), "own"), write_certificate(folder.path(), "other"));
    let server = server(&files, |asked| HttpReply::text(200, &asked.path));
    let (address, is_encrypted) = (server.address().to_string(), true);
    let target = HttpTarget { address, is_encrypted, ca_file: Some(files.certificate.clone()), token: None };
    assert_eq!(get(&target, "/x", SOON).unwrap(), (200, String::from("/x\n")));
    let by_name = HttpTarget { address: format!("localhost:{}", server.address().port()), ..target.clone() };
    let strange = HttpTarget { ca_file: Some(other.certificate), ..target.clone() };
    for (target, why) in [(by_name, "certificate"), (strange, "certificate")] {
        let error = get(&target, "/x", SOON).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("https://"), "{error}");
    }
    let blind = HttpTarget { ca_file: None, ..target.clone() };
    let error = get(&blind, "/x", SOON).unwrap_err();
    assert!(error.to_string().contains("--ca-file") && error.exit_code() == 2, "{error}");
    let plain = HttpTarget { is_encrypted: false, ..target };
    assert!(get(&plain, "/x", SOON).is_err());
}

/// Clients that do not go on with the handshake have the time of a header, and make room for those that do.
#[test]
fn a_handshake_that_stalls_is_cut_off_and_takes_nobodys_place() {
    let folder = tempfile::tempdir().unwrap();
    let files = write_certificate(folder.path(), "own");
    let server = server(&files, |_| HttpReply::text(200, "ok"));
    let begun = Instant::now();
    let mut stalled: Vec<_> = (0..server_connections()).map(|_| connect(server.address())).collect();
    for (n, stream) in stalled.iter_mut().enumerate() {
        // Nothing; the beginning of a record; a record that says hello without end.
        let _ = stream.write_all([&b""[..], b"\x16\x03\x01\x02\x00\x01", &[22, 3, 1, 64, 0, 1, 0, 255, 255]][n % 3]);
    }
    for _ in 0..5 {
        let (head, _) = tests::ask_raw(encrypted(server.address(), &files, SslVersion::TLS1_3), "/", "");
        assert!(head.starts_with("http/1.1 200 "), "{head}");
    }
    assert_eq!(stalled[0].read(&mut [0; 8]).unwrap_or(0), 0, "the oldest was to make room");
    // The last one makes no room for anybody: its time has to pass.
    let mut last = stalled.pop().unwrap();
    let mut said = Vec::new();
    let fault = last.read_to_end(&mut said).err();
    assert!(fault.is_none_or(|why| why.kind() != std::io::ErrorKind::WouldBlock), "it stays open");
    let took = begun.elapsed();
    assert!(took < HEADER_TIME + SOON, "{took:?}");
    // The server ends at once while others stall.
    let _more: Vec<_> = (0..50).map(|_| connect(server.address())).collect();
    let ends = Instant::now();
    drop(server);
    assert!(ends.elapsed() < std::time::Duration::from_secs(2), "{:?}", ends.elapsed());
}

#[test]
fn a_client_that_does_not_read_what_is_encrypted_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let files = write_certificate(folder.path(), "own");
    let server = server(&files, |_| {
        HttpReply::later(AnswerKind::Rows, || HttpReply::Pieces("text/plain", repeated(PIECE, 1_000)))
    });
    let mut stream = encrypted(server.address(), &files, SslVersion::TLS1_3);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    std::thread::sleep(WRITE_TIME + std::time::Duration::from_secs(2));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.ends_with(b"0\r\n\r\n") && answer.len() < 500 * PIECE, "it was sent whole");
}

#[test]
fn files_that_cannot_encrypt_are_refused_by_name_and_the_key_is_not_told() {
    let folder = tempfile::tempdir().unwrap();
    let (own, other) = (write_certificate(folder.path(), "own"), write_certificate(folder.path(), "other"));
    let broken = folder.path().join("broken.key");
    let key = fs::read_to_string(&own.key).unwrap();
    fs::write(&broken, key.replace("-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY")).unwrap();
    let none = folder.path().join("none.pem");
    let secret = key.lines().nth(1).unwrap();
    for (certificate, key, named) in [
        (&own.certificate, &other.key, "own.pem"),
        (&own.certificate, &own.certificate, "own.pem"),
        (&own.certificate, &broken, "broken.key"),
        (&own.certificate, &none, "none.pem"),
        (&own.key, &own.key, "own.key"),
        (&none, &own.key, "none.pem"),
    ] {
        let tls = Some(TlsFiles { certificate: certificate.clone(), key: key.clone() });
        let endpoint = Endpoint { address: "127.0.0.1:0".into(), tls, ..Endpoint::default() };
        let error = endpoint.check().unwrap_err();
        let said = error.to_string();
        assert!(said.contains(named) && error.exit_code() == 2, "{said}");
        assert!(!said.contains(&secret[..16]) && !said.contains("PRIVATE KEY"), "{said}");
    }
    let endpoint = Endpoint { address: "127.0.0.1:0".into(), tls: Some(own), ..Endpoint::default() };
    endpoint.check().unwrap();
}
