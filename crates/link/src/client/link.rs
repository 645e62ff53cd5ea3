//! The node's link as a handle: its enrolment, its certificate kept fresh, its few connections kept warm.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aivillage_base::time::Clock;
use rustls::ClientConfig as TlsConfig;
use tokio::sync::Semaphore;

use super::dial::{Dialer, Sender};
use super::enrol::{Enrolment, renew};
use super::error::LinkError;
use crate::identity::Identity;

/// Called with each renewed enrolment, to keep it.
pub type OnRenewed = Box<dyn Fn(&Enrolment) -> std::io::Result<()> + Send + Sync>;

/// Calls at once: an update must not hold up a prediction, and a node needs no more.
pub(super) const CALLS: usize = 2;

/// Times of a node's link.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Wait after the first failed try; doubles.
    pub first_wait: Duration,
    /// Longest wait between tries.
    pub longest_wait: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self { first_wait: Duration::from_millis(200), longest_wait: Duration::from_secs(30) }
    }
}

/// A node's link; a cheap handle.
#[derive(Clone)]
pub struct LinkClient {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) dialer: Dialer,
    pub(super) config: ClientConfig,
    pub(super) calls: Semaphore,
    identity: Arc<Identity>,
    on_renewed: OnRenewed,
    credentials: Mutex<Credentials>,
    idle: Mutex<Vec<(u64, Sender)>>,
    renewing: tokio::sync::Mutex<()>,
}

struct Credentials {
    enrolment: Enrolment,
    tls: Arc<TlsConfig>,
    /// Counts renewals: connections of older ones are not used again.
    generation: u64,
    /// Monotonic clock; None = before this process.
    renewed_ms: Option<u64>,
    tried_ms: Option<u64>,
}

impl fmt::Debug for LinkClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkClient({} at {})", self.inner.identity.id(), self.inner.dialer.address)
    }
}

/// A connection for calls.
pub(super) struct Line {
    pub(super) sender: Sender,
    /// It has been used before, so the gateway may have closed it meanwhile.
    pub(super) reused: bool,
    generation: u64,
}

impl LinkClient {
    /// A link for a node that has joined. Nothing is dialled yet.
    ///
    /// # Errors
    /// [`LinkError::BadEnrolment`], [`LinkError::BadAddress`].
    pub fn new(
        enrolment: Enrolment,
        identity: Arc<Identity>,
        clock: Arc<dyn Clock>,
        on_renewed: OnRenewed,
        config: ClientConfig,
    ) -> Result<Self, LinkError> {
        if enrolment.id != identity.id() {
            let why = "it is of another identity.key";
            return Err(LinkError::BadEnrolment(why.to_owned()));
        }
        let dialer = enrolment.dialer(&clock)?;
        let tls = enrolment.tls(&identity, &clock)?;
        let credentials = Credentials { enrolment, tls, generation: 0, renewed_ms: None, tried_ms: None };
        let inner = Inner {
            dialer,
            config,
            calls: Semaphore::new(CALLS),
            identity,
            on_renewed,
            credentials: Mutex::new(credentials),
            idle: Mutex::new(Vec::with_capacity(CALLS)),
            renewing: tokio::sync::Mutex::new(()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The enrolment with its newest certificate.
    #[must_use]
    pub fn enrolment(&self) -> Enrolment {
        self.inner.credentials().enrolment.clone()
    }
}

impl Inner {
    fn credentials(&self) -> MutexGuard<'_, Credentials> {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(u64, Sender)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time until the certificate should be renewed: at two thirds of its life, by the wall clock for one from an earlier
    /// run, by the monotonic clock for one of this run (a wrong wall clock must not renew for ever).
    pub(super) fn until_renewal(&self) -> Duration {
        let now = self.dialer.clock.now();
        let credentials = self.credentials();
        let life_ms = u64::try_from(credentials.enrolment.life().as_millis()).unwrap_or(u64::MAX);
        let due_ms = life_ms / 3 * 2;
        let left_ms = match credentials.renewed_ms {
            Some(at) => (at + due_ms).saturating_sub(now.monotonic_ms),
            None => (credentials.enrolment.issued_at_ms + due_ms).saturating_sub(now.wall_ms),
        };
        // After a failed try the next waits a twentieth of the life: the old certificate is still good for a while.
        let again_ms = credentials.tried_ms.map_or(0, |at| (at + life_ms / 20).saturating_sub(now.monotonic_ms));
        Duration::from_millis(left_ms.max(again_ms))
    }

    /// Renews if it is time. A failure is only told if the certificate cannot be used any more.
    pub(super) async fn fresh(&self) -> Result<(), LinkError> {
        if !self.until_renewal().is_zero() {
            return Ok(());
        }
        let generation = self.credentials().generation;
        match self.renew(generation).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_final() => Err(error),
            Err(error) => {
                let over = self.credentials().enrolment.not_after_ms;
                if self.dialer.clock.now().wall_ms >= over {
                    return Err(error);
                }
                tracing::warn!(%error, "certificate not renewed yet");
                Ok(())
            }
        }
    }

    /// Renews the certificate of this generation, unless somebody has meanwhile.
    pub(super) async fn renew(&self, generation: u64) -> Result<(), LinkError> {
        let _renewing = self.renewing.lock().await;
        let old = {
            let mut credentials = self.credentials();
            if credentials.generation != generation {
                return Ok(());
            }
            credentials.tried_ms = Some(self.dialer.clock.now().monotonic_ms);
            credentials.enrolment.clone()
        };
        let enrolment = renew(&old, &self.identity, &self.dialer.clock).await?;
        let tls = enrolment.tls(&self.identity, &self.dialer.clock)?;
        // Kept before used; if it cannot be kept this run still works, and the next renews by the key.
        if let Err(error) = (self.on_renewed)(&enrolment) {
            tracing::error!(error = %LinkError::NotKept(error.to_string()), "certificate");
        }
        tracing::info!(until = aivillage_base::time::rfc3339(enrolment.not_after_ms), "certificate renewed");
        {
            let mut credentials = self.credentials();
            credentials.enrolment = enrolment;
            credentials.tls = tls;
            credentials.generation += 1;
            credentials.renewed_ms = Some(self.dialer.clock.now().monotonic_ms);
        }
        self.idle().clear();
        Ok(())
    }

    /// The generation and TLS of the newest certificate.
    pub(super) fn tls(&self) -> (u64, Arc<TlsConfig>) {
        let credentials = self.credentials();
        (credentials.generation, credentials.tls.clone())
    }

    /// A fresh connection with a fresh certificate.
    pub(super) async fn dial(&self) -> Result<Line, LinkError> {
        self.fresh().await?;
        let (generation, tls) = self.tls();
        let sender = self.dialer.dial(tls).await?;
        Ok(Line { sender, reused: false, generation })
    }

    /// A warm connection if there is one, else a fresh one.
    pub(super) async fn line(&self) -> Result<Line, LinkError> {
        loop {
            let Some((generation, mut sender)) = self.idle().pop() else {
                return self.dial().await;
            };
            if generation == self.tls().0 && sender.ready().await.is_ok() {
                return Ok(Line { sender, reused: true, generation });
            }
        }
    }

    /// Keeps a connection whose answer has been read.
    pub(super) fn keep(&self, line: Line) {
        if line.sender.is_closed() {
            return;
        }
        let mut idle = self.idle();
        if idle.len() < CALLS {
            idle.push((line.generation, line.sender));
        }
    }
}

impl Line {
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }
}
