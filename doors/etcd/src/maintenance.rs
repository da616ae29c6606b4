//! The service Maintenance.

use crate::Inner;
use crate::access::Call;
use crate::body::Answers;
use crate::error::{Refusal, status};
use crate::method::Method;
use crate::wire;
use bytes::Bytes;
use dhow_kv::Error;
use dhow_kv::admin::{Alarm, AlarmKind, SnapshotReader, Version};
use dhow_rpc::etcdserverpb::{self as pb, alarm_request::AlarmAction};
use futures::stream;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use tonic::Status;

fn alarm_message(alarm: Alarm) -> pb::AlarmMember {
    let kind = match alarm.kind {
        AlarmKind::NoSpace => pb::AlarmType::Nospace,
        AlarmKind::Corrupt => pb::AlarmType::Corrupt,
    };
    pb::AlarmMember { member_id: alarm.member, alarm: kind.into() }
}

/// The name of an alarm as clients see it.
pub(crate) fn alarm_name(kind: AlarmKind) -> &'static str {
    match kind {
        AlarmKind::NoSpace => "NOSPACE",
        AlarmKind::Corrupt => "CORRUPT",
    }
}

fn alarm_kind(alarm: pb::AlarmType) -> Option<AlarmKind> {
    match alarm {
        pb::AlarmType::None => None,
        pb::AlarmType::Nospace => Some(AlarmKind::NoSpace),
        pb::AlarmType::Corrupt => Some(AlarmKind::Corrupt),
    }
}

/// Major and minor of a version, `major.minor` with or without a patch.
fn version(text: &str) -> Option<Version> {
    let mut parts = text.split('.');
    let mut number = || parts.next()?.parse::<u32>().ok();
    let version = Version { major: number()?, minor: number()? };
    match (parts.next().map(str::parse::<u32>), parts.next()) {
        (None | Some(Ok(_)), None) => Some(version),
        _ => None,
    }
}

impl Inner {
    pub(crate) async fn alarm(
        &self,
        call: &Call,
        request: pb::AlarmRequest,
    ) -> Result<pb::AlarmResponse, Status> {
        let kind = alarm_kind(request.alarm());
        let alarms = match request.action() {
            AlarmAction::Get => {
                self.allow_anybody(call)?;
                let mut alarms = self.admin.status().alarms;
                alarms.retain(|alarm| kind.is_none_or(|kind| alarm.kind == kind));
                alarms
            }
            AlarmAction::Activate => {
                self.allow_root(call)?;
                match kind {
                    Some(kind) => {
                        let alarm = Alarm { member: request.member_id, kind };
                        self.admin.alarm_raise(alarm).await.map_err(|e| status(&e))?;
                        vec![alarm]
                    }
                    None => Vec::new(),
                }
            }
            AlarmAction::Deactivate => {
                self.allow_root(call)?;
                self.admin.alarm_disarm(request.member_id, kind).await.map_err(|e| status(&e))?
            }
        };
        Ok(pb::AlarmResponse {
            header: Some(self.header()),
            alarms: alarms.into_iter().map(alarm_message).collect(),
        })
    }

    pub(crate) fn status(&self, call: &Call) -> Result<pb::StatusResponse, Status> {
        self.allow_anybody(call)?;
        let now = self.admin.status();
        let mut errors = Vec::new();
        if now.leader == 0 {
            errors.push(Error::NoLeader.to_string());
        }
        for alarm in &now.alarms {
            errors.push(format!("memberID:{} alarm:{} ", alarm.member, alarm_name(alarm.kind)));
        }
        let header = pb::ResponseHeader { raft_term: now.term, ..self.header() };
        Ok(pb::StatusResponse {
            header: Some(header),
            version: self.config.server_version.clone(),
            db_size: now.db_size as i64,
            leader: now.leader,
            raft_index: now.raft_index,
            raft_term: now.term,
            raft_applied_index: now.applied_index,
            errors,
            db_size_in_use: now.db_size_in_use as i64,
            is_learner: now.learner,
            storage_version: self.versions().1,
            db_size_quota: now.quota as i64,
            downgrade_info: Some(pb::DowngradeInfo {
                enabled: now.downgrade.is_some(),
                target_version: now.downgrade.map_or_else(String::new, |to| format!("{to}.0")),
            }),
        })
    }

    pub(crate) async fn defragment(&self, call: &Call) -> Result<pb::DefragmentResponse, Status> {
        self.allow_root(call)?;
        self.admin.defragment().await.map_err(|e| status(&e))?;
        Ok(pb::DefragmentResponse { header: None })
    }

    pub(crate) async fn hash(&self, call: &Call) -> Result<pb::HashResponse, Status> {
        self.allow_root(call)?;
        let hash = self.admin.hash().await.map_err(|e| status(&e))?;
        Ok(pb::HashResponse { header: Some(self.header()), hash })
    }

    pub(crate) async fn hash_kv(
        &self,
        call: &Call,
        request: pb::HashKvRequest,
    ) -> Result<pb::HashKvResponse, Status> {
        self.allow_root(call)?;
        let found = self.admin.hash_kv(request.revision).await.map_err(|e| status(&e))?;
        Ok(pb::HashKvResponse {
            header: Some(self.header()),
            hash: found.hash,
            compact_revision: found.compact_revision,
            hash_revision: found.hash_revision,
        })
    }

    pub(crate) async fn move_leader(
        &self,
        call: &Call,
        request: pb::MoveLeaderRequest,
    ) -> Result<pb::MoveLeaderResponse, Status> {
        self.allow_root(call)?;
        if self.admin.pulse().leader != self.admin.identity().member_id {
            return Err(status(&Error::NotLeader));
        }
        self.admin.move_leader(request.target_id).await.map_err(|e| status(&e))?;
        Ok(pb::MoveLeaderResponse { header: None })
    }

    /// What the cluster speaks, and what its data are written as: older ones during a downgrade.
    pub(crate) fn versions(&self) -> (String, String) {
        match self.admin.status().downgrade {
            Some(version) => (format!("{version}.0"), format!("{version}.0")),
            None => (self.config.cluster_version.clone(), self.config.storage_version.clone()),
        }
    }

    pub(crate) async fn downgrade(
        &self,
        call: &Call,
        request: pb::DowngradeRequest,
    ) -> Result<pb::DowngradeResponse, Status> {
        use pb::downgrade_request::DowngradeAction as Action;
        self.allow_root(call)?;
        let action = Action::try_from(request.action)
            .map_err(|_| Status::unknown("etcdserver: unknown method"))?;
        let target = match action {
            Action::Cancel => None,
            _ => Some(version(&request.version).ok_or(Refusal::DowngradeFormat)?),
        };
        // Another member may have been asked before: the leader knows.
        self.admin.members(true).await.map_err(|e| status(&e))?;
        let own = version(&self.config.cluster_version);
        let mut cluster = self.admin.status().downgrade.or(own).ok_or(Refusal::DowngradeTarget)?;
        if let Some(target) = target {
            let under_way = self.admin.status().downgrade;
            let allowed = (cluster.major, cluster.minor.checked_sub(1));
            if under_way != Some(target) && (target.major, Some(target.minor)) != allowed {
                return Err(Refusal::DowngradeTarget.into());
            }
            if under_way.is_some() {
                return Err(status(&Error::DowngradeInProcess));
            }
        }
        match action {
            Action::Validate => {}
            Action::Enable => {
                self.admin.downgrade(target).await.map_err(|e| status(&e))?;
                tracing::info!(target = request.version, "the cluster is ready to downgrade");
            }
            Action::Cancel => {
                self.admin.downgrade(None).await.map_err(|e| status(&e))?;
                cluster = own.unwrap_or(cluster);
            }
        }
        Ok(pb::DowngradeResponse { header: Some(self.header()), version: cluster.to_string() })
    }

    /// The file in pieces, and its SHA-256 as one more.
    pub(crate) async fn snapshot(self: &Arc<Self>, call: &Call) -> Result<Answers, Status> {
        self.allow_root(call)?;
        let reader = self.admin.snapshot().await.map_err(|e| status(&e))?;
        tracing::info!(bytes = reader.remaining(), "sends a snapshot to a client");
        let sending = Sending { inner: self.clone(), reader: Some(reader), digest: Sha256::new() };
        Ok(Box::pin(stream::unfold(sending, |mut sending| async move {
            let piece = sending.next().await?;
            Some((piece, sending))
        })))
    }
}

/// A snapshot on its way.
struct Sending {
    inner: Arc<Inner>,
    /// Gone when the digest was sent or the snapshot failed.
    reader: Option<Box<dyn SnapshotReader>>,
    digest: Sha256,
}

impl Sending {
    async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        let reader = self.reader.as_mut()?;
        match reader.next().await {
            Some(Ok(blob)) => {
                self.digest.update(&blob);
                let remaining = reader.remaining();
                Some(Ok(self.frame(blob, remaining)))
            }
            Some(Err(error)) => {
                self.reader = None;
                Some(Err(status(&error)))
            }
            None => {
                self.reader = None;
                let digest = std::mem::take(&mut self.digest).finalize();
                Some(Ok(self.frame(Bytes::copy_from_slice(&digest), 0)))
            }
        }
    }

    fn frame(&self, blob: Bytes, remaining_bytes: u64) -> Bytes {
        let version = self.inner.versions().1;
        let piece = pb::SnapshotResponse { header: None, remaining_bytes, blob, version };
        let frame = wire::message(&piece);
        self.inner.metrics.sent(Method::Snapshot, 1, frame.len());
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_two_or_three_numbers() {
        let want = Some(Version { major: 3, minor: 6 });
        assert_eq!((version("3.6"), version("3.6.1")), (want, want));
        for bad in ["3", "3.x", "", "v3.6", "3.6.1.2", "3.6."] {
            assert_eq!(version(bad), None, "{bad}");
        }
    }
}
