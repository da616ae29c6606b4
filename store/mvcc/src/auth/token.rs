//! Simple tokens: who has logged in. Known to every member, kept by none.
//!
//! Which tokens there are follows from the log, but how long one lasts depends on its use, which
//! every member sees for itself; so tokens are no part of snapshots. A client whose token a member
//! does not know is told so and logs in again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// A token that was not used yet: its time begins when it is looked at first.
const FRESH: u64 = u64::MAX;

#[derive(Debug)]
struct Token {
    user: String,
    /// When it was used last, in seconds of the member's monotonic clock.
    used: AtomicU64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Tokens {
    tokens: HashMap<String, Token>,
}

impl Tokens {
    /// How long a token lasts without being used, in seconds, unless the options say otherwise.
    pub const TTL: u64 = 300;

    /// The user of a token. Its time begins anew at `now`, in seconds of a clock that never goes
    /// back.
    pub fn user(&self, token: &str, now: u64) -> Option<&str> {
        let found = self.tokens.get(token)?;
        found.used.store(now, Ordering::Relaxed);
        Some(&found.user)
    }

    /// Whether there is nothing to expire.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Forgets tokens that were not used for `ttl` seconds. Call it now and then while there are
    /// some: how often decides how exact their ends are.
    pub fn expire(&mut self, now: u64, ttl: u64) {
        self.tokens.retain(|_, token| {
            let used = token.used.get_mut();
            if *used == FRESH {
                *used = now;
            }
            now.saturating_sub(*used) < ttl
        });
    }

    pub(crate) fn insert(&mut self, token: String, user: String) {
        self.tokens.insert(token, Token { user, used: AtomicU64::new(FRESH) });
    }

    /// Forgets the tokens of a user, or all.
    pub(crate) fn forget(&mut self, user: Option<&str>) {
        match user {
            Some(user) => self.tokens.retain(|_, token| token.user != user),
            None => self.tokens.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lasts_while_it_is_used() {
        let mut tokens = Tokens::default();
        tokens.insert("a.1".into(), "ann".into());
        tokens.insert("b.2".into(), "bob".into());
        tokens.expire(1000, 300);
        assert_eq!(tokens.user("a.1", 1299), Some("ann"));
        tokens.expire(1300, 300);
        assert_eq!(tokens.user("b.2", 1300), None);
        assert_eq!(tokens.user("a.1", 1300), Some("ann"));
        tokens.expire(1600, 300);
        assert!(tokens.is_empty());
    }

    #[test]
    fn tokens_go_with_their_user() {
        let mut tokens = Tokens::default();
        tokens.insert("a.1".into(), "ann".into());
        tokens.insert("b.2".into(), "bob".into());
        tokens.forget(Some("ann"));
        assert_eq!((tokens.user("a.1", 1), tokens.user("b.2", 1)), (None, Some("bob")));
        tokens.forget(None);
        assert!(tokens.is_empty());
    }
}
