//! Pins every code and text of the error table: stock clients match on them, so a change here is a change of the protocol.

use api::error::{Code, EtcdError};

#[test]
fn every_code_and_text_is_as_clients_know_it() {
    let expected: &[(EtcdError, Code, &str)] = &[
        (EtcdError::EmptyKey, Code::InvalidArgument, "etcdserver: key is not provided"),
        (EtcdError::KeyNotFound, Code::InvalidArgument, "etcdserver: key not found"),
        (EtcdError::ValueProvided, Code::InvalidArgument, "etcdserver: value is provided"),
        (EtcdError::LeaseProvided, Code::InvalidArgument, "etcdserver: lease is provided"),
        (EtcdError::TooManyOps, Code::InvalidArgument, "etcdserver: too many operations in txn request"),
        (EtcdError::DuplicateKey, Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
        (EtcdError::InvalidClientApiVersion, Code::InvalidArgument, "etcdserver: invalid client api version"),
        (EtcdError::InvalidSortOption, Code::InvalidArgument, "etcdserver: invalid sort option"),
        (EtcdError::Compacted, Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
        (EtcdError::FutureRev, Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision"),
        (EtcdError::NoSpace, Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        (EtcdError::LeaseNotFound, Code::NotFound, "etcdserver: requested lease not found"),
        (EtcdError::LeaseExist, Code::FailedPrecondition, "etcdserver: lease already exists"),
        (EtcdError::LeaseTtlTooLarge, Code::OutOfRange, "etcdserver: too large lease TTL"),
        (EtcdError::WatchCanceled, Code::Canceled, "etcdserver: watch canceled"),
        (EtcdError::MemberExist, Code::FailedPrecondition, "etcdserver: member ID already exist"),
        (EtcdError::PeerUrlExist, Code::FailedPrecondition, "etcdserver: Peer URLs already exists"),
        (
            EtcdError::MemberNotEnoughStarted,
            Code::Unknown,
            "etcdserver: re-configuration failed due to not enough started members",
        ),
        (EtcdError::MemberBadUrls, Code::InvalidArgument, "etcdserver: given member URLs are invalid"),
        (EtcdError::MemberNotFound, Code::NotFound, "etcdserver: member not found"),
        (
            EtcdError::MemberNotLearner,
            Code::FailedPrecondition,
            "etcdserver: can only promote a learner member",
        ),
        (
            EtcdError::LearnerNotReady,
            Code::FailedPrecondition,
            "etcdserver: can only promote a learner member which is in sync with leader",
        ),
        (
            EtcdError::TooManyLearners,
            Code::FailedPrecondition,
            "etcdserver: too many learner members in cluster",
        ),
        (EtcdError::ClusterIdMismatch, Code::FailedPrecondition, "etcdserver: cluster ID mismatch"),
        (EtcdError::RequestTooLarge, Code::InvalidArgument, "etcdserver: request is too large"),
        (EtcdError::RequestTooManyRequests, Code::Unknown, "etcdserver: too many requests"),
        (EtcdError::RootUserNotExist, Code::FailedPrecondition, "etcdserver: root user does not exist"),
        (
            EtcdError::RootRoleNotExist,
            Code::FailedPrecondition,
            "etcdserver: root user does not have root role",
        ),
        (EtcdError::UserAlreadyExist, Code::FailedPrecondition, "etcdserver: user name already exists"),
        (EtcdError::UserEmpty, Code::InvalidArgument, "etcdserver: user name is empty"),
        (EtcdError::UserNotFound, Code::FailedPrecondition, "etcdserver: user name not found"),
        (EtcdError::RoleAlreadyExist, Code::FailedPrecondition, "etcdserver: role name already exists"),
        (EtcdError::RoleNotFound, Code::FailedPrecondition, "etcdserver: role name not found"),
        (EtcdError::RoleEmpty, Code::InvalidArgument, "etcdserver: role name is empty"),
        (
            EtcdError::AuthFailed,
            Code::InvalidArgument,
            "etcdserver: authentication failed, invalid user ID or password",
        ),
        (EtcdError::PermissionNotGiven, Code::InvalidArgument, "etcdserver: permission not given"),
        (EtcdError::PermissionDenied, Code::PermissionDenied, "etcdserver: permission denied"),
        (EtcdError::RoleNotGranted, Code::FailedPrecondition, "etcdserver: role is not granted to the user"),
        (
            EtcdError::PermissionNotGranted,
            Code::FailedPrecondition,
            "etcdserver: permission is not granted to the role",
        ),
        (EtcdError::AuthNotEnabled, Code::FailedPrecondition, "etcdserver: authentication is not enabled"),
        (EtcdError::InvalidAuthToken, Code::Unauthenticated, "etcdserver: invalid auth token"),
        (EtcdError::InvalidAuthMgmt, Code::InvalidArgument, "etcdserver: invalid auth management"),
        (EtcdError::AuthOldRevision, Code::InvalidArgument, "etcdserver: revision of auth store is old"),
        (EtcdError::NoLeader, Code::Unavailable, "etcdserver: no leader"),
        (EtcdError::NotLeader, Code::FailedPrecondition, "etcdserver: not leader"),
        (EtcdError::LeaderChanged, Code::Unavailable, "etcdserver: leader changed"),
        (EtcdError::NotCapable, Code::FailedPrecondition, "etcdserver: not capable"),
        (EtcdError::Stopped, Code::Unavailable, "etcdserver: server stopped"),
        (EtcdError::Timeout, Code::Unavailable, "etcdserver: request timed out"),
        (
            EtcdError::TimeoutDueToLeaderFail,
            Code::Unavailable,
            "etcdserver: request timed out, possibly due to previous leader failure",
        ),
        (
            EtcdError::TimeoutDueToConnectionLost,
            Code::Unavailable,
            "etcdserver: request timed out, possibly due to connection lost",
        ),
        (
            EtcdError::TimeoutWaitAppliedIndex,
            Code::Unavailable,
            "etcdserver: request timed out, waiting for the applied index took too long",
        ),
        (EtcdError::Unhealthy, Code::Unavailable, "etcdserver: unhealthy cluster"),
        (EtcdError::Corrupt, Code::DataLoss, "etcdserver: corrupt cluster"),
        (
            EtcdError::NotSupportedForLearner,
            Code::FailedPrecondition,
            "etcdserver: rpc not supported for learner",
        ),
        (EtcdError::BadLeaderTransferee, Code::FailedPrecondition, "etcdserver: bad leader transferee"),
        (
            EtcdError::WrongDowngradeVersionFormat,
            Code::InvalidArgument,
            "etcdserver: wrong downgrade target version format",
        ),
        (
            EtcdError::InvalidDowngradeTargetVersion,
            Code::InvalidArgument,
            "etcdserver: invalid downgrade target version",
        ),
        (
            EtcdError::ClusterVersionUnavailable,
            Code::FailedPrecondition,
            "etcdserver: cluster version not found during downgrade",
        ),
        (
            EtcdError::DowngradeInProcess,
            Code::FailedPrecondition,
            "etcdserver: cluster has a downgrade job in progress",
        ),
        (EtcdError::NoInflightDowngrade, Code::FailedPrecondition, "etcdserver: no inflight downgrade job"),
        (EtcdError::Canceled, Code::Canceled, "etcdserver: request canceled"),
        (EtcdError::DeadlineExceeded, Code::DeadlineExceeded, "etcdserver: context deadline exceeded"),
        (
            EtcdError::NoPasswordUser,
            Code::Unknown,
            "auth: authentication failed, password was given for no password user",
        ),
        (EtcdError::NotPrimaryLessor, Code::Unknown, "not a primary lessor"),
        (EtcdError::UnknownMethod, Code::Unknown, "etcdserver: unknown method"),
        (
            EtcdError::LeaderTransferTimeout,
            Code::Unknown,
            "etcdserver: request timed out, leader transfer took too long",
        ),
        (EtcdError::VerifyOnly, Code::Unknown, "auth: token signing attempted with verify-only key"),
        (EtcdError::ProposalDropped, Code::Unknown, "raft proposal dropped"),
        (EtcdError::RangeStreamSort, Code::Unimplemented, "RangeStream does not support custom sort orders"),
        (EtcdError::RangeStreamFilters, Code::Unimplemented, "RangeStream does not support revision filters"),
        (EtcdError::UnknownService, Code::NotFound, "unknown service"),
        (EtcdError::MissingLeaderKey, Code::Unknown, "\"leader\" field must be provided"),
        (EtcdError::ElectionNotLeader, Code::Unknown, "election: not leader"),
        (EtcdError::ElectionNoLeader, Code::Unknown, "election: no leader"),
        (EtcdError::SessionExpired, Code::Unknown, "mutex: session is expired"),
    ];
    assert_eq!(expected.len(), EtcdError::ALL.len(), "a row was added or removed without its pin");
    for (error, code, text) in expected {
        assert_eq!((error.code(), error.text()), (*code, *text), "{error:?}");
        assert_eq!(error.to_string(), *text, "{error:?} displays another text than it sends");
        assert_eq!(EtcdError::from_text(text), Some(*error), "texts identify their rows");
    }
}
