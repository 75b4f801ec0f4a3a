use std::io::Write as _;
use std::process::{Command, Stdio};

use super::world::World;

/// What promtool has against metrics.
fn faults(metrics: &str) -> String {
    let program = std::env::var("FABEDGE_PROMTOOL")
        .expect("FABEDGE_PROMTOOL is not set: run `cargo xtask test --only k8s`");
    let mut promtool = Command::new(program)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(metrics.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let mut said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    if !output.status.success() {
        said.push_str(&output.status.to_string());
    }
    said
}

#[test]
fn metrics_tell_what_was_done_and_promtool_has_nothing_against_them() {
    assert!(faults("# TYPE fabedge_things counter\nfabedge_things 1\n").contains("_total"));
    let mut world = World::new("metrics");
    world.listen();
    world.start("one");
    world.runtime.block_on(async {
        world.template("agent:1", "--log=info").await;
        world.add_connector().await;
        for number in 1..=2 {
            world.add_edge(number).await;
            world.agent(number, true).await;
        }
        world.join("shops", &[1, 2, 9]).await;
        world
            .wait_until_told("it is told", ("shops", "Ready"), |count, _| count == "2/3")
            .await;
        let metrics = async || world.get("/metrics").unwrap_or_default().1;
        let value = |metrics: &str, name: &str| -> f64 {
            let name = format!("fabedge_operator_{name}");
            let line = metrics
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
                .parse()
                .unwrap()
        };
        // Each comes in its time, the second touch and the Event last.
        let counted = |metrics: &String| {
            let least = [
                ("leader", 1.0),
                ("passes_total", 2.0),
                ("documents_written_total", 5.0),
                ("certificates_issued_total", 3.0),
                ("events_written_total", 1.0),
                ("statuses_written_total", 1.0),
                ("warnings", 1.0),
            ];
            least.iter().all(|(name, least)| value(metrics, name) >= *least)
                && value(metrics, "failures") == 0.0
        };
        let metrics = world.wait_to_see("all is counted", metrics, counted).await;
        assert_eq!(faults(&metrics), "");
        let readyz = async || world.get("/readyz");
        world
            .wait_to_see("/readyz", readyz, |said| {
                said.as_ref().is_some_and(|(code, _)| *code == 200)
            })
            .await;
    });
}
