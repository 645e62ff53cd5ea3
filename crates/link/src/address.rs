//! Where a gateway's link listens, as people write it: `host:8001`, `https://host:8001`, `host`.

use std::fmt;
use std::str::FromStr;

/// The port of the node link when none is given.
pub(crate) const DEFAULT_PORT: u16 = 8001;

/// Host and port of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "`{text}` is not the address of a node link ({why}): give HOST:PORT, by default port {DEFAULT_PORT}"
            )
        };
        let rest = match text.trim().split_once("://") {
            None => text.trim(),
            Some(("https" | "tls" | "link", rest)) => rest,
            Some(("http", _)) => {
                return Err(wrong("`http://` is the HTTP API; the link speaks TLS on its own port"));
            }
            Some(_) => return Err(wrong("unknown scheme")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@', ' ']) {
            return Err(wrong("it must not have a path"));
        }
        let (host, port) = if let Some(inner) = rest.strip_prefix('[') {
            let (host, after) = inner.split_once(']').ok_or_else(|| wrong("`[` without `]`"))?;
            (
                host,
                if after.is_empty() {
                    None
                } else {
                    Some(after.strip_prefix(':').ok_or_else(|| wrong("text after `]`"))?)
                },
            )
        } else if rest.matches(':').count() > 1 {
            (rest, None)
        } else {
            match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            }
        };
        if host.is_empty() {
            return Err(wrong("the host is missing"));
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port
                .parse()
                .ok()
                .filter(|p| *p != 0)
                .ok_or_else(|| wrong("the port is not a number from 1 to 65535"))?,
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, shown) in [
            ("127.0.0.1:9", "127.0.0.1:9"),
            ("https://village.example:8001/", "village.example:8001"),
            ("village.example", "village.example:8001"),
            ("[::1]:77", "[::1]:77"),
            ("::1", "[::1]:8001"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        for (text, says) in [
            ("http://localhost:8000", "HTTP API"),
            ("ftp://x", "scheme"),
            ("host:port", "number"),
            ("host:0", "number"),
            ("", "host is missing"),
            ("host/path", "path"),
            ("[::1", "without"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
