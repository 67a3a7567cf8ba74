//! Every method of etcd's gRPC services and of our own, by path. The table is the whole surface: what is not here is unknown to clients.

/// How messages flow, in the words of etcd's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Unary,
    ServerStream,
    BidiStream,
}

impl Kind {
    pub fn label(self) -> &'static str {
        match self {
            Kind::Unary => "unary",
            Kind::ServerStream => "server_stream",
            Kind::BidiStream => "bidi_stream",
        }
    }
}

macro_rules! methods {
    ($($variant:ident: $service:literal, $name:literal, $kind:ident;)*) => {
        /// One method; the number is its place in the tables of counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Method { $($variant),* }

        impl Method {
            /// All of them, in table order.
            pub const ALL: &'static [Method] = &[$(Method::$variant),*];

            pub fn service(self) -> &'static str {
                match self { $(Method::$variant => $service,)* }
            }

            pub fn name(self) -> &'static str {
                match self { $(Method::$variant => $name,)* }
            }

            pub fn kind(self) -> Kind {
                match self { $(Method::$variant => Kind::$kind,)* }
            }

            /// `/package.Service/Method`.
            pub fn path(self) -> &'static str {
                match self { $(Method::$variant => concat!("/", $service, "/", $name),)* }
            }

            /// Compared in table order, so the methods that carry the load stand first.
            pub fn from_path(path: &str) -> Option<Method> {
                $(if path == concat!("/", $service, "/", $name) { return Some(Method::$variant); })*
                None
            }
        }
    };
}

methods! {
    Range: "etcdserverpb.KV", "Range", Unary;
    Put: "etcdserverpb.KV", "Put", Unary;
    Txn: "etcdserverpb.KV", "Txn", Unary;
    DeleteRange: "etcdserverpb.KV", "DeleteRange", Unary;
    RangeStream: "etcdserverpb.KV", "RangeStream", ServerStream;
    Compact: "etcdserverpb.KV", "Compact", Unary;
    Watch: "etcdserverpb.Watch", "Watch", BidiStream;
    LeaseGrant: "etcdserverpb.Lease", "LeaseGrant", Unary;
    LeaseRevoke: "etcdserverpb.Lease", "LeaseRevoke", Unary;
    LeaseKeepAlive: "etcdserverpb.Lease", "LeaseKeepAlive", BidiStream;
    LeaseTimeToLive: "etcdserverpb.Lease", "LeaseTimeToLive", Unary;
    LeaseLeases: "etcdserverpb.Lease", "LeaseLeases", Unary;
    MemberAdd: "etcdserverpb.Cluster", "MemberAdd", Unary;
    MemberRemove: "etcdserverpb.Cluster", "MemberRemove", Unary;
    MemberUpdate: "etcdserverpb.Cluster", "MemberUpdate", Unary;
    MemberList: "etcdserverpb.Cluster", "MemberList", Unary;
    MemberPromote: "etcdserverpb.Cluster", "MemberPromote", Unary;
    Alarm: "etcdserverpb.Maintenance", "Alarm", Unary;
    Status: "etcdserverpb.Maintenance", "Status", Unary;
    Defragment: "etcdserverpb.Maintenance", "Defragment", Unary;
    Hash: "etcdserverpb.Maintenance", "Hash", Unary;
    HashKv: "etcdserverpb.Maintenance", "HashKV", Unary;
    Snapshot: "etcdserverpb.Maintenance", "Snapshot", ServerStream;
    MoveLeader: "etcdserverpb.Maintenance", "MoveLeader", Unary;
    Downgrade: "etcdserverpb.Maintenance", "Downgrade", Unary;
    AuthEnable: "etcdserverpb.Auth", "AuthEnable", Unary;
    AuthDisable: "etcdserverpb.Auth", "AuthDisable", Unary;
    AuthStatus: "etcdserverpb.Auth", "AuthStatus", Unary;
    Authenticate: "etcdserverpb.Auth", "Authenticate", Unary;
    UserAdd: "etcdserverpb.Auth", "UserAdd", Unary;
    UserGet: "etcdserverpb.Auth", "UserGet", Unary;
    UserList: "etcdserverpb.Auth", "UserList", Unary;
    UserDelete: "etcdserverpb.Auth", "UserDelete", Unary;
    UserChangePassword: "etcdserverpb.Auth", "UserChangePassword", Unary;
    UserGrantRole: "etcdserverpb.Auth", "UserGrantRole", Unary;
    UserRevokeRole: "etcdserverpb.Auth", "UserRevokeRole", Unary;
    RoleAdd: "etcdserverpb.Auth", "RoleAdd", Unary;
    RoleGet: "etcdserverpb.Auth", "RoleGet", Unary;
    RoleList: "etcdserverpb.Auth", "RoleList", Unary;
    RoleDelete: "etcdserverpb.Auth", "RoleDelete", Unary;
    RoleGrantPermission: "etcdserverpb.Auth", "RoleGrantPermission", Unary;
    RoleRevokePermission: "etcdserverpb.Auth", "RoleRevokePermission", Unary;
    Campaign: "v3electionpb.Election", "Campaign", Unary;
    Proclaim: "v3electionpb.Election", "Proclaim", Unary;
    Leader: "v3electionpb.Election", "Leader", Unary;
    Observe: "v3electionpb.Election", "Observe", ServerStream;
    Resign: "v3electionpb.Election", "Resign", Unary;
    Lock: "v3lockpb.Lock", "Lock", Unary;
    Unlock: "v3lockpb.Lock", "Unlock", Unary;
    HealthCheck: "grpc.health.v1.Health", "Check", Unary;
    HealthList: "grpc.health.v1.Health", "List", Unary;
    HealthWatch: "grpc.health.v1.Health", "Watch", ServerStream;
    OperatorPrefixes: "cairn.v1.Operator", "Prefixes", Unary;
    OperatorWrites: "cairn.v1.Operator", "Writes", Unary;
    OperatorWatchers: "cairn.v1.Operator", "Watchers", Unary;
}

impl Method {
    /// Answered also while this member joins and has nothing of the cluster yet.
    pub fn tells_of_the_member(self) -> bool {
        matches!(self, Method::Status | Method::HealthCheck | Method::HealthList | Method::HealthWatch)
    }
}

/// The text for a path that is no method, in grpc-go's words: clients and their tests know them.
pub(crate) fn unknown_path(path: &str) -> String {
    let Some((service, method)) = path.strip_prefix('/').and_then(|rest| rest.rsplit_once('/')) else {
        return format!("malformed method name: {path:?}");
    };
    if Method::ALL.iter().any(|known| known.service() == service) {
        format!("unknown method {method} for service {service}")
    } else {
        format!("unknown service {service}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_leads_to_its_method() {
        for (place, &method) in Method::ALL.iter().enumerate() {
            assert_eq!(Method::from_path(method.path()), Some(method));
            assert_eq!(
                method as usize,
                place,
                "the number of {} is its place in the counters",
                method.path()
            );
        }
        assert_eq!(
            Method::ALL.len(),
            55,
            "42 of etcdserverpb, 7 of election and lock, 3 of health, 3 of our own"
        );
        for path in ["", "/", "Range", "/etcdserverpb.KV/range", "/etcdserverpb.KV/Range/"] {
            assert_eq!(Method::from_path(path), None, "{path}");
        }
    }
}
