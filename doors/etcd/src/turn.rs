//! A connection and its calls in one task, turn by turn.
//!
//! The HTTP/2 layer would have each call run in a task of its own: answers would then wake the
//! connection one by one, and leave one by one. Here the connection's task takes turns: it reads
//! what has come, runs the calls that can go on, and sends what all of them said in as few writes as
//! it takes. A batch of the store's writer therefore costs each connection one wake-up.

use crate::gather::Gather;
use futures::Stream as _;
use futures::stream::FuturesUnordered;
use futures::task::AtomicWaker;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use tokio::io::AsyncWrite;

/// A turn ends after so many rounds, so that other connections have theirs.
const ROUNDS: usize = 16;

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where the HTTP/2 layer puts the calls that arrive.
#[derive(Clone, Default)]
pub(crate) struct Arrivals(Arc<Mutex<Vec<Call>>>);

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Arrivals {
    fn execute(&self, call: F) {
        self.lock().push(Box::pin(call));
    }
}

/// Wakes the task, unless it is in its turn: then it sees for itself that there is more to do.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    in_turn: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::SeqCst);
        if !self.in_turn.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

/// See the module. It ends with the connection, and the calls that are still under way with it.
pub(crate) struct Turns<C: Future, S> {
    connection: Pin<Box<C>>,
    /// How it ended; then what it said last is still to be written.
    ended: Option<C::Output>,
    arrivals: Arrivals,
    calls: FuturesUnordered<Call>,
    socket: Gather<S>,
    bell: Arc<Bell>,
    waker: Waker,
}

impl<C, S> Turns<C, S>
where
    C: Future,
    S: AsyncWrite + Unpin,
{
    /// A connection that writes to `socket` and whose calls come to `arrivals`.
    pub(crate) fn new(connection: C, arrivals: Arrivals, socket: Gather<S>) -> Self {
        let bell = Arc::new(Bell::default());
        Self {
            connection: Box::pin(connection),
            ended: None,
            arrivals,
            calls: FuturesUnordered::new(),
            socket,
            waker: bell.clone().into(),
            bell,
        }
    }

    /// Reads, and runs what can go on, until there is nothing or the turn was long.
    fn take_turn(&mut self) {
        let context = &mut Context::from_waker(&self.waker);
        for _ in 0..ROUNDS {
            self.bell.rung.store(false, Ordering::SeqCst);
            if let Poll::Ready(end) = self.connection.as_mut().poll(context) {
                self.ended = Some(end);
                return;
            }
            self.calls.extend(self.arrivals.lock().drain(..));
            while let Poll::Ready(Some(())) = Pin::new(&mut self.calls).poll_next(context) {}
            let more = self.bell.rung.load(Ordering::SeqCst);
            if !more || !tokio::task::coop::has_budget_remaining() {
                return;
            }
        }
    }
}

impl<C, S> Future for Turns<C, S>
where
    C: Future<Output: Unpin>,
    S: AsyncWrite + Unpin,
{
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<C::Output> {
        let this = &mut *self;
        this.bell.task.register(context.waker());
        this.bell.in_turn.store(true, Ordering::SeqCst);
        if this.ended.is_none() {
            this.take_turn();
        }
        let written = this.socket.poll_gathered(&mut Context::from_waker(&this.waker));
        if written.is_ready()
            && let Some(end) = this.ended.take()
        {
            return Poll::Ready(end);
        }
        // An error of writing is the connection's to see, with its next write.
        this.bell.in_turn.store(false, Ordering::SeqCst);
        if this.bell.rung.load(Ordering::SeqCst) {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::rt::Executor as _;
    use std::io;
    use std::sync::atomic::AtomicUsize;
    use tokio::sync::Notify;

    /// Counts what is written to it.
    #[derive(Clone, Default)]
    struct Counter {
        writes: Arc<AtomicUsize>,
        bytes: Arc<AtomicUsize>,
    }

    impl AsyncWrite for Counter {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            piece: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.writes.fetch_add(1, Ordering::SeqCst);
            self.bytes.fetch_add(piece.len(), Ordering::SeqCst);
            Poll::Ready(Ok(piece.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn answers_that_are_ready_together_leave_together() {
        const CALLS: usize = 8;
        let (counter, arrivals, go) = (Counter::default(), Arrivals::default(), Notify::new());
        let (mut socket, go) = (Gather::new(counter.clone()), Arc::new(go));
        let answers = Arc::new(AtomicUsize::new(0));
        let connection_waker = Arc::new(AtomicWaker::new());
        for _ in 0..CALLS {
            let (go, answers, waker) = (go.clone(), answers.clone(), connection_waker.clone());
            arrivals.execute(async move {
                go.notified().await;
                answers.fetch_add(1, Ordering::SeqCst);
                waker.wake();
            });
        }
        // A connection that writes and flushes each answer by itself, and ends with the last.
        let handle = socket.clone();
        let mut sent = 0;
        let connection = std::future::poll_fn(move |context| {
            connection_waker.register(context.waker());
            while sent < answers.load(Ordering::SeqCst) {
                assert!(Pin::new(&mut socket).poll_write(context, b"answer").is_ready());
                assert!(Pin::new(&mut socket).poll_flush(context).is_ready());
                sent += 1;
            }
            if sent == CALLS { Poll::Ready(()) } else { Poll::Pending }
        });
        let turns = tokio::spawn(Turns::new(connection, arrivals, handle));
        tokio::task::yield_now().await;
        assert_eq!(counter.writes.load(Ordering::SeqCst), 0);
        go.notify_waiters();
        turns.await.unwrap();
        assert_eq!(counter.bytes.load(Ordering::SeqCst), CALLS * b"answer".len());
        assert_eq!(counter.writes.load(Ordering::SeqCst), 1);
    }
}
