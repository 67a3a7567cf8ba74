//! The place of users, roles and permissions in apply. Authentication cannot be enabled yet: every auth kind gets the same refusal
//! on every member, and every other request is permitted.

use api::error::EtcdError;
use api::etcdserverpb::InternalRaftRequest;

/// The refusal of every auth kind.
const REFUSAL: EtcdError = EtcdError::NotCapable;

/// The refusal, when the request is of an auth kind.
pub(super) fn refuse(request: &InternalRaftRequest) -> Option<EtcdError> {
    let is_auth = request.authenticate.is_some()
        || request.auth_enable.is_some()
        || request.auth_disable.is_some()
        || request.auth_status.is_some()
        || request.auth_user_add.is_some()
        || request.auth_user_delete.is_some()
        || request.auth_user_get.is_some()
        || request.auth_user_change_password.is_some()
        || request.auth_user_grant_role.is_some()
        || request.auth_user_revoke_role.is_some()
        || request.auth_user_list.is_some()
        || request.auth_role_list.is_some()
        || request.auth_role_add.is_some()
        || request.auth_role_delete.is_some()
        || request.auth_role_get.is_some()
        || request.auth_role_grant_permission.is_some()
        || request.auth_role_revoke_permission.is_some();
    is_auth.then_some(REFUSAL)
}
