//! The VICI connection to charon: framing, one request at a time, a time limit on each, a size limit on what is
//! read. Messages are encoded by `serde_vici`.
//!
//! The client of crate `rsvici` 0.1.5 is not used: when charon goes away its reader task spins and pending requests
//! wait for ever, and a request sent while an event arrives cuts that event in half (its read is not cancel-safe).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// charon answers from memory; one that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(10);

/// Pause before charon's full queue is tried again.
const QUEUE: Duration = Duration::from_millis(20);

/// charon's own limit for a message.
const MAX_PACKET: usize = 512 * 1024;

const CMD_REQUEST: u8 = 0;
const CMD_RESPONSE: u8 = 1;
const CMD_UNKNOWN: u8 = 2;
const EVENT_REGISTER: u8 = 3;
const EVENT_UNREGISTER: u8 = 4;
const EVENT_CONFIRM: u8 = 5;
const EVENT_UNKNOWN: u8 = 6;
const EVENT: u8 = 7;

/// Why charon could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody listens.
    #[error(
        "connecting to charon at {}: is the strongswan container running, and does its strongswan.conf name this socket?",
        socket.display()
    )]
    Absent {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("{command} over VICI: charon closed the connection")]
    Io {
        /// What was asked.
        command: &'static str,
        /// Why.
        source: io::Error,
    },
    /// No answer in time.
    #[error("{command} over VICI: no answer from charon within {} s; it hangs, restart it", limit.as_secs())]
    Timeout {
        /// What was asked.
        command: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// An answer that is none.
    #[error("{command} over VICI: charon's answer makes no sense: {reason}")]
    Malformed {
        /// What was asked.
        command: &'static str,
        /// What is wrong with the answer.
        reason: String,
    },
    /// charon does not know the command or event.
    #[error("{command} over VICI: this charon does not know `{what}`; strongSwan 5.9 or newer is needed")]
    Unknown {
        /// What was asked.
        command: &'static str,
        /// Which command or event.
        what: String,
    },
    /// charon said no.
    #[error("{command}: charon refused: {reason}")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// charon's words.
        reason: String,
    },
}

impl Error {
    /// Whether only this request failed and the connection may be used on.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Unknown { .. })
    }
}

/// The reply to a command that only does something.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    success: Option<bool>,
    errmsg: Option<String>,
}

impl Status {
    /// The reply as a result.
    ///
    /// # Errors
    /// [`Error::Refused`] with charon's words.
    pub fn check(self, command: &'static str) -> Result<(), Error> {
        match self.success {
            Some(false) => Err(Error::Refused {
                command,
                reason: self.errmsg.unwrap_or_else(|| "without a reason".to_owned()),
            }),
            _ => Ok(()),
        }
    }
}

/// A message without content.
#[derive(Debug, Serialize)]
pub struct Empty {}

/// A connection, on which one request is under way at a time.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// How long charon may take for an answer.
    limit: Duration,
    /// A request was cut short, so that its answer may still come: not to be used on.
    dirty: bool,
}

/// Waits for a place in charon's queue, which is short: where it is full, a socket that would have to wait is told to try
/// again (`EAGAIN` of connect(2)).
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(QUEUE).await,
            connected => return connected,
        }
    }
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::Absent`] when nobody listens at `socket`.
    pub async fn open(socket: &Path) -> Result<Self, Error> {
        let absent = |source| Error::Absent {
            socket: socket.to_owned(),
            source,
        };
        let stream = timeout(LIMIT, connect(socket))
            .await
            .map_err(|_| absent(io::ErrorKind::TimedOut.into()))?
            .map_err(absent)?;
        Ok(Self {
            stream,
            limit: LIMIT,
            dirty: false,
        })
    }

    /// Process id of charon as seen from here; none where it lives in another pid namespace.
    pub fn charon_pid(&self) -> Option<i32> {
        self.stream.peer_cred().ok()?.pid().filter(|pid| *pid > 0)
    }

    /// Whether the connection is in step, so that another request may follow.
    pub fn usable(&self) -> bool {
        !self.dirty
    }

    /// A command with one reply.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn call<Q: Serialize, A: DeserializeOwned>(
        &mut self,
        command: &'static str,
        request: &Q,
    ) -> Result<A, Error> {
        let payload = encode(command, request)?;
        self.in_time(command, self.limit, async |this| {
            this.send(CMD_REQUEST, command, &payload).await?;
            this.reply(command, |_, _| Ok(())).await
        })
        .await
    }

    /// A command whose reply says only whether it was done.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn command<Q: Serialize>(&mut self, command: &'static str, request: &Q) -> Result<(), Error> {
        self.call::<_, Status>(command, request).await?.check(command)
    }

    /// A command that streams `event` messages before it replies; `limit` bounds the whole.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Refused`] after the messages that charon sent until then.
    pub async fn stream<Q: Serialize, M: DeserializeOwned>(
        &mut self,
        command: &'static str,
        event: &str,
        request: &Q,
        limit: Duration,
        mut each: impl FnMut(M),
    ) -> Result<(), Error> {
        let payload = encode(command, request)?;
        let status: Status = self
            .in_time(command, limit + self.limit, async |this| {
                this.event_request(command, EVENT_REGISTER, event).await?;
                this.send(CMD_REQUEST, command, &payload).await?;
                let status = this
                    .reply(command, |name, payload| {
                        if name == event {
                            each(decode(command, payload)?);
                        }
                        Ok(())
                    })
                    .await?;
                this.event_request(command, EVENT_UNREGISTER, event).await?;
                Ok(status)
            })
            .await?;
        status.check(command)
    }

    /// Subscribes to `event`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn subscribe(&mut self, event: &'static str) -> Result<(), Error> {
        self.in_time(event, self.limit, async |this| {
            this.event_request(event, EVENT_REGISTER, event).await
        })
        .await
    }

    /// Waits for the next event that was subscribed to, however long that takes. Not cancel-safe.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next_event(&mut self) -> Result<(String, Vec<u8>), Error> {
        loop {
            let (kind, packet) = self.receive("events").await?;
            if kind == EVENT {
                let (name, payload) = split_name("events", &packet)?;
                return Ok((name.to_owned(), payload.to_vec()));
            }
        }
    }

    async fn in_time<T>(
        &mut self,
        command: &'static str,
        limit: Duration,
        exchange: impl AsyncFnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        // Set across the await, so that a caller who drops this future leaves the mark.
        self.dirty = true;
        let result = timeout(limit, exchange(self))
            .await
            .unwrap_or(Err(Error::Timeout { command, limit }));
        self.dirty = result.as_ref().is_err_and(|error| !error.is_refusal());
        result
    }

    async fn event_request(&mut self, command: &'static str, kind: u8, event: &str) -> Result<(), Error> {
        self.send(kind, event, &[]).await?;
        loop {
            match self.receive(command).await?.0 {
                EVENT_CONFIRM => return Ok(()),
                EVENT_UNKNOWN => {
                    return Err(Error::Unknown {
                        command,
                        what: event.to_owned(),
                    });
                }
                EVENT => {}
                kind => return Err(unexpected(command, kind)),
            }
        }
    }

    async fn reply<A: DeserializeOwned>(
        &mut self,
        command: &'static str,
        mut event: impl FnMut(&str, &[u8]) -> Result<(), Error>,
    ) -> Result<A, Error> {
        loop {
            let (kind, packet) = self.receive(command).await?;
            match kind {
                CMD_RESPONSE => return decode(command, &packet),
                CMD_UNKNOWN => {
                    return Err(Error::Unknown {
                        command,
                        what: command.to_owned(),
                    });
                }
                EVENT => {
                    let (name, payload) = split_name(command, &packet)?;
                    event(name, payload)?;
                }
                kind => return Err(unexpected(command, kind)),
            }
        }
    }

    async fn send(&mut self, kind: u8, name: &str, payload: &[u8]) -> Result<(), Error> {
        let name_length = u8::try_from(name.len()).unwrap_or(u8::MAX);
        let length = 2 + usize::from(name_length) + payload.len();
        let mut packet = Vec::with_capacity(4 + length);
        packet.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        packet.extend([kind, name_length]);
        packet.extend(&name.as_bytes()[..usize::from(name_length)]);
        packet.extend(payload);
        self.stream.write_all(&packet).await.map_err(|source| Error::Io {
            command: "request",
            source,
        })
    }

    async fn receive(&mut self, command: &'static str) -> Result<(u8, Vec<u8>), Error> {
        let io = |source| Error::Io { command, source };
        let length = self.stream.read_u32().await.map_err(io)? as usize;
        if length == 0 || length > MAX_PACKET {
            return Err(malformed(command, format!("a packet of {length} bytes")));
        }
        let kind = self.stream.read_u8().await.map_err(io)?;
        let mut packet = vec![0; length - 1];
        self.stream.read_exact(&mut packet).await.map_err(io)?;
        Ok((kind, packet))
    }
}

/// Encodes a request.
fn encode<Q: Serialize>(command: &'static str, request: &Q) -> Result<Vec<u8>, Error> {
    let payload = serde_vici::to_vec(request).map_err(|error| malformed(command, error.to_string()))?;
    if payload.len() + 2 + command.len() > MAX_PACKET {
        return Err(Error::Refused {
            command,
            reason: format!(
                "the request has {} bytes, charon reads at most {MAX_PACKET}",
                payload.len()
            ),
        });
    }
    Ok(payload)
}

/// Decodes a reply or an event.
///
/// # Errors
/// [`Error::Malformed`] when it is not of `A`'s shape.
pub fn decode<A: DeserializeOwned>(command: &'static str, payload: &[u8]) -> Result<A, Error> {
    serde_vici::from_slice(payload).map_err(|error| malformed(command, error.to_string()))
}

fn split_name<'a>(command: &'static str, packet: &'a [u8]) -> Result<(&'a str, &'a [u8]), Error> {
    let (length, rest) = packet
        .split_first()
        .ok_or_else(|| malformed(command, "an event without a name".to_owned()))?;
    let (name, payload) = rest
        .split_at_checked(usize::from(*length))
        .ok_or_else(|| malformed(command, "an event whose name is cut short".to_owned()))?;
    let name = std::str::from_utf8(name).map_err(|error| malformed(command, error.to_string()))?;
    Ok((name, payload))
}

fn malformed(command: &'static str, reason: String) -> Error {
    Error::Malformed { command, reason }
}

fn unexpected(command: &'static str, kind: u8) -> Error {
    malformed(command, format!("a packet of type {kind} out of turn"))
}

#[cfg(test)]
mod tests;
