//! Compaction while watchers lag.

use std::time::Duration;

use anyhow::Result;
use api::etcdserverpb::WatchCreateRequest;
use cairn_tests::recorder::{historian, traffic::Shape, watchers::Plan};

use crate::{Scene, block_on, everything, kind};

impl Scene {
    /// Learns what goes, then compacts through this member.
    pub fn compact(&mut self, member: usize, revision: i64) -> Result<()> {
        let url = self.cluster.members[member].client_url.clone();
        block_on(historian::compact(&mut self.history, self.clock, &url, revision))
    }
}

/// Values large enough that a client which does not read fills every buffer on the way and its watches fall behind.
const LARGE: Shape =
    Shape { clients: 4, keys: 6, value_bytes: 16 << 10, pause: Duration::from_millis(1), seed: 1 };

#[test]
fn no_loss_under_starvation() -> Result<()> {
    let mut scene = Scene::open(kind(), "no_loss_under_starvation", &[], LARGE)?;
    let create = WatchCreateRequest { start_revision: 1, prev_kv: true, ..everything() };
    for member in 0..3 {
        for (name, pause) in [("starved", 0), ("slow", 10), ("eager", 0)] {
            scene.watchers.start(Plan {
                name: format!("{name} {member}"),
                creates: vec![create.clone()],
                first: member,
                pause: Duration::from_millis(pause),
                ..Plan::default()
            });
        }
    }
    scene.go_on(100)?;
    for round in 0..5 {
        let starved = format!("starved {}", round % 3);
        scene.watchers.hold(&starved);
        scene.go_on(400)?;
        let at = scene.revision()? - 50;
        scene.compact(round % 3, at)?;
        scene.go_on(50)?;
        scene.watchers.release(&starved);
    }
    // Whether one was canceled depends on the buffers between; what it was told is right either way.
    scene.judge()?;
    Ok(())
}
