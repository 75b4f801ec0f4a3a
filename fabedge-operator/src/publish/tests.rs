use std::os::unix::fs::{MetadataExt, PermissionsExt};

use fabedge_common::config::{Endpoint, EndpointType, Peer, VERSION, Via};
use tempfile::TempDir;
use time::Duration;

use super::*;
use crate::snapshot::distinguished_name;

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_795_392_000).unwrap()
}

fn authority() -> Authority {
    let new = Authority::generate("fabedge", now()).unwrap();
    Authority::load(&new.certificate, &new.key, now()).unwrap()
}

fn endpoint(name: &str, kind: EndpointType, subnets: &str) -> Endpoint {
    let name = format!("fabedge.{name}");
    Endpoint {
        id: distinguished_name(&name),
        name,
        public_addresses: Vec::new(),
        subnets: vec![subnets.parse().unwrap()],
        node_subnets: Vec::new(),
        service_subnets: Vec::new(),
        kind,
        port: None,
    }
}

fn document(name: &str, subnets: &str) -> NodeConfig {
    let connector = Peer {
        endpoint: endpoint("connector", EndpointType::Connector, "10.233.64.0/24"),
        via: Via::Direct,
        initiate: true,
        relays: Vec::new(),
    };
    NodeConfig {
        version: VERSION,
        generation: 0,
        endpoint: endpoint(name, EndpointType::EdgeNode, subnets),
        peers: vec![connector.into()],
        network_subnets: Vec::new(),
        mediator: None,
    }
}

fn documents(of: &[(&str, &str)]) -> BTreeMap<String, NodeConfig> {
    of.iter()
        .map(|(name, subnets)| ((*name).to_owned(), document(name, subnets)))
        .collect()
}

/// Every file below the folder with its inode: a file that is replaced has another one.
fn inodes(dir: &TempDir) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for folder in fs::read_dir(dir.path()).unwrap() {
        for file in fs::read_dir(folder.unwrap().path()).unwrap() {
            let file = file.unwrap();
            let name = file
                .path()
                .strip_prefix(dir.path())
                .unwrap()
                .to_string_lossy()
                .into_owned();
            found.insert(name, file.metadata().unwrap().ino());
        }
    }
    found
}

fn generation_of(dir: &TempDir, name: &str) -> u64 {
    let text = fs::read_to_string(dir.path().join(name).join(DOCUMENT)).unwrap();
    NodeConfig::parse(&text).unwrap().generation
}

#[test]
fn only_what_changed_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority();
    let mut output = Output::new(dir.path());
    let all = documents(&[("edge1", "10.0.1.0/24"), ("edge2", "10.0.2.0/24")]);
    let report = output.publish(&all, Some(&authority), now());
    assert_eq!(report.documents, ["edge1", "edge2"]);
    assert_eq!(report.certificates.len(), 2);
    assert!(report.failures.is_empty());
    let first = inodes(&dir);
    assert_eq!(first.len(), 8, "no temporary file stays: {first:?}");
    let mode = |file: &str| fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("edge1/tls.key"), 0o600);
    assert_eq!(mode("edge1/tunnels.yaml"), 0o644);

    // The same again, by what is remembered and by what lies on the disk.
    for mut output in [output.clone(), Output::new(dir.path())] {
        let report = output.publish(&all, Some(&authority), now() + Duration::days(1));
        assert!(report.documents.is_empty() && report.certificates.is_empty());
        assert_eq!(
            output.renew_at(),
            Some(now() - Duration::hours(1) + Duration::days(60))
        );
    }
    assert_eq!(inodes(&dir), first);

    let changed = documents(&[("edge1", "10.0.1.0/24"), ("edge2", "10.0.3.0/24")]);
    assert_eq!(
        output.publish(&changed, Some(&authority), now()).documents,
        ["edge2"]
    );
    let second = inodes(&dir);
    let differ: Vec<_> = second
        .iter()
        .filter(|(name, inode)| first[*name] != **inode)
        .map(|(name, _)| name)
        .collect();
    assert_eq!(differ, ["edge2/tunnels.yaml"]);
}

#[test]
fn a_generation_never_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut output = Output::new(dir.path());
    let clock = now().unix_timestamp() as u64;
    let publish = |output: &mut Output, subnets: &str, at: OffsetDateTime| {
        output.publish(&documents(&[("edge1", subnets)]), None, at);
        generation_of(&dir, "edge1")
    };
    assert_eq!(publish(&mut output, "10.0.1.0/24", now()), clock);
    assert_eq!(
        publish(&mut output, "10.0.1.0/24", now() + Duration::days(1)),
        clock,
        "unchanged"
    );
    assert_eq!(
        publish(&mut output, "10.0.2.0/24", now()),
        clock + 1,
        "twice in a second"
    );
    assert_eq!(
        publish(&mut output, "10.0.3.0/24", now() - Duration::days(9)),
        clock + 2,
        "the clock went back"
    );
    let later = now() + Duration::days(1);
    assert_eq!(
        publish(&mut output, "10.0.4.0/24", later),
        later.unix_timestamp() as u64
    );

    // A document that was damaged is replaced, and its generation still counts where it can be read.
    let path = dir.path().join("edge1").join(DOCUMENT);
    let damaged = format!("version: 1\ngeneration: {}\nid: C=CN", u64::MAX - 5);
    fs::write(&path, damaged).unwrap();
    assert_eq!(
        publish(&mut Output::new(dir.path()), "10.0.4.0/24", later),
        u64::MAX - 4
    );
    fs::write(&path, [0xff, 0xfe]).unwrap();
    assert_eq!(
        publish(&mut Output::new(dir.path()), "10.0.4.0/24", later),
        later.unix_timestamp() as u64
    );
}

#[test]
fn certificates_follow_their_authority_and_their_age() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (authority(), authority());
    let all = documents(&[("edge1", "10.0.1.0/24")]);
    let read = |file: &str| fs::read_to_string(dir.path().join("edge1").join(file)).unwrap();
    let mut output = Output::new(dir.path());
    output.publish(&all, Some(&old), now());
    let (first, document) = (read("tls.crt"), read(DOCUMENT));

    let report = output.publish(&all, Some(&old), now() + Duration::days(60));
    assert_eq!(
        report.certificates[0].1,
        "two thirds of its certificate's life are over"
    );
    assert_ne!(read("tls.crt"), first);

    let report = Output::new(dir.path()).publish(&all, Some(&new), now());
    assert_eq!(report.certificates[0].1, "its certificate is of another CA");
    assert_eq!(read("ca.crt"), new.certificate());
    assert_eq!(read(DOCUMENT), document, "no reason to touch the document");
}

#[test]
fn without_an_authority_documents_are_published_and_certificates_caught_up() {
    let dir = tempfile::tempdir().unwrap();
    let all = documents(&[("edge1", "10.0.1.0/24")]);
    let mut output = Output::new(dir.path());
    assert_eq!(output.publish(&all, None, now()).documents, ["edge1"]);
    assert!(!dir.path().join("edge1/tls.crt").exists());
    assert_eq!(
        output.publish(&all, Some(&authority()), now()).certificates.len(),
        1
    );
}

#[test]
fn one_that_cannot_be_written_does_not_stop_the_others() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("edge1"), "a file where a folder should be").unwrap();
    let mut output = Output::new(dir.path());
    let all = documents(&[("edge1", "10.0.1.0/24"), ("edge2", "10.0.2.0/24")]);
    let report = output.publish(&all, Some(&authority()), now());
    assert_eq!(report.documents, ["edge2"]);
    assert!(
        report.failures[0].to_string().contains("edge1"),
        "{:?}",
        report.failures
    );
    fs::remove_file(dir.path().join("edge1")).unwrap();
    assert_eq!(
        output.publish(&all, Some(&authority()), now()).documents,
        ["edge1"],
        "tried again"
    );
}

#[test]
fn only_what_is_ours_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut output = Output::new(dir.path());
    let authority = authority();
    let all = documents(&[
        ("edge1", "10.0.1.0/24"),
        ("edge2", "10.0.2.0/24"),
        ("edge3", "10.0.3.0/24"),
    ]);
    output.publish(&all, Some(&authority), now());
    fs::write(dir.path().join("edge2/notes"), "mine").unwrap();
    fs::create_dir_all(dir.path().join("_ca")).unwrap();
    fs::create_dir_all(dir.path().join("somebody")).unwrap();
    fs::write(dir.path().join("somebody/tunnels.yaml"), "name: other.somebody\n").unwrap();

    let left = documents(&[("edge1", "10.0.1.0/24")]);
    let keep = BTreeSet::from(["edge3".to_owned()]);
    let mut report = output.publish(&left, Some(&authority), now());
    output.prune(&left, &keep, "fabedge", &mut report);
    assert_eq!(report.removed, ["edge2"]);
    assert!(report.failures.is_empty());
    let mut names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["_ca", "edge1", "edge2", "edge3", "somebody"]);
    let rest: Vec<_> = fs::read_dir(dir.path().join("edge2"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(rest, ["notes"], "no key of a node that is gone");
}

#[test]
fn what_was_published_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let all = documents(&[("edge1", "10.0.1.0/24"), ("edge2", "10.0.2.0/24")]);
    Output::new(dir.path()).publish(&all, None, now());
    fs::write(dir.path().join("edge2").join(DOCUMENT), "damaged").unwrap();
    let previous = Output::new(dir.path()).previous("fabedge").unwrap();
    assert_eq!(
        previous.subnets,
        BTreeMap::from([("edge1".to_owned(), vec!["10.0.1.0/24".parse().unwrap()])])
    );
    assert!(
        Output::new(dir.path())
            .previous("other")
            .unwrap()
            .subnets
            .is_empty()
    );
    assert!(
        Output::new(dir.path().join("none"))
            .previous("fabedge")
            .unwrap()
            .subnets
            .is_empty()
    );
    assert!(
        Output::new(dir.path().join("edge1").join(DOCUMENT))
            .previous("fabedge")
            .is_err()
    );
}
