//! Host names by which a server may be called.
//!
//! A foreign web page can make a browser call a server on this machine under a name of the page's own, by letting that
//! name resolve to 127.0.0.1 (DNS rebinding), and could then read the answers. The `Host` of such a request is the
//! page's name. So a request is answered only if its `Host` is a numeric IP address, which no other origin can have;
//! `localhost` or a name beneath it; the name that the server was told to listen at; or a name that was allowed.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The names that are allowed.
#[derive(Clone, Debug)]
pub(super) struct Hosts {
    allowed: Vec<String>,
}

impl Hosts {
    /// Allows the host of the address that a server listens at, and those in `more`.
    pub(super) fn new(address: &str, more: &[String]) -> Self {
        let own = host_of(address).into_iter().map(|(host, _)| host);
        let allowed = own.chain(more.iter().map(String::as_str)).map(|host| normal(host).to_ascii_lowercase());
        Hosts { allowed: allowed.collect() }
    }

    /// `true` if a request with this `Host` is answered.
    pub(super) fn allow(&self, host: &str) -> bool {
        let Some((name, port)) = host_of(host) else { return false };
        if port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return false;
        }
        if let Some(address) = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
            return address.parse::<Ipv6Addr>().is_ok();
        }
        let name = normal(name).to_ascii_lowercase();
        name.parse::<Ipv4Addr>().is_ok()
            || name == "localhost"
            || name.ends_with(".localhost")
            || !name.is_empty() && self.allowed.iter().any(|allowed| *allowed == name || allowed == "*")
    }
}

/// Splits `HOST:PORT` or `HOST` into host and port; `None` if it is invalid.
fn host_of(host: &str) -> Option<(&str, Option<&str>)> {
    let after = host.rfind(']').map_or(0, |at| at + 1);
    let (name, port) = match host[after..].split_once(':') {
        Some((rest, port)) => (&host[..after + rest.len()], Some(port)),
        None => (host, None),
    };
    // Characters that no host name has could disguise another name.
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._[]:*".contains(c);
    (!name.is_empty() && name.len() <= 255 && name.chars().all(fits)).then_some((name, port))
}

/// Returns a name without its trailing dot.
fn normal(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_and_allowed_ones_are_answered() {
        let hosts = Hosts::new("build-7:8080", &[String::from("Jobs.example.org")]);
        for host in [
            "127.0.0.1:8080",
            "127.0.0.1",
            "localhost:1",
            "LOCALHOST",
            "a.localhost:80",
            "[::1]:8080",
            "[::1]",
            "10.1.2.3:8080",
            "build-7:9",
            "jobs.example.org",
            "jobs.example.org.:80",
        ] {
            assert!(hosts.allow(host), "{host}");
        }
        for host in [
            "",
            ":80",
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "evil.example#localhost",
            "notlocalhost",
            "localhost:99999",
            "localhost:x",
            "[evil.example]",
            "[::1",
            "org",
            "0x7f000001",
            "127.0.0.1:80:90",
        ] {
            assert!(!hosts.allow(host), "{host}");
        }
        assert!(Hosts::new("0.0.0.0:1", &[String::from("*")]).allow("evil.example"));
        assert!(!Hosts::new("*:1", &[]).allow(""));
    }
}
