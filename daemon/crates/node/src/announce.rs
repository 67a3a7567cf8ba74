//! Lines of the start-up story that operators and other programs wait for. Tests hold them fixed; change them and somebody's
//! readiness probe waits for ever.

pub const CLUSTER_VERSION_SETTING: &str = "setting up initial cluster version";
pub const CLUSTER_VERSION_SET: &str = "set initial cluster version";
pub const CLUSTER_VERSION_RAISED: &str = "set cluster version";
pub const PUBLISHED: &str = "published name and client URLs to the cluster";
pub(crate) const PUBLISHES_ANEW: &str =
    "the cluster lists this member with another name or other client URLs: publishing the new ones";
