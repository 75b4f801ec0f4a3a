//! Kernel parameters, by the files of `/proc/sys`. They are those of the network namespace of the thread that
//! opens the file, so they are read and written here and not on a thread pool; the kernel answers at once.

use std::io::ErrorKind;
use std::path::Path;

use rustix::mount::{MountFlags, mount_remount};

use super::Error;
use super::plan::{Observed, Plan, Write, parameters};
use crate::desired::sysctl::Sysctl;
use crate::subsystem::Outcome;

const ROOT: &str = "/proc/sys";

pub(super) fn observe(desired: &Sysctl) -> Result<Observed, Error> {
    let mut observed = Observed::new();
    for parameter in parameters(desired) {
        let failed = |source| Error {
            action: "reading",
            parameter: parameter.clone(),
            source,
        };
        match std::fs::read_to_string(Path::new(ROOT).join(&parameter)) {
            Ok(text) => {
                let value = text
                    .trim()
                    .parse()
                    .map_err(|error| failed(std::io::Error::other(error)))?;
                observed.insert(parameter, value);
            }
            // The interface is not there yet, or there is no IPv6 in this kernel.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(observed)
}

pub(super) fn write(plan: &Plan) -> Vec<Outcome> {
    plan.writes
        .iter()
        .map(|Write { parameter, value }| {
            let result = set(&Path::new(ROOT).join(parameter), *value).map_err(|source| Error {
                action: "writing",
                parameter: parameter.clone(),
                source,
            });
            Outcome::new("set", format!("{parameter} = {value}"), result)
        })
        .collect()
}

/// Runtimes mount these files read-only into containers that are not privileged; who may mount may take that back.
fn set(file: &Path, value: i64) -> std::io::Result<()> {
    let write = || std::fs::write(file, value.to_string());
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match write() {
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
            mount_remount(ROOT, flags, "").map_err(|_| error)?;
            write()
        }
        result => result,
    }
}
