//! A small HTTP server that answers as a test tells it to, over TLS if asked, and a stand-in of a registry that has what it
//! was given.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::ssl::{SslAcceptor, SslMethod};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509NameBuilder};
use serde_json::{Value, json};

/// A request: `METHOD PATH`, the lines of its head, and its body.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Makes the bytes of an answer of a request and the number of requests before it; `None` keeps the connection without
/// an answer.
type Answerer = dyn Fn(&Asked, usize) -> Option<Vec<u8>> + Send + Sync;

/// A server that runs as long as the test program.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Asked, usize) -> Option<Vec<u8>> + Send + Sync + 'static) -> Server {
        Server::start_with(None, answer)
    }

    /// Starts a server over TLS with a certificate and its key.
    pub(crate) fn start_tls(
        (certificate, key): &(X509, PKey<Private>),
        answer: impl Fn(&Asked, usize) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Server {
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
        acceptor.set_certificate(certificate).unwrap();
        acceptor.set_private_key(key).unwrap();
        Server::start_with(Some(acceptor.build()), answer)
    }

    fn start_with(
        tls: Option<SslAcceptor>,
        answer: impl Fn(&Asked, usize) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::default());
        let (kept, answer): (_, Arc<Answerer>) = (Arc::clone(&asked), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (kept, answer, tls) = (Arc::clone(&kept), Arc::clone(&answer), tls.clone());
                // A client that refuses the certificate, or has stopped to wait, is no fault.
                std::thread::spawn(move || match tls {
                    None => serve(stream.unwrap(), &kept, &*answer),
                    Some(tls) => tls.accept(stream.unwrap()).map_or((), |stream| serve(stream, &kept, &*answer)),
                });
            }
        });
        Server { address, asked }
    }

    /// Returns the requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(mut stream: impl Read + Write, kept: &Mutex<Vec<Asked>>, answer: &Answerer) {
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    let head_end = loop {
        if let Some(at) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break at + 4;
        }
        match stream.read(&mut buffer) {
            Ok(length @ 1..) => read.extend(&buffer[..length]),
            _ => return,
        }
        // A client that speaks TLS to a server that does not.
        if read[0] == 0x16 {
            stream.write_all(&answer_bytes(400, &[], "")).unwrap();
            return;
        }
    };
    let head = String::from_utf8(read[..head_end].to_vec()).unwrap().to_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |text| text.parse().unwrap());
    while read.len() < head_end + length {
        let more = stream.read(&mut buffer).unwrap();
        read.extend(&buffer[..more]);
    }
    let first = String::from_utf8_lossy(&read[..head_end]).lines().next().unwrap().to_owned();
    let line = first.trim_end_matches(" HTTP/1.1").to_owned();
    let asked = Asked { line, head, body: String::from_utf8(read[head_end..].to_vec()).unwrap() };
    let before = {
        let mut kept = kept.lock().unwrap();
        kept.push(asked.clone());
        kept.len() - 1
    };
    match answer(&asked, before) {
        Some(bytes) => {
            let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
        }
        None => std::thread::sleep(Duration::from_secs(120)),
    }
}

/// Makes an answer.
pub(crate) fn answer(status: u16, headers: &[&str], body: &str) -> Option<Vec<u8>> {
    Some(answer_bytes(status, headers, body))
}

fn answer_bytes(status: u16, headers: &[&str], body: &str) -> Vec<u8> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}").into()
}

/// Makes an answer with an error of a registry.
pub(crate) fn refusal(status: u16, code: u64, message: &str) -> Option<Vec<u8>> {
    answer(status, &[], &json!({ "error_code": code, "message": message }).to_string())
}

/// Returns the answers of a registry that allows any schema and remembers it.
pub(crate) fn registry() -> impl Fn(&Asked, usize) -> Option<Vec<u8>> + Send + Sync + 'static {
    let schemas: Mutex<HashMap<String, String>> = Mutex::default();
    move |asked: &Asked, _| {
        let mut schemas = schemas.lock().unwrap();
        let schema = || serde_json::from_str::<Value>(&asked.body).unwrap()["schema"].as_str().unwrap().to_owned();
        if let Some(id) = asked.line.strip_prefix("GET /schemas/ids/") {
            return match schemas.get(id) {
                Some(schema) => answer(200, &[], &json!({ "schema": schema }).to_string()),
                None => refusal(404, 40403, "no such schema"),
            };
        }
        if !asked.line.contains("/versions?") {
            return refusal(404, 40401, "no such subject");
        }
        schemas.insert("1".into(), schema());
        answer(200, &[], r#"{"id": 1}"#)
    }
}

/// Makes a certificate for 127.0.0.1, signed by another one or by itself, and its key.
pub(crate) fn certificate(name: &str, signer: Option<&(X509, PKey<Private>)>) -> (X509, PKey<Private>) {
    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_text("CN", name).unwrap();
    let subject = subject.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&BigNum::from_u32(7).unwrap().to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&subject).unwrap();
    builder.set_issuer_name(signer.map_or(&*subject, |(signer, _)| signer.subject_name())).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.set_not_before(&Asn1Time::from_unix(1_700_000_000).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(3650).unwrap()).unwrap();
    match signer {
        None => builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap(),
        Some((signer, _)) => {
            let context = builder.x509v3_context(Some(signer), None);
            let names = SubjectAlternativeName::new().ip("127.0.0.1").build(&context).unwrap();
            builder.append_extension(names).unwrap();
        }
    }
    builder.sign(signer.map_or(&key, |(_, key)| key), MessageDigest::sha256()).unwrap();
    (builder.build(), key)
}
