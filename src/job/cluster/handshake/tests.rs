//! Tests of both ends of a handshake, and of a stranger who has recorded other connections.

use std::net::TcpListener;

use super::*;

fn secret(text: &str) -> Option<Secret> {
    Some(Secret::new(text.as_bytes()).unwrap())
}

fn terms(purpose: ConnectionPurpose, secret: Option<Secret>) -> AcceptPolicy {
    AcceptPolicy { own: 0, purpose, number: 7, secret }
}

/// Serves one caller until it is accepted or refused.
fn heard(mut caller: PendingHandshake, terms: &AcceptPolicy) -> Result<usize, String> {
    loop {
        let progress = caller.advance(terms);
        if let Some(why) = caller.refused() {
            return Err(why);
        }
        match progress {
            HandshakeProgress::Waits => std::thread::sleep(Duration::from_millis(1)),
            HandshakeProgress::Gone => return Err("it is gone".into()),
            HandshakeProgress::Arrived(process, _) => return Ok(process),
            HandshakeProgress::Refused(why) => return Err(why),
        }
    }
}

/// Has process 2 call process `to`; returns the outcome at either end.
fn call(
    to: usize,
    number: u64,
    own: Option<&Secret>,
    terms: AcceptPolicy,
) -> (Result<(), String>, Result<usize, String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let accepting =
        std::thread::spawn(move || heard(PendingHandshake::new(listener.accept().unwrap().0).unwrap(), &terms));
    let call = DialOptions { purpose: ConnectionPurpose::Data, from: 2, to, address: &address, number, secret: own };
    let called = match call.dial(&mut RunningTime::start()) {
        Ok(wire) => {
            drop(wire);
            Ok(())
        }
        Err(ConnectError::Retryable(why)) => Err(why),
        Err(ConnectError::Fatal(error)) => Err(error.to_string()),
    };
    (called, accepting.join().unwrap())
}

#[test]
fn two_ends_that_know_one_secret_or_none_at_all_take_each_other() {
    for own in [None, secret("0123456789abcdef")] {
        assert_eq!(call(0, 7, own.as_ref(), terms(ConnectionPurpose::Data, own.clone())), (Ok(()), Ok(2)));
    }
}

#[test]
fn who_knows_another_secret_or_none_is_refused_by_both_ends() {
    let (one, other) = (secret("0123456789abcdef"), secret("0123456789abcdeF"));
    for (own, theirs, called, accepted) in [
        (one.clone(), other, "knows another secret", "does not know the secret"),
        (None, one.clone(), "asks for a secret", "has no secret"),
        (one, None, "it has no secret, and this process has one", "it has a secret, and this process has none"),
    ] {
        let (caller, acceptor) = call(0, 7, own.as_ref(), terms(ConnectionPurpose::Data, theirs));
        assert!(caller.as_ref().is_err_and(|why| why.contains(called)), "{caller:?}");
        assert!(acceptor.as_ref().is_err_and(|why| why.contains(accepted)), "{acceptor:?}");
    }
}

#[test]
fn who_means_another_process_another_attempt_or_another_purpose_is_refused() {
    let own = secret("0123456789abcdef");
    for (to, number, purpose) in
        [(1, 7, ConnectionPurpose::Data), (0, 8, ConnectionPurpose::Data), (0, 7, ConnectionPurpose::Control)]
    {
        let (caller, acceptor) = call(to, number, own.as_ref(), terms(purpose, own.clone()));
        assert!(caller.is_err(), "{to} {number} {purpose:?}");
        assert!(acceptor.as_ref().is_err_and(|why| why.contains("another attempt")), "{acceptor:?}");
    }
}

#[test]
fn what_was_heard_on_one_connection_proves_nothing_on_another() {
    let own = secret("0123456789abcdef");
    let terms = terms(ConnectionPurpose::Data, own.clone());
    let greeting =
        Greeting { purpose: ConnectionPurpose::Data, from: 2, to: 0, number: 7, secured: true, nonce: [5; NONCE] };
    // Runs a valid handshake, of which a stranger may have recorded the bytes.
    let exchange = |answer: &dyn Fn(&[u8; CHALLENGE]) -> [u8; PROOF]| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut wire = Framed::blocking(TcpStream::connect(listener.local_addr().unwrap()).unwrap()).unwrap();
        let terms = terms.clone();
        let accepting =
            std::thread::spawn(move || heard(PendingHandshake::new(listener.accept().unwrap().0).unwrap(), &terms));
        wire.put(&greeting.bytes(), HANDSHAKE_TIMEOUT).unwrap();
        let mut time = RunningTime::start();
        let challenge: [u8; CHALLENGE] = wait(&mut time, Duration::ZERO, || wire.take()).unwrap();
        let said = answer(&challenge);
        wire.put(&said, HANDSHAKE_TIMEOUT).unwrap();
        let verdict: [u8; VERDICT] = wait(&mut time, Duration::ZERO, || wire.take()).unwrap();
        drop(wire);
        (said, verdict, accepting.join().unwrap())
    };
    let right =
        |challenge: &[u8; CHALLENGE]| proof(own.as_ref(), ConnectionEnd::Dialer, [&greeting.bytes(), challenge]);
    let (proved, verdict, accepted) = exchange(&right);
    assert_eq!((verdict[0], accepted), (1, Ok(2)));
    let mut reflected = [0; PROOF];
    reflected.copy_from_slice(&verdict[1..]);
    for said in [proved, reflected, [0; PROOF]] {
        let (_, verdict, accepted) = exchange(&|_| said);
        assert_eq!(verdict, [0; VERDICT]);
        assert_eq!(accepted, Err("it does not know the secret".into()));
    }
}

#[test]
fn an_acceptor_that_cannot_prove_the_secret_is_not_taken() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // The acceptor accepts anything, and reflects the caller's proof as its own.
    let impostor = std::thread::spawn(move || {
        let mut wire = Framed::blocking(listener.accept().unwrap().0).unwrap();
        let mut time = RunningTime::start();
        let _greeting: [u8; GREETING] = wait(&mut time, Duration::ZERO, || wire.take()).unwrap();
        let mut challenge = [1; CHALLENGE];
        challenge[..8].copy_from_slice(&MAGIC);
        wire.put(&challenge, HANDSHAKE_TIMEOUT).unwrap();
        let proof: [u8; PROOF] = wait(&mut time, Duration::ZERO, || wire.take()).unwrap();
        wire.put(&[&[1][..], &proof].concat(), HANDSHAKE_TIMEOUT).unwrap();
        wire
    });
    let own = secret("0123456789abcdef");
    let call = DialOptions {
        purpose: ConnectionPurpose::Control,
        from: 1,
        to: 0,
        address: &address,
        number: 0,
        secret: own.as_ref(),
    };
    let Err(ConnectError::Retryable(why)) = call.dial(&mut RunningTime::start()) else {
        panic!("an impostor was taken")
    };
    assert_eq!(why, "it does not know the secret");
    drop(impostor.join().unwrap());
}

#[test]
fn who_says_little_by_little_is_refused_when_the_handshakes_limit_is_over() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut caller = PendingHandshake::new(listener.accept().unwrap().0).unwrap();
    let (terms, begun) = (terms(ConnectionPurpose::Control, None), std::time::Instant::now());
    let greeting =
        Greeting { purpose: ConnectionPurpose::Control, from: 1, to: 0, number: 7, secured: false, nonce: [5; NONCE] };
    let mut bytes = greeting.bytes().into_iter();
    let why = loop {
        match caller.advance(&terms) {
            HandshakeProgress::Refused(why) => break why,
            HandshakeProgress::Arrived(..) | HandshakeProgress::Gone => panic!("it has said too little"),
            HandshakeProgress::Waits => std::thread::sleep(Duration::from_millis(200)),
        }
        io::Write::write_all(&mut slow, &[bytes.next().unwrap()]).unwrap();
    };
    assert!(why.contains("has not proved who it is within 5 s"), "{why}");
    assert!(begun.elapsed() < HANDSHAKE_TIMEOUT + Duration::from_secs(5));
}
