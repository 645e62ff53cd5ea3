//! From a problem document (RFC 9457) to an exit code, a message and a hint.

use http::StatusCode;
use serde::Deserialize;

use crate::exit::{CliError, ExitCode};

/// The members that people are told.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    #[serde(rename = "type")]
    kind: String,
    title: String,
    detail: String,
    errors: Vec<Fault>,
}

#[derive(Debug, Deserialize)]
struct Fault {
    pointer: String,
    detail: String,
}

/// The error that an answer with this status and body means.
pub(super) fn error(status: StatusCode, body: &[u8], url: &str) -> CliError {
    let Ok(problem) = serde_json::from_slice::<Problem>(body) else {
        let message = format!("{url} answered {status} without saying why");
        return CliError::new(code(status, ""), message).hint("check that this is the address of a gateway's HTTP API");
    };
    let message = match problem.errors.as_slice() {
        [] if problem.detail.is_empty() => format!("{status}: {}", problem.title),
        [] => problem.detail,
        faults => {
            let lines: Vec<_> = faults.iter().map(|f| format!("\n  {}: {}", f.pointer, f.detail)).collect();
            format!("{}:{}", problem.title, lines.concat())
        }
    };
    let error = CliError::new(code(status, &problem.kind), message);
    match hint(status) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn code(status: StatusCode, kind: &str) -> ExitCode {
    if kind.ends_with("/privacy-unsupported") {
        return ExitCode::Refused;
    }
    match status.as_u16() {
        401 | 403 => ExitCode::Authentication,
        404 => ExitCode::NotFound,
        409 | 422 => ExitCode::Conflict,
        408 | 429 | 502..=504 => ExitCode::Unavailable,
        _ => ExitCode::Failed,
    }
}

fn hint(status: StatusCode) -> Option<&'static str> {
    match status.as_u16() {
        401 => Some("give a key with --key or API_KEY, or run this on the gateway's machine with --data DIR"),
        403 => Some("use an admin key (--key, API_KEY), or run this on the gateway's machine with --data DIR"),
        421 => Some("call the gateway by the name or address that it listens on"),
        429 => Some("wait a moment, then try again"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_of(status: u16, body: &str) -> ExitCode {
        error(StatusCode::from_u16(status).unwrap(), body.as_bytes(), "http://x").code
    }

    #[test]
    fn statuses_become_the_exit_codes_of_the_documentation() {
        let cases = [
            (400, ExitCode::Failed),
            (401, ExitCode::Authentication),
            (403, ExitCode::Authentication),
            (404, ExitCode::NotFound),
            (409, ExitCode::Conflict),
            (422, ExitCode::Conflict),
            (429, ExitCode::Unavailable),
            (500, ExitCode::Failed),
            (503, ExitCode::Unavailable),
        ];
        for (status, code) in cases {
            assert_eq!(code_of(status, r#"{"detail": "x"}"#), code, "{status}");
        }
        assert_eq!(code_of(400, r#"{"type": "/problems/privacy-unsupported", "detail": "x"}"#), ExitCode::Refused);
    }

    #[test]
    fn every_fault_is_shown_with_its_place() {
        let body = r#"{"title": "The request is not valid", "detail": "2 faults",
            "errors": [{"pointer": "/a", "detail": "wrong"}, {"pointer": "/b", "detail": "worse"}]}"#;
        let shown = error(StatusCode::BAD_REQUEST, body.as_bytes(), "http://x").to_string();
        assert_eq!(shown, "The request is not valid:\n  /a: wrong\n  /b: worse");
        assert!(error(StatusCode::BAD_GATEWAY, b"<html>", "http://x").message.contains("502"));
    }
}
