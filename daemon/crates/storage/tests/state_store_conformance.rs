//! The suite that every store passes, on the durable one, reopened after each step.

use std::collections::HashMap;
use std::path::PathBuf;

use parking_lot::Mutex;
use state_machine::conformance::store_conformance;
use storage::state_store::{FjallStore, StoreOptions};

#[test]
fn the_durable_store_conforms() {
    let temp = tempfile::tempdir().unwrap();
    // Positions differ from store to store only by chance, so each store is known by its marker.
    let places: Mutex<HashMap<u32, PathBuf>> = Mutex::new(HashMap::new());
    let make = || {
        let mut places = places.lock();
        let number = places.len() as u32;
        let root = temp.path().join(number.to_string());
        let store = FjallStore::open(&root, StoreOptions::default()).unwrap();
        store.set_marker(&number.to_be_bytes()).unwrap();
        places.insert(number, root);
        store
    };
    let reopen = |store: FjallStore| {
        let marker = store.marker().unwrap().unwrap();
        let number = u32::from_be_bytes(marker.as_ref().try_into().unwrap());
        drop(store);
        FjallStore::open(&places.lock()[&number], StoreOptions::default()).unwrap()
    };
    store_conformance(make, reopen);
}
