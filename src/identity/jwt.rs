//! JSON Web Tokens: signed statements of a back end about a player.

use std::fmt;
use std::time::Duration;

use jsonwebtoken::crypto::rust_crypto;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::Value;

use super::{Distrust, Identity, IdentityError, MAX_CREDENTIALS_BYTES, Verifier};
use crate::protocol::names::validate_name;

/// How far the clocks of server and issuer may differ, unless told.
///
/// Machines that keep time by NTP are apart by milliseconds, and those that do not by seconds. Half a minute covers
/// them, and gives whoever steals a token little time beyond the minutes for which one is commonly valid.
pub const DEFAULT_LEEWAY: Duration = Duration::from_secs(30);

/// Shortest secret for HS256, in bytes: as long as what it makes (RFC 7518, 3.2). A shorter one can be guessed from a
/// single token.
pub const MIN_SECRET_BYTES: usize = 32;

/// Longest subject, in characters. Account names and UUIDs are shorter; what is longer would only fill databases.
pub const MAX_SUBJECT_CHARS: usize = 128;

/// Shortest RSA key, in bits: shorter ones have been broken (RFC 7518, 3.3).
const MIN_RSA_BITS: usize = 2_048;

/// Checks JSON Web Tokens (RFC 7519).
///
/// The token must be signed by the issuer's key with *the* algorithm of this verifier, whatever its header says, and
/// have these claims:
///
/// | claim | |
/// |---|---|
/// | `iss` | the issuer that the verifier was made with |
/// | `aud` | the verifier's audience, or a list with it: so a token for the forum does not open the game |
/// | `exp` | not over, give or take the leeway |
/// | `nbf` | if there is one, not in the future, give or take the leeway |
/// | `sub` | who the player is: 1 to [`MAX_SUBJECT_CHARS`] visible characters |
/// | `name` | optional: becomes [`Identity::name`] if a player may be called that |
///
/// A token can be shown until it expires, and by whoever has it. So issue it for minutes, hand it over encrypted, and
/// connect over UDP with [`Auth::Secure`](crate::transport::udp::Auth::Secure) or over `wss`: on an insecure link,
/// anyone on the way can read it.
///
/// ```
/// # use bevy_tandem::identity::{IdentityError, JwtVerifier, Verifier};
/// let secret = b"at least thirty-two bytes, at random";
/// let verifier = JwtVerifier::hs256(secret, "https://login.example", "arena")?;
/// assert_eq!(verifier.verify(b"", 0), Err(IdentityError::Missing));
/// # Ok::<(), bevy_tandem::identity::JwtKeyError>(())
/// ```
///
/// `jsonwebtoken` lets a process choose who does its cryptography. If nobody has chosen when the first verifier is
/// made, it will be the `rust_crypto` that this crate comes with.
#[derive(Clone)]
pub struct JwtVerifier {
    key: DecodingKey,
    validation: Validation,
    leeway: Duration,
}

/// Why there is no [`JwtVerifier`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtKeyError {
    /// A secret that can be found by trying.
    #[error(
        "a secret for HS256 has at least {MIN_SECRET_BYTES} bytes, not {0}; make one with `openssl rand -hex 32`"
    )]
    ShortSecret(usize),
    /// A key file given as a secret. If it is a public key, then everybody knows the secret.
    #[error("this is a key in PEM form and not a secret; use the constructor of its algorithm")]
    PemAsSecret,
    /// Not a public key of that algorithm.
    #[error(
        "not a public key for {algorithm} in PEM form ({problem}); export one with `openssl pkey -pubout`"
    )]
    NotAPublicKey {
        /// Its name in the header of a token.
        algorithm: &'static str,
        /// What the parser said.
        problem: String,
    },
    /// An RSA key that can be broken.
    #[error(
        "an RSA key has at least {MIN_RSA_BITS} bits, not {0}; make a longer one, or use ES256 or EdDSA"
    )]
    WeakRsaKey(usize),
    /// Without an issuer or an audience, anyone's tokens for anything would do.
    #[error("name the issuer and the audience that tokens must have")]
    NobodyNamed,
}

impl JwtVerifier {
    /// Tokens signed with HS256: by a secret of [`MIN_SECRET_BYTES`] or more, which the back end and the game servers
    /// share. Who has it can also make tokens, so prefer the others where servers run on machines of others.
    ///
    /// # Errors
    ///
    /// If the secret is short or no secret, or a name is empty.
    pub fn hs256(secret: &[u8], issuer: &str, audience: &str) -> Result<Self, JwtKeyError> {
        if secret.trim_ascii_start().starts_with(b"-----BEGIN") {
            return Err(JwtKeyError::PemAsSecret);
        }
        if secret.len() < MIN_SECRET_BYTES {
            return Err(JwtKeyError::ShortSecret(secret.len()));
        }
        Self::new(
            Algorithm::HS256,
            DecodingKey::from_secret(secret),
            issuer,
            audience,
        )
    }

    /// Tokens signed with RS256, by the private half of this RSA key of 2,048 bits or more.
    ///
    /// # Errors
    ///
    /// If it is no such public key in PEM form, or a name is empty.
    pub fn rs256(public_key_pem: &[u8], issuer: &str, audience: &str) -> Result<Self, JwtKeyError> {
        let key = parse("RS256", public_key_pem, DecodingKey::from_rsa_pem)?;
        let components = rust_crypto::DEFAULT_PROVIDER
            .key_utils
            .rsa_pub_components_from_public_key;
        let (modulus, _) = key
            .try_get_as_bytes()
            .and_then(components)
            .map_err(|error| no_public_key("RS256", error))?;
        let bits = modulus.len() * 8
            - modulus
                .first()
                .map_or(0, |byte| byte.leading_zeros() as usize);
        if bits < MIN_RSA_BITS {
            return Err(JwtKeyError::WeakRsaKey(bits));
        }
        Self::new(Algorithm::RS256, key, issuer, audience)
    }

    /// Tokens signed with ES256, by the private half of this key on the curve P-256.
    ///
    /// # Errors
    ///
    /// If it is no such public key in PEM form, or a name is empty.
    pub fn es256(public_key_pem: &[u8], issuer: &str, audience: &str) -> Result<Self, JwtKeyError> {
        let key = parse("ES256", public_key_pem, DecodingKey::from_ec_pem)?;
        Self::new(Algorithm::ES256, key, issuer, audience)
    }

    /// Tokens signed with `EdDSA`, by the private half of this Ed25519 key.
    ///
    /// # Errors
    ///
    /// If it is no such public key in PEM form, or a name is empty.
    pub fn eddsa(public_key_pem: &[u8], issuer: &str, audience: &str) -> Result<Self, JwtKeyError> {
        let key = parse("EdDSA", public_key_pem, DecodingKey::from_ed_pem)?;
        // A shorter one panics when it is used.
        if key.try_get_as_bytes().map_or(0, <[u8]>::len) != 32 {
            return Err(no_public_key("EdDSA", ErrorKind::InvalidEddsaKey.into()));
        }
        Self::new(Algorithm::EdDSA, key, issuer, audience)
    }

    fn new(
        algorithm: Algorithm,
        key: DecodingKey,
        issuer: &str,
        audience: &str,
    ) -> Result<Self, JwtKeyError> {
        if issuer.is_empty() || audience.is_empty() {
            return Err(JwtKeyError::NobodyNamed);
        }
        // Fails if somebody has chosen already. Without a choice, and if another crate of the game turned a second
        // provider on, `jsonwebtoken` would panic at the first token.
        let _ = rust_crypto::DEFAULT_PROVIDER.install_default();
        // What is wrong with the key is better told now than to the first player.
        (rust_crypto::DEFAULT_PROVIDER.verifier_factory)(&algorithm, &key)
            .map_err(|error| no_public_key(name(algorithm), error))?;

        let mut validation = Validation::new(algorithm);
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        // They would be compared with the system's clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        Ok(Self {
            key,
            validation,
            leeway: DEFAULT_LEEWAY,
        })
    }

    /// Sets how far the clocks of server and issuer may differ. [`DEFAULT_LEEWAY`] unless told.
    #[must_use]
    pub fn with_leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway;
        self
    }

    /// Returns when the token expires.
    fn check_time(&self, claims: &Claims, now_unix: u64) -> Result<f64, IdentityError> {
        // In a token, seconds may have a fraction.
        let (now, leeway) = (now_unix as f64, self.leeway.as_secs_f64());
        let expires = claims
            .exp
            .as_f64()
            .ok_or(IdentityError::Untrusted(Distrust::Expiry))?;
        if now >= expires + leeway {
            return Err(IdentityError::Expired);
        }
        match &claims.nbf {
            Value::Null => Ok(expires),
            nbf => match nbf.as_f64() {
                Some(begins) if now + leeway >= begins => Ok(expires),
                Some(_) => Err(IdentityError::NotYetValid),
                None => Err(IdentityError::Malformed),
            },
        }
    }
}

impl Verifier for JwtVerifier {
    fn verify(&self, credentials: &[u8], now_unix: u64) -> Result<Identity, IdentityError> {
        if credentials.is_empty() {
            return Err(IdentityError::Missing);
        }
        if credentials.len() > MAX_CREDENTIALS_BYTES {
            return Err(IdentityError::TooLong);
        }
        // RFC 7515, 4.1.11: who does not know such a thing must refuse, and nobody here knows any.
        let header =
            jsonwebtoken::decode_header(credentials).map_err(|_| IdentityError::Malformed)?;
        if header.crit.is_some() {
            return Err(IdentityError::Untrusted(Distrust::Extension));
        }
        let claims: Claims = jsonwebtoken::decode(credentials, &self.key, &self.validation)
            .map_err(|error| category(error.kind()))?
            .claims;
        let expires = self.check_time(&claims, now_unix)?;
        let Value::String(issuer) = claims.iss else {
            return Err(IdentityError::Untrusted(Distrust::Issuer));
        };
        let subject = match claims.sub {
            Value::String(subject) if is_subject(&subject) => subject,
            _ => return Err(IdentityError::Untrusted(Distrust::Subject)),
        };
        let name = match claims.name {
            Value::String(name) if validate_name(&name).is_ok() => Some(name),
            _ => None,
        };
        Ok(Identity {
            name,
            // What is beyond a u64 becomes its largest.
            expires: Some(expires as u64),
            ..Identity::verified(issuer, subject)
        })
    }
}

impl fmt::Debug for JwtVerifier {
    /// Keeps the key out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtVerifier")
            .field("algorithms", &self.validation.algorithms)
            .field("issuer", &self.validation.iss)
            .field("audience", &self.validation.aud)
            .field("leeway", &self.leeway)
            .finish_non_exhaustive()
    }
}

/// What is read of a token, whatever it is: `jsonwebtoken` looks at these before it looks at the claims itself, and
/// should get to do so. A claim that is there twice is an error.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Claims {
    iss: Value,
    sub: Value,
    exp: Value,
    nbf: Value,
    name: Value,
}

fn category(kind: &ErrorKind) -> IdentityError {
    use IdentityError::{Malformed, Untrusted};
    match kind {
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidKeyFormat => Untrusted(Distrust::Algorithm),
        ErrorKind::InvalidSignature => Untrusted(Distrust::Signature),
        ErrorKind::InvalidIssuer => Untrusted(Distrust::Issuer),
        ErrorKind::InvalidAudience => Untrusted(Distrust::Audience),
        ErrorKind::MissingRequiredClaim(claim) => Untrusted(match claim.as_str() {
            "iss" => Distrust::Issuer,
            "aud" => Distrust::Audience,
            "sub" => Distrust::Subject,
            _ => Distrust::Expiry,
        }),
        _ => Malformed,
    }
}

/// Whether it can be stored, and told from others by looking at it.
fn is_subject(subject: &str) -> bool {
    (1..=MAX_SUBJECT_CHARS).contains(&subject.chars().count())
        && subject.trim() == subject
        && subject.chars().all(is_visible)
}

/// Neither a control character nor one that only changes how others are drawn.
fn is_visible(character: char) -> bool {
    let is_format = matches!(
        character,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    );
    !character.is_control() && !is_format
}

fn parse(
    algorithm: &'static str,
    pem: &[u8],
    parse: fn(&[u8]) -> jsonwebtoken::errors::Result<DecodingKey>,
) -> Result<DecodingKey, JwtKeyError> {
    parse(pem).map_err(|error| no_public_key(algorithm, error))
}

fn no_public_key(algorithm: &'static str, error: jsonwebtoken::errors::Error) -> JwtKeyError {
    JwtKeyError::NotAPublicKey {
        algorithm,
        problem: error.to_string(),
    }
}

fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::HS256 => "HS256",
        Algorithm::RS256 => "RS256",
        Algorithm::ES256 => "ES256",
        _ => "EdDSA",
    }
}
