//! `postrider tokens …`

use serde_json::json;

use super::Failure;
use crate::{
    api::Api,
    cli::Tokens,
    output::{self, say},
    settings::Settings,
};

const COLUMNS: &[output::Column] = &[
    ("id", "/id"),
    ("name", "/name"),
    ("tenant", "/tenant"),
    ("scopes", "/scopes"),
    ("created_at", "/created_at"),
    ("expires_at", "/expires_at"),
];

pub(super) async fn run(settings: &Settings, command: Tokens) -> Result<(), Failure> {
    match command {
        Tokens::List { paging, listing } => {
            let query = [
                ("limit", Some(paging.limit.to_string())),
                ("cursor", paging.cursor),
            ];
            let api = Api::new(&listing.remote, settings)?;
            output::list(
                &api.get("/v1/tokens", &query).await?,
                COLUMNS,
                listing.output,
            );
        }
        Tokens::Create {
            name,
            scopes,
            tenant,
            expires_at,
            listing,
        } => {
            let body = json!({
                "name": name, "scopes": scopes, "tenant": tenant, "expires_at": expires_at,
            });
            let api = Api::new(&listing.remote, settings)?;
            output::one(&api.post("/v1/tokens", &body).await?, listing.output);
        }
        Tokens::Delete { id, remote } => {
            Api::new(&remote, settings)?
                .delete(&format!("/v1/tokens/{id}"))
                .await?;
            say!("revoked {id}");
        }
    }
    Ok(())
}
