//! What charon reports by itself, as a reason to make a pass.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;

use super::vici::{Connection, Error};

/// Events that may ask for work.
const NAMES: [&str; 5] = [
    "ike-updown",
    "ike-rekey",
    "ike-update",
    "child-updown",
    "child-rekey",
];

/// How long to wait before charon's socket is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Something happened at charon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// charon answers; it may have lost everything since it last did.
    Connected,
    /// charon is gone.
    Disconnected,
    /// Named as in the VICI protocol: `child-updown`.
    Changed(String),
}

/// The stream of events, which goes on across restarts of charon. Dropping it ends it.
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::Receiver<Event>,
}

impl Events {
    /// Listens at `socket`.
    pub fn new(socket: PathBuf) -> Self {
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            // Ends with the receiver.
            while listen(&socket, &sender).await.is_some() {
                tokio::time::sleep(RETRY).await;
            }
        });
        Self { receiver }
    }

    /// Waits for the next event. Cancel-safe. What happens while nobody waits is told as a few events at most: they
    /// are reasons to look, not a record.
    pub async fn next(&mut self) -> Event {
        match self.receiver.recv().await {
            Some(event) => event,
            // The task ends only with this receiver.
            None => std::future::pending().await,
        }
    }

    /// Forgets what has happened until now.
    pub fn skip(&mut self) {
        while self.receiver.try_recv().is_ok() {}
    }
}

/// One connection's worth of events; none when nobody wants them any more.
async fn listen(socket: &std::path::Path, sender: &mpsc::Sender<Event>) -> Option<()> {
    let mut connected = false;
    let error = loop_events(socket, sender, &mut connected).await?;
    if connected {
        tracing::warn!(error = %error, "charon is gone");
        sender.send(Event::Disconnected).await.ok()?;
    } else {
        tracing::debug!(error = %error, "no events from charon");
    }
    (!sender.is_closed()).then_some(())
}

async fn loop_events(
    socket: &std::path::Path,
    sender: &mpsc::Sender<Event>,
    connected: &mut bool,
) -> Option<Error> {
    let mut connection = match subscribe(socket).await {
        Ok(connection) => connection,
        Err(error) => return Some(error),
    };
    *connected = true;
    sender.send(Event::Connected).await.ok()?;
    loop {
        let event = tokio::select! {
            event = connection.next_event() => event,
            () = sender.closed() => return None,
        };
        match event {
            // A full channel holds reasons enough.
            Ok((name, _)) => drop(sender.try_send(Event::Changed(name))),
            Err(error) => return Some(error),
        }
    }
}

async fn subscribe(socket: &std::path::Path) -> Result<Connection, Error> {
    let mut connection = Connection::open(socket).await?;
    for name in NAMES {
        connection.subscribe(name).await?;
    }
    Ok(connection)
}
