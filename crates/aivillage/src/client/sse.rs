//! Server-sent events (WHATWG HTML, section 9.2): a pure parser, and a response body read through it.

use std::collections::VecDeque;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;

/// Longest event that is accepted: a job's whole state with a thousand rounds is about a tenth of it.
const EVENT_MAX: usize = 64 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its name; `message` if it has none.
    pub name: String,
    /// Its data, lines joined by `\n`.
    pub data: String,
}

/// Bytes in, events out.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    name: String,
    data: String,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    returned: bool,
    ready: VecDeque<Event>,
}

impl Parser {
    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// An event longer than any of ours.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        for byte in bytes {
            let after_return = std::mem::take(&mut self.returned);
            match byte {
                b'\n' if after_return => {}
                b'\n' => self.end_line(),
                b'\r' => {
                    self.returned = true;
                    self.end_line();
                }
                other => self.line.push(*other),
            }
        }
        if self.line.len() + self.data.len() > EVENT_MAX {
            return Err(format!("an event of more than {EVENT_MAX} bytes"));
        }
        Ok(())
    }

    /// The next whole event, if there is one.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        if line.is_empty() {
            return self.end_event();
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            // Comments (heartbeats), ids, retry times and fields of the future.
            _ => {}
        }
    }

    fn end_event(&mut self) {
        let name = std::mem::take(&mut self.name);
        let mut data = std::mem::take(&mut self.data);
        if data.pop().is_none() {
            return;
        }
        let name = if name.is_empty() { "message".to_owned() } else { name };
        self.ready.push_back(Event { name, data });
    }
}

/// Events of a response.
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    parser: Parser,
}

impl EventStream {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, parser: Parser::default() }
    }

    /// The next event; `None` when the gateway has ended the stream.
    ///
    /// # Errors
    /// The connection broke, in one sentence.
    pub async fn next(&mut self) -> Result<Option<Event>, String> {
        loop {
            if let Some(event) = self.parser.next_event() {
                return Ok(Some(event));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.parser.push(bytes)?;
                    }
                }
                Some(Err(error)) => return Err(error.to_string()),
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(chunks: &[&[u8]]) -> Vec<(String, String)> {
        let mut parser = Parser::default();
        for chunk in chunks {
            parser.push(chunk).unwrap();
        }
        std::iter::from_fn(|| parser.next_event()).map(|e| (e.name, e.data)).collect()
    }

    #[test]
    fn names_data_comments_and_all_line_ends_are_understood() {
        let text = b": heartbeat\n\nevent: status\r\nid: 7\r\ndata: {\"a\":\rdata: 1}\n\ndata:x\n\nevent: cut";
        let want = [("status".to_owned(), "{\"a\":\n1}".to_owned()), ("message".to_owned(), "x".to_owned())];
        assert_eq!(parse(&[text]), want);
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(cuts in proptest::collection::vec(0usize..60, 0..6)) {
            let text = "event: a\r\ndata: 1\r\n\r\ndata: äö\ndata: 2\n\nevent: b\rdata: 3\r\r";
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut start = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                chunks.push(&text.as_bytes()[start..cut]);
                start = cut;
            }
            prop_assert_eq!(parse(&chunks), parse(&[text.as_bytes()]));
        }
    }
}
