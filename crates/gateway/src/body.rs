//! JSON bodies at the wall: size, nesting, unknown names and wrong types, all faults of a body together.
//!
//! A body is read into a JSON object first; its DTO then takes its fields one by one from [`Fields`], which collects
//! what is wrong with JSON pointers and suggests the nearest name for an unknown one. Promise: nothing is parsed deeper
//! than [`DEPTH_MAX`] or longer than the route's limit. Must not know: what any field means.

mod strict;

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::{ErrorKind, suggest};
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body::Body as _;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::problem::{Fault, Problem};
use strict::Strict;

/// Deepest nesting of arrays and objects in a body. The guide's bodies need 3, an image batch 6; recursion over a
/// hostile body must end long before the stack does.
pub(crate) const DEPTH_MAX: usize = 32;

/// Longest time a JSON body may take to arrive: a few MB over a slow mobile line.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest pause within a JSON body: as long as a head may take, which is what a client that has given up looks like.
const BODY_SILENCE: Duration = Duration::from_secs(10);

/// Bodies of the largest size that may be in memory together: enough for a burst, far below what a small machine has.
/// A parsed body takes up to sixteen times its text, for as long as its request lasts.
const AT_ONCE: usize = 8;
/// Unit in which memory for bodies is shared out, in bytes.
const UNIT: usize = 4096;

/// The memory for bodies: a bound for each and a bound for all.
#[derive(Debug)]
pub(crate) struct Bodies {
    limit: usize,
    units: Arc<Semaphore>,
}

/// Part of the memory for bodies; given back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Share(Option<OwnedSemaphorePermit>);

impl Share {
    fn units(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Grows to hold `bytes`; false if others have the rest.
    fn grow(&mut self, bytes: usize, units: &Arc<Semaphore>) -> bool {
        let more = bytes.div_ceil(UNIT).saturating_sub(self.units());
        let Ok(more) = u32::try_from(more) else { return false };
        if more == 0 {
            return true;
        }
        let Ok(permit) = Arc::clone(units).try_acquire_many_owned(more) else { return false };
        match &mut self.0 {
            Some(held) => held.merge(permit),
            None => self.0 = Some(permit),
        }
        true
    }
}

impl Bodies {
    /// At most `limit` bytes a body.
    pub(crate) fn new(limit: usize) -> Self {
        let units = (limit.div_ceil(UNIT) * AT_ONCE).min(Semaphore::MAX_PERMITS);
        Self { limit, units: Arc::new(Semaphore::new(units)) }
    }

    /// Reads a whole body.
    ///
    /// # Errors
    /// 413 beyond the limit, 429 when other bodies have the memory, 408 when it takes too long, 400 when the connection
    /// breaks.
    pub(crate) async fn read(&self, body: Body) -> Result<(Bytes, Share), Problem> {
        tokio::time::timeout(BODY_TIMEOUT, self.collect(body)).await.unwrap_or_else(|_| {
            Err(Problem::timeout(format!(
                "the body did not arrive within {} s: send it again over a faster line",
                BODY_TIMEOUT.as_secs()
            )))
        })
    }

    async fn collect(&self, mut body: Body) -> Result<(Bytes, Share), Problem> {
        // What is declared too long is refused before it is sent.
        if body.size_hint().lower() > self.limit as u64 {
            return Err(too_large(self.limit as u64));
        }
        let mut out = BytesMut::new();
        let mut share = Share::default();
        loop {
            let frame = tokio::time::timeout(BODY_SILENCE, body.frame()).await.map_err(|_| {
                let silence = BODY_SILENCE.as_secs();
                Problem::timeout(format!("nothing of the body arrived for {silence} s: send it again"))
            })?;
            let Some(frame) = frame else { break };
            let frame =
                frame.map_err(|e| Problem::new(ErrorKind::Invalid, format!("the body could not be read: {e}")))?;
            let Ok(data) = frame.into_data() else { continue };
            let length = out.len() + data.len();
            if length > self.limit {
                return Err(too_large(self.limit as u64));
            }
            if !share.grow(length, &self.units) {
                let text = "the bodies of other requests fill the memory for bodies: come back in a moment";
                return Err(Problem::new(ErrorKind::Overloaded, text));
            }
            out.extend_from_slice(&data);
        }
        Ok((out.freeze(), share))
    }
}

/// 413 with the limit.
pub(crate) fn too_large(limit: u64) -> Problem {
    Problem::new(ErrorKind::TooLarge, format!("the body is longer than the limit of {limit} bytes"))
}

/// Refuses bodies that are not declared as JSON. A browser cannot send `application/json` across sites without asking
/// first, so this also keeps strange pages from posting.
pub(crate) fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let essence = given.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    Err(Problem::media_type(format!(
        "Content-Type is `{given}`: send a JSON body with `Content-Type: application/json`"
    )))
}

/// The body as a JSON object.
///
/// # Errors
/// 400 when it is no JSON object or nested deeper than [`DEPTH_MAX`].
pub(crate) fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, Problem> {
    if depth(bytes) > DEPTH_MAX {
        return Err(Problem::faults(vec![Fault::new(
            "",
            format!("the body is nested deeper than {DEPTH_MAX} levels: flatten it"),
        )]));
    }
    let Strict(value) = serde_json::from_slice(bytes)
        .map_err(|e| Problem::faults(vec![Fault::new("", format!("the body is not valid JSON: {e}"))]))?;
    match value {
        Value::Object(map) => Ok(map),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(Problem::faults(vec![Fault::new("", "the body must be a JSON object: {…}")]))
        }
    }
}

/// Deepest nesting of brackets outside strings. Wrong JSON gets some number; the parser refuses it afterwards.
fn depth(bytes: &[u8]) -> usize {
    let (mut now, mut deepest, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for byte in bytes {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                now += 1;
                deepest = deepest.max(now);
            }
            b']' | b'}' => now = now.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// A DTO that can be read from a JSON object.
pub(crate) trait FromFields: Sized {
    /// Takes its fields; None if a required one is absent or wrong (the fault is in `fields`).
    fn read(fields: &mut Fields) -> Option<Self>;
}

/// The fields of one JSON object, taken one by one; collects every fault.
#[derive(Debug)]
pub(crate) struct Fields {
    prefix: String,
    map: Map<String, Value>,
    known: Vec<&'static str>,
    faults: Vec<Fault>,
}

impl Fields {
    /// Over the object at JSON pointer `prefix` (empty for the body).
    pub(crate) fn new(prefix: impl Into<String>, map: Map<String, Value>) -> Self {
        Self { prefix: prefix.into(), map, known: Vec::new(), faults: Vec::new() }
    }

    /// The pointer of a field.
    pub(crate) fn pointer(&self, name: &str) -> String {
        format!("{}{}", self.prefix, pointer(name))
    }

    /// Notes a fault found by the caller.
    pub(crate) fn fault(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        self.faults.push(Fault::new(pointer, detail));
    }

    /// A field that may be absent or null. A wrong type is a fault and reads as absent.
    pub(crate) fn optional<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<T> {
        self.known.push(name);
        let value = self.map.remove(name).filter(|v| !v.is_null())?;
        match serde_path_to_error::deserialize::<_, T>(value) {
            Ok(value) => Some(value),
            Err(error) => {
                let pointer = format!("{}{}", self.pointer(name), pointer_of(error.path()));
                self.faults.push(Fault::new(pointer, with_suggestion(error.into_inner().to_string())));
                None
            }
        }
    }

    /// A field that must be there.
    pub(crate) fn required<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<T> {
        let absent = self.map.get(name).is_none_or(Value::is_null);
        if absent {
            self.known.push(name);
            self.faults.push(Fault::new(self.pointer(name), format!("`{name}` is required")));
            return None;
        }
        self.optional(name)
    }

    /// A field with a default.
    pub(crate) fn or<T: DeserializeOwned>(&mut self, name: &'static str, default: T) -> T {
        self.optional(name).unwrap_or(default)
    }

    /// A nested object, read by its own DTO; its faults become ours.
    pub(crate) fn object<T: FromFields>(&mut self, name: &'static str) -> Option<T> {
        let map = self.optional::<Map<String, Value>>(name)?;
        let mut inner = Fields::new(self.pointer(name), map);
        let value = T::read(&mut inner);
        self.faults.append(&mut inner.finish());
        value
    }

    /// The names that were asked for.
    #[cfg(test)]
    pub(crate) fn known(&self) -> &[&'static str] {
        &self.known
    }

    /// All faults, unknown names among them, in the order of the fields.
    pub(crate) fn finish(mut self) -> Vec<Fault> {
        let unknown: Vec<String> = self.map.keys().cloned().collect();
        let mut faults = Vec::with_capacity(unknown.len() + self.faults.len());
        // Unknown names first: a slip in a name often explains the "required" fault that follows.
        for name in unknown {
            faults.push(Fault::new(self.pointer(&name), suggest::unknown("field", &name, &self.known)));
        }
        faults.append(&mut self.faults);
        faults
    }
}

/// Reads a DTO from a body.
///
/// # Errors
/// 400 with every fault.
pub(crate) fn read<T: FromFields>(map: Map<String, Value>) -> Result<T, Problem> {
    let mut fields = Fields::new("", map);
    let value = T::read(&mut fields);
    match (value, fields.finish()) {
        (Some(value), faults) if faults.is_empty() => Ok(value),
        (_, faults) => Err(Problem::faults(faults)),
    }
}

/// serde's "unknown field/variant `x`, expected one of `a`, `b`" with the nearest name instead of the bare list.
fn with_suggestion(message: String) -> String {
    let Some((what, rest)) =
        ["field", "variant"].iter().find_map(|what| Some((*what, message.strip_prefix(&format!("unknown {what} `"))?)))
    else {
        return message;
    };
    let mut names = rest.split('`').step_by(2);
    let valid: Vec<&str> = rest.split('`').skip(2).step_by(2).collect();
    match names.next() {
        Some(given) if !valid.is_empty() => {
            suggest::unknown(if what == "variant" { "value" } else { what }, given, &valid)
        }
        Some(_) | None => message,
    }
}

/// JSON pointer of a field of the body.
pub(crate) fn pointer(name: &str) -> String {
    format!("/{}", escape(name))
}

/// RFC 6901 escaping.
fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// serde_path_to_error's path as a JSON pointer.
fn pointer_of(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut out = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => out.push_str(&format!("/{index}")),
            Segment::Map { key } => out.push_str(&format!("/{}", escape(key))),
            Segment::Enum { variant } => out.push_str(&format!("/{}", escape(variant))),
            Segment::Unknown => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[derive(Debug)]
    struct Sample {
        name: String,
        rounds: u32,
        shape: Option<Vec<usize>>,
    }

    impl FromFields for Sample {
        fn read(fields: &mut Fields) -> Option<Self> {
            let name = fields.required("name");
            let rounds = fields.or("rounds", 100);
            let shape = fields.optional("shape");
            Some(Self { name: name?, rounds, shape })
        }
    }

    fn check(text: &str) -> Result<Sample, Vec<(String, String)>> {
        let map = parse_object(text.as_bytes()).unwrap();
        let mut fields = Fields::new("", map);
        let value = Sample::read(&mut fields);
        let faults = fields.finish();
        if faults.is_empty() {
            return Ok(value.unwrap());
        }
        Err(faults.into_iter().map(|f| (f.pointer, f.detail)).collect())
    }

    #[tokio::test]
    async fn bodies_share_one_bound_and_give_it_back() {
        let bodies = Bodies::new(UNIT);
        let read = || bodies.read(Body::from(vec![b'x'; UNIT]));
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            held.push(read().await.unwrap());
        }
        assert_eq!(read().await.unwrap_err().status(), 429);
        held.pop();
        read().await.unwrap();
        assert_eq!(bodies.read(Body::from(vec![b'x'; UNIT + 1])).await.unwrap_err().status(), 413);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_pauses_is_refused_long_before_its_whole_time_is_over() {
        let bodies = Bodies::new(UNIT);
        let begun = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"{"))]);
        let body = Body::from_stream(begun.chain(futures_util::stream::pending()));
        let started = tokio::time::Instant::now();
        assert_eq!(bodies.read(body).await.unwrap_err().status(), 408);
        assert_eq!(started.elapsed(), BODY_SILENCE);
        // One that never pauses for long has its whole time, and no more.
        let drip = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(BODY_SILENCE / 2).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b" ")), ()))
        });
        let started = tokio::time::Instant::now();
        assert_eq!(bodies.read(Body::from_stream(drip)).await.unwrap_err().status(), 408);
        assert_eq!(started.elapsed(), BODY_TIMEOUT);
        assert_eq!(bodies.units.available_permits(), AT_ONCE, "what they held is given back");
    }

    #[test]
    fn defaults_fill_what_is_absent() {
        let sample = check(r#"{"name": "x", "shape": null}"#).unwrap();
        assert_eq!((sample.name.as_str(), sample.rounds, sample.shape), ("x", 100, None));
    }

    #[test]
    fn all_faults_come_together_with_pointers() {
        let faults = check(r#"{"nmae": "x", "rounds": "many", "shape": [1, "a"]}"#).unwrap_err();
        let pointers: Vec<_> = faults.iter().map(|f| f.0.as_str()).collect();
        assert_eq!(pointers, ["/nmae", "/name", "/rounds", "/shape/1"]);
        assert!(faults[0].1.contains("did you mean `name`"), "{}", faults[0].1);
    }

    #[test]
    fn brackets_inside_strings_do_not_count_as_nesting() {
        let text = format!(r#"{{"name": "{}\"{}"}}"#, "[".repeat(50), "{".repeat(50));
        assert!(parse_object(text.as_bytes()).is_ok());
        let deep = format!(r#"{{"name": {}{}}}"#, "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX));
        assert_eq!(parse_object(deep.as_bytes()).unwrap_err().status(), 400);
        let fits = format!(r#"{{"name": {}{}}}"#, "[".repeat(DEPTH_MAX - 1), "]".repeat(DEPTH_MAX - 1));
        assert!(parse_object(fits.as_bytes()).is_ok());
    }

    #[test]
    fn forms_and_nameless_bodies_are_not_json() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(value));
            require_json(&headers)
        };
        assert!(with("application/json; charset=utf-8").is_ok());
        assert!(with("application/x-www-form-urlencoded").is_err());
        assert!(with("text/plain").is_err());
        assert!(require_json(&HeaderMap::new()).is_err());
    }
}
