//! Tokens with which a member cluster asks for its first certificate (JWT, RFC 7519, signed by RS256).
//!
//! The key is one of its own: an ECDSA authority cannot sign RS256, and who may sign tokens need not sign certificates.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rand_core::{OsRng, RngCore};
use rsa::RsaPrivateKey;
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, LineEnding};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::pki::request::hex;

/// How long a token can be used.
pub const LIFETIME: Duration = Duration::hours(12);

/// Bits of the key that signs.
const BITS: usize = 2048;

/// How much a clock may be wrong.
const LEEWAY: Duration = Duration::minutes(1);

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claims {
    /// The cluster that it lets in.
    pub sub: String,
    /// When it ends, in seconds since 1970.
    pub exp: i64,
    /// What the use of it is noted by.
    pub jti: String,
    /// SHA-256 of the host's CA certificate, by which the member knows the host: 64 hexadecimal digits.
    pub ca_hash: String,
}

/// Why a token lets nobody in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Not a token, or not one of ours.
    #[error("the token is refused")]
    Invalid(#[source] jsonwebtoken::errors::Error),
    /// It was one.
    #[error("the token was good until {0}: take the newer one out of the Cluster")]
    Expired(OffsetDateTime),
}

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It could not be made.
    #[error("making a key for tokens")]
    Generate(#[source] rsa::Error),
    /// It could not be read or written.
    #[error("reading the key for tokens, PKCS#8 in PEM")]
    Key(#[source] rsa::pkcs8::Error),
    /// The library refuses it.
    #[error("signing a token")]
    Sign(#[source] jsonwebtoken::errors::Error),
    /// No random bytes.
    #[error("getting random bytes for the name of a token")]
    Random(#[source] rand_core::Error),
}

/// Signs and checks tokens.
pub struct Tokens {
    signs: EncodingKey,
    checks: DecodingKey,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // No key in logs.
        f.write_str("Tokens")
    }
}

/// A new key, PKCS#8 in PEM. Takes a second or so.
///
/// # Errors
/// When there is no randomness.
pub fn generate_key() -> Result<String, Error> {
    let key = RsaPrivateKey::new(&mut OsRng, BITS).map_err(Error::Generate)?;
    let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(Error::Key)?;
    Ok(pem.as_str().to_owned())
}

/// The hash of a CA certificate (DER) that [`Claims::ca_hash`] has.
pub fn ca_hash(certificate: &[u8]) -> String {
    hex(&Sha256::digest(certificate))
}

/// What a token says to who cannot check it: the member that it is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Said {
    /// The cluster that it lets in.
    pub sub: Option<String>,
    /// See [`Claims::ca_hash`]; tokens of FabEdge 0.4 have none.
    pub ca_hash: Option<String>,
}

impl Said {
    /// Reads a token. Nothing of it is checked, which is for the host to do.
    ///
    /// # Errors
    /// When it is no token.
    pub fn read(token: &str) -> Result<Self, Refusal> {
        jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(Refusal::Invalid)
    }
}

impl Tokens {
    /// Takes a key.
    ///
    /// # Errors
    /// When it is not an RSA key in PKCS#8.
    pub fn new(key: &str) -> Result<Self, Error> {
        let private = RsaPrivateKey::from_pkcs8_pem(key).map_err(Error::Key)?;
        let public = private
            .to_public_key()
            .to_public_key_pem(LineEnding::LF)
            .map_err(|e| Error::Key(e.into()))?;
        Ok(Self {
            signs: EncodingKey::from_rsa_pem(key.as_bytes()).map_err(Error::Sign)?,
            checks: DecodingKey::from_rsa_pem(public.as_bytes()).map_err(Error::Sign)?,
        })
    }

    /// A token for a cluster, of the host whose CA certificate (DER) this is.
    ///
    /// # Errors
    /// When there is no randomness, or the library fails.
    pub fn issue(&self, cluster: &str, authority: &[u8], now: OffsetDateTime) -> Result<String, Error> {
        let mut id = [0; 16];
        OsRng.try_fill_bytes(&mut id).map_err(Error::Random)?;
        let claims = Claims {
            sub: cluster.to_owned(),
            exp: (now + LIFETIME).unix_timestamp(),
            jti: hex(&id),
            ca_hash: ca_hash(authority),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &self.signs).map_err(Error::Sign)
    }

    /// What a token says, if it is one of ours and still good. Only RS256 counts, whatever its header names.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, token: &str, now: OffsetDateTime) -> Result<Claims, Refusal> {
        let mut wanted = Validation::new(Algorithm::RS256);
        wanted.set_required_spec_claims(&["exp", "sub"]);
        // By the caller's clock, below.
        wanted.validate_exp = false;
        wanted.validate_aud = false;
        let claims: Claims = jsonwebtoken::decode(token, &self.checks, &wanted)
            .map_err(Refusal::Invalid)?
            .claims;
        let until = OffsetDateTime::from_unix_timestamp(claims.exp)
            .map_err(|_| Refusal::Invalid(jsonwebtoken::errors::ErrorKind::InvalidToken.into()))?;
        if now >= until + LEEWAY {
            return Err(Refusal::Expired(until));
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_795_392_000).unwrap()
    }

    fn signed(header: Header, claims: &serde_json::Value, key: &EncodingKey) -> String {
        jsonwebtoken::encode(&header, claims, key).unwrap()
    }

    #[test]
    fn only_our_own_tokens_are_taken_and_only_in_time() {
        let key = generate_key().unwrap();
        let tokens = Tokens::new(&key).unwrap();
        let token = tokens.issue("beijing", b"the CA", now()).unwrap();
        let claims = tokens.check(&token, now()).unwrap();
        assert_eq!(claims.sub, "beijing");
        assert_eq!(claims.ca_hash, ca_hash(b"the CA"));
        let again = tokens.issue("beijing", b"the CA", now()).unwrap();
        assert_ne!(tokens.check(&again, now()).unwrap().jti, claims.jti);

        let late = now() + LIFETIME;
        assert!(tokens.check(&token, late).is_ok(), "within the leeway");
        assert!(matches!(
            tokens.check(&token, late + LEEWAY),
            Err(Refusal::Expired(until)) if until == late
        ));

        let invalid = |token: &str| matches!(tokens.check(token, now()), Err(Refusal::Invalid(_)));
        // Of another key.
        let other = Tokens::new(&generate_key().unwrap()).unwrap();
        assert!(invalid(&other.issue("beijing", b"the CA", now()).unwrap()));
        // Signed by nobody.
        let body = token.split('.').nth(1).unwrap();
        assert!(invalid(&format!("eyJhbGciOiJub25lIn0.{body}.")));
        // Signed with the public key as a shared secret.
        let public = RsaPrivateKey::from_pkcs8_pem(&key)
            .unwrap()
            .to_public_key()
            .to_public_key_pem(LineEnding::LF)
            .unwrap();
        let all = serde_json::to_value(&claims).unwrap();
        let secret = EncodingKey::from_secret(public.as_bytes());
        assert!(invalid(&signed(Header::new(Algorithm::HS256), &all, &secret)));
        // One that never ends, and one that lets nobody in.
        for lacks in ["exp", "sub", "jti"] {
            let mut part = all.clone();
            part.as_object_mut().unwrap().remove(lacks);
            let header = Header::new(Algorithm::RS256);
            assert!(invalid(&signed(header, &part, &tokens.signs)), "without {lacks}");
        }
        let endless = json!({"sub": "beijing", "exp": i64::MAX, "jti": "1", "caHash": ""});
        assert!(invalid(&signed(
            Header::new(Algorithm::RS256),
            &endless,
            &tokens.signs
        )));
        for text in ["", "a", "a.b.c", "..", &token[..20]] {
            assert!(invalid(text), "{text:?}");
        }
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        assert!(matches!(Tokens::new("hello"), Err(Error::Key(_))));
    }
}
