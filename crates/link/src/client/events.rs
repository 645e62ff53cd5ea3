//! The event stream: opened, watched, opened again.
//!
//! ```text
//!  open ──> listen ──┬─ goodbye ────────> wait as asked ──> open
//!                    ├─ silence, broken ─> back off ──────> open
//!                    ├─ certificate due ─> renew, go on listening
//!                    └─ refused for good ─> the error
//! ```

use std::time::Duration;

use aivillage_base::wire::Down;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::backoff::{Backoff, chance};
use super::calls::Over;
use super::dial::{self, ANSWER, Stage};
use super::error::LinkError;
use super::link::{Inner, Line, LinkClient};
use crate::lines::LineDecoder;
use crate::protocol::{DOWN_MAX, EVENTS};

/// Silence allowed before the first message has named the heartbeat.
const FIRST_SILENCE: Duration = Duration::from_secs(30);

/// Why listening ended without an error.
enum Ended {
    /// The gateway asks to come back after this pause.
    Goodbye(Duration),
    /// The stream ended or fell silent.
    Lost(String),
}

impl LinkClient {
    /// Keeps the event stream open and hands every message but heartbeats to `messages`, until `cancel`. Each connect
    /// begins with a `Welcome`.
    ///
    /// # Errors
    /// What a person has to mend ([`LinkError::is_final`]): the node was revoked, its CA was replaced; or `messages` is closed.
    pub async fn run(&self, messages: mpsc::Sender<Down>, cancel: CancellationToken) -> Result<(), LinkError> {
        tokio::select! {
            () = cancel.cancelled() => Ok(()),
            error = self.inner.listen_for_ever(&messages) => Err(error),
        }
    }
}

impl Inner {
    async fn listen_for_ever(&self, messages: &mpsc::Sender<Down>) -> LinkError {
        let mut backoff = Backoff::new(self.config.first_wait, self.config.longest_wait);
        loop {
            let asked = match self.listen(messages, &mut backoff).await {
                Ok(Ended::Goodbye(pause)) => {
                    tracing::info!(pause_ms = pause.as_millis(), "the gateway says goodbye");
                    Some(pause)
                }
                Ok(Ended::Lost(why)) => {
                    tracing::info!(why, "link lost");
                    None
                }
                Err(error) if error.is_final() => return error,
                Err(error) => {
                    tracing::warn!(%error, "link not open");
                    error.asked()
                }
            };
            tokio::time::sleep(backoff.wait(asked, chance())).await;
        }
    }

    /// One stream from its opening to its end.
    async fn listen(&self, messages: &mpsc::Sender<Down>, backoff: &mut Backoff) -> Result<Ended, LinkError> {
        // The connection ends when `_line` is dropped.
        let (_line, mut body) = self.within_answer(self.open()).await?;
        let mut decoder = LineDecoder::new(DOWN_MAX);
        let mut lines = Vec::new();
        let mut silence = FIRST_SILENCE;
        loop {
            let piece = match self.next_piece(&mut body, silence).await? {
                Some(Ok(piece)) => piece,
                Some(Err(why)) => return Ok(Ended::Lost(why)),
                None => return Ok(Ended::Lost("the stream has ended".to_owned())),
            };
            let pushed = decoder.push(&piece, &mut lines);
            pushed.map_err(|e| LinkError::BadAnswer(e.to_string()))?;
            for line in lines.drain(..) {
                let message: Down = match serde_json::from_slice(&line) {
                    Ok(message) => message,
                    Err(error) => {
                        // A newer gateway may say what we do not know: a hint that is lost.
                        tracing::warn!(%error, "a message cannot be understood");
                        continue;
                    }
                };
                match &message {
                    Down::Heartbeat => continue,
                    Down::Goodbye { retry_after_ms } => {
                        return Ok(Ended::Goodbye(Duration::from_millis(*retry_after_ms)));
                    }
                    Down::Welcome { heartbeat_ms, .. } => {
                        silence = Duration::from_millis(heartbeat_ms.saturating_mul(2).max(100));
                        backoff.reset();
                    }
                    Down::Invite(_)
                    | Down::Secure { .. }
                    | Down::RoundClosed { .. }
                    | Down::JobEnded { .. }
                    | Down::ModelReady { .. }
                    | Down::Help(_)
                    | Down::Predict(_) => {}
                }
                messages.send(message).await.map_err(|_| LinkError::QueueClosed)?;
            }
        }
    }

    /// The next bytes of the stream, renewing the certificate whenever that is due meanwhile.
    async fn next_piece(
        &self,
        body: &mut Incoming,
        silence: Duration,
    ) -> Result<Option<Result<Bytes, String>>, LinkError> {
        let silent = tokio::time::sleep(silence);
        let mut silent = std::pin::pin!(silent);
        loop {
            tokio::select! {
                biased;
                frame = body.frame() => match frame {
                    None => return Ok(None),
                    Some(Err(error)) => {
                        let error = self.dialer.failed(Stage::Request, &error);
                        return Ok(Some(Err(error.to_string())));
                    }
                    Some(Ok(frame)) => {
                        if let Ok(bytes) = frame.into_data() {
                            return Ok(Some(Ok(bytes)));
                        }
                    }
                },
                () = &mut silent => {
                    let why = format!("nothing was heard for {} ms", silence.as_millis());
                    return Ok(Some(Err(why)));
                }
                () = tokio::time::sleep(self.until_renewal()) => self.fresh().await?,
            }
        }
    }

    async fn open(&self) -> Result<(Line, Incoming), LinkError> {
        let make = || dial::request("GET", EVENTS, dial::full(Bytes::new()));
        let (line, answer) = self.ask(Over::Fresh, make).await?;
        Ok((line, answer.into_body()))
    }

    async fn within_answer<T>(&self, work: impl Future<Output = Result<T, LinkError>>) -> Result<T, LinkError> {
        tokio::time::timeout(ANSWER, work)
            .await
            .unwrap_or_else(|_| Err(LinkError::unreachable(&self.dialer.address, "no answer to the stream's opening")))
    }
}
