use time::Duration;

use super::*;
use crate::pki::inspect::{Verdict, judge};
use crate::pki::rotation::{Authorities, CERTIFICATE, Entries, KEY};

fn start() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_795_392_000).unwrap()
}

fn entries() -> Entries {
    let ca = Authority::generate("fabedge", start()).unwrap();
    Entries::from([(CERTIFICATE.to_owned(), ca.certificate), (KEY.to_owned(), ca.key)])
}

#[test]
fn what_is_revoked_is_renewed_and_told_in_lists_that_grow_in_number() {
    let now = start();
    let mut kept = entries();
    let at = |kept: &Entries, now| Authorities::load(kept, now).unwrap();
    let revoke = |kept: &Entries, more: &[(String, Option<String>)], live: &str, now| {
        let (kept, failed) = at(kept, now).revoke(kept, more, |name| name == live, now);
        assert!(failed.is_empty(), "{failed:?}");
        kept
    };
    assert_eq!(
        revoke(&kept, &[], "", now),
        None,
        "nothing to say, nothing to keep"
    );
    let leaf = at(&kept, now).current().issue("fabedge.edge1", now).unwrap();
    let verdict = |kept: &Entries, now| {
        let trust = at(kept, now).trust().clone();
        judge(&leaf.certificate, &leaf.key, "fabedge.edge1", &trust, now)
    };
    assert!(matches!(verdict(&kept, now), Verdict::Keep { .. }));

    // The node left: its name is nobody's, and nobody is told.
    let serial = serial_of(&leaf.certificate).unwrap();
    let taken = [(serial.clone(), Some("fabedge.edge1".to_owned()))];
    kept = revoke(&kept, &taken, "fabedge.edge2", now).unwrap();
    assert!(at(&kept, now).trust().lists().is_empty());
    assert!(at(&kept, now).lists_fit(|name| name == "fabedge.edge2"));

    // Its name is given again.
    assert!(!at(&kept, now).lists_fit(|name| name == "fabedge.edge1"));
    kept = revoke(&kept, &[], "fabedge.edge1", now).unwrap();
    assert_eq!(verdict(&kept, now), Verdict::Renew("its certificate is revoked"));
    assert_eq!(revoke(&kept, &[], "fabedge.edge1", now), None, "signed once");

    // A later list has a greater number. A new authority has signed nothing of what was revoked before it was there.
    let number = |kept: &Entries| {
        let all = at(kept, now);
        let ders: Vec<&[u8]> = all.trust().all().collect();
        let lists = read(all.trust().lists(), &ders).unwrap();
        lists.iter().map(|(_, list)| list.number).collect::<Vec<_>>()
    };
    let first = number(&kept);
    kept = at(&kept, now)
        .step(&kept, "fabedge", Some(Duration::seconds(30)), now)
        .unwrap()
        .unwrap();
    assert_eq!(revoke(&kept, &[], "fabedge.edge1", now), None);
    assert!(at(&kept, now).lists_fit(|name| name == "fabedge.edge1"));
    kept = revoke(&kept, &[("badcafe".to_owned(), None)], "fabedge.edge1", now).unwrap();
    assert!(at(&kept, now).lists_fit(|name| name == "fabedge.edge1"));
    let both = number(&kept);
    assert_eq!((first.len(), both.len()), (1, 2));
    assert!(both.iter().all(|number| *number > first[0]));
    assert!(matches!(verdict(&kept, now), Verdict::Renew(_)));

    // It would have ended by now.
    let later = now + LEAF_LIFETIME;
    kept = revoke(&kept, &[], "fabedge.edge1", later).unwrap();
    assert!(at(&kept, later).trust().revoked().is_empty());
    assert_eq!(kept["revoked"], "");
}

#[test]
fn a_list_of_another_authority_is_refused() {
    let (ours, theirs) = (entries(), entries());
    let load = |entries: &Entries| Authorities::load(entries, start()).unwrap();
    let more = [("7".to_owned(), None)];
    let theirs = load(&theirs).revoke(&theirs, &more, |_| true, start()).0.unwrap();
    let ours = load(&ours).trust().clone();
    assert!(ours.clone().with_lists("").is_ok());
    for (text, why) in [
        (theirs["ca.crl"].as_str(), "no authority here"),
        (theirs["ca.crt"].as_str(), "it holds a CERTIFICATE"),
        ("nothing", "it holds none"),
    ] {
        let error = ours.clone().with_lists(text).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn serial_numbers_are_read_as_tools_print_them() {
    for (text, read) in [
        ("serial=00AB12\n", Some("ab12")),
        ("0:AB:12", Some("ab12")),
        ("xyz", None),
        ("", None),
        ("0", None),
        (&"f".repeat(41), None),
    ] {
        assert_eq!(serial(text).as_deref(), read, "{text:?}");
    }
    assert_eq!(octets("ab1"), [0x0a, 0xb1]);
}

#[test]
fn what_is_kept_reads_back_and_is_bounded() {
    let mut revocations = Revocations::default();
    let authorities = BTreeSet::from(["aa".to_owned(), "bb".to_owned()]);
    revocations.add(&[("1".to_owned(), None)], &authorities, start());
    let named = |serial: usize| (format!("a{serial}"), Some("fabedge.edge1".to_owned()));
    revocations.add(&[named(0)], &authorities, start());
    let later: Vec<_> = (1..LIMIT).map(named).collect();
    revocations.add(&later, &authorities, start() + Duration::days(1));
    assert_eq!(Revocations::read(&revocations.text()).unwrap(), revocations);
    let left = revocations.wanted(|_| true).of("bb");
    assert_eq!(left.len(), LIMIT);
    assert!(left.contains_key("1") && !left.contains_key("a0"));
    assert!(matches!(
        Revocations::read("ab12 yesterday"),
        Err(Error::Revoked(_))
    ));
}
