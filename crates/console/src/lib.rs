//! People look: the management API.
