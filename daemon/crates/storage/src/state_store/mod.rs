//! state_store
