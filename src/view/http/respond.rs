//! Requests: each is refused, or passed to the handler and answered when its turn comes.

use std::sync::Arc;

use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, HOST, HeaderValue, REFERRER_POLICY, RETRY_AFTER, TRANSFER_ENCODING, VARY, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode, Version};

use super::access::TokenFile;
use super::body::{AnswerBody, BodyContent, Never};
use super::end::EndSignal;
use super::events;
use super::gate::{Gate, Permit};
use super::gzip;
use super::host::Hosts;
use super::limits::{
    CONNECTIONS_FOR_A_STREAM, CONNECTIONS_FOR_A_TURN, DOCUMENTS, PIECE, ROWS, STREAMS, WRONG_TOKEN_TIME, WRONG_TOKENS,
};
use super::tracker::ConnectionTracker;
use super::{AnswerKind, DeferredReply, Encryption, HttpReply, HttpRequest, PublicPaths, RequestHandler, TextPieces};
use crate::metrics::Counter;

/// Policy for browsers: scripts, styles and data come from this server alone, none of them from the text of a page, and
/// no page of another server shows an answer inside itself.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The requests that are answered.
pub(super) struct AccessPolicy {
    /// Names of the server in them.
    pub(super) hosts: Hosts,
    /// The token that they have to carry.
    pub(super) token: Option<TokenFile>,
    /// Those that need no token.
    pub(super) is_public: PublicPaths,
    /// Encryption of the connections that they come on, if there is any.
    pub(super) encryption: Option<Encryption>,
}

/// The right of a request to what the server's token protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenGrant {
    /// It carries the token, or the server asks for none.
    Trusted,
    /// It carries none.
    Absent,
    /// It carries something else.
    Wrong,
}

impl AccessPolicy {
    /// Compares the token of a request with the server's.
    fn grant(&self, request: &Request<Incoming>) -> TokenGrant {
        let Some(token) = &self.token else { return TokenGrant::Trusted };
        let mut given = request.headers().get_all(AUTHORIZATION).iter();
        match (given.next(), given.next()) {
            (None, _) => TokenGrant::Absent,
            (Some(header), None) if token.is_in(header.as_bytes()) => TokenGrant::Trusted,
            _ => TokenGrant::Wrong,
        }
    }
}

/// The state shared by all connections.
pub(super) struct RequestContext {
    answering: RequestHandler,
    policy: AccessPolicy,
    documents: Gate,
    rows: Arc<Gate>,
    streams: Arc<Gate>,
    wrong_tokens: Arc<Counter>,
}

impl RequestContext {
    /// Creates a handler of the requests that the policy allows, for at most `connections` connections.
    pub(super) fn new(answering: RequestHandler, policy: AccessPolicy, connections: usize) -> Self {
        let waiting = connections / CONNECTIONS_FOR_A_TURN;
        let streams = STREAMS.min(connections / CONNECTIONS_FOR_A_STREAM);
        RequestContext {
            answering,
            policy,
            documents: Gate::new(DOCUMENTS, waiting, "long answers are being sent"),
            rows: Arc::new(Gate::new(ROWS, waiting, "answers with rows of views are being sent")),
            streams: Arc::new(Gate::new(streams, 0, "streams of events are open")),
            wrong_tokens: Arc::default(),
        }
    }
}

impl RequestContext {
    /// Returns the number of requests that have come with a wrong token.
    pub(super) fn wrong_tokens(&self) -> Arc<Counter> {
        Arc::clone(&self.wrong_tokens)
    }

    /// Counts a request with a wrong token, and lets its client wait; returns `true` if its connection is to be closed.
    async fn delay_guess(&self, pulse: &ConnectionTracker) -> bool {
        self.wrong_tokens.add(1);
        let guesses = pulse.count_wrong_token();
        // Meanwhile the connection can be closed for another one: who guesses takes no room from others.
        pulse.answered();
        tokio::time::sleep(WRONG_TOKEN_TIME * guesses).await;
        pulse.answering();
        guesses >= WRONG_TOKENS
    }

    /// Returns the encryption of connections, if there is any.
    pub(super) fn encryption(&self) -> Option<Encryption> {
        self.policy.encryption.clone()
    }
}

/// An answer before it becomes a response.
struct ResponseParts {
    status: u16,
    kind: &'static str,
    content: BodyContent,
    close: bool,
}

impl ResponseParts {
    fn text(status: u16, text: String) -> Self {
        let content = BodyContent::Text((text + "\n").into(), None);
        ResponseParts { status, kind: "text/plain; charset=utf-8", content, close: false }
    }

    fn close(self) -> Self {
        ResponseParts { close: true, ..self }
    }
}

/// Answers a request.
pub(super) async fn respond(
    shared: Arc<RequestContext>,
    pulse: ConnectionTracker,
    over: EndSignal,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Never> {
    pulse.answering();
    let grant = shared.policy.grant(&request);
    let gives_up = grant == TokenGrant::Wrong && shared.delay_guess(&pulse).await;
    let answer = match parse_request(&shared.policy, &request, grant) {
        Err(refusal) => refusal,
        Ok(asked) => match (shared.answering)(&asked) {
            HttpReply::Later(kind, make) => later(&shared, kind, make, over).await,
            reply => short(reply),
        },
    };
    let ResponseParts { status, kind, content, close } = answer;
    let is_accepted = gzip::is_accepted(request.headers());
    let (content, is_compressed) = if is_accepted { content.compress() } else { (content, false) };
    let mut response = Response::new(AnswerBody::new(content, pulse));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    if is_compressed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    match status {
        401 => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tidegate\""))),
        405 => drop(headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"))),
        503 => drop(headers.insert(RETRY_AFTER, HeaderValue::from_static("1"))),
        _ => {}
    }
    if close || gives_up {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Converts a request for the handler, or returns its refusal.
fn parse_request(
    policy: &AccessPolicy,
    request: &Request<Incoming>,
    grant: TokenGrant,
) -> Result<HttpRequest, ResponseParts> {
    let (headers, uri) = (request.headers(), request.uri());
    let has_length = headers.get_all(CONTENT_LENGTH).iter().any(|length| length != "0");
    let has_body = has_length || headers.contains_key(TRANSFER_ENCODING);
    if *request.method() != Method::GET && *request.method() != Method::HEAD {
        let answer = ResponseParts::text(405, String::from("only GET and HEAD are answered"));
        return Err(if has_body { answer.close() } else { answer });
    }
    if has_body {
        return Err(ResponseParts::text(413, String::from("a request with a body is not answered")).close());
    }
    let mut named = headers.get_all(HOST).iter();
    let host = match (named.next(), named.next()) {
        (None, _) if request.version() == Version::HTTP_10 => None,
        (Some(host), None) => Some(host.to_str().unwrap_or("")),
        _ => return Err(ResponseParts::text(400, String::from("a request names one Host")).close()),
    };
    let authority = uri.authority().map(hyper::http::uri::Authority::as_str);
    if let Some(foreign) = host.into_iter().chain(authority).find(|host| !policy.hosts.allow(host)) {
        let foreign: String = foreign.chars().take(255).collect();
        let help = "ask by an address or as localhost, or start the job with --http-host and the name";
        return Err(ResponseParts::text(421, format!("this server is not known as `{foreign}`: {help}")).close());
    }
    let accepts = |kind: &str| {
        let mut accepted = headers.get_all(ACCEPT).iter().flat_map(|accept| accept.to_str().unwrap_or("").split(','));
        accepted.any(|accepted| accepted.split(';').next().is_some_and(|accepted| accepted.trim() == kind))
    };
    let asked = HttpRequest::new(uri.path(), uri.query().unwrap_or(""), accepts);
    let trusted = grant == TokenGrant::Trusted;
    if !trusted && !(policy.is_public)(&asked) {
        let help = "send `Authorization: Bearer TOKEN` with the token in the file that --http-token-file names";
        return Err(ResponseParts::text(401, format!("this job asks for a token: {help}")));
    }
    Ok(HttpRequest { trusted, ..asked })
}

/// Converts a complete answer.
fn short(reply: HttpReply) -> ResponseParts {
    match reply {
        HttpReply::Whole(status, kind, text) => {
            ResponseParts { status, kind, content: BodyContent::Text(text.into(), None), close: false }
        }
        HttpReply::Pieces(..) | HttpReply::Events(_) | HttpReply::Later(..) => {
            ResponseParts::text(500, String::from("an answer that takes time was not made when its turn came"))
        }
    }
}

/// Makes an answer when its turn comes.
async fn later(shared: &RequestContext, kind: AnswerKind, make: DeferredReply, over: EndSignal) -> ResponseParts {
    let slot = match kind {
        AnswerKind::Events => match shared.streams.enter_now() {
            Ok(slot) => Some(slot),
            Err(full) => return ResponseParts::text(503, full.to_owned()),
        },
        AnswerKind::Document | AnswerKind::Rows => None,
    };
    let gate = if kind == AnswerKind::Document { &shared.documents } else { &*shared.rows };
    let permit = match gate.enter().await {
        Ok(permit) => permit,
        Err(full) => return ResponseParts::text(503, full.to_owned()),
    };
    match (tokio::task::spawn_blocking(make).await, slot) {
        (Err(_), _) => ResponseParts::text(500, String::from("the answer could not be made: the log says why")),
        (Ok(HttpReply::Whole(status, kind, text)), _) => {
            let permit = (text.len() > PIECE).then_some(permit);
            ResponseParts { status, kind, content: BodyContent::Text(text.into(), permit), close: false }
        }
        (Ok(HttpReply::Pieces(kind, pieces)), _) => in_pieces(kind, pieces, permit),
        (Ok(HttpReply::Events(source)), Some(slot)) => {
            let events = events::start(source, [&shared.rows, &shared.streams], (slot, permit), over);
            ResponseParts { status: 200, kind: "text/event-stream", content: BodyContent::Events(events), close: false }
        }
        (Ok(reply), _) => short(reply),
    }
}

/// Sends an answer in pieces; as a whole, if it is short.
fn in_pieces(kind: &'static str, mut pieces: TextPieces, permit: Permit) -> ResponseParts {
    let answer = |content| ResponseParts { status: 200, kind, content, close: false };
    let first = match pieces.next() {
        None => return answer(BodyContent::Text(Bytes::new(), None)),
        Some(Err(error)) => return ResponseParts::text(500, error.to_string()),
        Some(Ok(first)) => Bytes::from(first),
    };
    if first.len() >= PIECE {
        return answer(BodyContent::Pieces(Some(first), Some((pieces, permit))));
    }
    match pieces.next() {
        None => answer(BodyContent::Text(first, None)),
        Some(Err(error)) => ResponseParts::text(500, error.to_string()),
        Some(Ok(second)) => {
            let first = Bytes::from([&first[..], &second[..]].concat());
            answer(BodyContent::Pieces(Some(first), Some((pieces, permit))))
        }
    }
}
