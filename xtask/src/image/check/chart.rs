//! What the chart says of its containers, read from its templates as they stand.

use std::path::Path;

use anyhow::{Context, Result};

/// The templates that say how containers run.
pub struct Chart {
    agent: String,
    strongswan: String,
    prepare: String,
}

impl Chart {
    /// Reads them.
    pub fn read(repo: &Path) -> Result<Chart> {
        let section = |file: &str, start: &str, end: &str| {
            let path = repo.join("charts/fabedge/templates").join(file);
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            between(&text, start, end)
                .map(str::to_owned)
                .with_context(|| format!("{} has nothing between `{start}` and `{end}`", path.display()))
        };
        Ok(Chart {
            agent: section("_helpers.tpl", "define \"fabedge.agent\"", "{{- end -}}\n\n")?,
            strongswan: section("_helpers.tpl", "define \"fabedge.strongswan\"", "{{- end -}}\n\n")?,
            prepare: section(
                "agent-template.yaml",
                "- name: environment-prepare",
                "    containers:\n",
            )?,
        })
    }

    /// The capabilities of an agent that is not privileged, all others being dropped.
    pub fn agent_capabilities(&self) -> Result<Vec<String>> {
        capabilities(&self.agent).context("the agents' containers drop or add no capabilities")
    }

    /// The capabilities of charon that leaves ESP to the kernel, all others being dropped.
    pub fn strongswan_capabilities(&self) -> Result<Vec<String>> {
        capabilities(&self.strongswan).context("the container strongswan drops or adds no capabilities")
    }

    /// The variable that makes charon do ESP itself.
    pub fn libipsec(&self) -> Result<String> {
        let value = between(&self.strongswan, "- name: STRONGSWAN_CONF\n    value: ", "\n");
        Ok(format!(
            "STRONGSWAN_CONF={}",
            value.context("the chart sets no STRONGSWAN_CONF")?.trim()
        ))
    }

    /// The capabilities of the container environment-prepare.
    pub fn prepare_capabilities(&self) -> Result<Vec<String>> {
        capabilities(&self.prepare).context("the container environment-prepare drops or adds no capabilities")
    }

    /// The script of the container environment-prepare.
    pub fn prepare_script(&self) -> Result<&str> {
        between(&self.prepare, "- |\n", "      securityContext:")
            .context("the container environment-prepare has no script")
    }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    Some(rest.split_once(end)?.0)
}

/// `add` of a securityContext that drops all others, in the kernel's names.
fn capabilities(text: &str) -> Option<Vec<String>> {
    let list = between(text, "drop: [ALL]\n", "]")?
        .trim()
        .strip_prefix("add: [")?;
    Some(
        list.split(',')
            .map(|name| format!("CAP_{}", name.trim()))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_chart_as_it_stands() {
        let repo = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let chart = Chart::read(repo).unwrap();
        assert_eq!(
            chart.strongswan_capabilities().unwrap(),
            ["CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"]
        );
        assert!(
            chart
                .agent_capabilities()
                .unwrap()
                .contains(&"CAP_NET_ADMIN".to_owned())
        );
        assert_eq!(
            chart.libipsec().unwrap(),
            "STRONGSWAN_CONF=/etc/strongswan-libipsec.conf"
        );
        assert_eq!(chart.prepare_capabilities().unwrap(), ["CAP_DAC_OVERRIDE"]);
        assert!(chart.prepare_script().unwrap().trim_end().ends_with("done"));
    }

    #[test]
    fn a_container_that_keeps_capabilities_is_not_taken_for_one_that_drops_them() {
        assert_eq!(capabilities("capabilities:\n  add: [NET_ADMIN]\n"), None);
        assert_eq!(capabilities("drop: [ALL]\nprivileged: true\n"), None);
    }
}
