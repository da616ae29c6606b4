//! How entries of etcd's log change the members.

use super::proto::fields;
use super::{Entry, Member, State};
use crate::Error;
use crate::etcd::rows::row;

/// What a `raftpb.ConfChange` does.
const REMOVE: u64 = 1;
const UPDATE: u64 = 2;

/// Where a field of `etcdserverpb.InternalRaftRequest` has a member's name and addresses.
const ATTRIBUTES: u64 = 1301;

impl State {
    /// Takes what an entry says about the members; what it says about keys is not looked at.
    ///
    /// # Errors
    /// [`Error::Row`]: it cannot be understood.
    pub fn follow(&mut self, entry: &Entry) -> Result<(), Error> {
        match entry.members {
            true => self.change(&entry.data),
            false => {
                self.attributes(&entry.data);
                Ok(())
            }
        }
    }

    fn change(&mut self, data: &[u8]) -> Result<(), Error> {
        let bad = |what: String| row("members", what);
        let (mut kind, mut id, mut context) = (0, 0, &[][..]);
        let read = fields(data, |field, content| match field {
            2 => kind = content.number(),
            3 => id = content.number(),
            4 => context = content.bytes(),
            _ => {}
        });
        if !read || id == 0 {
            return Err(bad("a change of the members is no message".into()));
        }
        let known = self.members.iter().position(|member| member.id == id);
        if kind == REMOVE {
            if let Some(at) = known {
                self.members.remove(at);
                self.removed.push(id);
            }
            return Ok(());
        }
        let mut told: Member =
            serde_json::from_slice(context).map_err(|error| bad(error.to_string()))?;
        told.id = id;
        match known {
            None => self.members.push(told),
            Some(at) => {
                let member = &mut self.members[at];
                // It was promoted, or is reached elsewhere; its name it tells itself.
                if kind != UPDATE {
                    member.learner = told.learner;
                }
                if !told.peer_urls.is_empty() {
                    member.peer_urls = told.peer_urls;
                }
            }
        }
        Ok(())
    }

    fn attributes(&mut self, data: &[u8]) {
        let mut found = None;
        let request = fields(data, |field, content| {
            if field == ATTRIBUTES {
                found = Some(content.bytes());
            }
        });
        // Before 3.5 a member told its name as a file in a tree.
        let told =
            if request && found.is_some() { found.and_then(of_message) } else { of_tree(data) };
        let Some((id, name, client_urls)) = told else { return };
        if let Some(member) = self.members.iter_mut().find(|member| member.id == id) {
            (member.name, member.client_urls) = (name, client_urls);
        }
    }
}

type Attributes = (u64, String, Vec<String>);

/// `membershippb.ClusterMemberAttrSetRequest`.
fn of_message(bytes: &[u8]) -> Option<Attributes> {
    let (mut id, mut body) = (0, &[][..]);
    let read = fields(bytes, |field, content| match field {
        1 => id = content.number(),
        2 => body = content.bytes(),
        _ => {}
    });
    let (mut name, mut urls) = (String::new(), Vec::new());
    let inner = fields(body, |field, content| match field {
        1 => name = content.text(),
        2 => urls.push(content.text()),
        _ => {}
    });
    (read && inner).then_some((id, name, urls))
}

/// `etcdserverpb.Request` that writes `/0/members/ID/attributes`.
fn of_tree(bytes: &[u8]) -> Option<Attributes> {
    let (mut path, mut value) = (String::new(), &[][..]);
    let read = fields(bytes, |field, content| match field {
        3 => path = content.text(),
        4 => value = content.bytes(),
        _ => {}
    });
    let id = path.strip_prefix("/0/members/")?.strip_suffix("/attributes")?;
    let id = u64::from_str_radix(id, 16).ok()?;
    let member: Member = serde_json::from_slice(value).ok()?;
    read.then_some((id, member.name, member.client_urls))
}

#[cfg(test)]
mod tests {
    use super::super::proto::{put_message, put_number};
    use super::*;

    fn change(kind: u64, id: u64, context: &str) -> Entry {
        let mut data = Vec::new();
        put_number(&mut data, 2, kind);
        put_number(&mut data, 3, id);
        put_message(&mut data, 4, context.as_bytes());
        Entry { index: 1, term: 1, members: true, data }
    }

    fn request(data: Vec<u8>) -> Entry {
        Entry { index: 1, term: 1, members: false, data }
    }

    #[test]
    fn members_come_learn_move_and_go() {
        let mut state = State::default();
        let follow = |state: &mut State, entry: Entry| state.follow(&entry).unwrap();
        follow(&mut state, change(0, 7, r#"{"id":7,"peerURLs":["http://a:1"],"name":"a"}"#));
        let learner = r#"{"id":8,"peerURLs":["http://b:1"],"isLearner":true,"isPromote":false}"#;
        follow(&mut state, change(3, 8, learner));
        assert!(state.members[1].learner);
        follow(&mut state, change(0, 8, r#"{"id":8,"peerURLs":null,"isPromote":true}"#));
        follow(&mut state, change(2, 7, r#"{"id":7,"peerURLs":["http://a:2"]}"#));
        assert_eq!(state.members[0].peer_urls, ["http://a:2"]);
        assert_eq!(state.members[0].name, "a");
        assert!(!state.members[1].learner);
        assert_eq!(state.members[1].peer_urls, ["http://b:1"]);
        follow(&mut state, change(1, 7, ""));
        assert_eq!((state.members.len(), state.removed.as_slice()), (1, &[7][..]));
    }

    #[test]
    fn members_tell_their_names_in_both_ways() {
        let member = Member { id: 0x1f, ..Member::default() };
        let mut state = State { members: vec![member], ..State::default() };
        let mut tree = Vec::new();
        put_message(&mut tree, 2, b"PUT");
        put_message(&mut tree, 3, b"/0/members/1f/attributes");
        put_message(&mut tree, 4, br#"{"name":"old","clientURLs":["http://a:9"]}"#);
        state.follow(&request(tree)).unwrap();
        assert_eq!(state.members[0].name, "old");
        assert_eq!(state.members[0].client_urls, ["http://a:9"]);
        let (mut attributes, mut set, mut message) = (Vec::new(), Vec::new(), Vec::new());
        put_message(&mut attributes, 1, b"new");
        put_number(&mut set, 1, 0x1f);
        put_message(&mut set, 2, &attributes);
        put_message(&mut message, ATTRIBUTES as u32, &set);
        state.follow(&request(message)).unwrap();
        assert_eq!(state.members[0].name, "new");
    }

    #[test]
    fn nonsense_is_refused_or_passed_over() {
        let mut state = State::default();
        assert!(state.follow(&change(0, 7, "{")).is_err());
        assert!(state.follow(&change(0, 0, "{}")).is_err());
        state.follow(&request(b"\xff\xff".to_vec())).unwrap();
        assert_eq!(state, State::default());
    }
}
