//! What differs between two readings of the settings.

use super::{
    same_value,
    source::Values,
    table::{self, Group, Setting},
};

/// A setting whose value is another one now. Texts are as messages may show them.
#[derive(Clone, Debug)]
pub struct Change {
    pub setting: &'static Setting,
    pub before: String,
    pub after: String,
}

/// In the order of the documentation. An old name is told as the setting that it sets.
pub fn between(before: &Values, after: &Values) -> Vec<Change> {
    let current = |setting: &&Setting| !matches!(setting.group, Group::Removed | Group::Ignored);
    table::settings()
        .filter(current)
        .filter_map(|setting| {
            let (old, new) = (before.text(setting.name), after.text(setting.name));
            let changed = !same_value(setting.kind, old, new);
            changed.then(|| Change { setting, before: setting.shown(old), after: setting.shown(new) })
        })
        .collect()
}

/// `before` with the reloadable settings of `after`: what is in force once a reload was obeyed.
pub fn in_force(before: &Values, after: &Values) -> Values {
    let mut values = before.clone();
    for setting in table::settings().filter(|setting| setting.reloadable) {
        values.0.insert(setting.name, after.get(setting.name).clone());
    }
    values
}
