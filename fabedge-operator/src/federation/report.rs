//! What a member says of itself, and how much of it is taken: names of its own, prefixes that are nobody else's.

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::api::{ClusterSpec, Endpoint};
use crate::observe::convert;

/// The most endpoints that a cluster may have in the API, and the most prefixes in all.
const ENDPOINTS: usize = 256;
const PREFIXES: usize = 4096;

/// What a member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Its prefixes; none when it does not speak of them, which leaves those that are known.
    pub cidrs: Option<Vec<String>>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// The body is not a report.
#[derive(Debug, thiserror::Error)]
#[error("the body is not {0}: {1}")]
pub struct Error(&'static str, serde_json::Error);

/// The prefixes of everybody, each with its owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others(Vec<(IpNet, Owner)>);

/// Whose a prefix is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Of the host itself.
    Host(&'static str),
    /// Of a member, by its name.
    Member(String),
}

impl Others {
    /// Notes a prefix.
    pub fn add(&mut self, net: IpNet, owner: Owner) {
        self.0.push((net, owner));
    }

    /// Why a member may not have this prefix, if somebody else does.
    fn conflict(&self, cluster: &str, net: IpNet) -> Option<String> {
        self.0.iter().find_map(|(other, owner)| {
            if !other.contains(&net) && !net.contains(other) {
                return None;
            }
            match owner {
                Owner::Host(what) => Some(format!("{net} overlaps {other}, {what} of the host cluster")),
                Owner::Member(name) if name != cluster => {
                    Some(format!("{net} overlaps {other} of cluster {name}"))
                }
                Owner::Member(_) => None,
            }
        })
    }
}

impl Report {
    /// Of the body of `PUT /api/cluster`, in the spelling of any version; what is not known in there is let go.
    ///
    /// # Errors
    /// When it is no such thing.
    pub fn of_cluster(body: &[u8]) -> Result<Self, Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Body {
            spec: Spec,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Spec {
            cidrs: Vec<String>,
            #[serde(alias = "endPoints")]
            endpoints: Vec<Value>,
        }
        const WHAT: &str = "a Cluster, {\"spec\": {\"cidrs\": […], \"endpoints\": […]}}";
        let spec = read::<Body>(body).map_err(|e| Error(WHAT, e))?.spec;
        Ok(Self {
            cidrs: Some(spec.cidrs),
            endpoints: known(spec.endpoints).map_err(|e| Error(WHAT, e))?,
        })
    }

    /// Of the body of `PUT /api/endpoints`, a bare list.
    ///
    /// # Errors
    /// When it is no such thing.
    pub fn of_endpoints(body: &[u8]) -> Result<Self, Error> {
        const WHAT: &str = "a list of endpoints";
        let endpoints = read(body).and_then(known).map_err(|e| Error(WHAT, e))?;
        Ok(Self {
            cidrs: None,
            endpoints,
        })
    }

    /// What of it is taken, and why the rest is not.
    pub fn judge(self, cluster: &str, others: &Others) -> (Self, Vec<String>) {
        let mut refused = Vec::new();
        let mut taken = Self {
            cidrs: self.cidrs.as_ref().map(|_| Vec::new()),
            endpoints: Vec::new(),
        };
        let cidrs = self.cidrs.unwrap_or_default();
        let prefixes: usize = self
            .endpoints
            .iter()
            .map(|endpoint| endpoint.subnets.len() + endpoint.node_subnets.len())
            .sum();
        if self.endpoints.len() > ENDPOINTS || prefixes + cidrs.len() > PREFIXES {
            refused.push(format!(
                "spec: {} endpoints with {prefixes} prefixes are more than the {ENDPOINTS} and {PREFIXES} that a \
                 cluster may have",
                self.endpoints.len()
            ));
            return (taken, refused);
        }
        for (i, cidr) in cidrs.into_iter().enumerate() {
            let mut faults = Vec::new();
            let net = convert::prefixes("spec.cidrs", std::slice::from_ref(&cidr), &mut faults);
            let why = match (faults.first(), net.first()) {
                (Some(fault), _) => Some(fault.message.clone()),
                (None, Some(net)) => others.conflict(cluster, *net),
                (None, None) => None,
            };
            match why {
                Some(why) => refused.push(format!("spec.cidrs[{i}]: {why}")),
                None => taken.cidrs.get_or_insert_default().push(cidr),
            }
        }
        for (i, endpoint) in self.endpoints.into_iter().enumerate() {
            let alone = ClusterSpec {
                endpoints: vec![endpoint.clone()],
                ..ClusterSpec::default()
            };
            let problems: Vec<String> = match convert::cluster(cluster, &alone) {
                Err(faults) => faults
                    .iter()
                    .map(|fault| {
                        fault
                            .to_string()
                            .replace("endpoints[0]", &format!("endpoints[{i}]"))
                    })
                    .collect(),
                Ok(read) => read
                    .endpoints
                    .iter()
                    .flat_map(|endpoint| &endpoint.subnets)
                    .filter_map(|net| others.conflict(cluster, *net))
                    .map(|why| format!("spec.endpoints[{i}]: {why}"))
                    .collect(),
            };
            if taken.endpoints.iter().any(|other| other.name == endpoint.name) {
                refused.push(format!("spec.endpoints[{i}]: {} is there already", endpoint.name));
            } else if problems.is_empty() {
                taken.endpoints.push(endpoint);
            } else {
                refused.extend(problems);
            }
        }
        (taken, refused)
    }
}

/// JSON in which `null` is as good as nothing, as Go writes empty lists.
pub(super) fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    let mut value: Value = serde_json::from_slice(body)?;
    without_nulls(&mut value);
    serde_json::from_value(value)
}

fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// The endpoints without the fields that only other versions have, and with the type that the first ones had not.
pub(super) fn known(values: Vec<Value>) -> Result<Vec<Endpoint>, serde_json::Error> {
    const FIELDS: [&str; 7] = [
        "id",
        "name",
        "publicAddresses",
        "subnets",
        "nodeSubnets",
        "type",
        "port",
    ];
    values
        .into_iter()
        .map(|mut value| {
            if let Value::Object(fields) = &mut value {
                fields.retain(|name, _| FIELDS.contains(&name.as_str()));
                let connector = fields
                    .get("name")
                    .and_then(Value::as_str)
                    .is_some_and(|name| name.ends_with(".connector"));
                let kind = fields.entry("type").or_insert(Value::Null);
                if kind.is_null() || kind == "" {
                    *kind = Value::from(if connector { "Connector" } else { "EdgeNode" });
                }
            }
            serde_json::from_value(value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn connector(cluster: &str, subnets: &[&str]) -> Value {
        json!({
            "id": format!("C=CN, O=fabedge.io, CN={cluster}.connector"), "name": format!("{cluster}.connector"),
            "publicAddresses": ["203.0.113.7"], "subnets": subnets, "nodeSubnets": null, "type": "Connector",
        })
    }

    fn others() -> Others {
        let mut others = Others::default();
        others.add("10.233.64.0/18".parse().unwrap(), Owner::Host("pods"));
        let member = |name: &str| Owner::Member(name.to_owned());
        others.add("10.234.64.0/18".parse().unwrap(), member("beijing"));
        others.add("10.235.64.0/18".parse().unwrap(), member("shanghai"));
        others
    }

    fn judged(cluster: &str, body: &Value) -> (usize, Vec<String>) {
        let report = Report::of_cluster(body.to_string().as_bytes()).unwrap();
        let (taken, refused) = report.judge(cluster, &others());
        (taken.endpoints.len() + taken.cidrs.unwrap().len(), refused)
    }

    #[test]
    fn what_a_cluster_says_of_itself_is_taken_in_every_spelling() {
        let good = connector("beijing", &["10.234.64.0/18", "10.234.0.0/18"]);
        for body in [
            json!({"spec": {"cidrs": ["10.234.64.0/18"], "endpoints": [good]}}),
            json!({"kind": "Cluster", "metadata": {"name": "beijing"}, "status": {},
                   "spec": {"token": "x", "cidrs": ["10.234.64.0/18"], "endPoints": [good]}}),
        ] {
            assert_eq!(judged("beijing", &body), (2, vec![]));
        }
        let list = Report::of_endpoints(json!([good]).to_string().as_bytes()).unwrap();
        let (taken, refused) = list.judge("beijing", &others());
        assert_eq!((taken.endpoints.len(), refused), (1, vec![]));
        assert_eq!(taken.cidrs, None, "it does not speak of them");
        assert_eq!(
            judged("beijing", &json!({"spec": {"endpoints": null}})),
            (0, vec![])
        );
    }

    #[test]
    fn what_is_not_its_to_say_is_left_out_and_named_and_the_rest_is_taken() {
        let good = connector("beijing", &["10.234.64.0/18"]);
        for (bad, why) in [
            (
                connector("shanghai", &["10.240.0.0/24"]),
                "must be beijing.<node>",
            ),
            (
                connector("beijing.x", &["10.240.0.0/24"]),
                "one Connector, beijing.connector",
            ),
            (connector("bei", &["10.240.0.0/24"]), "must be beijing.<node>"),
            (connector("beijing2", &["0.0.0.0/0"]), "default route"),
            (connector("beijing", &["10.240.0.0/24"]), "is there already"),
        ] {
            let body = json!({"spec": {"endpoints": [good, bad]}});
            let (taken, refused) = judged("beijing", &body);
            assert_eq!(taken, 1, "{bad}");
            assert!(refused.iter().any(|line| line.contains(why)), "{refused:?}");
            assert!(refused[0].starts_with("spec.endpoints[1]"), "{refused:?}");
        }
        for (net, why) in [
            ("10.235.65.0/24", "of cluster shanghai"),
            ("10.0.0.0/8", "of the host cluster"),
            ("0.0.0.0/1", "unicast"),
            ("127.0.0.0/8", "unicast"),
            ("10.234.64.1/18", "host bits"),
            ("hello", "not a prefix"),
        ] {
            let body = json!({"spec": {"endpoints": [connector("beijing", &[net])], "cidrs": [net]}});
            let (taken, refused) = judged("beijing", &body);
            assert_eq!(taken, 0, "{net}: {refused:?}");
            assert!(refused.iter().all(|line| line.contains(why)), "{refused:?}");
        }
    }

    #[test]
    fn a_cluster_may_not_be_of_any_size() {
        let many: Vec<Value> = (0..=ENDPOINTS)
            .map(|_| connector("beijing", &["10.234.64.0/18"]))
            .collect();
        let (taken, refused) = judged("beijing", &json!({"spec": {"endpoints": many}}));
        assert_eq!(taken, 0);
        assert!(refused[0].contains("more than"), "{refused:?}");
    }

    #[test]
    fn a_body_that_is_no_report_is_refused() {
        for body in [
            "",
            "[]",
            "{",
            "3",
            "{\"spec\": 3}",
            "{\"spec\": {\"endpoints\": [3]}}",
        ] {
            assert!(
                Report::of_cluster(body.as_bytes()).is_err() || body == "[]",
                "{body}"
            );
        }
        assert!(Report::of_endpoints(b"{}").is_err());
    }
}
