//! A network between a node and its gateway that counts what passes, can cut connections, and can swallow everything.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::village::Village;

pub(crate) struct Middleman {
    pub(crate) address: String,
    traffic: Arc<Traffic>,
    swallow: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Traffic {
    up: AtomicU64,
    down: AtomicU64,
    /// Bytes after which a connection is cut, one connection after the other.
    cuts: Mutex<VecDeque<u64>>,
}

impl Traffic {
    /// Passes bytes on and counts them; false = the connection has carried what it may.
    async fn pass(&self, from: impl AsyncRead, to: impl AsyncWrite, count: impl Fn(&Self) -> &AtomicU64) -> bool {
        let (mut from, mut to) = (std::pin::pin!(from), std::pin::pin!(to));
        let mut piece = vec![0u8; 64 * 1024];
        let mut carried = 0;
        while let Ok(n @ 1..) = from.read(&mut piece).await {
            count(self).fetch_add(n as u64, Ordering::SeqCst);
            carried += n as u64;
            if to.write_all(&piece[..n]).await.is_err() {
                break;
            }
            if self.is_cut(carried) {
                let _ = to.shutdown().await;
                return false;
            }
        }
        let _ = to.shutdown().await;
        true
    }

    fn is_cut(&self, carried: u64) -> bool {
        let mut cuts = self.cuts.lock().unwrap();
        let now = cuts.front().is_some_and(|after| carried >= *after);
        if now {
            cuts.pop_front();
        }
        now
    }
}

impl Middleman {
    pub(crate) async fn before(village: &Village) -> Self {
        Self::from([127, 0, 0, 1], village).await
    }

    /// One that reaches the gateway from the loopback address `source`, as another host would.
    pub(crate) async fn from(source: [u8; 4], village: &Village) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let target = village.server.address();
        let traffic = Arc::<Traffic>::default();
        let (swallow, swallowed) = watch::channel(0u64);
        let shared = traffic.clone();
        let task = tokio::spawn(async move {
            for number in 0.. {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpSocket::new_v4().unwrap();
                far.bind((source, 0).into()).unwrap();
                let far = far.connect(target).await.unwrap();
                tokio::spawn(connect(near, far, shared.clone(), swallowed.clone(), number));
            }
        });
        Self { address, traffic, swallow, task }
    }

    /// The next connections that carry so many bytes one way are cut there, each entry cuts one.
    pub(crate) fn cut(&self, after: impl IntoIterator<Item = u64>) {
        self.traffic.cuts.lock().unwrap().extend(after);
    }

    /// Cuts that are still to come.
    pub(crate) fn cuts_left(&self) -> usize {
        self.traffic.cuts.lock().unwrap().len()
    }

    /// Bytes that went up so far.
    pub(crate) fn up(&self) -> u64 {
        self.traffic.up.load(Ordering::SeqCst)
    }

    /// Bytes that came down so far.
    pub(crate) fn down(&self) -> u64 {
        self.traffic.down.load(Ordering::SeqCst)
    }

    /// From now on nothing passes over the first `count` connections.
    pub(crate) fn swallow(&self, count: u64) {
        self.swallow.send(count).unwrap();
    }
}

async fn connect(
    near: TcpStream,
    far: TcpStream,
    traffic: Arc<Traffic>,
    mut swallowed: watch::Receiver<u64>,
    number: u64,
) {
    let hidden = async {
        while *swallowed.borrow_and_update() <= number {
            if swallowed.changed().await.is_err() {
                break;
            }
        }
    };
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let upward = traffic.pass(near_read, far_write, |t| &t.up);
    let downward = traffic.pass(far_read, near_write, |t| &t.down);
    let (mut upward, mut downward) = (std::pin::pin!(upward), std::pin::pin!(downward));
    let both = async {
        // A cut takes both directions along; an end of one leaves the other.
        tokio::select! {
            whole = &mut upward => if whole { downward.await; },
            whole = &mut downward => if whole { upward.await; },
        }
    };
    tokio::select! {
        () = both => {}
        () = hidden => std::future::pending().await,
    }
}

impl Drop for Middleman {
    fn drop(&mut self) {
        self.task.abort();
    }
}
