//! A small client of the network API, which also sends what no decent client would.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use fabedge_operator::pki::inspect;
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::cluster::world::PATIENCE;

/// A certificate in PEM, and its key.
pub struct Identity {
    pub certificate: String,
    pub key: KeyPair,
}

/// What is said to whom, and how.
#[derive(Clone)]
pub struct Client {
    to: SocketAddr,
    from: IpAddr,
    server: ServerName<'static>,
    tls: Arc<ClientConfig>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Header fields, in lower case.
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

impl Client {
    /// Trusts one authority, and takes its server for who has this name, whatever address it is at.
    pub fn new(to: SocketAddr, authority: &[u8], server: &str, identity: Option<&Identity>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(authority.to_vec())).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let tls = match identity {
            None => config.with_no_client_auth(),
            Some(identity) => {
                let certificate = inspect::certificate_der(&identity.certificate).unwrap();
                let key = PrivatePkcs8KeyDer::from(identity.key.serialize_der());
                config
                    .with_client_auth_cert(vec![CertificateDer::from(certificate)], PrivateKeyDer::Pkcs8(key))
                    .unwrap()
            }
        };
        Self {
            to,
            from: Ipv4Addr::LOCALHOST.into(),
            server: ServerName::try_from(server.to_owned()).unwrap(),
            tls: Arc::new(tls),
        }
    }

    /// The same from another address of loopback.
    pub fn from(&self, last: u8) -> Self {
        Self {
            from: Ipv4Addr::new(127, 0, 1, last).into(),
            ..self.clone()
        }
    }

    pub async fn dial(&self) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(self.from, 0))?;
        socket.connect(self.to).await
    }

    pub async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let stream = self.dial().await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        connector.connect(self.server.clone(), stream).await
    }

    /// Sends what is given as it is. A server that has seen enough answers before it has read all.
    pub async fn raw(&self, parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> io::Result<Reply> {
        let reply = tokio::time::timeout(PATIENCE, self.exchange(parts)).await;
        reply.unwrap_or_else(|_| panic!("no answer within {PATIENCE:?}"))
    }

    async fn exchange(&self, parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> io::Result<Reply> {
        let (mut from, mut to) = tokio::io::split(self.connect().await?);
        let send = async {
            for part in parts {
                to.write_all(part.as_ref()).await?;
            }
            to.flush().await
        };
        let read = read(&mut from);
        tokio::pin!(send, read);
        let mut sent = None;
        loop {
            tokio::select! {
                biased;
                reply = &mut read => return reply,
                outcome = &mut send, if sent.is_none() => sent = Some(outcome),
            }
        }
    }

    pub async fn call(&self, line: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let request = request(line, headers, body);
        self.raw([request])
            .await
            .unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// A connection that is used again and again.
    pub async fn keep(&self) -> Kept {
        Kept(self.connect().await.unwrap())
    }
}

pub struct Kept(TlsStream<TcpStream>);

impl Kept {
    pub async fn call(&mut self, line: &str, headers: &[(&str, &str)]) -> Reply {
        let request = request(line, headers, "");
        let reply = async {
            self.0.write_all(request.as_bytes()).await?;
            self.0.flush().await?;
            read(&mut self.0).await
        };
        let reply = tokio::time::timeout(PATIENCE, reply).await;
        let reply = reply.unwrap_or_else(|_| panic!("{line} {headers:?}: no answer within {PATIENCE:?}"));
        reply.unwrap_or_else(|error| panic!("{line} {headers:?}: {error}"))
    }
}

fn request(line: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut request = format!(
        "{line} HTTP/1.1\r\nHost: host\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request + "\r\n" + body
}

/// One reply, whose length is told, as that of all our replies is.
async fn read(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<Reply> {
    let mut bytes = Vec::new();
    let (head, mut body) = loop {
        if from.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::other("the server closed without an answer"));
        }
        if let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
            break (
                String::from_utf8_lossy(&bytes[..end]).into_owned(),
                bytes[end + 4..].to_vec(),
            );
        }
    };
    let mut reply = Reply {
        status: head
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .unwrap_or_default(),
        head: head.to_ascii_lowercase(),
        body: String::new(),
    };
    let length = reply
        .header("content-length")
        .map_or(0, |length| length.parse().unwrap());
    while body.len() < length {
        if from.read_buf(&mut body).await? == 0 {
            return Err(io::Error::other("the server closed in the middle of its answer"));
        }
    }
    reply.body = String::from_utf8(body).unwrap();
    Ok(reply)
}
