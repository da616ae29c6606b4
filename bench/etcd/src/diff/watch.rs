//! Watchers of the past on both servers: the same events in the same order.

use super::Place;
use super::call::header;
use super::keys::{end, key, revision};
use crate::load::{Dice, outgoing};
use anyhow::{Context as _, Result};
use dhow_rpc::etcdserverpb::watch_client::WatchClient;
use dhow_rpc::etcdserverpb::watch_request::RequestUnion;
use dhow_rpc::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::transport::Channel;

/// How long a server may take until it has told all.
const PATIENCE: Duration = Duration::from_secs(10);
/// After so many times a silent stream has told all.
const SILENT: u32 = 5;
/// The watcher of each stream that nothing happens to.
const RESIDENT: i64 = 99;
/// When to ask again: a server with watchers that lag behind need not answer.
const AGAIN: Duration = Duration::from_millis(100);

/// Random watchers of one stream.
pub fn requests(dice: &mut Dice, place: &Place) -> Vec<RequestUnion> {
    (0..1 + dice.below(3))
        .map(|_| {
            if dice.below(12) == 0 {
                let cancel = WatchCancelRequest { watch_id: dice.below(3) as i64 };
                return RequestUnion::CancelRequest(cancel);
            }
            let key = key(dice);
            let range_end = end(dice, &key);
            RequestUnion::CreateRequest(WatchCreateRequest {
                range_end,
                key,
                // From now on nothing happens, so mostly from the past.
                start_revision: if dice.below(8) == 0 { 0 } else { past(dice, place) },
                progress_notify: false,
                filters: if dice.below(5) == 0 { vec![dice.below(2) as i32] } else { Vec::new() },
                prev_kv: dice.below(3) == 0,
                watch_id: if dice.below(6) == 0 { dice.below(3) as i64 } else { 0 },
                fragment: dice.below(6) == 0,
            })
        })
        .collect()
}

fn past(dice: &mut Dice, place: &Place) -> i64 {
    let last = (place.revision - place.compacted).max(1) as u64;
    match dice.below(4) {
        // Compacted or to come.
        0 => revision(dice, place),
        _ => place.compacted + 1 + dice.below(last) as i64,
    }
}

/// What a server tells these watchers, in words: what each is told about itself, then its events,
/// however they were put into messages.
///
/// # Errors
/// When the stream cannot be opened or does not come to an end.
pub async fn told(channel: &Channel, requests: &[RequestUnion], place: Place) -> Result<String> {
    // A stream with a watcher of revisions to come, or of compacted ones, is told no progress by
    // etcd; then silence must do.
    let known = place.compacted + 1..=place.revision;
    let waits = requests.iter().any(|request| match request {
        RequestUnion::CreateRequest(create) => {
            create.start_revision != 0 && !known.contains(&create.start_revision)
        }
        _ => false,
    });
    let mut silent = 0;
    let (queue, body) = mpsc::channel(16);
    let mut client = WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    for request in requests {
        queue.send(WatchRequest { request_union: Some(request.clone()) }).await?;
    }
    // A stream without watchers is told no progress: this one sees nothing and stays.
    let resident = WatchCreateRequest {
        key: "resident".into(),
        watch_id: RESIDENT,
        ..WatchCreateRequest::default()
    };
    let request_union = Some(RequestUnion::CreateRequest(resident));
    queue.send(WatchRequest { request_union }).await?;
    let mut answers = client.watch(outgoing(body)).await?.into_inner();
    let mut notices = Vec::new();
    let mut events: std::collections::BTreeMap<i64, Vec<String>> = Default::default();
    let progress = || WatchRequest {
        request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})),
    };
    let creates =
        requests.iter().filter(|request| matches!(request, RequestUnion::CreateRequest(_))).count();
    let creates = creates + 1;
    let mut created = 0;
    let work = async {
        loop {
            let next = tokio::time::timeout(AGAIN, answers.message()).await;
            let Ok(next) = next else {
                silent += 1;
                if waits && created >= creates && silent >= SILENT {
                    return Ok(());
                }
                queue.send(progress()).await?;
                continue;
            };
            silent = 0;
            let mut answer = next?.context("the server ended the stream")?;
            header(&mut answer.header);
            // Progress: all watchers have what there is.
            if answer.watch_id == -1 && !answer.created && !answer.canceled {
                if created >= creates {
                    return anyhow::Ok(());
                }
                continue;
            }
            if answer.created {
                created += 1;
                if created == creates {
                    queue.send(progress()).await?;
                }
            }
            let own = events.entry(answer.watch_id).or_default();
            own.extend(answer.events.drain(..).map(|event| format!("{event:?}")));
            if answer.created || answer.canceled {
                // The revision in it is of that moment.
                notices.push(format!(
                    "id {} created {} canceled {} compacted {} reason {:?}",
                    answer.watch_id,
                    answer.created,
                    answer.canceled,
                    answer.compact_revision,
                    answer.cancel_reason
                ));
            }
        }
    };
    tokio::time::timeout(PATIENCE, work).await.context("the watchers do not come to an end")??;
    // Those that are cancelled because of compaction are told by another task than the others.
    notices.sort();
    events.retain(|_, events| !events.is_empty());
    Ok(format!("{notices:?} {events:#?}"))
}
