use super::*;

const RESULT: &str = r#"{
  "kind": "cniCacheV1", "containerId": "c1", "config": "e30=", "ifName": "eth0", "networkName": "fabedge",
  "cniArgs": [["K8S_POD_NAME", "a"]],
  "result": {
    "cniVersion": "0.3.1",
    "interfaces": [
      {"name": "br-fabedge", "mac": "02:00:00:00:00:01"},
      {"name": "vethabcd", "mac": "02:00:00:00:00:02"},
      {"name": "eth0", "mac": "0a:58:0a:e9:42:02", "sandbox": "/run/netns/p"}
    ],
    "ips": [
      {"version": "4", "interface": 2, "address": "10.233.66.2/24", "gateway": "10.233.66.1"},
      {"version": "6", "interface": 2, "address": "fd00:233:64:66::2/64", "gateway": "fd00:233:64:66::1"}
    ],
    "dns": {}
  }
}"#;

fn expected() -> LocalPod {
    LocalPod {
        container: "c1".to_owned(),
        interfaces: vec!["br-fabedge".to_owned(), "vethabcd".to_owned()],
        mac: [0x0a, 0x58, 0x0a, 0xe9, 0x42, 0x02],
        addresses: vec![
            "10.233.66.2".parse().unwrap(),
            "fd00:233:64:66::2".parse().unwrap(),
        ],
        shaped: false,
    }
}

#[test]
fn a_result_names_interfaces_addresses_and_limits() {
    assert_eq!(parse(RESULT.as_bytes()).unwrap(), Some(expected()));
    let with =
        |args: &str| RESULT.replace("\"cniArgs\"", &format!("\"capabilityArgs\": {args}, \"cniArgs\""));
    for (args, shaped) in [
        ("{}", false),
        ("null", false),
        (r#"{"bandwidth": {}}"#, false),
        (r#"{"bandwidth": null}"#, false),
        (
            r#"{"bandwidth": {"ingressRate": 1000, "ingressBurst": 1000}}"#,
            true,
        ),
        (r#"{"bandwidth": {"egressRate": 1000}}"#, true),
        (r#"{"portMappings": [{"hostPort": 80}]}"#, false),
    ] {
        assert_eq!(
            parse(with(args).as_bytes()).unwrap().unwrap().shaped,
            shaped,
            "{args}"
        );
    }
}

#[test]
fn results_without_what_is_needed_are_no_pods() {
    assert_eq!(
        parse(RESULT.replace("/run/netns/p", "").as_bytes()).unwrap(),
        None
    );
    assert_eq!(
        parse(RESULT.replace("0a:58:0a:e9:42:02", "").as_bytes()).unwrap(),
        None
    );
    assert_eq!(
        parse(
            RESULT
                .replace("0a:58:0a:e9:42:02", "0a:58:0a:e9:42:02:00")
                .as_bytes()
        )
        .unwrap(),
        None
    );
    for broken in [
        "",
        "{}",
        "[]",
        r#"{"kind": "cniCacheV2", "result": {}}"#,
        &RESULT[..200],
    ] {
        assert!(parse(broken.as_bytes()).is_err(), "{broken}");
    }
}

#[test]
fn one_malformed_file_does_not_hide_the_others_and_no_folder_means_no_pods() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read(dir.path()).unwrap(), []);
    let folder = dir.path().join("results");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("fabedge-c0-eth0"), "{").unwrap();
    std::fs::write(folder.join("fabedge-c1-eth0"), RESULT).unwrap();
    std::fs::create_dir_all(dir.path().join("cache/results")).unwrap();
    std::fs::write(
        dir.path().join("cache/results/fabedge-c2-eth0"),
        RESULT.replace("c1", "c2"),
    )
    .unwrap();
    let containers: Vec<String> = read(dir.path())
        .unwrap()
        .into_iter()
        .map(|pod| pod.container)
        .collect();
    assert_eq!(containers, ["c1", "c2"]);
}

#[test]
fn a_folder_that_cannot_be_read_is_an_error_and_not_a_node_without_pods() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("results"), "a file").unwrap();
    let error = read(dir.path()).unwrap_err();
    assert!(error.to_string().contains("results"), "{error}");
}
