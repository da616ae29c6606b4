//! Connections that come in: who is let in, and where their messages go.

use crate::address::{Address, Listener, Socket};
use crate::hello::{self, Answer, Hello, PREFACE, Purpose, Refusal, VERSION};
use crate::{HANDSHAKE, Shared, Stream, frame, remote};
use dhow_server::{Introduction, Standing};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio_rustls::TlsAcceptor;

/// Why a connection was not let in.
#[derive(Debug, thiserror::Error)]
enum Denied {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it said nothing within {} s", HANDSHAKE.as_secs())]
    Silent,
    #[error("member {from:x} was refused: {text}")]
    Refused { from: u64, text: String },
}

/// Takes connections until the listener is dropped, by TLS if there is a configuration for it.
pub(crate) async fn accept(shared: Arc<Shared>, listener: Listener, tls: Option<TlsAcceptor>) {
    loop {
        match listener.accept().await {
            Ok((socket, from)) => {
                let (own, tls) = (shared.clone(), tls.clone());
                shared.spawn(async move {
                    if let Err(denied) = own.clone().receive(socket, tls, &from).await {
                        tracing::warn!(from, "rejected connection on peer endpoint: {denied}");
                    }
                });
            }
            Err(error) => {
                // Most often too many open files: some must be closed before another can be taken.
                tracing::warn!("cannot take a member's connection: {error}");
                shared.config.clock.sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

impl Shared {
    async fn receive(
        self: Arc<Self>,
        socket: Socket,
        tls: Option<TlsAcceptor>,
        from: &str,
    ) -> Result<(), Denied> {
        let handshake = self.greet(socket, tls);
        let (stream, hello) = tokio::select! {
            done = handshake => match done? {
                Some(greeted) => greeted,
                None => return Ok(()),
            },
            () = self.config.clock.sleep(HANDSHAKE) => return Err(Denied::Silent),
        };
        self.note_caller(&hello);
        // Its own task, so that another connection of this member, or its removal, can end it.
        let own = self.clone();
        let (member, purpose) = (hello.from, hello.purpose);
        let text = from.to_owned();
        let task = self.spawn(async move {
            if let Err(error) = own.take(stream, member).await {
                tracing::warn!(
                    member = format!("{member:x}"),
                    from = text,
                    "connection of a member broke: {error}"
                );
            }
        });
        let mut table = self.table();
        // Nobody else takes out those that have ended.
        table.incoming.retain(|_, task| !task.is_finished());
        if let Some(before) = table.incoming.insert((member, purpose as u8), task) {
            // Two connections at a time would not keep the order.
            before.abort();
        }
        Ok(())
    }

    /// TLS, the caller's first words, and the answer. `None` when the answer was all.
    async fn greet(
        &self,
        socket: Socket,
        tls: Option<TlsAcceptor>,
    ) -> Result<Option<(Box<dyn Stream>, Hello)>, Denied> {
        let mut stream: Box<dyn Stream> = match tls {
            Some(tls) => Box::new(tls.accept(socket).await?),
            None => Box::new(socket),
        };
        let mut preface = [0; 8];
        stream.read_exact(&mut preface).await?;
        if preface != *PREFACE {
            return Err(frame::invalid("it does not speak the members' protocol".into()).into());
        }
        let words = frame::read(&mut stream, hello::MOST).await?;
        let hello =
            Hello::decode(words.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?)?;
        let answer = self.judge(&hello);
        let mut buffer = bytes::BytesMut::new();
        frame::put(&answer.encode(), &mut buffer);
        stream.write_all(&buffer).await?;
        stream.flush().await?;
        match answer {
            Answer::Refused(Refusal::Starting) => Ok(None),
            Answer::Refused(why) => {
                // For the log of this side: what is wrong, seen from here.
                let text = match why {
                    Refusal::Version { .. } => format!(
                        "it speaks version {} of the members' protocol and not {VERSION}",
                        hello.version
                    ),
                    Refusal::Cluster { theirs } => {
                        format!("it belongs to cluster {:x} and not to {theirs:x}", hello.cluster)
                    }
                    Refusal::Member { theirs } => {
                        format!("it looks for member {:x} and this is {theirs:x}", hello.to)
                    }
                    Refusal::Removed => "it was removed from the cluster".into(),
                    Refusal::Starting => String::new(),
                };
                if self.first_refusal(hello.from, &text) {
                    return Err(Denied::Refused { from: hello.from, text });
                }
                Ok(None)
            }
            Answer::Welcome { .. } if hello.purpose == Purpose::Ask => Ok(None),
            Answer::Welcome { .. } => {
                self.table().refused.remove(&hello.from);
                Ok(Some((stream, hello)))
            }
        }
    }

    fn judge(self: &Shared, hello: &Hello) -> Answer {
        if hello.version != VERSION {
            return Answer::Refused(Refusal::Version { theirs: VERSION });
        }
        let own = *self.identity.borrow();
        let (Some(own), Some(local)) = (own, self.local()) else {
            return Answer::Refused(Refusal::Starting);
        };
        if hello.purpose == Purpose::Ask {
            let Introduction { cluster_id: cluster, members } = local.introduction();
            let member = own.member_id;
            return Answer::Welcome { version: VERSION, cluster, member, members };
        }
        if hello.cluster != own.cluster_id {
            return Answer::Refused(Refusal::Cluster { theirs: own.cluster_id });
        }
        if hello.to != own.member_id {
            return Answer::Refused(Refusal::Member { theirs: own.member_id });
        }
        if local.standing(hello.from) == Standing::Removed {
            return Answer::Refused(Refusal::Removed);
        }
        let (cluster, member) = (own.cluster_id, own.member_id);
        Answer::Welcome { version: VERSION, cluster, member, members: Vec::new() }
    }

    /// Whether this refusal was not said before.
    fn first_refusal(&self, from: u64, text: &str) -> bool {
        let mut table = self.table();
        // Whoever makes up identifiers does not fill the memory.
        if table.refused.len() > 64 {
            table.refused.clear();
        }
        table.refused.insert(from, text.to_owned()).as_deref() != Some(text)
    }

    /// Hands on messages until the connection ends.
    async fn take(self: &Arc<Self>, stream: Box<dyn Stream>, member: u64) -> io::Result<()> {
        let mut stream = BufReader::with_capacity(64 << 10, stream);
        while let Some(message) = frame::read(&mut stream, frame::MOST).await? {
            let Some(local) = self.local() else { return Ok(()) };
            local.receive(member, message);
        }
        Ok(())
    }

    /// Remembers where a caller is that is not among the members: this member may be behind, and
    /// the answer must find its way.
    pub(crate) fn note_caller(self: &Arc<Self>, hello: &Hello) {
        let addresses: Vec<Address> =
            hello.urls.iter().filter_map(|url| url.parse().ok()).collect();
        let mut table = self.table();
        let strangers = table.peers.values().filter(|peer| peer.stranger).count();
        if addresses.is_empty() || table.peers.contains_key(&hello.from) || strangers >= 16 {
            return;
        }
        tracing::info!(
            member = format!("{:x}", hello.from),
            "a member called that is not known yet"
        );
        table.peers.insert(hello.from, remote::Peer::start(self, hello.from, addresses, true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Local, Peers, dial};
    use bytes::Bytes;
    use dhow_kv::admin::Identity;

    struct Alone;

    impl Local for Alone {
        fn receive(&self, _: u64, _: Bytes) {}
        fn unreachable(&self, _: u64) {}
        fn introduction(&self) -> Introduction {
            Introduction { cluster_id: 7, members: Vec::new() }
        }
        fn standing(&self, _: u64) -> Standing {
            Standing::Unknown
        }
        fn expelled(&self) {}
    }

    #[tokio::test]
    async fn callers_that_have_gone_leave_nothing() {
        let address: Address = "http://127.0.0.1:0".parse().unwrap();
        let listener = address.listen().await.unwrap();
        let address = format!("http://127.0.0.1:{}", listener.port().unwrap()).parse().unwrap();
        let clock = dhow_clock::System::shared();
        let peers = Peers::new(Config { clock: clock.clone(), urls: Vec::new(), trust: None });
        let local: Arc<dyn Local> = Arc::new(Alone);
        peers.start(Identity { cluster_id: 7, member_id: 1 }, Arc::downgrade(&local));
        peers.listen(listener, false).unwrap();
        for from in 2..10 {
            let (version, purpose) = (VERSION, Purpose::Messages);
            let hello = Hello { version, purpose, cluster: 7, from, to: 1, urls: Vec::new() };
            let (stream, _) = dial(&address, None, &clock, &hello).await.unwrap();
            let known = |from| {
                let table = peers.shared.table();
                let task = table.incoming.get(&(from, purpose as u8));
                (task.map(tokio::task::AbortHandle::is_finished), table.incoming.len())
            };
            while known(from).0.is_none() {
                tokio::task::yield_now().await;
            }
            assert_eq!(known(from).1, 1);
            drop(stream);
            while known(from).0 != Some(true) {
                tokio::task::yield_now().await;
            }
        }
    }
}
