//! Which of a stream's watches have something: each rings its own bell, one task answers them all.

use futures::task::AtomicWaker;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// The bells that rang, in order, and who answers.
#[derive(Debug, Default)]
pub(crate) struct Board {
    rung: Mutex<VecDeque<u64>>,
    answers: AtomicWaker,
}

impl Board {
    /// Who is woken by the bells from now on.
    pub(crate) fn register(&self, waker: &Waker) {
        self.answers.register(waker);
    }

    /// The next bell that rang.
    pub(crate) fn next(&self) -> Option<u64> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// The bell of one watch.
#[derive(Debug)]
pub(crate) struct Bell {
    token: u64,
    rung: AtomicBool,
    board: Arc<Board>,
}

impl Bell {
    pub(crate) fn new(token: u64, board: Arc<Board>) -> Arc<Self> {
        Arc::new(Self { token, rung: AtomicBool::new(false), board })
    }

    /// Before the watch is looked at: what happens from here on rings again.
    pub(crate) fn answer(&self) {
        self.rung.store(false, Ordering::SeqCst);
    }

    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            let mut rung = self.board.rung.lock().unwrap_or_else(PoisonError::into_inner);
            rung.push_back(self.token);
            drop(rung);
            self.board.answers.wake();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}
