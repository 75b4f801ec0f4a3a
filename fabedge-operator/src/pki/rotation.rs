//! The authorities of a cluster while one takes over from another: both are trusted before the first certificate of the
//! new one is issued, and after the last one of the old. No files and no clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::authority::{Error, LEAF_LIFETIME};
use super::{Authority, Revocations, Trust, revocation};

/// How long a new authority is trusted before it signs: time for everybody to hear of it who is there.
pub const ANNOUNCE: Duration = Duration::minutes(10);

/// How long the old one is trusted after that: as long as anything that it signed may live, so that who was away comes
/// back as who it was.
pub const RETAIN: Duration = LEAF_LIFETIME;

/// Entries of the Secret.
pub const CERTIFICATE: &str = "ca.crt";
/// The key.
pub const KEY: &str = "ca.key";
const NEXT: [&str; 3] = ["next.crt", "next.key", "next.from"];
/// What was revoked, and the lists that say so.
const REVOKED: &str = "revoked";
const LISTS: &str = "ca.crl";
const PREVIOUS: [&str; 3] = ["previous.crt", "previous.key", "previous.until"];

/// What is kept of authorities, by name; a rotation is there as entries beside those of FabEdge 0.4.
pub type Entries = BTreeMap<String, String>;

/// The authority that signs, the one that will, and the one that did.
#[derive(Clone, Debug)]
pub struct Authorities {
    current: Arc<Authority>,
    next: Option<(Arc<Authority>, OffsetDateTime)>,
    previous: Option<(Arc<Authority>, OffsetDateTime)>,
    trust: Trust,
    revocations: Revocations,
}

impl Authorities {
    /// Reads what is kept.
    ///
    /// # Errors
    /// When an authority that is there cannot be used. One of earlier that has ended is no longer there.
    pub fn load(entries: &Entries, now: OffsetDateTime) -> Result<Self, Error> {
        let entry = |name: &str| entries.get(name).map(String::as_str).unwrap_or_default();
        let dated = |[certificate, key, time]: [&str; 3]| {
            let Some(time) = entries.get(time) else {
                return Ok(None);
            };
            let time = OffsetDateTime::parse(time.trim(), &Rfc3339)
                .map_err(|error| Error::Certificate(format!("the time beside it: {error}")))?;
            let authority = Authority::load(entry(certificate), entry(key), now)?;
            Ok(Some((Arc::new(authority), time)))
        };
        let current = Arc::new(Authority::load(entry(CERTIFICATE), entry(KEY), now)?);
        let previous = match dated(PREVIOUS) {
            Err(Error::NotValid { .. }) => None,
            previous => previous?,
        };
        let mut all = Self::new(current, dated(NEXT)?, previous);
        all.revocations = Revocations::read(entry(REVOKED))?;
        // Lists that do not fit, for an authority is gone, say, are made anew by `revoke`.
        if let Ok(trust) = all.trust.clone().with_lists(entry(LISTS)) {
            all.trust = trust;
        }
        Ok(all)
    }

    /// An authority that nobody takes over from.
    pub fn only(current: Authority) -> Self {
        Self::new(Arc::new(current), None, None)
    }

    fn new(
        current: Arc<Authority>,
        next: Option<(Arc<Authority>, OffsetDateTime)>,
        previous: Option<(Arc<Authority>, OffsetDateTime)>,
    ) -> Self {
        let others = next.iter().chain(&previous);
        let others: Vec<&Trust> = others.map(|(authority, _)| authority.trust()).collect();
        Self {
            trust: current.trust().with(&others),
            current,
            next,
            previous,
            revocations: Revocations::default(),
        }
    }

    /// The one that signs.
    pub fn current(&self) -> &Arc<Authority> {
        &self.current
    }

    /// The one that everybody trusts who was ever here: who calls the network API after a long time, say.
    pub fn oldest(&self) -> &Arc<Authority> {
        self.previous
            .as_ref()
            .map_or(&self.current, |(authority, _)| authority)
    }

    /// What everybody is to trust now.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Whether the lists name what was revoked in a name that is in use.
    pub fn lists_fit(&self, in_use: impl Fn(&str) -> bool) -> bool {
        let all: Vec<&[u8]> = self.trust.all().collect();
        revocation::fit(&self.revocations, self.trust.revoked(), &all, in_use)
    }

    /// What is to be kept once `more` is revoked, too, when that is something else; and which authorities cannot sign a
    /// list.
    pub fn revoke(
        &self,
        entries: &Entries,
        more: &[(String, Option<String>)],
        in_use: impl Fn(&str) -> bool,
        now: OffsetDateTime,
    ) -> (Option<Entries>, Vec<Error>) {
        let others = self.next.iter().chain(&self.previous);
        let all: Vec<&Authority> = std::iter::once(&self.current)
            .chain(others.map(|(authority, _)| authority))
            .map(Arc::as_ref)
            .collect();
        let lists = entries.get(LISTS).map(String::as_str).unwrap_or_default();
        let done = revocation::revoke(&self.revocations, more, lists, &all, in_use, now);
        let mut kept = entries.clone();
        kept.extend(done.lists.map(|lists| (LISTS.to_owned(), lists)));
        if done.revocations != self.revocations {
            kept.insert(REVOKED.to_owned(), done.revocations.text());
        }
        ((kept != *entries).then_some(kept), done.failed)
    }

    /// When the next step is due.
    pub fn due(&self) -> OffsetDateTime {
        let times = [
            self.next.as_ref().map(|(_, from)| *from),
            self.previous.as_ref().map(|(_, until)| *until),
            self.next.is_none().then(|| self.current.trust().renewal()),
        ];
        times
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// What is to be kept from now on, when that is something else. `asked` is how long a new authority is to be
    /// announced that somebody asks for; one that has lived two thirds of its life is replaced without being asked.
    ///
    /// # Errors
    /// When a new one could not be made.
    pub fn step(
        &self,
        entries: &Entries,
        cluster: &str,
        asked: Option<Duration>,
        now: OffsetDateTime,
    ) -> Result<Option<Entries>, Error> {
        let mut kept = entries.clone();
        let stamp = |time: OffsetDateTime| time.format(&Rfc3339).unwrap_or_default();
        if let Some((_, until)) = &self.previous
            && now >= *until
        {
            kept.retain(|name, _| !PREVIOUS.contains(&name.as_str()));
        }
        if let Some((_, from)) = &self.next
            && now >= *from
        {
            for (from, to) in [
                (CERTIFICATE, PREVIOUS[0]),
                (KEY, PREVIOUS[1]),
                (NEXT[0], CERTIFICATE),
                (NEXT[1], KEY),
            ] {
                let text = kept.remove(from).unwrap_or_default();
                kept.insert(to.to_owned(), text);
            }
            kept.remove(NEXT[2]);
            kept.insert(PREVIOUS[2].to_owned(), stamp(now + RETAIN));
        } else if let Some((_, from)) = &self.next {
            // Somebody is in a hurry.
            if let Some(sooner) = asked.map(|asked| now + asked).filter(|sooner| sooner < from) {
                kept.insert(NEXT[2].to_owned(), stamp(sooner));
            }
        } else if asked.is_some() || now >= self.current.trust().renewal() {
            let new = Authority::generate_successor(cluster, now)?;
            let from = now + asked.unwrap_or(ANNOUNCE);
            for (name, text) in NEXT.into_iter().zip([new.certificate, new.key, stamp(from)]) {
                kept.insert(name.to_owned(), text);
            }
        }
        Ok((kept != *entries).then_some(kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::inspect::{self, Verdict, judge};

    #[test]
    fn one_authority_takes_over_from_another() {
        let start = OffsetDateTime::from_unix_timestamp(1_795_392_000).unwrap();
        let first = Authority::generate("fabedge", start).unwrap();
        let mut kept = Entries::from([
            (CERTIFICATE.to_owned(), first.certificate.clone()),
            (KEY.to_owned(), first.key),
        ]);
        let at = |kept: &Entries, now| Authorities::load(kept, now).unwrap();
        let step = |kept: &Entries, asked, now| at(kept, now).step(kept, "fabedge", asked, now).unwrap();
        assert_eq!(step(&kept, None, start), None, "nobody asks");
        let leaf = at(&kept, start).current().issue("fabedge.edge1", start).unwrap();
        let keeps = |authorities: &Authorities, now| {
            let verdict = judge(
                &leaf.certificate,
                &leaf.key,
                "fabedge.edge1",
                authorities.trust(),
                now,
            );
            matches!(verdict, Verdict::Keep { .. })
        };

        // Both are trusted, the old one signs.
        kept = step(&kept, Some(Duration::seconds(30)), start).unwrap();
        let both = at(&kept, start);
        assert_eq!(both.trust().all().count(), 2);
        assert_eq!(both.current().certificate(), first.certificate);
        assert!(keeps(&both, start));
        let hastened = step(&kept, Some(Duration::seconds(10)), start).unwrap();
        assert_eq!(at(&hastened, start).due(), start + Duration::seconds(10));
        let switch = start + Duration::seconds(30);
        assert_eq!(both.due(), switch);
        assert_eq!(step(&kept, None, switch - Duration::seconds(1)), None);
        assert_eq!(step(&kept, Some(ANNOUNCE), start), None, "one rotation at a time");

        // Both are trusted, the new one signs.
        kept = step(&kept, None, switch).unwrap();
        let new = at(&kept, switch);
        assert_eq!(new.trust().all().count(), 2);
        assert_ne!(new.current().certificate(), first.certificate);
        assert_eq!(new.oldest().certificate(), first.certificate);
        assert!(!keeps(&new, switch), "it is issued anew");
        let names = |authority: &Authority| {
            let (_, certificate) = x509_parser::parse_x509_certificate(authority.der()).unwrap();
            certificate.subject().to_string()
        };
        assert_ne!(names(new.current()), names(new.oldest()));
        assert!(inspect::is_valid(&leaf.certificate, switch));

        // The new one alone.
        let end = switch + RETAIN;
        assert_eq!(new.due(), end);
        kept = step(&kept, None, end).unwrap();
        assert_eq!(at(&kept, end).trust().all().count(), 1);
        assert_eq!(kept.len(), 2);
    }

    #[test]
    fn an_authority_that_grows_old_is_replaced_without_being_asked() {
        let start = OffsetDateTime::from_unix_timestamp(1_795_392_000).unwrap();
        let first = Authority::generate("fabedge", start).unwrap();
        let kept = Entries::from([
            (CERTIFICATE.to_owned(), first.certificate),
            (KEY.to_owned(), first.key),
        ]);
        let old = Authorities::load(&kept, start).unwrap().due();
        let before = old - Duration::days(1);
        let authorities = Authorities::load(&kept, before).unwrap();
        assert_eq!(authorities.step(&kept, "fabedge", None, before).unwrap(), None);
        assert!(
            authorities
                .step(&kept, "fabedge", None, old)
                .unwrap()
                .unwrap()
                .contains_key("next.crt")
        );
    }
}
