//! The service Cluster.

use crate::Inner;
use crate::access::Call;
use crate::error::status;
use dhow_kv::Error;
use dhow_kv::admin::Member;
use dhow_rpc::etcdserverpb as pb;
use tonic::Status;

fn member(member: Member) -> pb::Member {
    pb::Member {
        id: member.id,
        name: member.name,
        peer_ur_ls: member.peer_urls,
        client_ur_ls: member.client_urls,
        is_learner: member.learner,
    }
}

fn members(list: Vec<Member>) -> Vec<pb::Member> {
    list.into_iter().map(member).collect()
}

/// Checks members' addresses as etcd does: `scheme://host:port` without a path.
fn check_urls(urls: &[String]) -> Result<(), Status> {
    let valid = |url: &String| {
        let uri: http::Uri = url.trim().parse().ok()?;
        let scheme = uri.scheme_str()?;
        let known = matches!(scheme, "http" | "https");
        let authority = uri.authority()?;
        let path = url.trim().split_once("://")?.1;
        (known && authority.port_u16().is_some() && !path.contains('/')).then_some(())
    };
    if urls.is_empty() || urls.iter().any(|url| valid(url).is_none()) {
        return Err(status(&Error::BadMemberUrls));
    }
    Ok(())
}

impl Inner {
    /// The header of this service has no revision.
    fn cluster_header(&self) -> Option<pb::ResponseHeader> {
        Some(self.header_at(0))
    }

    pub(crate) async fn member_add(
        &self,
        call: &Call,
        request: pb::MemberAddRequest,
    ) -> Result<pb::MemberAddResponse, Status> {
        check_urls(&request.peer_ur_ls)?;
        self.allow_root(call)?;
        let (added, all) = self
            .admin
            .member_add(request.peer_ur_ls, request.is_learner)
            .await
            .map_err(|e| status(&e))?;
        Ok(pb::MemberAddResponse {
            header: self.cluster_header(),
            member: Some(member(added)),
            members: members(all),
        })
    }

    pub(crate) async fn member_remove(
        &self,
        call: &Call,
        request: pb::MemberRemoveRequest,
    ) -> Result<pb::MemberRemoveResponse, Status> {
        self.allow_root(call)?;
        let rest = self.admin.member_remove(request.id).await.map_err(|e| status(&e))?;
        Ok(pb::MemberRemoveResponse { header: self.cluster_header(), members: members(rest) })
    }

    pub(crate) async fn member_update(
        &self,
        call: &Call,
        request: pb::MemberUpdateRequest,
    ) -> Result<pb::MemberUpdateResponse, Status> {
        check_urls(&request.peer_ur_ls)?;
        self.allow_root(call)?;
        let all = self
            .admin
            .member_update(request.id, request.peer_ur_ls)
            .await
            .map_err(|e| status(&e))?;
        Ok(pb::MemberUpdateResponse { header: self.cluster_header(), members: members(all) })
    }

    pub(crate) async fn member_list(
        &self,
        call: &Call,
        request: pb::MemberListRequest,
    ) -> Result<pb::MemberListResponse, Status> {
        self.allow_anybody(call)?;
        let all = self.admin.members(request.linearizable).await.map_err(|e| status(&e))?;
        Ok(pb::MemberListResponse { header: self.cluster_header(), members: members(all) })
    }

    pub(crate) async fn member_promote(
        &self,
        call: &Call,
        request: pb::MemberPromoteRequest,
    ) -> Result<pb::MemberPromoteResponse, Status> {
        self.allow_root(call)?;
        let all = self.admin.member_promote(request.id).await.map_err(|e| status(&e))?;
        Ok(pb::MemberPromoteResponse { header: self.cluster_header(), members: members(all) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_members_have_scheme_host_and_port_only() {
        let check = |url: &str| check_urls(&[url.to_owned()]).is_ok();
        assert!(check("http://127.0.0.1:2380"));
        assert!(check("https://[::1]:2380"));
        assert!(check("https://member.example:2380"));
        for bad in
            ["", "127.0.0.1:2380", "http://host", "ftp://h:1", "http://h:1/path", "http://:1x"]
        {
            assert!(!check(bad), "{bad}");
        }
        assert!(check_urls(&[]).is_err());
    }
}
