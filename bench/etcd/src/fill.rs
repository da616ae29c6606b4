//! Writing many keys.

use crate::load::{self, KEYS_END, KEYS_START};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use dhow_rpc::etcdserverpb::kv_client::KvClient;
use dhow_rpc::etcdserverpb::{RangeRequest, RequestOp, TxnRequest, request_op};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What to write where.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The server: http://ADDRESS:PORT
    #[arg(long)]
    endpoint: String,
    /// How many keys
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// How many in one transaction
    #[arg(long, default_value_t = 1)]
    batch: u64,
}

/// Writes the keys and checks how many there are.
///
/// # Errors
/// When the server refuses, or counts others.
pub async fn run(options: &Options) -> Result<()> {
    let channels = load::connect(&options.endpoint, 8).await?;
    let next = Arc::new(AtomicU64::new(0));
    let (keys, batch) = (options.keys, options.batch.max(1));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..64 {
        let mut client = KvClient::new(channels[task % channels.len()].clone());
        let next = Arc::clone(&next);
        tasks.spawn(async move {
            let value = load::value(0);
            loop {
                let from = next.fetch_add(batch, Ordering::Relaxed);
                if from >= keys {
                    return Ok::<(), tonic::Status>(());
                }
                if batch == 1 {
                    client.put(load::put(load::key(from), &value)).await?;
                    continue;
                }
                let puts = (from..keys.min(from + batch)).map(|nth| RequestOp {
                    request: Some(request_op::Request::RequestPut(load::put(
                        load::key(nth),
                        &value,
                    ))),
                });
                let txn = TxnRequest { success: puts.collect(), ..TxnRequest::default() };
                client.txn(txn).await?;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done?.context("the server refuses")?;
    }
    let range = RangeRequest {
        key: Bytes::from_static(KEYS_START),
        range_end: Bytes::from_static(KEYS_END),
        count_only: true,
        ..RangeRequest::default()
    };
    let counted = KvClient::new(channels[0].clone()).range(range).await?.into_inner().count;
    println!("{}", serde_json::json!({"keys": counted}));
    Ok(())
}
