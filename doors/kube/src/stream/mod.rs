//! Live streams into containers: logs, exec, attach, port-forward.

use crate::handle::Call;
use crate::respond::Reply;
use dhow_objects::Status;

/// Whether a call is for a live stream.
pub fn is_stream(call: &Call) -> bool {
    call.path.group.is_empty()
        && matches!(
            call.path.subresource.as_str(),
            "log" | "exec" | "attach" | "portforward" | "proxy"
        )
}

/// Serves a live stream.
pub async fn serve(call: Call) -> Reply {
    Err(Status::not_implemented(format!("{} is not built yet", call.path.subresource)))
}
