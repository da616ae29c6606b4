//! Why the store refuses or fails.

macro_rules! errors {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// Why the store refused or failed. The texts are etcd's, because its clients compare them.
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        pub enum Error {
            $($(#[doc = $doc])* #[error($text)] $name,)*
            /// The disk failed; writes are refused until the cause is mended.
            #[error("etcdserver: {0}")]
            Storage(String),
            /// No member of an external store answers; the request was certainly not carried out.
            #[error("the store cannot be reached: {0}")]
            Unreachable(String),
            /// An external store refused with a text that none of the others stands for.
            #[error("{0}")]
            Other(String),
        }

        impl Error {
            /// All errors that have one text. Their places are their numbers between members.
            pub const ALL: &[Error] = &[$(Error::$name),*];
        }
    };
}

// New ones go to the end: a number means the same to members of every version.
errors! {
    /// An empty key.
    EmptyKey = "etcdserver: key is not provided",
    /// The request is larger than the store takes.
    TooLarge = "etcdserver: request is too large",
    /// The quota is used up.
    NoSpace = "etcdserver: mvcc: database space exceeded",
    /// The store is shutting down.
    Stopped = "etcdserver: server stopped",
    /// An alarm says that members differ.
    Corrupt = "etcdserver: corrupt cluster",
    /// No leader is known.
    NoLeader = "etcdserver: no leader",
    /// The leader changed while the request was under way; whether it happened is not known.
    LeaderChanged = "etcdserver: leader changed",
    /// Only the leader can do this.
    NotLeader = "etcdserver: not leader",
    /// No answer in time; whether it happened is not known.
    Timeout = "etcdserver: request timed out",
    /// More is under way than the member takes.
    TooManyRequests = "etcdserver: too many requests",
    /// A learner does not serve this.
    NotForLearner = "etcdserver: rpc not supported for learner",
    /// No member of that identifier.
    MemberNotFound = "etcdserver: member not found",
    /// A member of that identifier exists.
    MemberExists = "etcdserver: member ID already exist",
    /// A member with one of the addresses exists.
    PeerUrlExists = "etcdserver: Peer URLs already exists",
    /// The addresses cannot be read.
    BadMemberUrls = "etcdserver: given member URLs are invalid",
    /// The change would risk the quorum.
    NotEnoughStarted = "etcdserver: re-configuration failed due to not enough started members",
    /// Only learners can be promoted.
    NotLearner = "etcdserver: can only promote a learner member",
    /// The learner is too far behind.
    LearnerNotReady = "etcdserver: can only promote a learner member which is in sync with leader",
    /// There are as many learners as allowed.
    TooManyLearners = "etcdserver: too many learner members in cluster",
    /// Another cluster's request.
    ClusterIdMismatch = "etcdserver: cluster ID mismatch",
    /// The leadership cannot go to that member.
    BadTransferee = "etcdserver: bad leader transferee",
    /// A majority cannot be reached.
    Unhealthy = "etcdserver: unhealthy cluster",
    /// No such lease.
    LeaseNotFound = "etcdserver: requested lease not found",
    /// A lease of that identifier exists.
    LeaseExists = "etcdserver: lease already exists",
    /// A time to live beyond 9,000,000,000 s.
    LeaseTtlTooLarge = "etcdserver: too large lease TTL",
    /// The rules do not allow it.
    PermissionDenied = "etcdserver: permission denied",
    /// The rules have changed since the credentials were checked.
    AuthOldRevision = "etcdserver: revision of auth store is old",
    /// The token is not known.
    InvalidToken = "etcdserver: invalid auth token",
    /// `ignore_value` or `ignore_lease` on an absent key.
    KeyNotFound = "etcdserver: key not found",
    /// A value beside `ignore_value`.
    ValueProvided = "etcdserver: value is provided",
    /// A lease beside `ignore_lease`.
    LeaseProvided = "etcdserver: lease is provided",
    /// More steps or guards than allowed.
    TooManyOps = "etcdserver: too many operations in txn request",
    /// One branch writes a key twice.
    DuplicateKey = "etcdserver: duplicate key given in txn request",
    /// The revision was compacted away.
    Compacted = "etcdserver: mvcc: required revision has been compacted",
    /// The revision has not happened yet.
    FutureRevision = "etcdserver: mvcc: required revision is a future revision",
    /// There is no user root.
    NoRootUser = "etcdserver: root user does not exist",
    /// The user root lacks the role root.
    NoRootRole = "etcdserver: root user does not have root role",
    /// A user of that name exists.
    UserExists = "etcdserver: user name already exists",
    /// No name was given.
    UserNameEmpty = "etcdserver: user name is empty",
    /// No such user.
    UserNotFound = "etcdserver: user name not found",
    /// A role of that name exists.
    RoleExists = "etcdserver: role name already exists",
    /// No such role.
    RoleNotFound = "etcdserver: role name not found",
    /// No name was given.
    RoleNameEmpty = "etcdserver: role name is empty",
    /// Wrong name or password.
    AuthFailed = "etcdserver: authentication failed, invalid user ID or password",
    /// The user does not have the role.
    RoleNotGranted = "etcdserver: role is not granted to the user",
    /// The role does not have the permission.
    PermissionNotGranted = "etcdserver: permission is not granted to the role",
    /// No permission was given.
    PermissionNotGiven = "etcdserver: permission not given",
    /// The cluster is being taken back to an older version already.
    DowngradeInProcess = "etcdserver: cluster has a downgrade job in progress",
    /// Authentication is off.
    AuthNotEnabled = "etcdserver: authentication is not enabled",
    /// Root and what authentication needs cannot be changed so.
    InvalidAuthManagement = "etcdserver: invalid auth management",
    /// The user has no password, and so cannot be asked for one.
    NoPasswordUser = "auth: authentication failed, password was given for no password user",
}
