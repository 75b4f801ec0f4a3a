//! The I/O of [`super`].

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{ASIDE, Actual, FILE, Plan, plan};
use crate::source::write_private;
use crate::subsystem::{Error, Outcome, Phase, Subsystem};

/// The CNI configuration subsystem.
#[derive(Debug)]
pub struct Cni {
    run_dir: PathBuf,
    conf_dir: PathBuf,
}

impl Cni {
    /// Writes below `run_dir` and links from `conf_dir`.
    pub fn new(run_dir: &Path, conf_dir: &Path) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            conf_dir: conf_dir.to_owned(),
        }
    }

    fn file(&self) -> PathBuf {
        self.run_dir.join(FILE)
    }

    fn link(&self) -> PathBuf {
        self.conf_dir.join(FILE)
    }

    fn observe(&self) -> io::Result<Actual> {
        let text = match std::fs::read_to_string(self.file()) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let target = std::fs::read_link(self.link()).ok();
        let linked = target.as_ref() == Some(&self.file());
        let mut others = match std::fs::read_dir(&self.conf_dir) {
            Ok(entries) => entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<io::Result<Vec<_>>>()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        others.retain(|name| name != FILE);
        others.sort();
        Ok(Actual { text, linked, others })
    }

    fn relink(&self) -> io::Result<()> {
        std::fs::create_dir_all(&self.conf_dir)?;
        let temporary = self.conf_dir.join(format!(".{FILE}.new"));
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => symlink(self.file(), &temporary)?,
        }
        std::fs::rename(temporary, self.link())
    }
}

impl Subsystem for Cni {
    type Desired = crate::desired::cni::Cni;
    type Plan = Plan;

    const NAME: &'static str = "cni";

    async fn plan(&mut self, desired: &Self::Desired) -> Result<Plan, Error> {
        Ok(plan(desired, &self.observe()?))
    }

    async fn apply(&mut self, plan: &Plan, phase: Phase) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        let aside = |name: &str| self.conf_dir.join(format!("{name}{ASIDE}"));
        match phase {
            Phase::Grow => {
                for name in &plan.aside {
                    let result = std::fs::rename(self.conf_dir.join(name), aside(name));
                    outcomes.push(Outcome::new(
                        "move aside",
                        format!("CNI configuration {name}"),
                        result,
                    ));
                }
                if let Some(text) = &plan.write {
                    let result = write_private(&self.file(), text.as_bytes());
                    outcomes.push(Outcome::new("write", self.file().display(), result));
                }
                if plan.link {
                    outcomes.push(Outcome::new("link", self.link().display(), self.relink()));
                }
            }
            Phase::Shrink => {
                if plan.remove {
                    for path in [self.link(), self.file()] {
                        let result = match std::fs::remove_file(&path) {
                            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                            _ => Ok(()),
                        };
                        outcomes.push(Outcome::new("delete", path.display(), result));
                    }
                }
                for name in &plan.restore {
                    let result = std::fs::rename(aside(name), self.conf_dir.join(name));
                    outcomes.push(Outcome::new(
                        "move back",
                        format!("CNI configuration {name}"),
                        result,
                    ));
                }
            }
        }
        outcomes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::cni::Cni as Desired;

    async fn reconcile(cni: &mut Cni, desired: &Desired) -> Plan {
        let plan = cni.plan(desired).await.unwrap();
        for phase in [Phase::Grow, Phase::Shrink] {
            for outcome in cni.apply(&plan, phase).await {
                outcome.result.unwrap();
            }
        }
        plan
    }

    #[tokio::test]
    async fn written_linked_and_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let (run, conf) = (dir.path().join("run"), dir.path().join("net.d"));
        std::fs::create_dir(&conf).unwrap();
        std::fs::write(conf.join("10-flannel.conflist"), "theirs").unwrap();
        // As the predecessor left it: a regular file of the same name.
        std::fs::write(conf.join(FILE), "old").unwrap();
        let mut cni = Cni::new(&run, &conf);
        let desired = Desired {
            conflist: Some("{}\n".to_owned()),
        };

        reconcile(&mut cni, &desired).await;
        assert_eq!(std::fs::read_to_string(conf.join(FILE)).unwrap(), "{}\n");
        assert!(!conf.join("10-flannel.conflist").exists());
        assert_eq!(
            reconcile(&mut cni, &desired).await,
            Plan::default(),
            "a second pass has nothing to do"
        );

        reconcile(&mut cni, &Desired::default()).await;
        assert_eq!(
            std::fs::read_to_string(conf.join("10-flannel.conflist")).unwrap(),
            "theirs"
        );
        assert!(!conf.join(FILE).exists() && !run.join(FILE).exists());
    }
}
