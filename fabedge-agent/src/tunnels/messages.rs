//! The VICI messages that are used here, as charon 5.9 reads and writes them. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::desired::tunnels::Connection;

/// IKE: AEAD only, so there is no way to negotiate an unauthenticated or a weak cipher.
const IKE_PROPOSALS: [&str; 2] = [
    "aes128gcm16-aes256gcm16-prfsha256-prfsha384-x25519-ecp256",
    "aes128gcm16-prfsha256-ecp256",
];

/// ESP, with a key exchange of its own at every rekeying (PFS).
const ESP_PROPOSALS: [&str; 1] = ["aes128gcm16-aes256gcm16-x25519-ecp256"];

/// Binary data, and text that is to be kept out of logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

/// `load-conn`: connections by name. charon's documentation speaks of one; it takes as many as there are sections, until one
/// that it refuses (`load_conn` in vici_config.c of strongSwan 5.9 and 6.0).
pub type LoadConn<'a> = BTreeMap<&'a str, IkeConfig<'a>>;

/// The body of `load-conn`.
#[derive(Debug, Serialize)]
pub struct IkeConfig<'a> {
    version: u8,
    local_addrs: [&'static str; 1],
    remote_addrs: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_port: Option<u16>,
    proposals: [&'static str; 2],
    mobike: bool,
    dpd_delay: u32,
    keyingtries: u32,
    unique: &'static str,
    rekey_time: u32,
    over_time: u32,
    rand_time: u32,
    local: Auth<'a>,
    remote: Auth<'a>,
    children: BTreeMap<String, ChildConfig>,
}

#[derive(Debug, Serialize)]
struct Auth<'a> {
    auth: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    revocation: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct ChildConfig {
    local_ts: Vec<String>,
    remote_ts: Vec<String>,
    esp_proposals: [&'static str; 1],
    mode: &'static str,
    reqid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_id_in: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_id_out: Option<u32>,
    start_action: &'static str,
    close_action: &'static str,
    dpd_action: &'static str,
    replay_window: u32,
    copy_df: bool,
    rekey_time: u32,
    life_time: u32,
    rand_time: u32,
}

/// The `load-conn` of connections. Their peers have to be certified by an authority that charon has: one that is named in a
/// connection is read anew for each, which takes charon longer than all the rest of it.
pub fn load_conn<'a>(
    connections: impl IntoIterator<Item = (&'a String, &'a Arc<Connection>)>,
) -> LoadConn<'a> {
    let each = connections.into_iter();
    each.map(|(name, connection)| (name.as_str(), ike_config(connection)))
        .collect()
}

fn ike_config(connection: &Connection) -> IkeConfig<'_> {
    let text =
        |nets: &std::collections::BTreeSet<ipnet::IpNet>| nets.iter().map(ToString::to_string).collect();
    let child = |life_time| ChildConfig {
        local_ts: text(&connection.local),
        remote_ts: text(&connection.remote),
        esp_proposals: ESP_PROPOSALS,
        mode: "tunnel",
        reqid: connection.reqid,
        if_id_in: connection.if_id,
        if_id_out: connection.if_id,
        // The agent initiates and initiates again, with back-off; two who do so make duplicates.
        start_action: "none",
        close_action: "none",
        // What a dead peer leaves is replaced in the moment in which it goes, also while no agent runs.
        dpd_action: if connection.initiate { "start" } else { "clear" },
        // ESP is spread over CPUs, so packets overtake each other by more than the default of 32.
        replay_window: 128,
        // ESP may be fragmented on its way: nobody may tell us that it is too large, and pods are told what fits by us.
        copy_df: false,
        // Rekeyed after 54 to 60 minutes, so that nodes that started together drift apart.
        rekey_time: 3600,
        life_time,
        rand_time: 360,
    };
    IkeConfig {
        version: 2,
        local_addrs: ["%any"],
        remote_addrs: if connection.remote_addrs.is_empty() {
            vec!["%any"]
        } else {
            connection.remote_addrs.iter().map(String::as_str).collect()
        },
        // charon marks IKE as such (RFC 3948 §2.2) only when it sends from its NAT-T port; a peer behind another
        // port than 500 expects that from the start.
        local_port: connection.remote_port.map(|_| 4500),
        remote_port: connection.remote_port,
        proposals: IKE_PROPOSALS,
        // Off: with it charon probes paths between all addresses of both nodes, of which a Kubernetes node has
        // many (bridges, services, other CNIs), and may move the tunnel onto one of them. A changed address of
        // ours is repaired by charon's roaming over NAT-T or by DPD.
        mobike: false,
        // A NAT that remaps an idle edge cuts it off until it next sends: this bounds that. The answering side
        // only cleans up.
        dpd_delay: if connection.initiate { 5 } else { 30 },
        keyingtries: 1,
        unique: "replace",
        rekey_time: 4 * 3600,
        over_time: 1440,
        rand_time: 1440,
        local: Auth {
            auth: "pubkey",
            id: &connection.local_id,
            revocation: None,
        },
        remote: Auth {
            auth: "pubkey",
            id: &connection.remote_id,
            // Who is on a list is refused. Without a list, or with one out of date, nobody is locked out.
            revocation: Some("relaxed"),
        },
        // A second apart, else charon takes them for one.
        children: connection
            .children()
            .into_iter()
            .zip((3960..).map(child))
            .collect(),
    }
}

/// `unload-conn`.
#[derive(Debug, Serialize)]
pub struct UnloadConn<'a> {
    /// The connection.
    pub name: &'a str,
}

/// `initiate`.
#[derive(Debug, Serialize)]
pub struct Initiate<'a> {
    /// The connection.
    pub ike: &'a str,
    /// The child of it.
    pub child: &'a str,
    /// Milliseconds after which charon answers although it has not finished.
    pub timeout: u32,
    /// How much of its log it streams meanwhile.
    pub loglevel: u32,
}

/// `terminate` of one IKE_SA.
#[derive(Debug, Serialize)]
pub struct TerminateIke {
    /// Its unique id.
    #[serde(rename = "ike-id")]
    pub id: u32,
    /// Do not wait for the peer's consent.
    pub force: bool,
    /// -1: answer at once.
    pub timeout: i32,
}

/// `terminate` of one CHILD_SA.
#[derive(Debug, Serialize)]
pub struct TerminateChild {
    /// Its unique id.
    #[serde(rename = "child-id")]
    pub id: u32,
    /// -1: answer at once.
    pub timeout: i32,
}

/// `load-cert`.
#[derive(Debug, Serialize)]
pub struct LoadCert {
    /// `X509` or `X509_CRL`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `CA` or `NONE`.
    pub flag: &'static str,
    /// DER.
    pub data: Blob,
}

/// `list-certs`.
#[derive(Debug, Serialize)]
pub struct ListCerts {
    /// `X509`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `CA`: those of authorities, `NONE`: all others.
    pub flag: &'static str,
}

/// A `list-cert` event.
#[derive(Debug, Deserialize)]
pub struct ListCert {
    /// DER.
    pub data: Blob,
}

/// `load-key`.
#[derive(Debug, Serialize)]
pub struct LoadKey {
    /// `any`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// PEM.
    pub data: Blob,
}

/// The reply to `load-key`.
#[derive(Debug, Deserialize)]
pub struct LoadedKey {
    /// Whether it was taken.
    pub success: bool,
    /// Why not.
    #[serde(default)]
    pub errmsg: Option<String>,
    /// SHA-1 of the public key, in hex.
    #[serde(default)]
    pub id: Option<String>,
}

/// `unload-key`.
#[derive(Debug, Serialize)]
pub struct UnloadKey<'a> {
    /// As in [`LoadedKey`].
    pub id: &'a str,
}

/// The reply to `get-keys`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Keys {
    /// As in [`LoadedKey`].
    pub keys: Vec<String>,
}

/// The reply to `get-conns`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conns {
    /// Names of connections, whoever loaded them.
    pub conns: Vec<String>,
}

/// The reply to `stats`, as far as it is used.
#[derive(Debug, Deserialize)]
pub struct Stats {
    /// Since when charon runs.
    pub uptime: Uptime,
    /// Plugins that are loaded.
    #[serde(default)]
    pub plugins: Vec<String>,
}

/// Part of [`Stats`].
#[derive(Debug, Deserialize)]
pub struct Uptime {
    /// Start time, for humans, to the second.
    pub since: String,
}

/// A `list-sa` event: IKE_SAs by connection name.
pub type ListSa = BTreeMap<String, IkeSa>;

/// One IKE_SA.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct IkeSa {
    /// charon's number for it.
    pub uniqueid: u32,
    /// `ESTABLISHED` and others.
    pub state: String,
    /// The peer's address, as seen from here.
    #[serde(default)]
    pub remote_host: String,
    /// The peer's port.
    #[serde(default)]
    pub remote_port: Option<u16>,
    /// Seconds since it was established.
    #[serde(default)]
    pub established: Option<u64>,
    /// What it is about to do.
    #[serde(default)]
    pub tasks_queued: Vec<String>,
    /// What it is doing.
    #[serde(default)]
    pub tasks_active: Vec<String>,
    /// Its children by unique name.
    #[serde(default)]
    pub child_sas: BTreeMap<String, ChildSa>,
}

/// One CHILD_SA.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChildSa {
    /// Name of its configuration.
    pub name: String,
    /// charon's number for it.
    pub uniqueid: u32,
    /// Fixed by the configuration.
    #[serde(default)]
    pub reqid: u32,
    /// `INSTALLED` and others.
    pub state: String,
    /// Inbound SPI in hex.
    #[serde(default)]
    pub spi_in: Option<String>,
    /// Outbound SPI in hex.
    #[serde(default)]
    pub spi_out: Option<String>,
    /// Bytes received.
    #[serde(default)]
    pub bytes_in: u64,
    /// Bytes sent.
    #[serde(default)]
    pub bytes_out: u64,
    /// Seconds since it was installed.
    #[serde(default)]
    pub install_time: Option<u64>,
    /// Local selectors as negotiated.
    #[serde(default)]
    pub local_ts: Vec<String>,
    /// Remote selectors as negotiated.
    #[serde(default)]
    pub remote_ts: Vec<String>,
}
