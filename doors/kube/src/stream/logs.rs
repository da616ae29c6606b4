//! `pods/log`: a container's output as plain text, to its end or as it grows.

use super::target::{Target, refusal};
use crate::call::{Call, Verb};
use crate::path::Query;
use crate::respond::{self, BodyError, Reply};
use dhow_clock::SharedClock;
use dhow_intents::LogRequest;
use dhow_objects::{Status, StatusCause};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio_util::sync::CancellationToken;

/// 422 about one option, in upstream's words.
fn invalid(field: &str, message: String) -> Status {
    let cause =
        StatusCause { reason: "FieldValueInvalid".to_owned(), message, field: field.to_owned() };
    Status::invalid("", "PodLogOptions", "", vec![cause])
}

fn number(query: &Query, name: &str, least: i64) -> Result<Option<u64>, Status> {
    let Some(text) = query.get(name) else { return Ok(None) };
    let number: i64 = text
        .parse()
        .map_err(|_| Status::bad_request(format!("{name} {text:?} is not a whole number")))?;
    if number < least {
        let told = format!("Invalid value: {number}: must be greater than or equal to {least}");
        return Err(invalid(name, told));
    }
    Ok(u64::try_from(number).ok())
}

/// What a query asks for. The container is chosen later.
fn request(query: &Query, clock: &SharedClock) -> Result<LogRequest, Status> {
    let seconds = number(query, "sinceSeconds", 1)?;
    let since = match (seconds, query.get("sinceTime")) {
        (Some(_), Some(_)) => {
            let told = "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified";
            return Err(invalid("", told.to_owned()));
        }
        (Some(seconds), None) => {
            let now = i128::try_from(clock.now().as_nanos()).unwrap_or(i128::MAX);
            Some(now - i128::from(seconds) * 1_000_000_000)
        }
        (None, Some(text)) => {
            let time: jiff::Timestamp = text.parse().map_err(|_| {
                Status::bad_request(format!("sinceTime {text:?} is not an RFC 3339 time"))
            })?;
            Some(time.as_nanosecond())
        }
        (None, None) => None,
    };
    let stream = match query.get("stream") {
        None | Some("All") => "",
        Some("Stdout") => "stdout",
        Some("Stderr") => "stderr",
        Some(other) => {
            let told = format!(
                "Unsupported value: {other:?}: supported values: \"All\", \"Stderr\", \"Stdout\""
            );
            return Err(invalid("stream", told));
        }
    };
    Ok(LogRequest {
        container: String::new(),
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail_lines: number(query, "tailLines", 0)?,
        since,
        limit_bytes: number(query, "limitBytes", 1)?,
        stream: stream.to_owned(),
    })
}

/// Serves a log.
pub async fn serve(call: Call) -> Reply {
    if call.verb != Verb::Get {
        return Err(Status::method_not_allowed());
    }
    let container = call.query.get("container").map(str::to_owned);
    open(call, container.as_deref()).await
}

/// Serves the log of the container of this name.
pub async fn of_container(call: Call, container: &str) -> Reply {
    open(call, Some(container)).await
}

async fn open(call: Call, container: Option<&str>) -> Reply {
    let mut request = request(&call.query, &call.door.config.clock)?;
    let target = Target::find(&call).await?;
    request.container = target.container(container)?;
    if target.node.is_empty() {
        // Nothing has run yet.
        return Ok(respond::text(200, ""));
    }
    let streams = target.streams(&call)?;
    let lines = streams.logs(target.pod, request).await.map_err(refusal)?;
    // The channel lives in the reply's body: when the client goes, both are dropped.
    let frames = futures::stream::unfold(
        (lines, call.shutdown.clone()),
        |(mut lines, shutdown): (_, CancellationToken)| async move {
            let bytes = tokio::select! {
                bytes = tokio::sync::mpsc::Receiver::recv(&mut lines) => bytes?,
                () = shutdown.cancelled() => return None,
            };
            Some((Ok::<_, BodyError>(Frame::data(bytes)), (lines, shutdown)))
        },
    );
    let mut response = respond::text(200, "");
    *response.body_mut() = StreamBody::new(frames).boxed_unsync();
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_checked() {
        let clock = dhow_clock::System::shared();
        let read = |text: &str| request(&Query::parse(text), &clock);
        let asked = read("follow=true&tailLines=5&sinceTime=1970-01-01T00:00:01Z").unwrap();
        assert!(asked.follow && !asked.previous);
        assert_eq!((asked.tail_lines, asked.since), (Some(5), Some(1_000_000_000)));
        assert_eq!(read("tailLines=-1").unwrap_err().code, 422);
        assert_eq!(read("tailLines=x").unwrap_err().code, 400);
        assert_eq!(read("sinceSeconds=0").unwrap_err().code, 422);
        assert_eq!(read("sinceSeconds=5&sinceTime=1970-01-01T00:00:01Z").unwrap_err().code, 422);
    }
}
