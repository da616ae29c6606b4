//! Answers of watches, read without making messages of them: the generator shares the processors
//! with the server, and fifty megabytes of events per second are dear to decode in full.

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use dhow_rpc::{Raw, etcdserverpb::WatchRequest};
use futures::StreamExt as _;
use prost::Message as _;
use tonic::{client, transport::Channel};

/// The path of the method.
const PATH: &str = "/etcdserverpb.Watch/Watch";

/// A stream of watches whose answers come as bytes.
///
/// # Errors
/// When the server refuses it.
pub async fn watch(
    channel: Channel,
    requests: impl futures::Stream<Item = WatchRequest> + Send + 'static,
) -> Result<tonic::Streaming<Bytes>> {
    let mut client = client::Grpc::new(channel).max_decoding_message_size(usize::MAX);
    client.ready().await.context("the connection has ended")?;
    let path = http::uri::PathAndQuery::from_static(PATH);
    let requests = requests.map(|request| Bytes::from(request.encode_to_vec()));
    let answers = client.streaming(tonic::Request::new(requests), path, Raw).await?;
    Ok(answers.into_inner())
}

/// What stands in a field.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().context("a number is cut short")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        bail!("a number is too long")
    }

    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            2 => {
                let len = usize::try_from(self.varint()?)?;
                let (bytes, rest) = self.0.split_at_checked(len).context("a field is cut short")?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            other => bail!("a field of the unknown type {other}"),
        };
        Ok(Some((tag >> 3, value)))
    }
}

/// Goes through an answer of a watch: calls `each` with the modification revision and the value of
/// each event. Returns the watch's number; `None` when the answer ends a watch.
///
/// # Errors
/// When it is no `WatchResponse`, or `each` fails.
pub fn events(
    answer: &[u8],
    mut each: impl FnMut(usize, i64, &[u8]) -> Result<()>,
) -> Result<Option<usize>> {
    let mut watch = 0;
    let mut fields = Fields(answer);
    while let Some(field) = fields.next()? {
        match field {
            (2, Value::Number(id)) => watch = usize::try_from(id)?,
            (4, Value::Number(canceled)) if canceled != 0 => return Ok(None),
            // Events come after the number: fields are in the order of their numbers.
            (11, Value::Bytes(event)) => {
                let (revision, value) = key_value(event)?;
                each(watch, revision, value)?;
            }
            _ => {}
        }
    }
    Ok(Some(watch))
}

/// The modification revision and the value of an event's key.
fn key_value(event: &[u8]) -> Result<(i64, &[u8])> {
    let mut event = Fields(event);
    while let Some(field) = event.next()? {
        let (2, Value::Bytes(kv)) = field else { continue };
        let (mut revision, mut value) = (0, &[][..]);
        let mut kv = Fields(kv);
        while let Some(field) = kv.next()? {
            match field {
                (3, Value::Number(number)) => revision = number as i64,
                (5, Value::Bytes(bytes)) => value = bytes,
                _ => {}
            }
        }
        return Ok((revision, value));
    }
    bail!("an event without a key")
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_rpc::etcdserverpb::WatchResponse;
    use dhow_rpc::mvccpb::{Event, KeyValue};

    #[test]
    fn events_are_read_as_prost_reads_them() {
        let event = |mod_revision, value: &str| Event {
            kv: Some(KeyValue {
                key: "k".into(),
                value: value.to_owned().into(),
                mod_revision,
                create_revision: 1,
                ..KeyValue::default()
            }),
            ..Event::default()
        };
        let answer = WatchResponse {
            watch_id: 300,
            events: vec![event(7, "a"), event(1 << 40, "b")],
            ..WatchResponse::default()
        };
        let mut seen = Vec::new();
        let watch = events(&answer.encode_to_vec(), |watch, revision, value| {
            seen.push((watch, revision, value.to_vec()));
            Ok(())
        });
        assert_eq!(watch.unwrap(), Some(300));
        assert_eq!(seen, [(300, 7, b"a".to_vec()), (300, 1 << 40, b"b".to_vec())]);
        let ended = WatchResponse { canceled: true, ..WatchResponse::default() };
        assert_eq!(events(&ended.encode_to_vec(), |_, _, _| Ok(())).unwrap(), None);
    }
}
