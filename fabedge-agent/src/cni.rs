//! The CNI configuration of edge pods: a file under the run directory and a link to it where the container runtime
//! looks. The run directory does not survive a reboot, and the engine lets this subsystem grow only once the closed
//! state stands, so no pod starts before it.
//!
//! Configurations of other CNIs are moved aside, by a suffix that no runtime reads, and moved back on cleanup.

mod file;

pub use file::Cni;

/// The conflist's file name, in both directories.
pub const FILE: &str = "fabedge.conflist";

/// Appended to the name of another CNI's configuration.
const ASIDE: &str = ".fabedge-aside";

/// What the two directories hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// Text of the file in the run directory.
    pub text: Option<String>,
    /// Our link exists and leads to that file.
    pub linked: bool,
    /// All other names in the runtime's directory.
    pub others: Vec<String>,
}

/// The difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Text to write.
    pub write: Option<String>,
    /// Make (or replace) the link.
    pub link: bool,
    /// Names to move aside.
    pub aside: Vec<String>,
    /// Remove file and link.
    pub remove: bool,
    /// Names, as they were, to move back.
    pub restore: Vec<String>,
}

/// Plans; pure.
pub fn plan(desired: &crate::desired::cni::Cni, actual: &Actual) -> Plan {
    let Some(text) = &desired.conflist else {
        let restore = actual
            .others
            .iter()
            .filter_map(|name| name.strip_suffix(ASIDE))
            .map(str::to_owned);
        // Without a file of ours there is nothing that we could have moved aside.
        let ours = actual.text.is_some() || actual.linked;
        return Plan {
            remove: ours,
            restore: if ours { restore.collect() } else { Vec::new() },
            ..Plan::default()
        };
    };
    let foreign = |name: &&String| {
        name.as_str() != FILE
            && [".conf", ".conflist", ".json"]
                .iter()
                .any(|suffix| name.ends_with(suffix))
    };
    Plan {
        write: (actual.text.as_ref() != Some(text)).then(|| text.clone()),
        link: !actual.linked,
        aside: actual.others.iter().filter(foreign).cloned().collect(),
        ..Plan::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::cni::Cni as Desired;

    fn desired() -> Desired {
        Desired {
            conflist: Some("{}".to_owned()),
        }
    }

    #[test]
    fn what_stands_is_left_alone() {
        let actual = Actual {
            text: Some("{}".to_owned()),
            linked: true,

            others: vec!["README".to_owned(), format!("10-flannel.conflist{ASIDE}")],
        };
        assert_eq!(plan(&desired(), &actual), Plan::default());
    }

    #[test]
    fn foreign_configurations_are_moved_aside_and_back() {
        let names = ["10-flannel.conflist", "87-podman.conf", "cni.json"]
            .map(str::to_owned)
            .to_vec();
        let actual = Actual {
            others: names.clone(),
            ..Actual::default()
        };
        let grown = plan(&desired(), &actual);
        assert_eq!(grown.aside, names);
        assert!(grown.link && grown.write.is_some());

        let others = names.iter().map(|name| format!("{name}{ASIDE}")).collect();
        let actual = Actual {
            text: Some("{}".to_owned()),
            linked: true,
            others,
        };
        let shrunk = plan(&Desired::default(), &actual);
        assert_eq!(shrunk.restore, names);
        assert!(shrunk.remove);
    }

    #[test]
    fn cleanup_of_a_node_that_was_never_ours_does_nothing() {
        let actual = Actual {
            others: vec!["10-flannel.conflist".to_owned()],
            ..Actual::default()
        };
        assert_eq!(plan(&Desired::default(), &actual), Plan::default());
    }
}
