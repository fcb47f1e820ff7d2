//! Who is calling, and what they may do.

use serde::{Deserialize, Serialize};

use crate::id::{Tenant, TokenId};

/// What a token allows. `Admin` allows everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Publish events.
    Publish,
    /// Create, change and delete subscriptions; redrive dead letters.
    Manage,
    /// Read everything of the tenant.
    Read,
    /// All of the above, and tokens.
    Admin,
}

impl Scope {
    /// Every scope, for messages that list them.
    pub const ALL: &'static [Self] = &[Self::Publish, Self::Manage, Self::Read, Self::Admin];

    /// The word users write.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Manage => "manage",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

/// The authenticated caller of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The token used; `None` for the bootstrap token and for an open loopback server.
    pub token: Option<TokenId>,
    /// The only tenant the caller may see; `None` sees all.
    pub tenant: Option<Tenant>,
    /// What the caller may do.
    pub scopes: Vec<Scope>,
}

impl Principal {
    /// The bootstrap administrator, or anybody on an open loopback server.
    pub fn administrator() -> Self {
        Self {
            token: None,
            tenant: None,
            scopes: vec![Scope::Admin],
        }
    }

    /// Whether the caller may do what needs `scope`. Managing includes reading.
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.iter().any(|held| {
            *held == scope
                || *held == Scope::Admin
                || (*held == Scope::Manage && scope == Scope::Read)
        })
    }
}
