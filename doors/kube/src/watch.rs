//! Watches: one JSON frame for each change, for as long as the client listens.

use crate::call::Call;
use crate::metrics::WatcherGuard;
use crate::negotiate::{self, Form, View};
use crate::respond::{self, BodyError, Reply};
use crate::table::{self, Include, Partial, Row, Table};
use crate::{options, path::Query};
use bytes::{BufMut, Bytes, BytesMut};
use dhow_clock::{BoxFuture, SharedClock};
use dhow_objects::Status;
use dhow_objects::kinds::Kind;
use dhow_state::{Object, Watch, WatchEvent};
use futures::FutureExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Marks the end of the initial events of a streaming list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";
/// A watch without `timeoutSeconds` ends after this many seconds and up to as many more, so that
/// watchers do not come back all at once (upstream's rule).
const DEFAULT_TIMEOUT: u64 = 1800;
/// Changes that wait are sent together up to about this many bytes.
const COALESCE: usize = 64 * 1024;

/// How long a watch lasts.
fn duration(query: &Query, clock: &SharedClock) -> Result<Duration, Status> {
    let asked = query
        .get("timeoutSeconds")
        .map(|text| {
            text.parse::<u64>().map_err(|_| {
                Status::bad_request(format!("timeoutSeconds {text:?} is not a whole number"))
            })
        })
        .transpose()?;
    Ok(Duration::from_secs(match asked {
        Some(seconds) if seconds > 0 => seconds,
        _ => DEFAULT_TIMEOUT + clock.random() % DEFAULT_TIMEOUT,
    }))
}

/// Starts a watch.
pub async fn serve(call: &Call, kind: &'static Kind) -> Reply {
    let form = negotiate::objects(&call.head.headers)?;
    if form.yaml {
        return Err(Status::not_acceptable("a watch is served as application/json"));
    }
    let options = options::watch(call, kind)?;
    let clock = call.door.config.clock.clone();
    let lasts = duration(&call.query, &clock)?;
    let wants_bookmarks = options.bookmarks;
    let watch = call.door.state.watch(kind, call.path.namespace.as_deref(), options).await?;
    let feed = Feed {
        watch,
        encoder: Encoder {
            kind,
            form,
            include: Include::of(call),
            headers_sent: false,
            wants_bookmarks,
        },
        deadline: clock.sleep(lasts),
        clock,
        shutdown: call.shutdown.clone(),
        over: false,
        _counted: call.door.metrics.watcher(),
    };
    let frames = futures::stream::unfold(feed, |mut feed| async move {
        let bytes = feed.next().await?;
        Some((Ok::<_, BodyError>(Frame::data(bytes)), feed))
    });
    let mut response = respond::json_bytes(200, Bytes::new());
    *response.body_mut() = StreamBody::new(frames).boxed_unsync();
    Ok(response)
}

/// A running watch. It lives in the reply's body: when the client goes, the body is dropped and
/// the watch with it.
struct Feed {
    watch: Watch,
    encoder: Encoder,
    deadline: BoxFuture<'static, ()>,
    clock: SharedClock,
    shutdown: CancellationToken,
    over: bool,
    _counted: WatcherGuard,
}

impl Feed {
    /// The next bytes to send; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        while out.is_empty() {
            if self.over {
                return None;
            }
            let event = tokio::select! {
                event = self.watch.next() => event,
                () = &mut self.deadline => None,
                () = self.shutdown.cancelled() => None,
            };
            self.take(event, &mut out);
        }
        while out.len() < COALESCE && !self.over {
            let Some(event) = self.watch.next().now_or_never() else { break };
            self.take(event, &mut out);
        }
        Some(out.freeze())
    }

    fn take(&mut self, event: Option<WatchEvent>, out: &mut BytesMut) {
        match event {
            None => self.over = true,
            Some(event) => {
                let now = table::now(&self.clock);
                self.over = matches!(event, WatchEvent::Error(_));
                self.encoder.encode(&event, now, out);
            }
        }
    }
}

/// Turns changes into frames.
struct Encoder {
    kind: &'static Kind,
    form: Form,
    include: Include,
    headers_sent: bool,
    wants_bookmarks: bool,
}

impl Encoder {
    fn encode(&mut self, event: &WatchEvent, now: Timestamp, out: &mut BytesMut) {
        match event {
            WatchEvent::Added(object) => self.object("ADDED", object, now, out),
            WatchEvent::Modified(object) => self.object("MODIFIED", object, now, out),
            WatchEvent::Deleted(object) => self.object("DELETED", object, now, out),
            WatchEvent::Bookmark { revision, initial_end } => {
                if *initial_end || self.wants_bookmarks {
                    self.bookmark(*revision, *initial_end, out);
                }
            }
            WatchEvent::Error(status) => frame_of("ERROR", &status.to_json(), out),
        }
    }

    fn object(&mut self, name: &str, object: &Object, now: Timestamp, out: &mut BytesMut) {
        match self.form.view {
            View::Object => frame(name, &object.bytes, out),
            View::Metadata => frame_of(name, &Partial::of(object, self.form.beta), out),
            View::Table => {
                let row = Row::of(self.kind, object, self.include, self.form.beta, now);
                frame_of(name, &self.table(object.revision, row), out);
            }
        }
    }

    /// A table of one row. Only the first one of a watch carries the columns.
    fn table<'a>(&mut self, revision: u64, row: Row<'a>) -> Table<'a> {
        let columns = if self.headers_sent { Value::Null } else { table::columns(self.kind) };
        self.headers_sent = true;
        let metadata = json!({ "resourceVersion": revision.to_string() });
        Table::new(metadata, columns, vec![row], self.form.beta)
    }

    fn bookmark(&mut self, revision: u64, initial_end: bool, out: &mut BytesMut) {
        let mut meta =
            json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
        if initial_end {
            meta["annotations"] = json!({ INITIAL_EVENTS_END: "true" });
        }
        // Writing a `Value` to memory cannot fail.
        let raw = serde_json::value::to_raw_value(&meta).ok();
        let reduced = Partial::new(raw.as_deref(), self.form.beta);
        match self.form.view {
            View::Object => {
                let (version, kind) = (self.kind.api_version(), self.kind.kind);
                let bare = json!({ "kind": kind, "apiVersion": version, "metadata": meta });
                frame_of("BOOKMARK", &bare, out);
            }
            View::Metadata => frame_of("BOOKMARK", &reduced, out),
            View::Table => frame_of("BOOKMARK", &self.table(revision, Row::empty(reduced)), out),
        }
    }
}

/// A frame of an object that is JSON already.
fn frame(name: &str, object: &[u8], out: &mut BytesMut) {
    out.reserve(object.len() + 40);
    open(name, out);
    out.put_slice(object);
    close(out);
}

/// A frame of an object that becomes JSON in its place.
fn frame_of(name: &str, object: &impl Serialize, out: &mut BytesMut) {
    open(name, out);
    // What is sent has keys that are strings, so that writing it to memory cannot fail.
    let _ = serde_json::to_writer(out.writer(), object);
    close(out);
}

fn open(name: &str, out: &mut BytesMut) {
    out.put_slice(b"{\"type\":\"");
    out.put_slice(name.as_bytes());
    out.put_slice(b"\",\"object\":");
}

fn close(out: &mut BytesMut) {
    out.put_slice(b"}\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_objects::kinds;

    fn encoder(view: View) -> Encoder {
        Encoder {
            kind: kinds::find("", "v1", "pods").unwrap(),
            form: Form { view, ..Form::default() },
            include: Include::Metadata,
            headers_sent: false,
            wants_bookmarks: false,
        }
    }

    fn lines(bytes: &[u8]) -> Vec<Value> {
        bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    #[test]
    fn bookmarks_mark_the_end_of_initial_events() {
        let mut out = BytesMut::new();
        let mut encoder = encoder(View::Object);
        let end = WatchEvent::Bookmark { revision: 7, initial_end: true };
        encoder.encode(&end, Timestamp::UNIX_EPOCH, &mut out);
        // Others only go to those who asked for them.
        let other = WatchEvent::Bookmark { revision: 8, initial_end: false };
        encoder.encode(&other, Timestamp::UNIX_EPOCH, &mut out);
        let frames = lines(&out);
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0]["object"]["kind"], "Pod");
        assert_eq!(frames[0]["object"]["metadata"]["resourceVersion"], "7");
        assert_eq!(frames[0]["object"]["metadata"]["annotations"][INITIAL_EVENTS_END], "true");
    }

    #[test]
    fn only_the_first_table_has_columns() {
        let mut out = BytesMut::new();
        let mut encoder = encoder(View::Table);
        for revision in [1, 2] {
            let event = WatchEvent::Bookmark { revision, initial_end: true };
            encoder.encode(&event, Timestamp::UNIX_EPOCH, &mut out);
        }
        let frames = lines(&out);
        assert!(frames[0]["object"]["columnDefinitions"].is_array());
        assert!(frames[1]["object"]["columnDefinitions"].is_null());
    }

    #[test]
    fn a_refusal_is_an_error_frame() {
        let mut out = BytesMut::new();
        let gone = WatchEvent::Error(Status::expired("too old resource version"));
        encoder(View::Object).encode(&gone, Timestamp::UNIX_EPOCH, &mut out);
        assert_eq!(lines(&out)[0]["object"]["code"], 410);
    }
}
