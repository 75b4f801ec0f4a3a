use std::collections::BTreeMap;

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::net::UnixListener;

use super::super::messages::{Conns, ListSa, Stats};
use super::*;

/// A charon that reads requests and answers each with the next of `answers`, raw; none: it closes the connection.
struct Fake {
    folder: TempDir,
    task: tokio::task::JoinHandle<Vec<Vec<u8>>>,
}

impl Fake {
    fn new(answers: Vec<Vec<u8>>) -> Self {
        let folder = TempDir::new().unwrap();
        let listener = UnixListener::bind(folder.path().join("charon.vici")).unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut requests = Vec::new();
            for answer in answers {
                let Ok(length) = stream.read_u32().await else {
                    break;
                };
                let mut request = vec![0; length as usize];
                stream.read_exact(&mut request).await.unwrap();
                requests.push(request);
                stream.write_all(&answer).await.unwrap();
            }
            requests
        });
        Self { folder, task }
    }

    async fn connect(&self) -> Connection {
        let mut connection = Connection::open(&self.folder.path().join("charon.vici"))
            .await
            .unwrap();
        connection.limit = Duration::from_millis(200);
        connection
    }
}

fn packet(kind: u8, name: Option<&str>, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![kind];
    if let Some(name) = name {
        body.push(name.len() as u8);
        body.extend(name.as_bytes());
    }
    body.extend(payload);
    [&(body.len() as u32).to_be_bytes()[..], &body].concat()
}

fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    serde_vici::to_vec(&fields.iter().copied().collect::<BTreeMap<_, _>>()).unwrap()
}

#[tokio::test]
async fn a_call_sends_its_name_and_reads_the_reply() {
    let conns = serde_vici::to_vec(&BTreeMap::from([("conns", vec!["a", "b"])])).unwrap();
    let fake = Fake::new(vec![
        packet(CMD_RESPONSE, None, &conns),
        packet(CMD_RESPONSE, None, &[]),
    ]);
    let mut connection = fake.connect().await;
    let reply: Conns = connection.call("get-conns", &Empty {}).await.unwrap();
    assert_eq!(reply.conns, ["a", "b"]);
    // An empty reply is an empty list.
    let reply: Conns = connection.call("get-conns", &Empty {}).await.unwrap();
    assert!(reply.conns.is_empty() && connection.usable());
    assert_eq!(
        fake.task.await.unwrap()[0],
        [&[CMD_REQUEST, 9][..], b"get-conns"].concat()
    );
}

#[tokio::test]
async fn a_refusal_is_told_in_charons_words_and_harms_nothing() {
    let no = fields(&[("success", "no"), ("errmsg", "no matching SAs")]);
    let fake = Fake::new(vec![
        packet(CMD_RESPONSE, None, &no),
        packet(CMD_UNKNOWN, None, &[]),
    ]);
    let mut connection = fake.connect().await;
    let error = connection.command("terminate", &Empty {}).await.unwrap_err();
    assert_eq!(error.to_string(), "terminate: charon refused: no matching SAs");
    let error = connection.command("fly", &Empty {}).await.unwrap_err();
    assert!(matches!(error, Error::Unknown { .. }), "{error}");
    assert!(connection.usable());
}

#[tokio::test]
async fn a_stream_ends_with_the_reply() {
    let answers = [
        packet(EVENT, Some("list-sa"), &fields(&[("n", "1")])),
        packet(EVENT, Some("other"), &fields(&[("n", "9")])),
        packet(EVENT, Some("list-sa"), &fields(&[("n", "2")])),
        packet(CMD_RESPONSE, None, &[]),
    ];
    let fake = Fake::new(vec![
        packet(EVENT_CONFIRM, None, &[]),
        answers.concat(),
        packet(EVENT_CONFIRM, None, &[]),
    ]);
    let mut seen = Vec::new();
    let mut connection = fake.connect().await;
    connection
        .stream(
            "list-sas",
            "list-sa",
            &Empty {},
            Duration::ZERO,
            |message: BTreeMap<String, String>| {
                seen.push(message["n"].clone());
            },
        )
        .await
        .unwrap();
    assert_eq!(seen, ["1", "2"]);
    assert!(connection.usable());
}

#[tokio::test]
async fn a_hung_charon_is_given_up() {
    let fake = Fake::new(vec![Vec::new(), Vec::new()]);
    let mut connection = fake.connect().await;
    let error = connection.command("stats", &Empty {}).await.unwrap_err();
    assert!(
        matches!(error, Error::Timeout { .. }) && error.to_string().contains("hangs"),
        "{error}"
    );
    // Its answer may still come: another request would take it for its own.
    assert!(!connection.usable());
}

#[tokio::test]
async fn a_request_that_is_cut_short_spoils_the_connection() {
    let fake = Fake::new(vec![Vec::new(), Vec::new()]);
    let mut connection = fake.connect().await;
    tokio::select! {
        biased;
        result = connection.command("stats", &Empty {}) => panic!("{result:?}"),
        () = tokio::time::sleep(Duration::from_millis(20)) => {}
    }
    assert!(!connection.usable());
}

#[tokio::test]
async fn nonsense_is_an_error() {
    for (answer, words) in [
        (0u32.to_be_bytes().to_vec(), "0 bytes"),
        (u32::MAX.to_be_bytes().to_vec(), "4294967295 bytes"),
        (packet(EVENT_CONFIRM, None, &[]), "type 5"),
        (packet(99, None, &[]), "type 99"),
        (packet(EVENT, None, &[]), "without a name"),
        (packet(EVENT, None, &[9, b'x']), "cut short"),
        (packet(EVENT, None, &[1, 0xff]), "utf-8"),
        (packet(CMD_RESPONSE, None, b"\x03\x04name"), "makes no sense"),
        (Vec::new(), "closed"),
    ] {
        let closes = answer.is_empty();
        let fake = Fake::new(if closes { Vec::new() } else { vec![answer] });
        let mut connection = fake.connect().await;
        let error = connection.call::<_, Stats>("stats", &Empty {}).await.unwrap_err();
        assert!(error.to_string().contains(words), "{words}: {error}");
        assert!(!connection.usable());
    }
}

#[tokio::test]
async fn an_absent_charon_is_named_with_the_mend() {
    let error = Connection::open(Path::new("/nonexistent/charon.vici"))
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("/nonexistent/charon.vici") && text.contains("strongswan container running"),
        "{text}"
    );
}

proptest! {
    #[test]
    fn no_reply_makes_us_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        // The result does not matter, that there is one does.
        drop(decode::<ListSa>("list-sas", &bytes));
        drop(decode::<Stats>("stats", &bytes));
        drop(split_name("events", &bytes));
    }

    #[test]
    fn no_nearly_good_reply_makes_us_panic(cut in 0usize..150, at in 0usize..150, to in any::<u8>()) {
        let child = BTreeMap::from([("name", "c"), ("uniqueid", "1"), ("state", "INSTALLED"), ("spi-in", "c0ffee00")]);
        let good = serde_vici::to_vec(&BTreeMap::from([("x", BTreeMap::from([("child-sas", BTreeMap::from([("c-1", child)]))]))])).unwrap();
        let mut bytes = good[..cut.min(good.len())].to_vec();
        if let Some(byte) = bytes.get_mut(at) {
            *byte = to;
        }
        drop(decode::<ListSa>("list-sas", &bytes));
    }
}

#[tokio::test]
async fn a_full_queue_is_waited_for() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, accept, bind, connect, listen, socket};
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("charon.vici");
    let stream = || socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let address = SocketAddrUnix::new(&path).unwrap();
    let listener = stream();
    bind(&listener, &address).unwrap();
    // Room for one.
    listen(&listener, 0).unwrap();
    let first = stream();
    connect(&first, &address).unwrap();
    let second = tokio::spawn(async move { Connection::open(&path).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!second.is_finished());
    accept(&listener).unwrap();
    second.await.unwrap().unwrap();
}
