//! A double of control groups that records what it is told.

use super::{Cgroups, Error, Group, Limits, check_name};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// One change that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A group was made with these limits.
    Create(String, Limits),
    /// A device guard was made.
    DeviceGuard(String),
    /// A group was kept from devices.
    GuardDevices(String),
    /// Limits were changed.
    SetLimits(String, Limits),
    /// A signal was sent.
    Signal(String, i32),
    /// A group was removed.
    Remove(String),
    /// A group was removed with all below it.
    RemoveTree(String),
}

/// Control groups that exist only in memory.
#[derive(Debug, Default)]
pub struct Recorder {
    calls: Mutex<Vec<Call>>,
    ooms: Mutex<BTreeMap<String, u64>>,
}

impl Recorder {
    /// Everything that was asked for, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// From now on `group` reports so many kills for lack of memory.
    pub fn set_oom_kills(&self, group: &str, kills: u64) {
        self.ooms.lock().unwrap_or_else(|e| e.into_inner()).insert(group.to_owned(), kills);
    }

    fn record(&self, call: Call) {
        self.calls.lock().unwrap_or_else(|e| e.into_inner()).push(call);
    }
}

impl Cgroups for Recorder {
    fn create(&self, name: &str, limits: &Limits) -> Result<Group, Error> {
        check_name(name)?;
        self.record(Call::Create(name.to_owned(), *limits));
        Ok(Group { name: name.to_owned(), parts: Vec::new() })
    }

    fn create_device_guard(&self, name: &str) -> Result<Option<Group>, Error> {
        check_name(name)?;
        self.record(Call::DeviceGuard(name.to_owned()));
        Ok(None)
    }

    fn guard_devices(&self, group: &Group) {
        self.record(Call::GuardDevices(group.name.clone()));
    }

    fn set_limits(&self, group: &Group, limits: &Limits) -> Result<(), Error> {
        self.record(Call::SetLimits(group.name.clone(), *limits));
        Ok(())
    }

    fn change_limits(&self, group: &Group, limits: &Limits) -> Result<(), Error> {
        self.set_limits(group, limits)
    }

    fn processes(&self, _: &Group) -> Vec<u32> {
        Vec::new()
    }

    fn signal(&self, group: &Group, signal: i32) {
        self.record(Call::Signal(group.name.clone(), signal));
    }

    fn oom_kills(&self, group: &Group) -> u64 {
        let ooms = self.ooms.lock().unwrap_or_else(|e| e.into_inner());
        ooms.get(&group.name).copied().unwrap_or(0)
    }

    fn remove(&self, group: &Group) -> Result<(), Error> {
        self.record(Call::Remove(group.name.clone()));
        Ok(())
    }

    fn remove_tree(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        self.record(Call::RemoveTree(name.to_owned()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_records_in_order() {
        let recorder = Recorder::default();
        let group = recorder.create("a/b", &Limits::default()).unwrap();
        recorder.signal(&group, 9);
        recorder.remove(&group).unwrap();
        assert_eq!(
            recorder.calls(),
            [
                Call::Create("a/b".into(), Limits::default()),
                Call::Signal("a/b".into(), 9),
                Call::Remove("a/b".into())
            ]
        );
    }
}
