//! API tokens: `pr_<id>_<secret>`, of which only a keyed hash of the secret is kept.

use event::{
    Tenant, TokenId,
    access::{Principal, Scope},
};
use jiff::Timestamp;
use secrecy::SecretString;
use subtle::ConstantTimeEq;

use crate::{
    Error, Page, Paging, Store, Token,
    crypt::random,
    cursor::{Cursor, Wanted},
    database::{Statement, within},
    time,
};

const PREFIX: &str = "pr_";
const SECRET_BYTES: usize = 32;

/// id, name, tenant, scopes, created, expires.
type Row = (String, String, Option<String>, String, i64, Option<i64>);

impl Store {
    /// Makes a token; the second is its whole text, `pr_<id>_<secret>`, known only now.
    pub async fn create_token(
        &self,
        name: &str,
        tenant: Option<Tenant>,
        scopes: Vec<Scope>,
        expires_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(Token, SecretString), Error> {
        let id = uuid::Uuid::now_v7().simple().to_string();
        let secret = hex(&random::<SECRET_BYTES>()?);
        let token = Token {
            id: parse_id(&id)?,
            // PostgreSQL has no text with a zero byte.
            name: name.replace('\0', "\u{fffd}"),
            tenant,
            scopes,
            created_at: now,
            expires_at,
        };
        let hash = self.token_hash(&id, &secret)?;
        let scopes: Vec<_> = token.scopes.iter().map(|scope| scope.word()).collect();
        within(async {
            let mut lease = self.database().write().await?;
            sqlx::query(
                "INSERT INTO tokens (id, name, tenant, scopes, hash, created_at, expires_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
            )
            .bind(&id)
            .bind(&token.name)
            .bind(token.tenant.as_ref().map(Tenant::as_str))
            .bind(scopes.join(" "))
            .bind(hash.to_vec())
            .bind(time::write(now))
            .bind(expires_at.map(time::write))
            .execute(&mut *lease)
            .await?;
            lease.commit().await
        })
        .await?;
        Ok((token, format!("{PREFIX}{id}_{secret}").into()))
    }

    /// A page of tokens.
    pub async fn tokens(&self, paging: &Paging) -> Result<Page<Token>, Error> {
        let wanted = Wanted::new("tokens", paging)?;
        within(async {
            let mut statement = Statement::new(
                "SELECT id, name, tenant, scopes, created_at, expires_at FROM tokens WHERE 1 = 1",
            );
            if let Some(after) = &wanted.after {
                statement
                    .text(" AND (created_at, id) > (")
                    .value(after.at)?;
                statement.text(", ").value(after.id.as_str())?.text(")");
            }
            statement
                .text(" ORDER BY created_at, id LIMIT ")
                .value(wanted.fetch())?;
            let rows: Vec<Row> = self.database().rows(statement).await?;
            wanted.page(
                rows,
                |row| Cursor {
                    at: row.4,
                    id: row.0.clone(),
                },
                read,
            )
        })
        .await
    }

    /// Revokes a token at once; false when there was none.
    pub async fn delete_token(&self, id: &TokenId) -> Result<bool, Error> {
        within(async {
            let mut lease = self.database().write().await?;
            let done = sqlx::query("DELETE FROM tokens WHERE id = $1")
                .bind(id.as_str())
                .execute(&mut *lease)
                .await?;
            lease.commit().await?;
            Ok(done.rows_affected() == 1)
        })
        .await
    }

    /// Whose token a text is; `None` for anything else, in constant time over the secret.
    pub async fn authenticate(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<Option<Principal>, Error> {
        let Some((id, secret)) = split(token) else {
            return Ok(None);
        };
        let given = self.token_hash(id, secret)?;
        within(async {
            let mut lease = self.database().read().await?;
            type Found = (Option<String>, String, Vec<u8>, Option<i64>);
            let row: Option<Found> =
                sqlx::query_as("SELECT tenant, scopes, hash, expires_at FROM tokens WHERE id = $1")
                    .bind(id)
                    .fetch_optional(&mut *lease)
                    .await?;
            lease.release();
            let Some((tenant, scopes, hash, expires_at)) = row else {
                return Ok(None);
            };
            let same = bool::from(given.as_slice().ct_eq(&hash));
            let live = expires_at.is_none_or(|end| time::write(now) < end);
            if !same || !live {
                return Ok(None);
            }
            Ok(Some(Principal {
                token: Some(parse_id(id)?),
                tenant: tenant.as_deref().map(parse_tenant).transpose()?,
                scopes: parse_scopes(&scopes)?,
            }))
        })
        .await
    }

    /// Whether any token exists.
    pub async fn has_tokens(&self) -> Result<bool, Error> {
        within(async {
            let mut lease = self.database().read().await?;
            let row: Option<(String,)> = sqlx::query_as("SELECT id FROM tokens LIMIT 1")
                .fetch_optional(&mut *lease)
                .await?;
            lease.release();
            Ok(row.is_some())
        })
        .await
    }

    fn token_hash(&self, id: &str, secret: &str) -> Result<[u8; 32], Error> {
        let keys = self.keys();
        let hash = blake3::keyed_hash(keys.token_key()?, format!("{id}_{secret}").as_bytes());
        Ok(hash.into())
    }
}

/// Id and secret of a text that has the form of a token.
fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.strip_prefix(PREFIX)?.split_once('_')?;
    let is_hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (id.len() == 32 && secret.len() == 2 * SECRET_BYTES && is_hex(id) && is_hex(secret))
        .then_some((id, secret))
}

fn read((id, name, tenant, scopes, created_at, expires_at): Row) -> Result<Token, Error> {
    Ok(Token {
        id: parse_id(&id)?,
        name,
        tenant: tenant.as_deref().map(parse_tenant).transpose()?,
        scopes: parse_scopes(&scopes)?,
        created_at: time::read(created_at),
        expires_at: expires_at.map(time::read),
    })
}

fn parse_id(text: &str) -> Result<TokenId, Error> {
    TokenId::parse(text).map_err(|error| Error::Fatal(format!("token {text}: {error}")))
}

fn parse_tenant(text: &str) -> Result<Tenant, Error> {
    Tenant::parse(text).map_err(|error| Error::Fatal(format!("a token's tenant: {error}")))
}

/// A word that is not known is an error, not a token with less: it was written by a newer version.
fn parse_scopes(text: &str) -> Result<Vec<Scope>, Error> {
    let scope = |word: &str| {
        Scope::ALL
            .iter()
            .copied()
            .find(|scope| scope.word() == word)
            .ok_or_else(|| {
                Error::Fatal(format!(
                    "a token's scope {word:?} is not known to this version"
                ))
            })
    };
    text.split_whitespace().map(scope).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_form_is_looked_up() {
        let (id, secret) = ("0".repeat(32), "a".repeat(64));
        let token = format!("pr_{id}_{secret}");
        assert_eq!(split(&token), Some((id.as_str(), secret.as_str())));
        for wrong in [
            String::new(),
            "pr_".into(),
            "pr__".into(),
            format!("px_{id}_{secret}"),
            format!("pr_{id}{secret}"),
            format!("pr_{id}_{secret}a"),
            format!("pr_{id}_{}", "A".repeat(64)),
            format!("pr_{}_{secret}", "é".repeat(16)),
        ] {
            assert_eq!(split(&wrong), None, "{wrong}");
        }
    }
}
