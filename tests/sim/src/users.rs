//! Users and roles: a keeper who gives permissions and takes them away, and users who write as long
//! as they may. What is taken away is not used any more once that was acknowledged.

use crate::check::{Promise, Violation};
use crate::clients::Recorder;
use crate::history::{Input, Moment, Operation, Output, is_refusal};
use crate::random::Random;
use crate::world::World;
use bytes::Bytes;
use dhow_kv::admin::{Access, Admin as _, AuthChange, Caller, Need, Permission};
use dhow_kv::{Error, Op, Span, Txn};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(8);
const USER: &str = "ann";
const ROLE: &str = "writer";

/// Keys that the user may write for a while.
#[derive(Debug, Clone)]
struct Grant {
    prefix: Bytes,
    /// When it was certain that they may not be written any more.
    revoked: Option<Moment>,
}

/// What was granted, and when it was taken away. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Grants(Rc<RefCell<Vec<Grant>>>);

impl Grants {
    /// How many there were.
    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks that nobody wrote what was not granted any more.
    ///
    /// # Errors
    /// [`Promise::Permitted`].
    pub fn check(&self, operations: &[Operation]) -> Result<(), Violation> {
        for grant in self.0.borrow().iter() {
            let Some(revoked) = grant.revoked else { continue };
            let late = operations.iter().find(|operation| {
                let wrote = matches!((&operation.input, &operation.output),
                    (Input::Txn(txn), Output::Txn(_)) if writes(txn, &grant.prefix));
                wrote && operation.called.order > revoked.order
            });
            if let Some(operation) = late {
                let what = format!(
                    "{:?} was not to be written any more since {revoked:?}, but {operation:?}",
                    grant.prefix
                );
                return Err(Violation::new(Promise::Permitted, what));
            }
        }
        Ok(())
    }
}

fn writes(txn: &Txn, prefix: &Bytes) -> bool {
    txn.success.iter().any(|op| matches!(op, Op::Put { key, .. } if key.starts_with(prefix)))
}

/// Gives and takes permissions.
pub struct Keeper {
    /// The world.
    pub world: World,
    /// Tells the time.
    pub recorder: Recorder,
    /// Its chance.
    pub random: Random,
    /// What it has given.
    pub grants: Grants,
    /// Set when it shall stop.
    pub stopped: Rc<Cell<bool>>,
}

impl Keeper {
    async fn change(&mut self, change: AuthChange) -> Option<Result<(), Error>> {
        let at = self.random.below(self.world.places() as u64) as usize;
        self.world.request(at, PATIENCE, |store| store.auth_change(change)).await
    }

    /// Tries until it is done or was done before. Returns whether that is certain.
    async fn insist(&mut self, change: AuthChange) -> bool {
        while !self.stopped.get() {
            match self.change(change.clone()).await {
                Some(Ok(())) => return true,
                Some(Err(
                    Error::UserExists
                    | Error::RoleExists
                    | Error::PermissionNotGranted
                    | Error::RoleNotGranted,
                )) => return true,
                _ => tokio::time::sleep(Duration::from_millis(300)).await,
            }
        }
        false
    }

    /// Works until it is told to stop.
    pub async fn run(mut self) {
        let user = |name: &str| AuthChange::UserAdd {
            name: name.into(),
            hash: String::new(),
            no_password: true,
        };
        let grant = |user: &str, role: &str| AuthChange::UserGrantRole {
            user: user.into(),
            role: role.into(),
        };
        let begin = [
            user("root"),
            AuthChange::RoleAdd("root".into()),
            grant("root", "root"),
            AuthChange::RoleAdd(ROLE.into()),
            user(USER),
            grant(USER, ROLE),
            AuthChange::Enable,
        ];
        for change in begin {
            if !self.insist(change).await {
                return;
            }
        }
        let mut turn = 0;
        while !self.stopped.get() {
            turn += 1;
            let prefix = Bytes::from(format!("u{turn}/"));
            let span = Span::prefix(prefix.clone());
            let permission = Permission { access: Access::ReadWrite, span: span.clone() };
            let give = AuthChange::RoleGrant { role: ROLE.into(), permission };
            // One try only: one that is still under way when it is revoked would grant it again.
            if self.change(give).await != Some(Ok(())) {
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
            let place = self.grants.len();
            self.grants.0.borrow_mut().push(Grant { prefix, revoked: None });
            let while_granted = Duration::from_millis(self.random.between(10, 5000));
            tokio::time::sleep(while_granted).await;
            if self.insist(AuthChange::RoleRevoke { role: ROLE.into(), span }).await {
                self.grants.0.borrow_mut()[place].revoked = Some(self.recorder.now());
            }
            let rest = Duration::from_millis(self.random.between(10, 5000));
            tokio::time::sleep(rest).await;
        }
    }
}

/// Writes as a user, as the door does it, as long as the rules allow it.
pub struct User {
    /// Its number.
    pub number: u32,
    /// The world.
    pub world: World,
    /// Where it writes down what happens.
    pub recorder: Recorder,
    /// Its chance.
    pub random: Random,
    /// What it was given.
    pub grants: Grants,
    /// Set when it shall stop.
    pub stopped: Rc<Cell<bool>>,
}

impl User {
    /// Lives until it is told to stop.
    pub async fn run(mut self) {
        let mut written = 0;
        while !self.stopped.get() {
            tokio::time::sleep(Duration::from_millis(self.random.below(300))).await;
            let newest = self.grants.0.borrow().iter().rev().take(2).cloned().collect::<Vec<_>>();
            if newest.is_empty() {
                continue;
            }
            let prefix = String::from_utf8_lossy(&self.random.pick(&newest).prefix).into_owned();
            written += 1;
            let put =
                Op::put(format!("{prefix}{}", self.number), format!("{}-{written}", self.number));
            self.write(Txn { success: vec![put], ..Txn::default() }).await;
        }
    }

    async fn write(&mut self, txn: Txn) {
        let at = self.random.below(self.world.places() as u64) as usize;
        let asked = txn.clone();
        let called = self.recorder.now();
        let answer = self
            .world
            .request(at, PATIENCE, |store| {
                Box::pin(async move {
                    let rules = store.auth_status();
                    if !rules.enabled {
                        return Err(Error::PermissionDenied);
                    }
                    let caller = Caller { user: Some(USER.into()), revision: rules.revision };
                    let keys = asked.success.iter().filter_map(|op| match op {
                        Op::Put { key, .. } => Some(Need::Write(Span::Key(key.clone()))),
                        _ => None,
                    });
                    store.authorize(&caller, &keys.collect::<Vec<_>>())?;
                    store.txn_as(asked, rules.revision).await
                })
            })
            .await;
        let output = match answer {
            Some(Ok(result)) => Output::Txn(result),
            Some(Err(error)) if is_refusal(&error) => Output::Refused(error),
            _ => Output::Unknown,
        };
        self.recorder.note(Operation {
            client: self.number,
            member: at as u64,
            called,
            returned: self.recorder.now(),
            input: Input::Txn(txn),
            output,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_kv::TxnResult;

    #[test]
    fn a_write_after_the_permission_was_taken_is_caught() {
        let moment = |order| Moment { order, ..Moment::default() };
        let grant = Grant { prefix: "u1/".into(), revoked: Some(moment(10)) };
        let grants = Grants(Rc::new(RefCell::new(vec![grant])));
        let write = |key: &'static str, called, output| Operation {
            client: 200,
            member: 0,
            called: moment(called),
            returned: moment(called + 5),
            input: Input::Txn(Txn { success: vec![Op::put(key, "v")], ..Txn::default() }),
            output,
        };
        let written = || Output::Txn(TxnResult::default());
        // One that was asked for before may still have come through.
        grants.check(&[write("u1/a", 8, written())]).unwrap();
        grants.check(&[write("u2/a", 12, written())]).unwrap();
        grants.check(&[write("u1/a", 12, Output::Refused(Error::PermissionDenied))]).unwrap();
        let broken = grants.check(&[write("u1/a", 12, written())]).unwrap_err();
        assert_eq!(broken.promise, Promise::Permitted);
    }
}
